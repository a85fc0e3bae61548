/** The promises that the demo proves, on the fleet that it has brought up. Each fails by throwing. */
import assert from 'node:assert/strict';
import type { Peer } from '@katafract/shared/api';
import { HEARTBEAT_SECONDS } from '@katafract/shared/uplink';
import { type Device, makeKeys } from '../lab/device.ts';
import type { Exit } from '../lab/exit.ts';
import type { Lab } from '../lab/lab.ts';
import { INTERNET } from '../lab/network.ts';
import { waitFor } from '../lab/wait.ts';
import { Wraith } from '../lab/wraith.ts';
import type { Shop } from '../stores/shop.ts';

export interface Connection {
  readonly device: Device;
  readonly peer: Peer;
  /** The exit that its tunnel leads to. */
  readonly exit: Exit;
}

export interface Fleet {
  readonly lab: Lab;
  readonly sigil: string;
  readonly connections: readonly Connection[];
  readonly shop: Shop;
  /** On which somebody pays; none of the connections. */
  readonly payer: Device;
}

export interface Claim {
  readonly name: string;
  /** Resolves with a figure worth showing, where there is one. */
  readonly prove: (fleet: Fleet) => Promise<unknown>;
}

const page = (address: string) => `http://${address.includes(':') ? `[${address}]` : address}/`;

async function every(fleet: Fleet, check: (connection: Connection) => Promise<void>): Promise<void> {
  await Promise.all(fleet.connections.map(check));
}

async function reachesInternet({ connections }: Fleet, family: 4 | 6): Promise<void> {
  for (const { device, exit } of connections) {
    const seen = await device.httpGet(page(family === 4 ? INTERNET.ipv4 : INTERNET.ipv6));
    assert.equal(
      seen,
      family === 4 ? exit.publicAddress4 : exit.publicAddress6,
      `${device.name} was seen as ${seen}`,
    );
  }
}

/** Packets from one device to another: by TCP, UDP and echo, in both families. */
async function cannotReach(attacker: Device, { device, peer }: Connection): Promise<void> {
  const families = [
    ['0.0.0.0', peer.addresses.ipv4],
    ['::', peer.addresses.ipv6],
  ] as const;
  for (const [any, address] of families) {
    const tcp = await device.listen({ address: any });
    const udp = await device.listen({ transport: 'udp', address: any });
    assert.equal(await device.probe(address, tcp.port), 'open', 'the listener itself does not answer');
    await tcp.received({ reset: true });
    const answer = await attacker.probe(address, tcp.port, 300);
    await attacker.udp(address, udp.port, { count: 10 });
    const echo = await attacker.ping(address, { timeoutMs: 300 });
    const arrived = (await tcp.received()).count + (await udp.received()).count;
    await Promise.all([tcp.close(), udp.close()]);
    assert(answer !== 'open' && !echo && arrived === 0, `${device.name} was reached at ${address}`);
  }
}

/** Across exits, and on one and the same: a victim that has a standby there is moved to the attacker's exit. */
async function cannotReachEachOther({ connections }: Fleet): Promise<void> {
  const [attacker, ...victims] = connections;
  assert(attacker && victims.length > 0, 'two devices are needed');
  for (const victim of victims) {
    await cannotReach(attacker.device, victim);
    const [home, ...standbys] = victim.peer.exits;
    const shared = standbys.find(({ node }) => node === attacker.exit.name);
    if (!shared || !home) continue;
    await victim.device.switchTo(shared);
    await victim.device.handshake();
    await cannotReach(attacker.device, victim);
    await victim.device.switchTo(home);
    await victim.device.handshake();
  }
}

