/**
 * A provisioned device has a tunnel that carries both families to the internet, and that leads nowhere else: not to
 * other devices, not to the exit itself, not to the mesh, not to private networks.
 */
import type { Peer } from '@katafract/shared/api';
import { beforeAll, describe, expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import type { Device } from './lab/device.ts';
import type { Exit } from './lab/exit.ts';
import { INTERNET } from './lab/network.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';

const database = useDatabase();
const fleet = useLab(() => ({
  exits: [
    { name: 'fra-1', region: 'fra' },
    { name: 'hel-1', region: 'hel' },
  ],
  devices: 3,
  database: database.url,
}));

interface Connected {
  readonly device: Device;
  readonly peer: Peer;
}

/** Two devices on one exit, a third on the other. */
let alice: Connected;
let bob: Connected;
let carol: Connected;
let exit: Exit;
let other: Exit;
let sigil: string;

beforeAll(async () => {
  const { lab } = fleet;
  sigil = await lab.mintSigil('pro');
  const connect = async (index: number, region: string): Promise<Connected> => {
    const device = lab.devices[index];
    if (!device) throw new Error(`no device ${index}`);
    return { device, peer: (await lab.connectDevice(device, sigil, region)).peer };
  };
  [alice, bob, carol] = await Promise.all([connect(0, 'fra'), connect(1, 'fra'), connect(2, 'hel')]);
  exit = lab.exit('fra-1');
  other = lab.exit('hel-1');
});

describe('to the internet', () => {
  test('the answer to a provision is the truth: primary and standbys have the peer in their kernels', async () => {
    const { id, publicKey, addresses, exits, status } = alice.peer;
    expect(status).toBe('active');
    expect(exits.map(({ node, role }) => ({ node, role }))).toEqual([
      { node: 'fra-1', role: 'primary' },
      { node: 'hel-1', role: 'standby' },
    ]);
    const kernel = (await exit.peers()).map((row) => row.publicKey);
    expect(kernel).toContain(publicKey);
    await waitFor('the standby', async () => {
      const { body } = await fleet.lab.controller.app<Peer>('GET', `/v1/peers/${id}`, sigil);
      return body.exits.every((each) => each.status === 'active');
    });
    for (const node of [exit, other]) {
      const row = (await node.peers()).find((candidate) => candidate.publicKey === publicKey);
      expect(row?.allowedIps).toBe(`${addresses.ipv4}/32,${addresses.ipv6}/128`);
    }
  });

  test.each([
    ['IPv4', `http://${INTERNET.ipv4}/`, 'publicAddress4'],
    ['IPv6', `http://[${INTERNET.ipv6}]/`, 'publicAddress6'],
  ] as const)('%s leaves by the exit and wears its address', async (_, url, address) => {
    expect(await alice.device.httpGet(url)).toBe(exit[address]);
    expect(await carol.device.httpGet(url)).toBe(other[address]);
  });

  test('a standby carries the device at once, with nobody asked', async () => {
    const [, standby] = alice.peer.exits;
    if (!standby) throw new Error('no standby');
    await alice.device.switchTo(standby);
    expect(await alice.device.httpGet(`http://${INTERNET.ipv4}/`)).toBe(other.publicAddress4);
    const [primary] = alice.peer.exits;
    if (primary) await alice.device.switchTo(primary);
    expect(await alice.device.httpGet(`http://${INTERNET.ipv4}/`)).toBe(exit.publicAddress4);
  });
});

describe('and nowhere else', () => {
  test.each([
    ['on the same exit', () => bob],
    ['on another exit', () => carol],
  ])('another device %s receives nothing', async (_, victim) => {
    const { device, peer } = victim();
    const families = [
      ['0.0.0.0', peer.addresses.ipv4],
      ['::', peer.addresses.ipv6],
    ] as const;
    for (const [any, address] of families) {
      const tcp = await device.listen({ port: 7000, address: any });
      const udp = await device.listen({ transport: 'udp', port: 7001, address: any });
      // the listener works: the device reaches itself
      expect(await device.probe(address, 7000), await device.exec('ip', ['addr'])).toBe('open');
      expect((await tcp.received({ reset: true })).count).toBe(1);
      expect(await alice.device.probe(address, 7000)).not.toBe('open');
      await alice.device.udp(address, 7001, { count: 20 });
      expect(await alice.device.ping(address, { timeoutMs: 500 })).toBe(false);
      expect(await tcp.received()).toEqual({ count: 0, peers: [], ports: [] });
      expect(await udp.received()).toEqual({ count: 0, peers: [], ports: [] });
      await tcp.close();
      await udp.close();
    }
  });

  test('the exit itself answers echo on its gateway address, and nothing on any port of any address', async () => {
    for (const any of ['0.0.0.0', '::']) await exit.listen({ port: 7100, address: any });
    const device = alice.device;
    const [gateway4 = '', gateway6 = ''] = alice.peer.dns;
    expect(await device.ping(gateway4)).toBe(true);
    expect(await device.ping(gateway6)).toBe(true);
    const open = [gateway4, gateway6, exit.publicAddress4, exit.publicAddress6, exit.meshAddress];
    for (const address of open) {
      // from where it is allowed, the listener answers
      expect(await exit.probe(address, 7100), address).toBe('open');
      for (const port of [7100, 22, 9105]) {
        expect(await device.probe(address, port, 300), `${address} port ${port}`).not.toBe('open');
      }
    }
    for (const address of [exit.publicAddress4, exit.publicAddress6, exit.meshAddress]) {
      expect(await device.ping(address, { timeoutMs: 300 }), address).toBe(false);
    }
  });

  test.each([
    ['the controller on the mesh', '100.64.0.1', 8081],
    ['the broker on the mesh', '100.64.0.1', 1883],
    ['another exit on the mesh', '100.64.0.12', 9105],
    ['the mesh in IPv6', 'fd7a:115c:a1e0::1', 7200],
  ])('%s is out of reach', async (_, address, port) => {
    const { lab } = fleet;
    if (address.includes(':')) await lab.artemis.listen({ port, address });
    expect(await exit.probe(address, port), 'from the exit itself').toBe('open');
    const arrived = await lab.artemis.countPackets(['-i', 'mesh0', '-s', '10.64.0.0/10']);
    expect(await alice.device.probe(address, port, 500)).not.toBe('open');
    expect(await arrived()).toBe(0);
  });

  test.each([
    [4, '10.1.2.3'],
    [4, '172.16.0.1'],
    [4, '192.168.1.1'],
    [4, '169.254.169.254'],
    [4, '168.63.129.16'],
    [4, '192.0.0.8'],
    [4, '198.18.0.1'],
    [4, '240.0.0.1'],
    [6, 'fd12:3456::1'],
    [6, '64:ff9b::808:808'],
  ] as const)('IPv%i: nothing for %s leaves by the uplink', async (family, address) => {
    const left = await fleet.lab.inet.countPackets(['-d', address], family);
    await alice.device.udp(address, 53, { count: 3 });
    // what comes after them on the same way has arrived, so they would have too
    expect(await alice.device.ping(family === 4 ? INTERNET.ipv4 : INTERNET.ipv6)).toBe(true);
    expect(await left()).toBe(0);
  });
});

test('a removed device is cut off: its peer is gone from every exit when the call returns', async () => {
  const { lab } = fleet;
  const { id, publicKey } = bob.peer;
  const answer = await lab.controller.app<{ status: string }>('DELETE', `/v1/peers/${id}`, sigil);
  expect(answer).toMatchObject({ status: 200, body: { status: 'removed' } });
  for (const node of [exit, other]) {
    expect((await node.peers()).map((row) => row.publicKey)).not.toContain(publicKey);
  }
  expect(await bob.device.ping('10.64.0.1', { timeoutMs: 500 })).toBe(false);
  expect(await alice.device.ping('10.64.0.1')).toBe(true);
});
