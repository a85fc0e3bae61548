/**
 * A node that reboots while the whole control plane is dead is what it was, from its own file, in under ten seconds:
 * interface, addresses, every peer, firewall; its devices get through again without anybody's help.
 */
import { expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import { makeKeys } from './lab/device.ts';
import { INTERNET } from './lab/network.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';

/** What the design promises, and so the one deadline here that is a claim. */
const PROMISE_MS = 10_000;
const PEERS = 250;

const database = useDatabase();
const fleet = useLab(() => ({
  exits: [{ name: 'fra-1', region: 'fra' }],
  devices: 1,
  database: database.url,
}));

test('reboot with the controller and its broker killed', async () => {
  const { lab } = fleet;
  const exit = lab.exit('fra-1');
  const [device] = lab.devices;
  if (!device) throw new Error('no device');
  const sigil = await lab.mintSigil('ops');
  const { peer, keys } = await lab.connectDevice(device, sigil, 'fra');
  await Promise.all(Array.from({ length: PEERS }, () => lab.provision(sigil, makeKeys().publicKey, 'fra')));
  const state = async () => ({
    peers: (await exit.peers()).map(({ publicKey, allowedIps }) => `${publicKey} ${allowedIps}`).sort(),
    firewall: await exit.firewall(),
    addresses: await exit.exec('ip', ['-br', 'address', 'show', 'scope', 'global', 'dev', exit.tunnel]),
    key: await exit.exec('wg', ['show', exit.tunnel, 'public-key']),
    forwards: await exit.exec('sysctl', ['-n', 'net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding']),
  });
  await waitFor('every peer in the kernel', async () => (await exit.peers()).length === PEERS + 1);
  const before = await state();

  await lab.controller.kill('SIGKILL');
  await exit.reboot();
  expect(await exit.peers()).toEqual([]);

  exit.startAgent();
  const back = async () => {
    const now = await state();
    return Object.entries(before).every(
      ([name, value]) => String(now[name as keyof typeof now]) === String(value),
    );
  };
  await waitFor('all of the state', back, { deadlineMs: PROMISE_MS }).catch(async (cause: unknown) => {
    expect(await state()).toEqual(before);
    throw cause;
  });
  // the device's half of the old session is worthless now; a client that sees no answer starts its tunnel anew
  await device.down();
  await device.up(peer.config, keys.privateKey);
  await device.handshake();
  expect(await device.httpGet(`http://${INTERNET.ipv4}/`)).toBe(exit.publicAddress4);
  expect(await device.httpGet(`http://[${INTERNET.ipv6}]/`)).toBe(exit.publicAddress6);

  await lab.controller.start();
  await lab.nodesOnline();
  await lab.provision(sigil, makeKeys().publicKey, 'fra');
});
