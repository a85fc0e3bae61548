/**
 * What the demo proves, each promise by packets and kernels rather than by what a program says of itself. A check
 * returns what it saw, in a few words, or throws.
 */
import assert from 'node:assert/strict';
import type { Peer } from '@katafract/shared/api';
import { type Device, makeKeys } from '../lab/device.ts';
import type { Lab } from '../lab/lab.ts';
import { INTERNET } from '../lab/network.ts';
import { waitFor } from '../lab/wait.ts';
import { milliseconds } from './screen.ts';

export interface Tunnel {
  readonly device: Device;
  readonly peer: Peer;
  readonly sigil: string;
  /** From the request to the answer, in ms. */
  readonly took: number;
}

export interface Stage {
  readonly lab: Lab;
  readonly tunnels: readonly Tunnel[];
}

export interface Promised {
  readonly text: string;
  check(stage: Stage): Promise<string>;
}

/** The exit a tunnel leads to. */
const exitOf = ({ lab }: Stage, { peer }: Tunnel) => lab.exit(peer.exits[0]?.node ?? '');
const first = (stage: Stage): Tunnel => {
  const [tunnel] = stage.tunnels;
  assert(tunnel, 'there is a tunnel');
  return tunnel;
};
const seconds = (since: number) => `${((performance.now() - since) / 1000).toFixed(1)} s`;

