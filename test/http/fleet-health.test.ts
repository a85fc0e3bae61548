/**
 * An exit that falls silent is found out, its peers are on others without its help, and when it comes back it holds
 * nothing of them; with most of the fleet silent at once the controller doubts itself and does nothing. In real time:
 * what is proved here is that the real parts together do what fleet/health.test.ts proves of the rules.
 */
import type { Peer } from '@katafract/shared/api';
import { PeerList } from '@katafract/shared/api';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';

interface NodeView {
  id: string;
  state: string;
  lifecycle: string;
  condition: { state: string; reason: string } | null;
  peers: number;
  generation: number;
  lastSeenAt: string;
  health: { at: number };
}

const database = useDatabase();
let controller: TestController;
const exits = new Map<string, FakeExit>();
const NODES = ['fra-1', 'fra-2', 'hel-1', 'hel-2'];

beforeAll(async () => {
  controller = await startController(database.url);
  await controller.addRegion('fra');
  await controller.addRegion('hel', 60, 25);
  for (const node of NODES) {
    exits.set(node, await startExit(controller, { node, region: node.slice(0, 3) }));
  }
  await waitFor('the exits', () =>
    controller.ctx.fleet.roster
      .regions()
      .every(({ nodes }) => nodes.every(({ state }) => state === 'active')),
  );
});
afterAll(async () => {
  for (const exit of exits.values()) await exit.leave();
  await controller.close();
});

const exit = (node: string) => {
  const found = exits.get(node);
  if (!found) throw new Error(`no exit ${node}`);
  return found;
};

async function nodeOf(id: string): Promise<NodeView> {
  const { items } = await controller.operate<{ items: NodeView[] }>('GET', '/v1/admin/nodes');
  const node = items.find((one) => one.id === id);
  if (!node) throw new Error(`no node ${id}`);
  return node;
}

async function peersOf(sigil: string): Promise<Peer[]> {
  const { body } = await controller.call('GET', '/v1/peers?limit=100', { token: sigil });
  return PeerList.parse(body).items;
}

async function healthOf(node: string): Promise<string[]> {
  const { items } = await controller.operate<{ items: { detail: { to: string; reason: string } }[] }>(
    'GET',
    `/v1/admin/audit?action=node.health_changed&subject=node:${node}`,
  );
  return items.map(({ detail }) => `${detail.to} ${detail.reason}`).reverse();
}

const onExits = (peer: Peer) => peer.exits.map(({ node, role }) => `${node} ${role}`);

it('an exit that falls silent is down, and its peers are active elsewhere with nobody asked', async () => {
  const { sigil } = await controller.mint('ops');
  await Promise.all(Array.from({ length: 40 }, () => controller.provision(sigil, newKey(), 'fra')));
  await waitFor('the standbys', async () =>
    (await peersOf(sigil)).every((peer) => peer.exits.every(({ status }) => status === 'active')),
  );
  const before = await peersOf(sigil);
  const touched = before.filter((peer) => onExits(peer).some((at) => at.startsWith('fra-1')));
  expect(touched.length).toBeGreaterThan(10);
  const dead = exit('fra-1');
  const held = dead.table.size;
  expect(held).toBe((await nodeOf('fra-1')).peers);
  await dead.leave();
  await waitFor('fra-1 to be down', async () => (await nodeOf('fra-1')).state === 'down');
  await waitFor('its peers elsewhere', async () => (await nodeOf('fra-1')).peers === 0);
  const after = await waitFor('all of them acknowledged', async () => {
    const peers = await peersOf(sigil);
    return peers.every((peer) => peer.exits.every(({ status }) => status === 'active')) && peers;
  });
  for (const peer of after) {
    const was = before.find(({ id }) => id === peer.id);
    expect(peer.addresses).toEqual(was?.addresses);
    expect(peer.exits.length).toBe(2);
    expect(onExits(peer).join()).not.toContain('fra-1');
    // whoever did not need to move did not, and a device finds its standby where it had it
    const [first, second] = was ? onExits(was) : [];
    if (!first?.startsWith('fra-1') && !second?.startsWith('fra-1'))
      expect(onExits(peer)).toEqual([first, second]);
    if (first?.startsWith('fra-1')) expect(`${peer.exits[0]?.node} standby`).toBe(second);
    for (const { node } of peer.exits) expect(exit(node).table.has(peer.publicKey)).toBe(true);
  }
  expect(await healthOf('fra-1')).toEqual(['suspect silent', 'down silent']);
  const moves = await controller.operate<{ items: { detail: { why: string; to: { reason: string }[] } }[] }>(
    'GET',
    '/v1/admin/audit?action=peer.replaced&limit=100',
  );
  expect(moves.items.length).toBe(touched.length);
  for (const { detail } of moves.items) {
    expect(detail.why).toBe('down');
    expect(detail.to.every(({ reason }) => reason !== '')).toBe(true);
  }
});

