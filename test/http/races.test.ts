/**
 * Many callers at once, on one controller and on two: limits hold exactly, one key is one peer, and every stored sum
 * equals its recount afterwards.
 */
import type { Peer } from '@katafract/shared/api';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { type Answer, startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import { expectConsistent } from './tables.ts';

const database = useDatabase();
let one: TestController;
let two: TestController;
const exits: FakeExit[] = [];

beforeAll(async () => {
  one = await startController(database.url);
  two = await startController(database.url, { beside: one });
  await one.addRegion('fra', 50, 8);
  await one.addRegion('ams', 52, 5);
  // half of the fleet has its session at each controller
  exits.push(await startExit(one, { node: 'fra-1', region: 'fra' }));
  exits.push(await startExit(two, { node: 'fra-2', region: 'fra' }));
  exits.push(await startExit(one, { node: 'ams-1', region: 'ams' }));
  exits.push(await startExit(two, { node: 'ams-2', region: 'ams' }));
  for (const controller of [one, two]) {
    await waitFor('both regions', async () => {
      await controller.ctx.fleet.refresh();
      return controller.ctx.fleet.roster
        .regions()
        .every(({ nodes, available }) => available && nodes.length === 2);
    });
  }
});
afterAll(async () => {
  for (const exit of exits) await exit.leave();
  await two.close();
  await one.close();
});

const times = <T>(count: number, work: (index: number) => Promise<T>) =>
  Promise.all(Array.from({ length: count }, (_, index) => work(index)));
const at = (index: number) => (index % 2 === 0 ? one : two);
const region = (index: number) => (index % 3 === 0 ? 'ams' : 'fra');
const tally = (answers: readonly Answer[]) => {
  const counts: Record<string, number> = {};
  for (const { status, code } of answers) counts[code ?? status] = (counts[code ?? status] ?? 0) + 1;
  return counts;
};
/** Every exit has taken everything, and holds what the tables say. */
async function expectConverged(): Promise<void> {
  await expectConsistent(one);
  for (const exit of exits) {
    await waitFor(`${exit.node} to be level`, async () => {
      const [row] = await one.ctx.db.sql<{ generation: number }[]>`
        select generation::float8 from nodes where id = ${exit.node}`;
      return row?.generation === exit.generation;
    });
    const rows = await one.ctx.db.sql<{ key: string }[]>`
      select public_key as key from placements where node_id = ${exit.node} and not removed`;
    expect([...exit.table.keys()].sort()).toEqual(rows.map(({ key }) => key).sort());
    expect(exit.faults).toEqual([]);
  }
}

it('200 callers at once get exactly as many devices as the tier allows', async () => {
  const { sigil, subscription } = await one.mint('plus');
  const answers = await times(200, (index) => at(index).provision(sigil, newKey(), region(index)));
  expect(tally(answers)).toEqual({ 201: 5, device_limit: 195 });
  const [row] = await one.ctx.db.sql`select peer_count from subscriptions where id = ${subscription}`;
  expect(row?.peer_count).toBe(5);
  await expectConverged();
});

it('200 repetitions of one request make one peer, and all hear of it', async () => {
  const { sigil } = await one.mint('plus');
  const key = newKey();
  const answers = await times(200, (index) => at(index).provision(sigil, key, 'fra', 'the-same'));
  expect(tally(answers)).toEqual({ 201: 200 });
  expect(new Set(answers.map(({ body }) => body.id)).size).toBe(1);
  await expectConverged();
});

it('one public key is one peer, whoever asks first', async () => {
  const sigils = await times(8, async () => (await one.mint('plus')).sigil);
  const key = newKey();
  const answers = await Promise.all(sigils.map((sigil, index) => at(index).provision(sigil, key, 'fra')));
  expect(tally(answers)).toEqual({ 201: 1, public_key_in_use: 7 });
  await expectConverged();
});

it('a provision at one controller waits for an exit that is connected to the other', async () => {
  const { sigil } = await one.mint('pro');
  const answers = await times(8, (index) => at(index).provision(sigil, newKey(), region(index)));
  expect(answers.map(({ body }) => body.status)).toEqual(Array(8).fill('active'));
  const primaries = new Set(answers.map(({ body }) => body.exits[0]?.node));
  expect(primaries.size).toBeGreaterThan(1);
});

it('a storm of provisions, removals, rotations and moves leaves everything consistent', async () => {
  const { sigil } = await one.mint('ops');
  const made = (await times(60, (index) => at(index).provision(sigil, newKey(), region(index)))).map(
    ({ body }) => body,
  );
  const change = (peer: Peer, index: number) => {
    const path = `/v1/peers/${peer.id}`;
    const calls = [
      () => at(index).call('DELETE', path, { token: sigil }),
      () => at(index).call('PUT', `${path}/key`, { token: sigil, body: { publicKey: newKey() } }),
      () => at(index).call('POST', `${path}/move`, { token: sigil, body: { region: region(index + 1) } }),
      () => at(index).provision(sigil, newKey(), region(index)),
    ];
    return (calls[index % calls.length] ?? calls[0])?.();
  };
  const answers = await Promise.all([
    ...made.map(change),
    ...made.map((peer, index) => change(peer, index + 1)),
  ]);
  for (const answer of answers) expect([200, 201, 404]).toContain(answer?.status);
  await expectConverged();
});
