/**
 * Draining an exit: its peers are on others, acknowledged there, before it lets go of them; it can be halted, gone on
 * with and called off; an empty node may retire.
 */
import { type Peer, PeerList, type Region, RegionList } from '@katafract/shared/api';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';

interface Drain {
  state: string;
  overdue: boolean;
  deadline: string | null;
  total: number;
  moved: number;
  waiting: number;
  leaving: number;
  stranded: number;
}

const database = useDatabase();
let controller: TestController;
let exits: Map<string, FakeExit>;
let round = 0;
let sigil: string;

beforeAll(async () => {
  controller = await startController(database.url, { env: { KATAFRACT_MOVE_GRACE_SECONDS: '0' } });
});
afterAll(() => controller.close());

/** Each test has a region of its own, far from the others', with two exits. */
beforeEach(async () => {
  round++;
  exits = new Map();
  await controller.addRegion(`r${round}`, 0, round * 30);
  for (const at of ['a', 'b']) await join(at);
  ({ sigil } = await controller.mint('ops'));
  return async () => {
    for (const exit of exits.values()) await exit.leave();
    // gone for good, so that the next test's peers find no standby here and nobody waits for it
    for (const { node } of exits.values()) {
      await controller.ctx.db.sql`update nodes set state = 'retired' where id = ${node}`;
    }
    await controller.ctx.fleet.changed();
  };
});

async function join(at: string): Promise<void> {
  const exit = await startExit(controller, { node: `r${round}-${at}`, region: `r${round}` });
  exits.set(at, exit);
  await waitFor('the exit', () => controller.ctx.fleet.roster.node(exit.node).state === 'active');
}
function exit(at: string): FakeExit {
  const found = exits.get(at);
  if (!found) throw new Error(`no exit ${at}`);
  return found;
}
const drain = (at: string, step = '', body?: object) =>
  controller.operate<Drain>('POST', `/v1/admin/nodes/${exit(at).node}/drain${step}`, body);
const readDrain = (at: string) => controller.operate<Drain>('GET', `/v1/admin/nodes/${exit(at).node}/drain`);
const drained = (at: string) =>
  waitFor('the drain to be done', async () => {
    const now = await readDrain(at);
    return now.state === 'done' && now;
  });

/** Provisions peers until `onFirst` of them have their primary on the first exit. */
async function provision(count: number): Promise<Peer[]> {
  const answers = await Promise.all(
    Array.from({ length: count }, () => controller.provision(sigil, newKey(), `r${round}`)),
  );
  for (const { status } of answers) expect(status).toBe(201);
  await waitFor('standbys', async () =>
    (await peers()).every((one) => one.exits.every((at) => at.status === 'active')),
  );
  return peers();
}
async function peers(): Promise<Peer[]> {
  return PeerList.parse((await controller.call('GET', '/v1/peers?limit=100', { token: sigil })).body).items;
}
const places = (list: readonly Peer[]) =>
  Object.fromEntries(list.map(({ id, exits: at }) => [id, at.map(({ node, role }) => `${node} ${role}`)]));