/** Only echo and DNS of the gateway address answer; no other port of any of the exit's addresses does. */
async function cannotReachExit(fleet: Fleet): Promise<void> {
  await every(fleet, async ({ device, peer, exit }) => {
    const [gateway4 = '', gateway6 = ''] = peer.dns;
    for (const gateway of [gateway4, gateway6]) {
      assert(await device.ping(gateway, { count: 3 }), `${gateway} does not answer ${device.name}`);
    }
    const listeners = await Promise.all(['0.0.0.0', '::'].map((address) => exit.listen({ address })));
    const [port4, port6] = listeners.map(({ port }) => port);
    for (const address of [gateway4, gateway6, exit.publicAddress4, exit.publicAddress6, exit.meshAddress]) {
      const open = (address.includes(':') ? port6 : port4) ?? 0;
      assert.equal(await exit.probe(address, open), 'open', 'the listener itself does not answer');
      for (const port of [open, 22, 9105]) {
        assert.notEqual(
          await device.probe(address, port, 300),
          'open',
          `${device.name} reached ${address} port ${port}`,
        );
      }
    }
    await Promise.all(listeners.map((listener) => listener.close()));
  });
}

async function cannotReachMesh(fleet: Fleet): Promise<void> {
  const arrived = await fleet.lab.artemis.countPackets(['-i', 'mesh0', '-s', '10.64.0.0/10']);
  await every(fleet, async ({ device, exit }) => {
    for (const port of [1883, 8081]) {
      assert.equal(
        await exit.probe('100.64.0.1', port),
        'open',
        `${exit.name} itself does not reach the mesh`,
      );
      assert.notEqual(await device.probe('100.64.0.1', port, 500), 'open', `${device.name} reached the mesh`);
    }
    assert(!(await device.ping('100.64.0.1', { timeoutMs: 300 })), `${device.name} reached the mesh`);
  });
  assert.equal(await arrived(), 0, 'packets of devices arrived on the mesh');
}

async function removesRogue({ lab }: Fleet): Promise<void> {
  const [exit] = lab.exits;
  assert(exit);
  const before = await exit.metric('katafract_agent_repairs_total');
  const { publicKey } = makeKeys();
  await exit.wgSet('peer', publicKey, 'allowed-ips', '10.127.0.1/32');
  const gone = async () => !(await exit.peers()).some((row) => row.publicKey === publicKey);
  assert(!(await gone()), 'the rogue could not be added');
  await waitFor('the rogue to be removed', gone, { deadlineMs: HEARTBEAT_SECONDS * 3000 });
  const counted = async () => (await exit.metric('katafract_agent_repairs_total')) > before;
  await waitFor('the repair to be counted', counted, { deadlineMs: HEARTBEAT_SECONDS * 3000 });
}

/** Controller, broker and database die together; tunnels carry on, and a device even changes its exit. */
async function survivesController({ lab, connections, sigil }: Fleet): Promise<void> {
  const pings = await Promise.all(connections.map(({ device }) => device.startPing('10.64.0.1', 50)));
  const counts = () => Math.min(...pings.map((ping) => ping.received()));
  await lab.controller.kill('SIGKILL');
  const during = counts();
  await waitFor('pings without a controller', () => counts() > during + 40);
  const reports = await Promise.all(pings.map((ping) => ping.stop()));
  const [first] = connections;
  const standby = first?.peer.exits.find(({ role }) => role === 'standby');
  if (first && standby) {
    await first.device.switchTo(standby);
    const seen = await first.device.httpGet(page(INTERNET.ipv4));
    assert.equal(seen, lab.exit(standby.node).publicAddress4, 'the standby did not carry the device');
    const [primary] = first.peer.exits;
    if (primary) await first.device.switchTo(primary);
  }
  await lab.controller.start();
  await lab.nodesOnline();
  assert.deepEqual(
    reports.map(({ lost }) => lost.length),
    reports.map(() => 0),
    'pings were lost',
  );
  const peer = await lab.provision(sigil, makeKeys().publicKey, 'fra');
  assert.equal(peer.status, 'active', 'provisioning did not come back');
  await lab.controller.app('DELETE', `/v1/peers/${peer.id}`, sigil);
}

/**
 * Paid by a Stripe stand-in that signs as Stripe does: a Sigil that is worth nothing without its device, a tunnel; a
 * payment that stays out cuts it, and a late one brings it back with the same addresses.
 */