it('one that comes back holds nothing stale, and is trusted again only after several good heartbeats', async () => {
  const back = exit('fra-1');
  expect(back.table.size).toBeGreaterThan(0);
  await back.connect(controller.brokerUrl);
  await waitFor('its table to be empty', () => back.table.size === 0);
  await waitFor('it to be well', async () => (await nodeOf('fra-1')).state === 'active');
  expect(await healthOf('fra-1')).toEqual(['suspect silent', 'down silent', 'suspect returned', 'ok well']);
  expect(back.generation).toBe((await nodeOf('fra-1')).generation);
  expect(back.faults).toEqual([]);
  expect(await controller.metric('katafract_nodes_health', 'state="ok"')).toBe(NODES.length);
});

it('a last will makes an exit suspect at once; one whose heartbeats are lost is asked, answers, and stays well', async () => {
  exit('hel-1').hush();
  await waitFor('it to be noted', async () => {
    // a heartbeat that comes before the controller looks says that it is there after all
    exit('hel-2').say('presence', { v: 1, online: false });
    return (await nodeOf('hel-2')).state === 'suspect';
  });
  await waitFor('it to be well', async () => (await nodeOf('hel-2')).state === 'active');
  expect((await healthOf('hel-2')).slice(0, 2)).toEqual(['suspect left', 'ok well']);
  await waitFor('a good while without a heartbeat', async () => {
    const { lastSeenAt, health } = await nodeOf('hel-1');
    return Date.parse(lastSeenAt) - health.at > 35_000;
  });
  expect((await nodeOf('hel-1')).state).toBe('active');
  expect(await healthOf('hel-1')).toEqual([]);
});

it('with most of the fleet silent the controller doubts itself: an alarm, and nothing is moved', async () => {
  const { sigil } = await controller.mint('plus');
  const { body } = await controller.provision(sigil, newKey(), 'fra');
  const silent = NODES.slice(0, 3);
  for (const node of silent) await exit(node).leave();
  await waitFor('the alarm', async () => (await controller.metric('katafract_fleet_implausible')) === 1);
  const silentFor = async (node: string) => Date.now() - Date.parse((await nodeOf(node)).lastSeenAt);
  for (const node of silent) {
    await waitFor('it to be overdue by far', async () => (await silentFor(node)) > 32_000);
    expect((await nodeOf(node)).condition?.state).toBe('suspect');
  }
  expect(onExits((await peersOf(sigil))[0] ?? body)).toEqual(onExits(body));
  expect(controller.logs.some((line) => line.includes('more than half of the fleet'))).toBe(true);
  for (const node of silent) await exit(node).connect(controller.brokerUrl);
  await waitFor(
    'them to be well',
    async () => (await controller.metric('katafract_nodes_health', 'state="ok"')) === 4,
  );
  expect(await controller.metric('katafract_fleet_implausible')).toBe(0);
});
