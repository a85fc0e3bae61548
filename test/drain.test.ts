/**
 * A drain with real tunnels: two devices ping through the exit that is drained, read their peer as an app does, and
 * switch to the exit they are told. No ping is lost, and the exit ends up without a peer.
 */
import type { Peer } from '@katafract/shared/api';
import { expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import type { Device } from './lab/device.ts';
import { INTERNET } from './lab/network.ts';
import { type Ping, startPing } from './lab/ping.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';

/** Room enough for a device to change over between two of them, also on a busy machine. */
const INTERVAL_MS = 250;

const database = useDatabase();
const fleet = useLab(() => ({
  exits: [
    { name: 'fra-1', region: 'fra' },
    { name: 'hel-1', region: 'hel' },
    { name: 'sin-1', region: 'sin' },
  ],
  devices: 2,
  database: database.url,
  controllerEnv: { KATAFRACT_MOVE_GRACE_SECONDS: '10' },
}));

test('two devices lose no ping while their exit is drained', async () => {
  const { lab } = fleet;
  const sigil = await lab.mintSigil('plus');
  const connected = await Promise.all(
    lab.devices.map(async (device) => ({
      device,
      peer: (await lab.connectDevice(device, sigil, 'fra')).peer,
    })),
  );
  const read = async (id: string) => (await lab.controller.app<Peer>('GET', `/v1/peers/${id}`, sigil)).body;
  const pings = await Promise.all(
    connected.map(({ device }) => startPing(device.enter(), INTERNET.ipv4, INTERVAL_MS)),
  );
  expect((await lab.exit('fra-1').peers()).length).toBe(2);
  await lab.controller.operate('POST', '/v1/admin/nodes/fra-1/drain', {});
  /** As an app does: reads its peer until another exit comes first and has it, then switches. */
  const follow = async (device: Device, id: string, ping: Ping) => {
    const peer = await waitFor('to be told of another exit', async () => {
      const now = await read(id);
      return now.exits[0]?.node !== 'fra-1' && now.status === 'active' && now;
    });
    expect(peer.exits.map(({ node, role }) => `${node} ${role}`)).toEqual([
      'hel-1 primary',
      'sin-1 standby',
      'fra-1 leaving',
    ]);
    const [first] = peer.exits;
    // Between two pings: an answer that is on its way while the device itself changes over comes from an exit whose
    // packets it no longer takes (one address leads to one peer), whatever the fleet does.
    const answered = ping.received();
    await waitFor('an answer just now', () => ping.received() > answered, { everyMs: 2 });
    if (first) await device.switchTo(first);
  };
  await Promise.all(
    connected.map(({ device, peer }, index) => follow(device, peer.id, pings[index] as Ping)),
  );
  await waitFor('the drain to be done', async () => {
    const drain = await lab.controller.operate<{ state: string }>('GET', '/v1/admin/nodes/fra-1/drain');
    return drain.state === 'done';
  });
  await waitFor('the kernel to have no peer', async () => (await lab.exit('fra-1').peers()).length === 0);
  for (const ping of pings) {
    const { sent, lost } = await ping.stop();
    expect(lost).toEqual([]);
    expect(sent).toBeGreaterThan(30);
  }
  for (const { device } of connected) {
    expect(await device.httpGet(`http://${INTERNET.ipv4}/`)).toBe(lab.exit('hel-1').publicAddress4);
  }
});
