/**
 * The controller as it ships, killed (SIGKILL) in the middle of a drain and once more before the exits have answered:
 * when it is back it goes on where it was, every peer is moved once, and nobody was let go of too early.
 */
import { connect } from '@katafract/controller/platform/db';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { FakeExit, newKey } from './fake-exit.ts';
import { ShippedController } from './shipped.ts';

const PEERS = 1000;
const database = useDatabase();
let api: ShippedController;
const exits: FakeExit[] = [];

beforeAll(async () => {
  api = await ShippedController.run(database.url, { KATAFRACT_MOVE_GRACE_SECONDS: '0' });
  await api.addRegion('fra');
  await api.addRegion('hel', 60, 25);
  for (const node of ['fra-1', 'hel-1', 'hel-2']) {
    const exit = await FakeExit.enroll(api, { node, region: node.slice(0, 3) });
    await exit.connect(api.brokerUrl);
    exits.push(exit);
  }
});
afterAll(async () => {
  for (const exit of exits) await exit.leave();
  await api.close();
});

async function provision(sigil: string): Promise<void> {
  let left = PEERS;
  const caller = async () => {
    while (left-- > 0) expect((await api.provision(sigil, newKey(), 'fra')).status).toBe(201);
  };
  await Promise.all(Array.from({ length: 32 }, caller));
}

it('goes on with a drain where it was killed, and does no step twice', async () => {
  const [fra, hel, other] = exits;
  if (!fra || !hel || !other) throw new Error('three exits');
  await waitFor('the exits', async () => (await api.metric('katafract_node_connected')) === 3);
  const { sigil } = await api.mint('ops');
  await provision(sigil);
  const sql = connect(database.url, { max: 1 });
  const drain = async () => {
    const [row] = await sql<{ state: string; moved: number }[]>`select state, moved from drains`;
    return row;
  };
  for (const exit of [hel, other]) exit.pause();
  await api.operate('POST', '/v1/admin/nodes/fra-1/drain', {});
  await waitFor('a first batch', async () => ((await drain())?.moved ?? 0) > 0, { everyMs: 2 });
  await api.kill();
  const atKill = (await drain())?.moved ?? 0;
  expect(atKill).toBeGreaterThan(0);
  await api.start();
  await waitFor('all to have other exits', async () => (await drain())?.moved === PEERS);
  // nobody has answered, so everybody is still served
  expect(fra.table.size).toBe(PEERS);
  await api.kill();
  for (const exit of [hel, other]) exit.resume();
  await api.start();
  await waitFor('the drain to be done', async () => (await drain())?.state === 'done');
  await waitFor(
    'the tables',
    () => fra.table.size === 0 && hel.table.size === PEERS && other.table.size === PEERS,
  );
  const steps = await sql<{ count: number; peers: number }[]>`
    select count(*)::int as count, count(distinct subject)::int as peers from audit_log where action = 'peer.replaced'`;
  expect(steps[0]).toEqual({ count: PEERS, peers: PEERS });
  const [finished] = await sql`select count(*)::int as count from audit_log where action = 'drain.finished'`;
  expect(finished).toEqual({ count: 1 });
  await sql.end();
  for (const exit of exits) expect(exit.faults).toEqual([]);
});