async function followsPayment({ lab, shop, payer }: Fleet): Promise<void> {
  const customer = await shop.buy(payer, 'fra');
  const { peer, sigil } = customer;
  const exit = lab.exit(peer.exits[0]?.node ?? '');
  assert.equal(await payer.httpGet(page(INTERNET.ipv4)), exit.publicAddress4);
  const stolen = await lab.controller.app('GET', '/v1/peers', sigil);
  assert.equal(stolen.status, 401, 'the Sigil opened something without its device');
  const holders = peer.exits.map(({ node }) => lab.exit(node));
  const held = async () => {
    const keys = await Promise.all(holders.map((at) => at.exec('wg', ['show', at.tunnel, 'peers'])));
    return keys.filter((text) => text.includes(peer.publicKey)).length;
  };
  await shop.happens(customer.purchase, 'failPayment');
  assert.equal(await held(), holders.length, 'the grace of a failed payment was not kept');
  await shop.happens(customer.purchase, 'hold');
  await waitFor('the tunnel to be cut', async () => (await held()) === 0);
  assert.equal(await payer.ping('10.64.0.1', { timeoutMs: 500 }), false, 'the tunnel still passes packets');
  await shop.happens(customer.purchase, 'recover');
  await waitFor('the tunnel to be back', () => payer.ping('10.64.0.1', { timeoutMs: 500 }));
  const allowed = await exit.exec('wg', ['show', exit.tunnel, 'allowed-ips']);
  const line = allowed.split('\n').find((text) => text.startsWith(peer.publicKey)) ?? '';
  assert.ok(line.includes(`${peer.addresses.ipv4}/32`), 'it came back with other addresses');
  await payer.down();
}

/**
 * An exit is emptied for good while a device pings through it: the device reads its peer, as apps do, and switches to
 * the exit that it finds there, which has it already.
 */
async function losesNothingToDrain({ lab, connections, sigil }: Fleet): Promise<string> {
  const connection = connections.find(({ exit }) => exit.region === 'fra');
  assert(connection, 'a device in Frankfurt is needed');
  const { device, exit, peer } = connection;
  const read = async () => (await lab.controller.app<Peer>('GET', `/v1/peers/${peer.id}`, sigil)).body;
  const ping = await device.startPing(INTERNET.ipv4, 100);
  const since = performance.now();
  const deadline = new Date(Date.now() + 3000).toISOString();
  await lab.controller.operate('POST', `/v1/admin/nodes/${exit.name}/drain`, { deadline });
  const [target] = await waitFor('the device to be told of another exit', async () => {
    const { exits, status } = await read();
    return exits[0]?.node !== exit.name && status === 'active' && exits;
  });
  const answered = ping.received();
  // one address leads to one peer: between two pings nothing is on its way that the switch would drop
  await waitFor('an answer just now', () => ping.received() > answered, { everyMs: 2 });
  assert(target);
  await device.switchTo(target);
  const drain = await waitFor('the exit to be empty', async () => {
    const path = `/v1/admin/nodes/${exit.name}/drain`;
    const now = await lab.controller.operate<{ state: string; total: number }>('GET', path);
    return now.state === 'done' && (await exit.peers()).length === 0 && now;
  });
  const took = performance.now() - since;
  assert.equal(await device.httpGet(page(INTERNET.ipv4)), lab.exit(target.node).publicAddress4);
  const { sent, lost } = await ping.stop();
  assert.equal(lost.length, 0, `${lost.length} of ${sent} pings were lost`);
  await lab.controller.operate('PATCH', `/v1/admin/nodes/${exit.name}`, { state: 'active' });
  return `${drain.total} peers moved and ${exit.name} empty after ${(took / 1000).toFixed(1)} s, 0 of ${sent} pings lost`;
}

