/**
 * What scenarios are made of: the circumstances that others have brought about on an exit, what clients and neighbours
 * try, and where it is seen whether it came through.
 */
import type { Host } from '../lab/host.ts';
import {
  type Address,
  type Bed,
  type Client,
  type Family,
  type Foreign,
  GATEWAY,
  POOL,
  PORTS,
  script,
  WEB,
} from './bed.ts';

/** Somebody lets everything pass, before every rule of ours in `filter`. */
const ACCEPTS_ALL = '*filter\n-I FORWARD 1 -j ACCEPT\n-I INPUT 1 -j ACCEPT\nCOMMIT\n';
export const FOREIGN_ACCEPT = { 4: ACCEPTS_ALL, 6: ACCEPTS_ALL };
/** A host's own firewall, which accepts what it knows and nothing else. */
const strictHost = (icmp: string) =>
  `*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n${icmp}COMMIT\n`;
export const HOST_FIREWALL = {
  4: strictHost(''),
  6: strictHost('-A INPUT ! -i wg+ -p ipv6-icmp -j ACCEPT\n'),
};
export const FLUSHED = ['raw', 'mangle', 'nat', 'filter'].map((name) => `*${name}\n-F\nCOMMIT\n`).join('');

/** Somebody marks connections for a purpose of his own, each when it is opened. */
const MARKS = '*mangle\n-A FORWARD -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x7/0xffff\nCOMMIT\n';
export const OTHERS_MARK = { 4: MARKS, 6: MARKS };

/** Packets that match, on their way into a host. */
export async function arriving(
  bed: Bed,
  to: Host,
  address: string,
  family: Family,
  match: readonly string[],
  during: () => Promise<unknown>,
): Promise<number> {
  const count = await to.countPackets(match, family);
  await during();
  await bed.delivered(to, address);
  return count();
}

/** Packets of a client that match, on their way into the internet. */
export const leaving = (
  bed: Bed,
  client: Client,
  family: Family,
  match: readonly string[],
  packets: number,
  what: () => Promise<unknown>,
) => arriving(bed, bed.inet, WEB[family], family, match, () => bed.sends(client, family, packets, what));

/** Datagrams from one client that reach another. */
export async function reaches(bed: Bed, family: Family, from: Client, to: Client): Promise<boolean> {
  const { device, address } = to;
  const match = ['-i', 'wg0', '-s', from.address[family]];
  const count = await arriving(bed, device, address[family], family, match, () =>
    bed.sends(from, family, 3, () => from.device.udp(address[family], 4242, { count: 3 })),
  );
  return count > 0;
}

export const quiet = (client: Client) => client.device.udp.bind(client.device);
export const answered = async (client: Client, address: string, port: number) =>
  client.device.udp(address, port, { replyMs: 1000 });
/** An answer over TCP; null where none comes. */
export async function asked(client: Client, address: string, port: number): Promise<string | null> {
  try {
    const connection = await client.device.hold(address, port, 1500);
    const answer = await connection.say('hello', 1500);
    await connection.close();
    return answer;
  } catch (error) {
    if (error instanceof Error) return null;
    throw error;
  }
}

/** Connection table of the exit, as conntrack prints it. */
export async function connections(bed: Bed, family: Family, ...filter: string[]): Promise<string[]> {
  const name = family === 4 ? 'ipv4' : 'ipv6';
  const { stdout } = await bed.exit.run('conntrack', ['-L', '-f', name, ...filter]);
  return stdout.split('\n').filter(Boolean);
}

/** Where a client's open connection comes from, as the internet sees it. */
export async function openFlow(bed: Bed, family: Family) {
  await bed.received(`echo tcp${family}`);
  const connection = await bed.alice.device.hold(WEB[family], 7);
  await connection.say('hello');
  const [port = 0] = (await bed.received(`echo tcp${family}`)).ports;
  return { connection, port };
}

const GROUP: Address = { 4: '239.1.2.3', 6: 'ff0e::1234' };

/** Whether a client's multicast gets to the internet by an exit on which somebody runs a multicast router. */
export async function multicastLeaves(bed: Bed, family: Family): Promise<boolean> {
  const { alice, exit } = bed;
  const ends = [alice.address[4], GROUP[4], alice.address[6], GROUP[6]];
  const router = exit.start('multicast', 'python3', [script('multicast.py'), 'wg0', 'eth0', ...ends]);
  try {
    await router.waitFor(/ready/);
    const packet = { kind: 'udp', source: alice.address[family], sourcePort: 4242, port: 4242 };
    const left = await leaving(bed, alice, family, ['-d', GROUP[family]], 1, () =>
      bed.forge(alice.device, { ...packet, destination: GROUP[family], interface: 'wg0' }),
    );
    return left > 0;
  } finally {
    await router.stop('SIGKILL');
  }
}

/** Address translation as it is done everywhere, with nothing of ours against Port Shadow. */
export const POOL_NAT = (options = ''): Foreign => {
  const text = (pool: string) =>
    `*nat\n-A POSTROUTING -s ${pool} -o eth0 -p udp -j MASQUERADE ${options}\nCOMMIT\n`;
  return { 4: text(POOL[4]), 6: text(POOL[6]) };
};
export const PLAIN_NAT = POOL_NAT();
const VICTIM_PORT = 41404;

/**
 * Port Shadow, after test_port_shadow in the kernel's nft_nat.sh: from the exit's WireGuard port a client writes to the
 * port from which another client will shake hands; where that made an entry, the hand goes to the attacker.
 * @returns whether the other client gets its tunnel nevertheless
 */
export async function shakesHandsDespiteShadow(bed: Bed, family: Family): Promise<boolean> {
  const { alice } = bed;
  for (const victim of [bed.bob, bed.carol]) {
    await victim.device.down();
    const ends = { source: alice.address[family], destination: victim.outside[family] };
    const ports = { sourcePort: PORTS[victim.interface], port: VICTIM_PORT };
    await bed.sends(alice, family, 1, () =>
      bed.forge(alice.device, { kind: 'udp', ...ends, ...ports, interface: 'wg0' }),
    );
    await bed.connect(victim, family, VICTIM_PORT);
    const hands = victim.device.handshake(GATEWAY[4], 2500);
    if (
      !(await hands.then(
        () => true,
        () => false,
      ))
    )
      return false;
  }
  return true;
}
