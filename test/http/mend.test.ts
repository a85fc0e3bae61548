/** Peers that were left with less than they should have get it back when the fleet has it again, without losing anything. */
import type { Peer } from '@katafract/shared/api';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';

const database = useDatabase();
let controller: TestController;
const exits: FakeExit[] = [];

beforeAll(async () => {
  controller = await startController(database.url, { env: { KATAFRACT_MOVE_GRACE_SECONDS: '0' } });
  await controller.addRegion('fra', 50, 8);
  await controller.addRegion('ams', 52, 5);
});
afterAll(async () => {
  for (const exit of exits) await exit.leave();
  await controller.close();
});

async function join(node: string): Promise<FakeExit> {
  const exit = await startExit(controller, { node, region: node.slice(0, 3) });
  exits.push(exit);
  return exit;
}
const placed = (peer: Peer) => peer.exits.map(({ node, role, status }) => `${node} ${role} ${status}`);

it('a standby that there was no node for, and the way home from abroad', async () => {
  const fra = await join('fra-1');
  const { sigil } = await controller.mint('plus');
  const { body } = await controller.provision(sigil, newKey(), 'fra');
  const read = async () =>
    (await controller.call<Peer>('GET', `/v1/peers/${body.id}`, { token: sigil })).body;
  const becomes = (wanted: string[]) =>
    waitFor(`the peer to be on ${wanted}`, async () => placed(await read()).join() === wanted.join());
  expect(placed(body)).toEqual(['fra-1 primary active']);

  const ams = await join('ams-1');
  await becomes(['fra-1 primary active', 'ams-1 standby active']);
  expect(ams.table.has(body.publicKey)).toBe(true);

  await controller.operate('POST', '/v1/admin/nodes/fra-1/drain');
  await becomes(['ams-1 primary active']);
  await waitFor('fra-1 to be empty', async () => {
    const drain = await controller.operate<{ state: string }>('GET', '/v1/admin/nodes/fra-1/drain');
    return drain.state === 'done';
  });
  expect(fra.table.size).toBe(0);

  await controller.operate('PATCH', '/v1/admin/nodes/fra-1', { state: 'active' });
  await becomes(['fra-1 primary active', 'ams-1 standby active']);
  expect(fra.table.has(body.publicKey)).toBe(true);

  const { items } = await controller.operate<{
    items: { detail: { why: string; to: { reason: string }[] } }[];
  }>('GET', `/v1/admin/audit?action=peer.replaced&subject=peer:${body.id}`);
  expect(items.map(({ detail: { why, to } }) => [why, ...to.map(({ reason }) => reason)])).toEqual([
    ['mended', 'home', 'kept'],
    ['drain', 'promoted'],
    ['mended', 'kept', 'nearest'],
  ]);
});
