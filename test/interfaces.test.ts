/**
 * An exit with two WireGuard interfaces: its clients are spread over both, nobody on one reaches anybody on the other,
 * and each interface is kept as one alone would be.
 */
import type { Peer } from '@katafract/shared/api';
import { HEARTBEAT_SECONDS } from '@katafract/shared/uplink';
import { beforeAll, expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import type { Device } from './lab/device.ts';
import type { Exit } from './lab/exit.ts';
import { INTERNET } from './lab/network.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';

const database = useDatabase();
const fleet = useLab(() => ({
  exits: [
    { name: 'fra-1', region: 'fra', tunnels: 2 },
    { name: 'hel-1', region: 'hel' },
  ],
  devices: 4,
  database: database.url,
}));
const INTERFACES = ['wg0', 'wg1'] as const;
const deadlineMs = HEARTBEAT_SECONDS * 1000 * 3;

interface Connected {
  readonly device: Device;
  readonly peer: Peer;
}
let exit: Exit;
let clients: Connected[];

const portOf = (peer: Peer, at: number) => peer.exits[at]?.endpoint.split(':').at(-1);
const on = (name: (typeof INTERFACES)[number]): Connected => {
  const found = clients.find(({ peer }) => portOf(peer, 0) === (name === 'wg0' ? '51820' : '51821'));
  if (!found) throw new Error(`nobody is on ${name}`);
  return found;
};
const keysOn = async (name: string) => (await exit.peers(name)).map(({ publicKey }) => publicKey).sort();
const answers = async ({ device }: Connected) => {
  for (const host of [INTERNET.ipv4, `[${INTERNET.ipv6}]`]) await device.httpGet(`http://${host}/`, 1500);
};

/**
 * Says hello anew until it is answered: what the exit has lost of a session, a device finds out by itself only after some
 * seconds; and a wireguard-go that has lost its interface still shows its peers for a moment.
 */
const comesBack = async (client: Connected) => {
  const [home] = client.peer.exits;
  if (!home) throw new Error('a peer has a home');
  await waitFor(
    'it to be answered',
    async () => {
      await client.device.exec('wg', ['set', 'wg0', 'peer', home.publicKey, 'remove']);
      await client.device.switchTo(home);
      await answers(client);
      return true;
    },
    { deadlineMs },
  );
};

beforeAll(async () => {
  const { lab } = fleet;
  exit = lab.exit('fra-1');
  const sigil = await lab.mintSigil('pro');
  clients = [];
  for (const device of lab.devices)
    clients.push({ device, peer: (await lab.connectDevice(device, sigil, 'fra')).peer });
});

test('spreads its clients over both, each told the port of its own', async () => {
  for (const [name, port] of [
    ['wg0', '51820'],
    ['wg1', '51821'],
  ] as const) {
    const own = clients.filter(({ peer }) => portOf(peer, 0) === port).map(({ peer }) => peer.publicKey);
    expect(own).toHaveLength(2);
    expect(await keysOn(name)).toEqual([...own].sort());
  }
  // the standby has one interface, for all of them
  expect(clients.map(({ peer }) => portOf(peer, 1))).toEqual(Array(4).fill('51820'));
});

test.each(INTERFACES)(
  '%s carries both families, with the address of the exit, and its gateway answers',
  async (name) => {
    const { device, peer } = on(name);
    expect(await device.httpGet(`http://${INTERNET.ipv4}/`)).toBe(exit.publicAddress4);
    expect(await device.httpGet(`http://[${INTERNET.ipv6}]/`)).toBe(exit.publicAddress6);
    for (const gateway of peer.dns) expect(await device.ping(gateway)).toBe(true);
  },
);

test.each([
  ['wg0', 'wg1'],
  ['wg1', 'wg0'],
] as const)('from %s nobody on %s is reached', async (from, to) => {
  const { device } = on(from);
  const { device: victim, peer } = on(to);
  for (const [family, address] of [
    [4, peer.addresses.ipv4],
    [6, peer.addresses.ipv6],
  ] as const) {
    const arrived = await victim.countPackets(['-i', 'wg0', '-p', 'udp', '--dport', '7001'], family);
    await device.udp(address, 7001, { count: 20 });
    expect(await device.ping(address, { timeoutMs: 500 })).toBe(false);
    // what comes after them on the same way has arrived
    await answers({ device: victim, peer });
    expect(await arrived()).toBe(0);
  }
});

test('a client of one with the source of a client of the other is nobody', async () => {
  const { device } = on('wg1');
  const { peer } = on('wg0');
  const key = on('wg1').peer.publicKey;
  const own = (await exit.peers('wg1')).find(({ publicKey }) => publicKey === key)?.allowedIps ?? '';
  // even where the exit's peer table lets it in, until the agent sees it
  await exit.exec('wg', ['set', 'wg1', 'peer', key, 'allowed-ips', `${own},${peer.addresses.ipv4}/32`]);
  await device.exec('ip', ['address', 'add', `${peer.addresses.ipv4}/32`, 'dev', 'wg0']);
  const left = await fleet.lab.inet.countPackets(['-p', 'udp', '--dport', '7003']);
  await device.udp(INTERNET.ipv4, 7003, { count: 5, localAddress: peer.addresses.ipv4 });
  await device.exec('ip', ['address', 'delete', `${peer.addresses.ipv4}/32`, 'dev', 'wg0']);
  await answers(on('wg1'));
  expect(await left()).toBe(0);
});

test('a client that was put on the other one is back on its own within a heartbeat', async () => {
  const before = await Promise.all(INTERFACES.map(keysOn));
  const { peer } = on('wg1');
  const allowed = `${peer.addresses.ipv4}/32,${peer.addresses.ipv6}/128`;
  await exit.exec('wg', ['set', 'wg1', 'peer', peer.publicKey, 'remove']);
  await exit.exec('wg', ['set', 'wg0', 'peer', peer.publicKey, 'allowed-ips', allowed]);
  const asBefore = async () =>
    JSON.stringify(await Promise.all(INTERFACES.map(keysOn))) === JSON.stringify(before);
  await waitFor('each on its own', asBefore, { deadlineMs });
  await comesBack(on('wg1'));
});

test.each(INTERFACES)('%s that somebody deletes comes back with its clients and routes', async (name) => {
  const before = await keysOn(name);
  await exit.exec('ip', ['link', 'delete', name]);
  for (const client of clients) await comesBack(client);
  expect(await keysOn(name)).toEqual(before);
});

test('after a reboot all of it is there from the node alone, and proves itself', async () => {
  const before = await Promise.all(INTERFACES.map(keysOn));
  await exit.stopAgent('SIGKILL');
  await fleet.lab.controller.stop();
  await exit.reboot();
  exit.startAgent();
  await waitFor(
    'all clients',
    async () => JSON.stringify(await Promise.all(INTERFACES.map(keysOn))) === JSON.stringify(before),
    { deadlineMs },
  );
  for (const client of clients) await comesBack(client);
  const { stdout } = await exit.run(process.execPath, exit.agentArguments('verify'));
  for (const line of [/wg0 is up$/m, /wg1 is up$/m, /^all \d+ hold$/m]) expect(stdout).toMatch(line);
});

test('a tunnel interface that is none of the node is told by verify', async () => {
  await exit.exec('ip', ['tuntap', 'add', 'dev', 'wg5', 'mode', 'tun']);
  const { stdout, code } = await exit.run(process.execPath, exit.agentArguments('verify'));
  await exit.exec('ip', ['link', 'delete', 'wg5']);
  expect(stdout).toMatch(/^FAIL +other-tunnels +no tunnel interface but wg0, wg1$/m);
  expect(code).toBe(3);
});
