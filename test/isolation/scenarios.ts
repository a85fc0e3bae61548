/**
 * What an exit promises, as attacks and services that are tried out: each says which rows of the table it leans on, and
 * fails when one of them is missing (prove.ts takes them out one by one). Where several rows stop the same
 * attack, a scenario first takes the others away, so that the row it is about stands alone.
 */
import { CLIENT_PORTS } from '@katafract/agent/plan/rules';
import type { Host } from '../lab/host.ts';
import { cables } from '../lab/network.ts';
import { waitFor } from '../lab/wait.ts';
import {
  answered,
  arriving,
  asked,
  connections,
  FLUSHED,
  FOREIGN_ACCEPT,
  HOST_FIREWALL,
  leaving,
  multicastLeaves,
  OTHERS_MARK,
  openFlow,
  PLAIN_NAT,
  quiet,
  reaches,
  shakesHandsDespiteShadow,
} from './attempts.ts';
import {
  type Address,
  type Bed,
  type Enforcement,
  type Family,
  GATEWAY,
  POOL,
  PORTS,
  script,
  WEB,
} from './bed.ts';

export interface Scenario {
  readonly id: string;
  /** Rows of the table without which it fails. */
  readonly proves: readonly string[];
  /** Both where absent. */
  readonly families?: readonly Family[];
  /** The circumstances, from the table as it is under test. */
  readonly given?: Enforcement & { readonly without?: readonly string[] };
  /** Whether what is promised is the case. */
  readonly holds: (bed: Bed, family: Family) => Promise<boolean>;
}

const PRIVATE: Readonly<Record<Family, readonly string[]>> = {
  4: [
    '10.1.2.3',
    '100.99.0.1',
    '168.63.129.16',
    '169.254.169.254',
    '172.16.0.1',
    '192.0.0.8',
    '192.168.1.1',
    '198.18.0.1',
    '240.0.0.1',
  ],
  6: ['::ffff:8.8.8.8', '64:ff9b::808:808', 'fd12:3456::1', 'fe80::1', 'fe90::1'],
};

/** Two clients of each tunnel interface. */
const PAIRS = [
  { on: 'wg0', one: 'alice', other: 'bob' },
  { on: 'wg1', one: 'carol', other: 'dave' },
] as const;

/** What each interface has settings of its own for. */
const ofInterface = ({ on, one, other }: (typeof PAIRS)[number]): readonly Scenario[] => [
  {
    id: `${on}: a packet with somebody else's source gets no answer, even where the peer table lets it in`,
    proves: ['forged-source-to-exit', 'forged-source-4'],
    holds: async (bed, family) => {
      const { [one]: client, inet } = bed;
      const victim = WEB[family];
      await bed.allow(client, [victim]);
      await client.device.exec('ip', ['address', 'add', victim, 'dev', 'wg0']);
      await bed.received(`own dns udp${family}`);
      const reflected = await arriving(bed, inet, victim, family, ['-p', 'udp', '--sport', '53'], () =>
        bed.sends(client, family, 3, () =>
          client.device.udp(GATEWAY[family], 53, { count: 3, localAddress: victim }),
        ),
      );
      const { count } = await bed.received(`own dns udp${family}`);
      await client.device.exec('ip', ['address', 'delete', victim, 'dev', 'wg0']);
      await bed.allow(client, []);
      return reflected + count === 0;
    },
  },
  {
    id: `${on}: nor does one with somebody else's source leave, whoever accepts everything`,
    proves: ['forged-source'],
    given: { foreign: FOREIGN_ACCEPT },
    holds: async (bed, family) => {
      const { [one]: client } = bed;
      const victim = family === 4 ? '198.51.100.77' : '2001:db8:51::77';
      await bed.allow(client, [victim]);
      const packet = { kind: 'udp', source: victim, sourcePort: 4242, port: 4242 };
      const left = await leaving(bed, client, family, ['-p', 'udp', '--dport', '4242'], 1, () =>
        bed.forge(client.device, { ...packet, destination: WEB[family], interface: 'wg0' }),
      );
      await bed.allow(client, []);
      return left === 0;
    },
  },
  {
    id: `${on}: the exit tells clients of no other way`,
    proves: ['send-redirects'],
    families: [4],
    // the redirect is sent before any rule could drop the packet; address translation then loses those of tracked ones
    given: {
      foreign: { 4: '*raw\n-I PREROUTING 1 -i wg+ -p udp --dport 4242 -j CT --notrack\nCOMMIT\n' },
    },
    holds: async (bed) => {
      const { [one]: client, [other]: neighbour } = bed;
      const match = ['-p', 'icmp', '--icmp-type', 'redirect'];
      const told = await arriving(bed, client.device, client.address[4], 4, match, () =>
        bed.sends(client, 4, 3, () => client.device.udp(neighbour.address[4], 4242, { count: 3 })),
      );
      return told === 0;
    },
  },
  {
    id: `${on}: a client does not tell the exit of another way`,
    proves: ['accept-redirects'],
    families: [4],
    given: { without: ['client-to-exit', 'forged-source-4'] },
    holds: async (bed) => {
      const { [one]: client, exit } = bed;
      const gateway = '203.0.113.1';
      const target = '198.51.100.77';
      await bed.allow(client, [gateway]);
      const accomplice = cables.artemis()[0]?.ipv4 ?? '';
      await exit.ping(accomplice); // a neighbour that the exit knows
      await bed.sends(client, 4, 1, () =>
        bed.forge(client.device, {
          kind: 'redirect',
          source: gateway,
          destination: bed.public[4],
          target,
          gateway: accomplice,
        }),
      );
      const route = await exit.exec('ip', ['route', 'get', target]);
      await bed.allow(client, []);
      await exit.exec('ip', ['route', 'flush', 'cache']);
      return route.includes(`via ${gateway} `);
    },
  },
  {
    id: `${on}: a packet does not choose its own way`,
    proves: ['source-routes'],
    families: [4],
    given: { without: ['client-to-exit'] },
    holds: async (bed) => {
      const { [one]: client } = bed;
      const left = await leaving(bed, client, 4, ['-p', 'udp', '--dport', '4243'], 1, () =>
        client.device.exec('python3', [script('source-route.py'), GATEWAY[4], WEB[4], '4243']),
      );
      return left === 0;
    },
  },
];

