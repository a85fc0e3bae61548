/**
 * A device whose exit dies goes on through a standby by itself, asking nobody, and goes home when home is well again;
 * meanwhile nothing of it leaves beside the tunnel. While it is the device that is cut off it stays where it is.
 */
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import type { Exit } from './lab/exit.ts';
import { INTERNET } from './lab/network.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';
import { Wraith } from './lab/wraith.ts';

const database = useDatabase();
const fleet = useLab(() => ({
  exits: [
    { name: 'fra-1', region: 'fra' },
    { name: 'hel-1', region: 'hel' },
    { name: 'sin-1', region: 'sin' },
  ],
  devices: 1,
  database: database.url,
}));

let wraith: Wraith;
beforeAll(async () => {
  const { lab } = fleet;
  const [device] = lab.devices;
  if (!device) throw new Error('no device');
  wraith = new Wraith(lab, device, await lab.mintSigil('pro'));
});

afterEach(() => wraith.leave());

/** The world sees the device at the address of this exit. What the API has to say is asked for about every 40 s. */
async function seenAs(exit: Exit): Promise<void> {
  const seen = async () => {
    const address = await wraith.device.httpGet(`http://${INTERNET.ipv4}/`, 1000);
    return address === exit.publicAddress4;
  };
  const options = { deadlineMs: 120_000 };
  await waitFor(`the device to come out of ${exit.name}`, seen, options).catch((cause: unknown) => {
    throw new Error(wraith.program.log.tail(), { cause });
  });
}

const faults = {
  'is killed': {
    happens: (exit: Exit) => exit.crash(),
    ends: async (exit: Exit) => {
      exit.startAgent();
    },
  },
  'loses its cable': {
    happens: (exit: Exit) => exit.plugged(false),
    ends: (exit: Exit) => exit.plugged(true),
  },
};

describe.each(Object.entries(faults))('an exit %s', (name, fault) => {
  test.each(['up', 'dead'])('with the controller %s: to the standby, and home again', async (controller) => {
    const { lab } = fleet;
    const [home, standby] = [lab.exit('fra-1'), lab.exit('hel-1')];
    await wraith.watch('fra', 2);
    await seenAs(home);
    expect(await wraith.status()).toMatchObject({ state: 'up', exit: { node: 'fra-1' } });
    if (controller === 'dead') await lab.controller.kill('SIGKILL');
    const beside = await lab.inet.countPackets(['-s', wraith.device.address4, '-d', INTERNET.ipv4]);

    const killed = performance.now();
    await fault.happens(home);
    await seenAs(standby);
    console.log(
      `${name}, controller ${controller}: ${Math.round(performance.now() - killed)} ms to the standby`,
    );
    const away = { exit: 'hel-1', reason: 'dead', home: 'fra-1' };
    expect(await wraith.status()).toMatchObject({ exit: { node: 'hel-1' }, watch: away });

    const mended = performance.now();
    await fault.ends(home);
    await seenAs(home);
    console.log(
      `${name}, controller ${controller}: ${Math.round(performance.now() - mended)} ms to home again`,
    );
    expect(await wraith.status()).toMatchObject({ exit: { node: 'fra-1' }, watch: { reason: 'home' } });
    expect(await beside()).toBe(0);
    if (controller === 'dead') await lab.controller.start();
  });
});

test('the device loses its own link: it stays with its exit, and goes on when the link is back', async () => {
  const { lab } = fleet;
  await wraith.watch('fra');
  const { log } = wraith.program;
  const from = log.end();
  await lab.inet.exec('ip', ['link', 'set', 'd1', 'down']);
  await wraith.program.waitFor(/waiting: offline/, { from });
  // as long as three exits would have been tried in
  await new Promise((resolve) => setTimeout(resolve, 10_000));
  await lab.inet.exec('ip', ['link', 'set', 'd1', 'up']);
  await seenAs(lab.exit('fra-1'));
  expect(log.text().slice(from)).not.toContain('→');
});

test('one that is taken down ends the watching, and nothing of it stays', async () => {
  await wraith.watch('fra');
  await wraith.down();
  expect(await wraith.program.ended).toBe(1);
  expect(wraith.program.log.text()).toContain('tunnel_gone');
  expect(await wraith.status()).toMatchObject({ state: 'down' });
});

/** The last of them: the exit stays drained. */
test('an exit that is drained is left for one that answers already, before it lets go', async () => {
  const { lab } = fleet;
  await wraith.watch('fra');
  const ping = await wraith.device.startPing(INTERNET.ipv4, 100);
  await lab.controller.operate('POST', '/v1/admin/nodes/fra-1/drain', {});
  await seenAs(lab.exit('hel-1'));
  const { sent, lost } = await ping.stop();
  console.log(`drained: ${lost.length} of ${sent} pings lost`);
  // an answer on its way at the very moment of the switch comes from an exit that has no routes any more
  expect(lost.length).toBeLessThanOrEqual(1);
  expect(wraith.program.log.text()).toContain('fra-1 → hel-1: the one before is being drained');
  expect(await wraith.status()).toMatchObject({ watch: { reason: 'leaving', home: 'hel-1' } });
});
