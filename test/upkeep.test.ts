/**
 * Releases and reboots with real agents, helpers and tunnels. Two devices ping without a pause while their exits are
 * updated: a good release loses nothing, one that does not start is put back on the node by its own helper and stops in
 * the canary wave, and the tunnels notice neither. An exit that is leased a reboot takes it once and comes back.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import { buildRelease, Maintenance } from './lab/maintenance.ts';
import { INTERNET } from './lab/network.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';

interface Rollout {
  id: string;
  state: string;
  reason: string | null;
  nodes: { node: string; state: string; reason: string | null }[];
}

const INTERVAL_MS = 100;
/** For a release that does not start, until the helper puts the old one back. */
const PATIENCE_SECONDS = 5;

const database = useDatabase();
const fleet = useLab(() => ({
  exits: [
    { name: 'fra-1', region: 'fra' },
    { name: 'hel-1', region: 'hel' },
  ],
  devices: 2,
  database: database.url,
}));
const machines = new Map<string, Maintenance>();

beforeAll(async () => {
  const { lab } = fleet;
  const next = await buildRelease('0.2.0', join(lab.folder, 'next.mjs'));
  const broken = join(lab.folder, 'broken.mjs');
  writeFileSync(broken, 'process.exit(1);\n');
  for (const exit of lab.exits) {
    const machine = new Maintenance(exit, PATIENCE_SECONDS).installed('0.1.0');
    machines.set(exit.name, machine.offer('0.2.0', next).offer('0.3.0', broken));
  }
});
afterAll(async () => {
  for (const machine of machines.values()) await machine.close();
});

const done = () => [...machines].map(([name, { done }]) => `${name}: ${done.join(' ')}`);

/** Rolls a version out and waits for its end. */
async function roll(version: string): Promise<Rollout> {
  const { controller } = fleet.lab;
  const wish = { version, soakSeconds: 1, timeoutSeconds: 60 };
  const { id } = await controller.operate<{ id: string }>('POST', '/v1/admin/rollouts', wish);
  return waitFor(`the rollout of ${version} to end`, async () => {
    const rollout = await controller.operate<Rollout>('GET', `/v1/admin/rollouts/${id}`);
    return /^(?:done|rolled_back|cancelled)$/.test(rollout.state) && rollout;
  });
}

test('a good release and a bad one: not a ping is lost', async () => {
  const { lab } = fleet;
  const sigil = await lab.mintSigil();
  const regions = ['fra', 'hel'];
  const pings = await Promise.all(
    lab.devices.map(async (device, at) => {
      await lab.connectDevice(device, sigil, regions[at] ?? '');
      return device.startPing(INTERNET.ipv4, INTERVAL_MS);
    }),
  );
  const good = await roll('0.2.0');
  expect(good.nodes.map(({ node, state }) => `${node} ${state}`).sort()).toEqual([
    'fra-1 updated',
    'hel-1 updated',
  ]);
  expect(good.state).toBe('done');
  expect(done()).toEqual(['fra-1: restart', 'hel-1: restart']);

  const bad = await roll('0.3.0');
  const [canary, other] = bad.nodes;
  expect(bad.state).toBe('rolled_back');
  expect(canary).toMatchObject({ state: 'reverted' });
  expect(other).toMatchObject({ state: 'waiting' });
  expect(bad.reason).toBe(`canary failed: ${canary?.node} (not_installed)`);
  // once to the new one, once back, and the other exit not at all
  expect(machines.get(canary?.node ?? '')?.done).toEqual(['restart', 'restart', 'restart']);
  expect(machines.get(other?.node ?? '')?.done).toEqual(['restart']);

  for (const ping of pings) {
    const { sent, lost } = await ping.stop();
    expect(lost).toEqual([]);
    expect(sent).toBeGreaterThan(50);
  }
  for (const { faults } of machines.values()) expect(faults).toEqual([]);
});

test('an exit that is leased a reboot takes it once, and is what it was', async () => {
  const { lab } = fleet;
  const { controller } = lab;
  const before = await lab.exit('hel-1').peers();
  const wish = { anyTime: true };
  const { id } = await controller.operate<{ id: string }>('POST', '/v1/admin/nodes/hel-1/reboot', wish);
  await waitFor('it to be over', async () => {
    const { items } = await controller.operate<{ items: { id: string; state: string }[] }>(
      'GET',
      '/v1/admin/reboots',
    );
    return items.find((one) => one.id === id)?.state === 'done';
  });
  expect(machines.get('hel-1')?.done.filter((what) => what === 'reboot')).toEqual(['reboot']);
  const keys = (peers: typeof before) => peers.map(({ publicKey }) => publicKey).sort();
  expect(keys(await lab.exit('hel-1').peers())).toEqual(keys(before));
  // nobody took it for dead
  const { items } = await controller.operate<{ items: { detail: { to: string } }[] }>(
    'GET',
    '/v1/admin/audit?action=node.health_changed&subject=node:hel-1',
  );
  expect(items.map(({ detail }) => detail.to)).not.toContain('down');
});