export const SCENARIOS: readonly Scenario[] = [
  {
    id: 'the internet answers, over TCP and UDP and to echo',
    proves: ['tunnel-to-uplink', 'uplink-to-tunnel', 'forward-4', 'forward-6'],
    holds: async (bed, family) =>
      (await answered(bed.alice, WEB[family], 7)) === 'x' &&
      (await asked(bed.alice, WEB[family], 7)) === 'hello' &&
      (await bed.alice.device.ping(WEB[family], { timeoutMs: 1000 })),
  },
  {
    id: 'the gateway answers DNS and echo',
    proves: ['dns-passes', 'echo-passes'],
    holds: async (bed, family) =>
      (await answered(bed.alice, GATEWAY[family], 53)) === 'haven' &&
      (await asked(bed.alice, GATEWAY[family], 53)) === 'haven' &&
      (await bed.alice.device.ping(GATEWAY[family], { timeoutMs: 1000 })),
  },
  {
    id: 'the gateway answers behind a firewall of the host that knows nothing of it',
    proves: ['gateway-accepts'],
    given: { foreign: HOST_FIREWALL },
    holds: async (bed, family) =>
      (await answered(bed.alice, GATEWAY[family], 53)) === 'haven' &&
      (await asked(bed.alice, GATEWAY[family], 53)) === 'haven' &&
      (await bed.alice.device.ping(GATEWAY[family], { timeoutMs: 1000 })),
  },
  {
    id: 'a tunnel comes up behind a firewall of the host that knows nothing of it',
    proves: ['wireguard-accepts'],
    given: { foreign: HOST_FIREWALL },
    holds: async (bed, family) => {
      // both tunnels of the exit, each with a port of its own
      for (const client of [bed.bob, bed.carol]) await bed.connect(client, family);
      const hands = await Promise.allSettled(
        [bed.bob, bed.carol].map(({ device }) => device.handshake(GATEWAY[4], 2500)),
      );
      return hands.every(({ status }) => status === 'fulfilled');
    },
  },
  {
    id: 'clients do not reach each other, on one tunnel or across two, whoever accepts everything',
    proves: ['client-to-client'],
    given: { without: ['private-destinations'], foreign: FOREIGN_ACCEPT, context: { uplink: null } },
    holds: async (bed, family) =>
      !(await reaches(bed, family, bed.alice, bed.bob)) &&
      !(await reaches(bed, family, bed.alice, bed.carol)),
  },
  {
    id: 'clients do not reach each other while somebody has flushed every rule',
    proves: ['forward-policy'],
    given: { foreign: { 4: FLUSHED, 6: FLUSHED } },
    holds: async (bed, family) => !(await reaches(bed, family, bed.alice, bed.bob)),
  },
  {
    id: 'a scan of every address of the exit finds DNS at the gateway and nothing else',
    proves: ['client-to-exit'],
    given: { foreign: FOREIGN_ACCEPT },
    holds: async (bed, family) => {
      const { alice } = bed;
      const addresses = [GATEWAY[family], bed.public[family], bed.mesh[family]];
      await Promise.all(['tcp', 'udp'].map((transport) => bed.received(`own service ${transport}${family}`)));
      const outcomes = await Promise.all(
        addresses.flatMap((address) => [22, 7100].map((port) => alice.device.probe(address, port, 400))),
      );
      await bed.sends(alice, family, 9, async () => {
        for (const address of addresses) await quiet(alice)(address, 7100, { count: 3 });
      });
      const [tcp, udp] = await Promise.all([
        bed.received(`own service tcp${family}`),
        bed.received(`own service udp${family}`),
      ]);
      const pings = await Promise.all(
        addresses.slice(1).map((address) => alice.device.ping(address, { timeoutMs: 300 })),
      );
      return tcp.count + udp.count === 0 && !outcomes.includes('open') && !pings.includes(true);
    },
  },
  {
    id: 'SSH is answered to the mesh alone, where that is wanted',
    proves: ['ssh-from-mesh'],
    given: { foreign: FOREIGN_ACCEPT, context: { sshPort: 22 } },
    holds: async (bed, family) => {
      const login = (from: Host, to: Address) => from.probe(to[family], 22, 400);
      const [outside, inside, itself] = [
        await login(bed.inet, bed.public),
        await login(bed.artemis, bed.mesh),
        await login(bed.exit, bed.public),
      ];
      // the mesh is IPv4
      return outside !== 'open' && (inside === 'open') === (family === 4) && itself === 'open';
    },
  },
  {
    id: 'nothing but the uplink is reached, whoever accepts everything',
    proves: ['beside-the-uplink'],
    given: { foreign: FOREIGN_ACCEPT },
    holds: async (bed, family) => {
      // an address like any on the internet, which the exit reaches by another interface than its uplink
      const target = family === 4 ? '198.51.100.200' : '2001:db8:51::200';
      const route = [target, 'via', bed.meshHost[family], 'dev', 'mesh0'];
      await bed.exit.exec('ip', [`-${family}`, 'route', 'replace', ...route]);
      const match = ['-i', 'mesh0', '-d', target];
      const count = await arriving(bed, bed.artemis, bed.meshHost[family], family, match, () =>
        bed.sends(bed.alice, family, 3, () => bed.alice.device.udp(target, 4242, { count: 3 })),
      );
      await bed.exit.exec('ip', [`-${family}`, 'route', 'delete', ...route]);
      return count === 0;
    },
  },
  {
    id: 'nothing for private networks, the mesh, metadata services or multicast leaves by the uplink',
    proves: ['private-destinations'],
    holds: async (bed, family) => {
      const { alice } = bed;
      const targets = PRIVATE[family];
      const packet = { kind: 'udp', source: alice.address[family], sourcePort: 4242, port: 4242 };
      const left = await leaving(bed, alice, family, ['-p', 'udp', '--dport', '4242'], targets.length, () =>
        bed.forge(
          alice.device,
          ...targets.map((destination) => ({ ...packet, destination, interface: 'wg0' })),
        ),
      );
      return left === 0 && !(await multicastLeaves(bed, family));
    },
  },
  {
    id: 'the mesh is not reached, also where its interface is taken for the uplink',
    proves: ['private-destinations'],
    given: { without: ['beside-the-uplink'], foreign: FOREIGN_ACCEPT },
    holds: async (bed, family) => {
      const target = bed.meshHost[family];
      const match = ['-i', 'mesh0', '-p', 'udp', '--dport', '4242'];
      const count = await arriving(bed, bed.artemis, target, family, match, () =>
        bed.sends(bed.alice, family, 3, () => bed.alice.device.udp(target, 4242, { count: 3 })),
      );
      return count === 0;
    },
  },
  {
    id: 'a port of the exit is not taken by a packet that comes from the same port of a client',
    proves: ['wireguard-port-as-source'],
    given: {
      without: ['wireguard-untracked-in', 'wireguard-untracked-out', 'translate'],
      foreign: PLAIN_NAT,
    },
    holds: shakesHandsDespiteShadow,
  },
  {
    id: "no client's endpoint stands in the connection table",
    proves: ['wireguard-untracked-in', 'wireguard-untracked-out', 'tunnel-itself-is-done'],
    holds: async (bed, family) => {
      for (const client of [bed.bob, bed.carol]) {
        await bed.connect(client, family);
        await client.device.handshake();
      }
      const entries = await connections(bed, family, '-p', 'udp');
      return !entries.some((entry) =>
        [bed.bob, bed.carol].some(({ outside }) => entry.includes(`=${outside[family]} `)),
      );
    },
  },
  {
    id: 'nor does one that comes by another interface than the uplink',
    proves: ['wireguard-untracked-in'],
    holds: async (bed, family) => {
      const count = await bed.exit.countPackets(['-i', 'mesh0', '-p', 'udp'], family);
      for (const port of Object.values(PORTS)) await bed.artemis.udp(bed.mesh[family], port, { count: 3 });
      await waitFor('their packets', async () => (await count()) >= 6, { deadlineMs: 10_000, everyMs: 10 });
      const entries = await connections(bed, family, '-p', 'udp');
      return !entries.some((entry) => Object.values(PORTS).some((port) => entry.includes(`dport=${port} `)));
    },
  },
  {
    id: 'what belongs to no connection does not leave with the address of the tunnel',
    proves: ['out-of-window', 'no-midstream'],
    holds: async (bed, family) => {
      const { alice } = bed;
      const segment = {
        source: alice.address[family],
        destination: WEB[family],
        kind: 'tcp',
        flags: 'A',
        sourcePort: 4000,
        port: 80,
      };
      const left = await leaving(bed, alice, family, ['-p', 'tcp', '--dport', '80'], 1, () =>
        bed.forge(alice.device, segment),
      );
      return left === 0;
    },
  },
  {
    id: 'a neighbour that routes to the tunnels reaches nobody',
    proves: ['unasked-into-tunnel'],
    given: { foreign: FOREIGN_ACCEPT },
    holds: async (bed, family) => {
      const route = [POOL[family], 'via', bed.public[family]];
      await bed.inet.exec('ip', [`-${family}`, 'route', 'replace', ...route]);
      const target = bed.alice.address[family];
      const match = ['-i', 'wg0', '-p', 'udp', '--dport', '4242'];
      const count = await arriving(bed, bed.alice.device, target, family, match, async () => {
        const seen = await bed.exit.countPackets(['-i', 'eth0', '-d', target], family);
        for (let sent = 0; sent === 0 || (await seen()) === 0; sent++) await bed.inet.udp(target, 4242);
      });
      await bed.inet.exec('ip', [`-${family}`, 'route', 'delete', ...route]);
      return count === 0;
    },
  },
  {
    id: 'no segment is larger than the tunnel, whichever end offers it',
    proves: ['segment-size'],
    holds: async (bed, family) => {
      const { alice, inet } = bed;
      const largest = 1420 - (family === 4 ? 40 : 60);
      const tooLarge = (flags: string) => [
        '-p',
        'tcp',
        '--tcp-flags',
        'SYN,ACK',
        flags,
        '-m',
        'tcpmss',
        '--mss',
        `${largest + 1}:65535`,
      ];
      // a device that was set up carelessly
      await alice.device.exec('ip', ['link', 'set', 'wg0', 'mtu', '1500']);
      const [out, back] = [
        await inet.countPackets(tooLarge('SYN'), family),
        await alice.device.countPackets(['-i', 'wg0', ...tooLarge('SYN,ACK')], family),
      ];
      const opened = await alice.device.probe(WEB[family], 80);
      await alice.device.exec('ip', ['link', 'set', 'wg0', 'mtu', '1420']);
      return opened === 'open' && (await out()) === 0 && (await back()) === 0;
    },
  },
  {
    id: 'whichever resolver a device asks, the one of its exit answers',
    proves: ['dns-bypass'],
    holds: async (bed, family) => {
      const foreign = async () => {
        const [tcp, udp] = await Promise.all([
          bed.received(`foreign dns tcp${family}`),
          bed.received(`foreign dns udp${family}`),
        ]);
        return tcp.count + udp.count;
      };
      await foreign();
      const answers = [await answered(bed.alice, WEB[family], 53), await asked(bed.alice, WEB[family], 53)];
      return answers.every((answer) => answer === 'haven') && (await foreign()) === 0;
    },
  },
  {
    id: 'clients leave with the address of the exit, from ports that are theirs alone',
    proves: ['translate'],
    holds: async (bed, family) => {
      const { alice } = bed;
      await Promise.all(['tcp', 'udp'].map((transport) => bed.received(`echo ${transport}${family}`)));
      const own = await leaving(bed, alice, family, ['-s', POOL[family]], 1, async () => {
        await alice.device.ping(WEB[family], { timeoutMs: 500 });
        for (let at = 0; at < 25; at++) {
          await answered(alice, WEB[family], 7);
          await asked(alice, WEB[family], 7);
        }
      });
      const seen = await Promise.all(
        ['tcp', 'udp'].map((transport) => bed.received(`echo ${transport}${family}`)),
      );
      const ports = seen.flatMap((each) => each.ports);
      const theirs = (port: number) => port >= CLIENT_PORTS.first && port <= CLIENT_PORTS.last;
      const exit = seen.flatMap((each) => each.peers).every((peer) => peer === bed.public[family]);
      return own === 0 && ports.length === 50 && ports.every(theirs) && exit;
    },
  },
  {
    id: 'mail is refused at once',
    proves: ['mail'],
    holds: async (bed, family) => (await bed.alice.device.probe(WEB[family], 25, 2000)) === 'ECONNREFUSED',
  },
  {
    id: 'encrypted DNS to others is refused at once',
    proves: ['dns-over-tls'],
    holds: async (bed, family) => {
      const { alice } = bed;
      const over = (protocol: string) => ['-p', protocol, '--dport', '853'];
      const refusals = await alice.device.countPackets(
        family === 4
          ? ['-p', 'icmp', '--icmp-type', 'port-unreachable']
          : ['-p', 'ipv6-icmp', '--icmpv6-type', 'port-unreachable'],
        family,
      );
      const left = await leaving(bed, alice, family, over('udp'), 3, () =>
        alice.device.udp(WEB[family], 853, { count: 3 }),
      );
      await bed.delivered(alice.device, alice.address[family]);
      const tcp = await alice.device.probe(WEB[family], 853, 2000);
      return left === 0 && (await refusals()) > 0 && tcp === 'ECONNREFUSED';
    },
  },
  {
    id: 'a family that the exit cannot carry is refused at once, and does not leave',
    proves: ['no-uplink'],
    given: { context: { uplink: null } },
    holds: async (bed, family) => {
      const { alice } = bed;
      let outcome = '';
      const left = await leaving(bed, alice, family, ['-p', 'tcp', '--dport', '80'], 1, async () => {
        outcome = await alice.device.probe(WEB[family], 80, 1500);
      });
      return left === 0 && outcome !== 'open' && outcome !== 'timeout';
    },
  },
  {
    id: 'one client has no more connections than its share, and others have theirs',
    proves: ['connection-limit', 'connection-limit-to-exit'],
    given: { context: { connectionsPerClient: 50 } },
    holds: async (bed, family) => {
      const { alice, bob } = bed;
      // the resolver is one way to fill the table, the internet another
      await alice.device.flows(WEB[family], 7, 250);
      await alice.device.flows(GATEWAY[family], 53, 250);
      const bobs = await answered(bob, WEB[family], 7);
      const entries = await connections(bed, family, '-s', alice.address[family]);
      const questions = entries.filter((entry) => entry.includes('dport=53 '));
      return entries.length === 100 && questions.length === 50 && bobs === 'x';
    },
  },
  {
    id: 'a connection that all rules have let through goes on, and the lower half of its mark is for others',
    proves: ['checked', 'checked-are-done'],
    given: { foreign: OTHERS_MARK },
    holds: async (bed, family) => {
      const { connection } = await openFlow(bed, family);
      const answers = [await connection.say('once'), await connection.say('more')];
      const marks = (await connections(bed, family, '-p', 'tcp', '-s', bed.alice.address[family])).map(
        (entry) => Number(/ mark=(\d+)/.exec(entry)?.[1]),
      );
      await connection.close();
      return answers.join() === 'once,more' && marks.length === 1 && ((marks[0] ?? 0) & 0xffff) === 7;
    },
  },
  ...PAIRS.flatMap(ofInterface),
  {
    id: "a packet with another client's source is dropped",
    proves: [],
    holds: async (bed, family) => {
      const { alice, bob } = bed;
      await alice.device.exec('ip', ['address', 'add', bob.address[family], 'dev', 'wg0']);
      await bed.received(`own dns udp${family}`);
      await alice.device.udp(GATEWAY[family], 53, { count: 3, localAddress: bob.address[family] });
      await alice.device.exec('ip', ['address', 'delete', bob.address[family], 'dev', 'wg0']);
      // what comes after them has arrived, so they would have too
      const later = await answered(alice, GATEWAY[family], 53);
      return later === 'haven' && (await bed.received(`own dns udp${family}`)).count === 1;
    },
  },
  {
    id: 'neighbours do not find the gateway on the uplink',
    proves: ['neighbours-ask'],
    families: [4],
    holds: async (bed) => {
      const ip = (...args: string[]) => bed.inet.exec('ip', args);
      await ip('route', 'replace', GATEWAY[4], 'dev', 'exits');
      await bed.inet.run('ping', ['-c', '1', '-W', '1', GATEWAY[4]]);
      const neighbour = await ip('neighbour', 'show', GATEWAY[4], 'dev', 'exits');
      await ip('route', 'delete', GATEWAY[4], 'dev', 'exits');
      await bed.inet.run('ip', ['neighbour', 'flush', 'to', GATEWAY[4], 'dev', 'exits']);
      return !neighbour.includes('lladdr');
    },
  },
  {
    id: 'a reset out of the window neither reaches a client nor ends its connection',
    proves: ['window-check'],
    holds: async (bed, family) => {
      const { alice, inet } = bed;
      const { connection, port } = await openFlow(bed, family);
      const count = await alice.device.countPackets(['-p', 'tcp', '--tcp-flags', 'RST', 'RST'], family);
      const stray = await alice.device.countPackets(
        ['-p', 'tcp', '-m', 'string', '--string', 'stray-data', '--algo', 'bm'],
        family,
      );
      const segment = {
        kind: 'tcp',
        source: WEB[family],
        destination: bed.public[family],
        sourcePort: 7,
        port,
      };
      // Of two sequence numbers half the space apart one is behind the window, the other far ahead of it. What is behind
      // passes as delayed, and the client ignores it; a reset is no such thing.
      for (const sequence of [77, 77 + 2 ** 31]) {
        const stray = { ...segment, flags: 'A', sequence, payload: 'stray-data' };
        await bed.forge(inet, { ...segment, flags: 'R', sequence }, stray);
      }
      const alive = (await connection.say('still there?')) === 'still there?';
      const entries = await connections(bed, family, '-p', 'tcp', '-s', alice.address[family]);
      await connection.close();
      const established = entries.some(
        (entry) => entry.includes('ESTABLISHED') && entry.includes(`dport=${port}`),
      );
      return alive && established && (await count()) === 0 && (await stray()) < 2;
    },
  },
  {
    id: 'idle connections are forgotten after two hours and four minutes',
    proves: ['forgotten-connections'],
    holds: async (bed, family) => {
      const { connection } = await openFlow(bed, family);
      const entries = await connections(bed, family, '-p', 'tcp', '-s', bed.alice.address[family]);
      await connection.close();
      const seconds = entries
        .filter((entry) => entry.includes('ESTABLISHED'))
        .map((entry) => Number(entry.trim().split(/\s+/)[2]));
      return seconds.length > 0 && seconds.every((left) => left <= 7440);
    },
  },
  {
    id: "the exit's own connections have other ports than those of clients",
    proves: ['own-ports'],
    holds: async (bed) => (await bed.exit.givenPorts(40)).every((port) => port > CLIENT_PORTS.last),
  },
  {
    id: 'no program is given the WireGuard port while the tunnel is away',
    proves: ['wireguard-port-reserved'],
    holds: async (bed) => {
      const [first, last] = [PORTS.wg0, PORTS.wg1];
      await bed.write([['net/ipv4/ip_local_port_range', `${first - 1} ${last + 1}`]]);
      const listen = (name: 'wg0' | 'wg1', port: number) =>
        bed.exit.exec('wg', ['set', name, 'listen-port', String(port)]);
      await Promise.all([listen('wg0', 40_000), listen('wg1', 40_001)]);
      const given = await bed.exit.givenPorts(40);
      await Promise.all([listen('wg0', PORTS.wg0), listen('wg1', PORTS.wg1)]);
      return !given.includes(first) && !given.includes(last);
    },
  },
  {
    id: 'a host that lives by router advertisements keeps its IPv6 when it forwards',
    proves: ['uplink-advertisements'],
    families: [6],
    holds: async (bed) =>
      (await bed.exit.exec('cat', ['/proc/sys/net/ipv6/conf/eth0/accept_ra'])).trim() === '2',
  },
];