export const PROMISES: readonly Promised[] = [
  {
    text: 'the answer to a provision is the truth: the peer is in the kernel of its exit',
    async check(stage) {
      for (const tunnel of stage.tunnels) {
        assert.equal(tunnel.peer.status, 'active');
        const kernel = (await exitOf(stage, tunnel).peers()).find(
          ({ publicKey }) => publicKey === tunnel.peer.publicKey,
        );
        const { ipv4, ipv6 } = tunnel.peer.addresses;
        assert.equal(kernel?.allowedIps, `${ipv4}/32,${ipv6}/128`);
      }
      const took = stage.tunnels.map((tunnel) => tunnel.took).sort((a, b) => a - b);
      return `${took.length} peers, request to answer ${took.map(milliseconds).join(', ')}`;
    },
  },
  {
    text: 'every device has a handshake with its exit',
    async check({ tunnels }) {
      for (const { device } of tunnels) await device.handshake();
      return `${tunnels.length} handshakes`;
    },
  },
  {
    text: 'IPv4 and IPv6 reach the internet through the exit, and wear its address there',
    async check(stage) {
      for (const tunnel of stage.tunnels) {
        const exit = exitOf(stage, tunnel);
        assert.equal(await tunnel.device.httpGet(`http://${INTERNET.ipv4}/`), exit.publicAddress4);
        assert.equal(await tunnel.device.httpGet(`http://[${INTERNET.ipv6}]/`), exit.publicAddress6);
      }
      return `the web server saw ${exitOf(stage, first(stage)).publicAddress4} and ${exitOf(stage, first(stage)).publicAddress6}`;
    },
  },
  {
    text: 'a client cannot reach another client, on the same exit or on another',
    async check(stage) {
      const attacker = first(stage);
      for (const { device, peer } of stage.tunnels.slice(1)) {
        for (const [any, address] of [
          ['0.0.0.0', peer.addresses.ipv4],
          ['::', peer.addresses.ipv6],
        ] as const) {
          const listener = await device.listen({ port: 7000, address: any });
          assert.equal(await device.probe(address, 7000), 'open', 'its own listener answers');
          await listener.received({ reset: true });
          assert.notEqual(await attacker.device.probe(address, 7000, 300), 'open');
          assert.equal(await attacker.device.ping(address, { timeoutMs: 300 }), false);
          assert.equal((await listener.received()).count, 0);
          await listener.close();
        }
      }
      return `0 packets arrived at ${stage.tunnels.length - 1} others, in both families`;
    },
  },
  {
    text: 'a client cannot reach the exit, but for DNS and echo at the gateway',
    async check(stage) {
      const { device, peer } = first(stage);
      const exit = exitOf(stage, first(stage));
      for (const address of ['0.0.0.0', '::']) await exit.listen({ port: 7100, address });
      const addresses = [...peer.dns, exit.publicAddress4, exit.publicAddress6, exit.meshAddress];
      for (const address of addresses) {
        assert.equal(await exit.probe(address, 7100), 'open', 'from the exit itself it answers');
        for (const port of [22, 7100, 9105]) assert.notEqual(await device.probe(address, port, 300), 'open');
      }
      for (const gateway of peer.dns) assert.equal(await device.ping(gateway), true);
      return `${addresses.length} addresses × 3 ports closed; ${peer.dns.join(' and ')} answer echo`;
    },
  },
  {
    text: 'a client cannot reach the mesh',
    async check(stage) {
      const { lab } = stage;
      const arrived = await lab.artemis.countPackets(['-i', 'mesh0', '-s', '10.64.0.0/10']);
      for (const port of [1883, 8081]) {
        assert.equal(
          await exitOf(stage, first(stage)).probe('100.64.0.1', port),
          'open',
          'from an exit it answers',
        );
        assert.notEqual(await first(stage).device.probe('100.64.0.1', port, 300), 'open');
      }
      assert.equal(await arrived(), 0);
      return '0 packets arrived at the controller and the broker there';
    },
  },
  {
    text: 'a device moves to its standby at once, asking nobody, under the same addresses',
    async check(stage) {
      const { device, peer } = first(stage);
      const [primary, standby] = peer.exits;
      assert(primary && standby, 'it was given both');
      const since = performance.now();
      await device.switchTo(standby);
      const seen = await waitFor('traffic', () => device.httpGet(`http://${INTERNET.ipv4}/`, 300), {
        everyMs: 10,
      });
      const took = milliseconds(performance.now() - since);
      assert.equal(seen, stage.lab.exit(standby.node).publicAddress4);
      await device.switchTo(primary);
      await device.handshake();
      return `traffic leaves by ${standby.node} after ${took}`;
    },
  },
  {
    text: 'a peer added to a kernel by hand is removed, a flushed firewall is back',
    async check(stage) {
      const exit = exitOf(stage, first(stage));
      const rogue = makeKeys().publicKey;
      const rules = await exit.firewall();
      const since = performance.now();
      await exit.wgSet('peer', rogue, 'allowed-ips', '10.64.99.99/32');
      await exit.exec('iptables', ['-F', 'KATAFRACT-FORWARD']);
      await waitFor('the repair', async () => {
        const gone = (await exit.peers()).every(({ publicKey }) => publicKey !== rogue);
        return gone && (await exit.firewall()) === rules;
      });
      return `repaired after ${seconds(since)}, by the heartbeat`;
    },
  },
  {
    text: 'a removed device is cut off on every exit when the call returns',
    async check(stage) {
      const last = stage.tunnels.at(-1);
      assert(last);
      const { lab } = stage;
      const { body } = await lab.controller.app<{ status: string }>(
        'DELETE',
        `/v1/peers/${last.peer.id}`,
        last.sigil,
      );
      assert.equal(body.status, 'removed');
      for (const exit of lab.exits) {
        assert((await exit.peers()).every(({ publicKey }) => publicKey !== last.peer.publicKey));
      }
      assert.equal(await last.device.ping('10.64.0.1', { timeoutMs: 300 }), false);
      return `gone from ${last.peer.exits.length} kernels`;
    },
  },
  {
    text: 'controller, broker and database are killed: tunnels lose nothing, and the fleet is whole again after',
    async check(stage) {
      const { lab } = stage;
      const { device, sigil } = first(stage);
      const ping = await device.startPing(INTERNET.ipv4, 50);
      await lab.controller.kill();
      assert.equal(
        await device.httpGet(`http://${INTERNET.ipv4}/`),
        exitOf(stage, first(stage)).publicAddress4,
      );
      const since = performance.now();
      await lab.controller.start();
      await lab.nodesOnline();
      const back = seconds(since);
      const peer = await lab.provision(sigil, makeKeys().publicKey, first(stage).peer.region);
      assert.equal(peer.status, 'active');
      const { sent, lost } = await ping.stop();
      assert.deepEqual(lost, []);
      return `${sent} pings sent, 0 lost; provisioning again ${back} after the start`;
    },
  },
];