/** `wraith` on a device whose exit is killed, in a region where nobody else is: on through a standby, and home again. */
async function failsOver({ lab, sigil, payer }: Fleet): Promise<string> {
  const home = lab.exit('hil-1');
  const comesOutOf = async () => payer.httpGet(page(INTERNET.ipv4), 1000);
  const wraith = new Wraith(lab, payer, sigil);
  await wraith.watch('hil', 2);
  assert.equal(await comesOutOf(), home.publicAddress4);
  const beside = await lab.inet.countPackets(['-s', payer.address4, '-d', INTERNET.ipv4]);
  const killed = performance.now();
  await home.crash();
  await waitFor('a standby to carry the device', async () => (await comesOutOf()) !== home.publicAddress4);
  const took = performance.now() - killed;
  home.startAgent();
  await waitFor('the device to be home', async () => (await comesOutOf()) === home.publicAddress4);
  assert.equal(await beside(), 0, 'packets left beside the tunnel meanwhile');
  await wraith.leave();
  await wraith.down(true);
  await lab.nodesOnline();
  return `on the standby after ${(took / 1000).toFixed(1)} s`;
}

/**
 * A region whose one exit fills up, nobody being asked: the forecast says so, a machine is wanted, made and enrolled by
 * what it was told alone, and the next device has its tunnel there.
 */
async function growsByItself({ lab, sigil, payer }: Fleet): Promise<string> {
  const { controller } = lab;
  const room = (capacity: number) => controller.operate('PATCH', '/v1/admin/nodes/ash-1', { capacity });
  const growth = { provider: 'lab', location: 'lab', size: 'small', capacity: 50, maxExits: 2 };
  await room(20);
  await controller.operate('PATCH', '/v1/admin/regions/ash', { growth });
  const crowd = await lab.mintSigil('ops');
  for (let peer = 0; peer < 16; peer++) await lab.provision(crowd, makeKeys().publicKey, 'ash');
  const since = performance.now();
  const machine = await waitFor('a machine to serve', async () => {
    assert.deepEqual(lab.cloud.faults, []);
    const { items } = await controller.operate<{ items: { node: string; state: string; reason: string }[] }>(
      'GET',
      '/v1/admin/machines',
    );
    return items.find(({ state }) => state === 'serving');
  });
  const took = performance.now() - since;
  const { peer } = await lab.connectDevice(payer, sigil, 'ash');
  assert.equal(peer.exits[0]?.node, machine.node, 'the device was not put on the new exit');
  assert.equal(await payer.httpGet(page(INTERNET.ipv4)), lab.exit(machine.node).publicAddress4);
  await payer.down();
  await controller.app('DELETE', `/v1/peers/${peer.id}`, sigil);
  await controller.operate('PATCH', '/v1/admin/regions/ash', { growth: null });
  await room(20_000);
  return `${machine.node} serves after ${(took / 1000).toFixed(1)} s. ${machine.reason}`;
}

export const PROMISES: readonly Claim[] = [
  {
    name: 'every device shakes hands with its exit',
    prove: (fleet) => every(fleet, ({ device }) => device.handshake()),
  },
  {
    name: 'IPv4 traffic reaches the internet with the address of the exit',
    prove: (fleet) => reachesInternet(fleet, 4),
  },
  {
    name: 'IPv6 traffic reaches the internet with the address of the exit',
    prove: (fleet) => reachesInternet(fleet, 6),
  },
  { name: 'a device cannot reach another device', prove: cannotReachEachOther },
  { name: 'a device cannot reach its exit, beyond echo and DNS of the gateway', prove: cannotReachExit },
  { name: 'a device cannot reach the mesh', prove: cannotReachMesh },
  { name: 'a peer added to an exit by hand is removed within a heartbeat', prove: removesRogue },
  {
    name: 'a payment opens a tunnel for its device alone, a lapse cuts it, a late payment brings it back',
    prove: followsPayment,
  },
  {
    name: 'an exit is killed: its device is on a standby by itself, and home again when home is back',
    prove: failsOver,
  },
  { name: 'a region that fills up grows by itself', prove: growsByItself },
  {
    name: 'controller killed: tunnels pass every ping, a standby takes over, all comes back',
    prove: survivesController,
  },
  {
    name: 'an exit is drained: its peers are on others first, and a device that pings through it loses nothing',
    prove: losesNothingToDrain,
  },
];
