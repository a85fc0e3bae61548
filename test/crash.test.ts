/**
 * The agent is killed fifty times at random points, while peers come and go: no rule is ever doubled, the tunnel of a
 * device that has nothing to do with it loses no packet, one that scans without a pause reaches nothing, and in the end
 * the kernel holds what it should.
 */
import { PeerList } from '@katafract/shared/api';
import { expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import { Scan } from './isolation/scan.ts';
import { makeKeys } from './lab/device.ts';
import type { Exit } from './lab/exit.ts';
import type { Lab } from './lab/lab.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';

const KILLS = 50;
/** An agent's whole start, with its first pass, falls within this on a busy machine. */
const LONGEST_LIFE_MS = 1500;

const database = useDatabase();
const fleet = useLab(() => ({
  exits: [{ name: 'fra-1', region: 'fra' }],
  devices: 2,
  database: database.url,
  // provisions go on while there is no agent to acknowledge them
  controllerEnv: { KATAFRACT_ACK_TIMEOUT_MS: '100' },
}));

/** Adds and removes peers until told to stop, and leaves a few. */
async function churn(lab: Lab, sigil: string, stopped: () => boolean): Promise<void> {
  while (!stopped()) {
    const peer = await lab.provision(sigil, makeKeys().publicKey, 'fra');
    if (Math.random() < 0.7) await lab.controller.app('DELETE', `/v1/peers/${peer.id}`, sigil);
  }
}

/** No built-in chain jumps twice into one of ours, and no rule of ours is there twice. */
async function expectNoDoubles(exit: Exit): Promise<void> {
  for (const tool of ['iptables-save', 'ip6tables-save']) {
    for (const section of (await exit.exec(tool)).split('COMMIT')) {
      const rules = section.split('\n').filter((line) => line.startsWith('-A '));
      expect(rules.length).toBe(new Set(rules).size);
    }
  }
}

test(`${KILLS} kills`, async () => {
  const { lab } = fleet;
  const exit = lab.exit('fra-1');
  const [device, scanner] = lab.devices;
  if (!device || !scanner) throw new Error('no devices');
  const sigil = await lab.mintSigil('ops');
  const { peer } = await lab.connectDevice(device, sigil, 'fra');
  await lab.connectDevice(scanner, sigil, 'fra');
  const rules = await exit.firewall();
  const ping = await device.startPing('10.64.0.1', 25);
  const scan = await Scan.start(scanner, [
    { address: peer.addresses.ipv4, at: device },
    { address: peer.addresses.ipv6, at: device },
    { address: '100.64.0.1', at: lab.artemis },
    { address: exit.publicAddress4, at: exit, socket: true },
    { address: '192.168.7.7', at: lab.inet },
  ]);

  let done = false;
  const load = Promise.all([1, 2, 3].map(() => churn(lab, sigil, () => done)));
  for (let kill = 0; kill < KILLS; kill++) {
    // the random point is the test; nothing is waited for
    await new Promise((resolve) => setTimeout(resolve, Math.random() * LONGEST_LIFE_MS));
    await exit.stopAgent('SIGKILL');
    await expectNoDoubles(exit);
    exit.startAgent();
  }
  done = true;
  await load;

  await waitFor('the kernel to hold what the controller wants', async () => {
    const wanted: string[] = [];
    for (let cursor = ''; ; ) {
      const page = await lab.controller.app('GET', `/v1/peers?limit=100${cursor}`, sigil);
      const { items, next } = PeerList.parse(page.body);
      wanted.push(...items.map((peer) => peer.publicKey));
      if (next === null) break;
      cursor = `&cursor=${next}`;
    }
    const held = (await exit.peers()).map((row) => row.publicKey);
    return held.sort().join() === wanted.sort().join();
  });
  expect(await exit.firewall()).toBe(rules);
  expect((await scan.stop()).arrived).toEqual({});
  const report = await ping.stop();
  expect(report.lost).toEqual([]);
  expect(report.sent).toBeGreaterThan(100);
});
