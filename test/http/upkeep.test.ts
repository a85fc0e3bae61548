/**
 * Releases and reboots as operators have them, with a whole controller and exits that obey: a good release goes out in
 * waves, a bad one stops at the canary and goes back by itself, and neighbours never reboot together. What the rules
 * do in every other case is proved beside them (controller/src/fleet/upkeep).
 */
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { startExit } from './fake-exit.ts';
import { type Release, UpkeepExit } from './upkeep-exit.ts';

interface Rollout {
  id: string;
  state: string;
  standing: string;
  reason: string | null;
  waves: number;
  counts: Record<string, number>;
  nodes: { node: string; wave: number; state: string; before: string | null; reason: string | null }[];
}
interface Reboot {
  id: string;
  node: string;
  state: string;
  waitsFor: string | null;
  wantedBy: string;
}

const database = useDatabase();
let controller: TestController;
const exits = new Map<string, UpkeepExit>();
const releases: Record<string, Release> = {};
const NODES = ['fra-1', 'fra-2', 'ams-1', 'sin-1'];

beforeAll(async () => {
  controller = await startController(database.url);
  await controller.addRegion('fra', 50.1, 8.7);
  await controller.addRegion('ams', 52.4, 4.9);
  await controller.addRegion('sin', 1.4, 103.8);
  for (const node of NODES) {
    const exit = await startExit(controller, { node, region: node.slice(0, 3) });
    exits.set(node, new UpkeepExit(exit, controller.brokerUrl, (version) => releases[version] ?? 'good'));
  }
  await waitFor('the exits', () =>
    controller.ctx.fleet.roster
      .regions()
      .every(({ nodes }) => nodes.every(({ state }) => state === 'active')),
  );
  for (const { exit } of exits.values()) exit.beat();
});
afterAll(async () => {
  for (const one of exits.values()) {
    one.stop();
    await one.exit.leave();
  }
  await controller.close();
});

const start = (version: string) =>
  controller.operate<Rollout>('POST', '/v1/admin/rollouts', { version, soakSeconds: 1, timeoutSeconds: 5 });
const read = (id: string) => controller.operate<Rollout>('GET', `/v1/admin/rollouts/${id}`);
const ended = (id: string, state: string) =>
  waitFor(`the rollout to be ${state}`, async () => {
    const rollout = await read(id);
    return rollout.state === state && rollout;
  });
const versions = () => [...exits.values()].map(({ version }) => version);

it('a good release reaches every node, wave by wave, and no neighbours together', async () => {
  const { id, waves } = await start('0.2.0');
  expect(waves).toBeGreaterThan(2);
  const other = { token: controller.operatorToken, body: { version: '0.3.0' } };
  expect(await controller.call('POST', '/v1/admin/rollouts', other)).toMatchObject({ code: 'rollout_open' });
  const { nodes, standing, counts } = await ended(id, 'done');
  expect(versions()).toEqual(NODES.map(() => '0.2.0'));
  expect(counts).toEqual({ updated: 4 });
  expect(nodes.every(({ before }) => before === '0.1.0')).toBe(true);
  expect(standing).toBe('0.2.0 is out; nodes: 4 updated');
  const steps = await controller.operate<{
    items: { at: string; detail: { node: string; state: string } }[];
  }>('GET', `/v1/admin/audit?action=rollout.node_changed&subject=rollout:${id}&limit=100`);
  const order = steps.items.reverse().map(({ detail }) => `${detail.node} ${detail.state}`);
  const open = new Set<string>();
  for (const [node = '', state] of order.map((text) => text.split(' '))) {
    if (state !== 'updating') open.delete(node.slice(0, 3));
    else {
      // fra and ams are neighbours
      if (node.startsWith('fra')) expect(open.has('ams')).toBe(false);
      if (node.startsWith('ams')) expect(open.has('fra')).toBe(false);
      open.add(node.slice(0, 3));
    }
  }
  expect(order).toHaveLength(8);
  const health = await controller.operate<{ items: unknown[] }>(
    'GET',
    '/v1/admin/audit?action=node.health_changed',
  );
  expect(health.items).toEqual([]);
});

it('comes back sick: only the canary had it, and goes back by itself', async () => {
  releases['0.3.0'] = 'sick';
  const { id } = await start('0.3.0');
  const { nodes, reason, standing } = await ended(id, 'rolled_back');
  const [canary, ...others] = nodes;
  expect(canary).toMatchObject({ wave: 0, state: 'reverted', before: '0.2.0' });
  expect(others.map(({ state }) => state)).toEqual(['waiting', 'waiting', 'waiting']);
  expect(reason).toMatch(/^canary failed: .* \(sick\)$/);
  expect(standing).toMatch(/^0\.3\.0 went back: canary failed/);
  expect(versions()).toEqual(NODES.map(() => '0.2.0'));
  expect([...exits.values()].filter(({ history }) => history.includes('0.3.0'))).toHaveLength(1);
  const again = await controller.call('POST', `/v1/admin/rollouts/${id}/resume`, {
    token: controller.operatorToken,
  });
  expect(again).toMatchObject({ status: 409, code: 'rollout_over' });
});

const list = () =>
  controller.operate<{ stopped: string | null; items: Reboot[] }>('GET', '/v1/admin/reboots');
const want = (node: string) =>
  controller.operate<Reboot>('POST', `/v1/admin/nodes/${node}/reboot`, { anyTime: true });
const rebooted = (node: string) => exits.get(node)?.history.filter((what) => what === 'reboot').length;

it('systems that need it reboot by a lease each, and a neighbour waits', async () => {
  const ams = exits.get('ams-1');
  if (!ams) throw new Error('no ams-1');
  ams.rebootNeeded = true;
  ams.exit.beat();
  await waitFor('it to be wanted', async () => {
    controller.ctx.jobs.wake('upkeep.reboots');
    return (await list()).items.some(({ wantedBy }) => wantedBy === 'system');
  });
  // neighbours: ams and fra, fra and sin
  await controller.operate('PATCH', '/v1/admin/nodes/sin-1', { state: 'cordoned' });
  const [first, second] = [await want('ams-1'), await want('fra-1')];
  controller.ctx.jobs.wake('upkeep.reboots');
  expect(first.wantedBy).toBe('system');
  await waitFor('it to be over', async () => {
    const { items } = await list();
    return items.find(({ id }) => id === first.id)?.state === 'done';
  });
  expect(rebooted('ams-1')).toBe(1);
  const { stopped, items } = await list();
  expect(stopped).toBeNull();
  expect(items.map(({ node, state }) => `${node} ${state}`)).toEqual(['ams-1 done', 'fra-1 wanted']);
  expect(rebooted('fra-1')).toBe(0);
  expect(await controller.operate('DELETE', `/v1/admin/reboots/${second.id}`)).toMatchObject({
    state: 'cancelled',
  });
  await controller.operate('PATCH', '/v1/admin/nodes/sin-1', { state: 'active' });
});

it('never comes back: what is down is not waited for longer than it has to be, and the fleet keeps its version', async () => {
  releases['0.4.0'] = 'gone';
  const { id } = await start('0.4.0');
  const { nodes, reason } = await ended(id, 'rolled_back');
  expect(nodes[0]).toMatchObject({ state: 'failed', reason: 'not_reverted' });
  expect(reason).toMatch(/^canary failed: .* \((?:late|down)\)$/);
  expect(versions()).toEqual(NODES.map(() => '0.2.0'));
  await waitFor(
    'no rollout to be open',
    async () => (await controller.metric('katafract_rollouts_open')) === 0,
  );
  for (const { exit } of exits.values()) expect(exit.faults).toEqual([]);
});