describe('a drain', () => {
  it('lets go only of peers that their new exits have said they hold; then the node may retire', async () => {
    await provision(20);
    await join('c');
    exit('b').pause();
    exit('c').pause();
    const first = await drain('a');
    expect(first).toMatchObject({ state: 'running', total: 20, overdue: false });
    await waitFor('all to have other exits', async () => (await readDrain('a')).leaving === 20);
    // the hint for devices, and the way to where they should go
    const { body } = await controller.call('GET', '/v1/regions', { token: sigil });
    const hints = RegionList.parse(body).items.flatMap((region: Region) => region.exits);
    expect(hints.filter(({ draining }) => draining).map(({ node }) => node)).toEqual([exit('a').node]);
    const during = await peers();
    for (const { exits: at } of during) {
      expect(at.map(({ node, role }) => `${node} ${role}`)).toEqual([
        `${exit('b').node} primary`,
        `${exit('c').node} standby`,
        `${exit('a').node} leaving`,
      ]);
      expect(at.find(({ role }) => role === 'standby')?.status).toBe('pending');
    }
    // it has its turn, twice, and lets nothing go
    for (let turn = 0; turn < 2; turn++) await controller.ctx.peers.releaseLeft();
    expect(exit('a').table.size).toBe(20);
    const refused = await controller.call('POST', `/v1/admin/nodes/${exit('a').node}/retire`, {
      token: controller.operatorToken,
    });
    expect(refused.code).toBe('node_has_peers');
    exit('b').resume();
    exit('c').resume();
    expect(await drained('a')).toMatchObject({ moved: 20, waiting: 0, leaving: 0 });
    await waitFor('its table to be empty', () => exit('a').table.size === 0);
    expect([exit('b').table.size, exit('c').table.size]).toEqual([20, 20]);
    await controller.operate('POST', `/v1/admin/nodes/${exit('a').node}/retire`);
    for (const one of exits.values()) expect(one.faults).toEqual([]);
  });

  it('is paused, gone on with, and called off; what has moved stays where it is', async () => {
    await provision(5);
    const before = places(await peers());
    // while it is paused nothing moves, whatever the jobs do
    await drain('a');
    await drain('a', '/cancel');
    const { moved } = await readDrain('a');
    expect(await readDrain('a')).toMatchObject({ state: 'cancelled' });
    const after = places(await peers());
    const stayed = Object.keys(before).filter((id) => after[id]?.join() === before[id]?.join());
    expect(stayed.length).toBe(5 - moved);
    expect(
      (
        await controller.call('POST', `/v1/admin/nodes/${exit('a').node}/drain/pause`, {
          token: controller.operatorToken,
        })
      ).code,
    ).toBe('drain_over');

    await controller.ctx.db.transaction(async ({ sql }) => {
      // a pause that wins against the first batch: both are in one transaction here
      await sql`insert into drains (id, node_id, state, wanted_by, before, total, started_at)
        values (${crypto.randomUUID()}, ${exit('b').node}, 'paused', 'test', 'active', 5, now())`;
      await sql`update nodes set state = 'draining' where id = ${exit('b').node}`;
    });
    await controller.ctx.fleet.changed();
    for (let turn = 0; turn < 3; turn++) expect(await controller.ctx.peers.evacuate()).toBe(false);
    expect(await readDrain('b')).toMatchObject({ state: 'paused', moved: 0 });
    expect((await drain('b', '/resume')).state).toBe('running');
    expect(await drained('b')).toMatchObject({ leaving: 0, waiting: 0 });
    expect(exit('a').table.size).toBe(5);
  });

  it('waits for a place for peers that nobody can take, and says so; its deadline passes without cutting any off', async () => {
    await exit('b').leave();
    await controller.ctx.db
      .sql`update nodes set state = 'cordoned', capacity = 1 where id = ${exit('b').node}`;
    await controller.ctx.db.sql`update nodes set capacity = 3 where id = ${exit('a').node}`;
    await controller.ctx.fleet.changed();
    const { sigil: alone } = await controller.mint('free');
    const { body } = await controller.provision(alone, newKey(), `r${round}`);
    await drain('a', '', { deadline: new Date(Date.now() - 1000).toISOString() });
    const stuck = await waitFor('it to say so', async () => {
      const now = await readDrain('a');
      return now.stranded === 1 && now;
    });
    expect(stuck).toMatchObject({ state: 'running', overdue: true, waiting: 1 });
    const metrics = await controller.metrics();
    for (const name of ['drain_peers', 'drain_stranded_peers', 'drain_overdue'])
      expect(metrics).toContain(`katafract_${name}{node="${exit('a').node}"} 1\n`);
    expect(exit('a').table.has(body.publicKey)).toBe(true);
    await join('c');
    expect(await drained('a')).toMatchObject({ moved: 1, stranded: 0 });
    expect(await controller.metrics()).not.toContain('katafract_drain_overdue{');
    expect(exit('c').table.has(body.publicKey)).toBe(true);
  });

  it('is refused where there is none, or no such node', async () => {
    const ask = async (node: string, step: string) =>
      (
        await controller.call('POST', `/v1/admin/nodes/${node}/drain${step}`, {
          token: controller.operatorToken,
        })
      ).code;
    expect(await ask('nowhere', '')).toBe('node_unknown');
    expect(await ask('nowhere', '/pause')).toBe('node_unknown');
    expect(await ask(exit('a').node, '/resume')).toBe('drain_unknown');
    await provision(1);
    await drain('a');
    const patch = await controller.call('PATCH', `/v1/admin/nodes/${exit('a').node}`, {
      token: controller.operatorToken,
      body: { state: 'active' },
    });
    expect([200, 409]).toContain(patch.status); // done already, or still under way
    if (patch.status === 409) expect(patch.code).toBe('node_draining');
  });
});
