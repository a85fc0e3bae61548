/**
 * Kernel settings of an exit: the other half of what it enforces, in rows like those of the firewall. Names are paths
 * under /proc/sys, since interface names may hold dots.
 *
 * Not in the table, since a forwarding kernel does without: redirects and router advertisements in IPv6 (ignored while
 * `forwarding` is on: rt6_do_redirect in net/ipv6/route.c, ipv6_accept_ra in include/net/ipv6.h).
 *
 * Source: the kernel's Documentation/networking/{ip-sysctl,nf_conntrack-sysctl}.rst.
 */
import type { Family } from '../ports.ts';
import { CLIENT_PORTS } from './rules.ts';

/** One setting with its value; `value` is compared and written as the kernel prints it, blanks aside. */
export interface Sysctl {
  readonly path: string;
  readonly value: string;
  /** Only where it holds this now. */
  readonly from?: string;
  /** A list of which the value must be a part: other entries are somebody else's. */
  readonly list?: true;
  /** Not every kernel has it. */
  readonly optional?: true;
}

export interface SettingRow {
  readonly id: string;
  /** Both where absent. */
  readonly family?: Family;
  readonly settings: (context: SettingContext) => readonly Sysctl[];
  readonly attack: string;
  readonly why: string;
}

export interface SettingContext {
  /** Names of the tunnel interfaces. */
  readonly tunnels: readonly string[];
  readonly uplink6: string | null;
  readonly listenPorts: readonly number[];
}

/** One setting of several interfaces. */
const each = (interfaces: readonly string[], name: string, value: string): Sysctl[] =>
  interfaces.map((of) => ({ path: `net/ipv4/conf/${of}/${name}`, value }));

const CONNTRACK = 'net/netfilter/nf_conntrack';

/** Settings that make the exit safer, and do no harm before it forwards. */
export const SETTINGS: readonly SettingRow[] = [
  {
    id: 'forged-source-4',
    family: 4,
    settings: ({ tunnels }) => each(tunnels, 'rp_filter', '1'),
    attack: "a client sends with somebody else's address, to have him answered or blamed",
    why: 'a source that is not routed back into the tunnel is forged',
  },
  {
    id: 'send-redirects',
    family: 4,
    settings: ({ tunnels }) => each(['all', ...tunnels], 'send_redirects', '0'),
    attack: 'the exit tells a client about a way around it, and about its neighbours',
    why: 'it is off only where both are',
  },
  {
    id: 'accept-redirects',
    family: 4,
    settings: ({ tunnels }) => each(tunnels, 'accept_redirects', '0'),
    attack: "a client changes the exit's routes, and gets others' packets",
    why: 'a kernel that forwards takes them only where this and the setting for all are on',
  },
  {
    id: 'source-routes',
    family: 4,
    settings: ({ tunnels }) => each(tunnels, 'accept_source_route', '0'),
    attack: "a client's packet chooses its way past the rules, by way of the exit's own addresses",
    why: 'nothing honest uses them',
  },
  {
    id: 'neighbours-ask',
    family: 4,
    settings: () => [{ path: 'net/ipv4/conf/all/arp_ignore', value: '1' }],
    attack: "the exit's neighbours find its tunnel address on the uplink, and learn what it is",
    why: 'answers for the address of the interface that is asked, and no other; 2 would also look at who asks, and cuts off a host whose router asks by another address than one of its subnet',
  },
  {
    id: 'window-check',
    settings: () => [
      { path: `${CONNTRACK}_tcp_be_liberal`, value: '0' },
      { path: `${CONNTRACK}_tcp_ignore_invalid_rst`, value: '0' },
    ],
    attack: "whoever guesses ports ends a client's connection with one reset, or takes its place at the exit",
    why: 'a reset outside of the window leaves the connection alone, and does not reach the client',
  },
  {
    id: 'no-midstream',
    settings: () => [{ path: `${CONNTRACK}_tcp_loose`, value: '0' }],
    attack:
      'a packet from the middle of nowhere makes an entry: the table is probed, and filled, without a handshake',
    why: 'a connection begins with SYN; after a reboot of the exit clients begin anew, as they would anyway',
  },
  {
    id: 'forgotten-connections',
    settings: () => [{ path: `${CONNTRACK}_tcp_timeout_established`, value: '7440' }],
    attack: 'who seizes the exit reads connections of the last five days in its memory',
    why: 'RFC 5382 asks for 2 hours and 4 minutes at least; the kernel keeps idle ones for five days',
  },
  {
    id: 'own-ports',
    settings: () => [{ path: 'net/ipv4/ip_local_port_range', value: `${CLIENT_PORTS.last + 1} 65535` }],
    attack:
      "Port Shadow: a client's connection gets the port of one that the exit itself has, and its answers",
    why: 'above the ports of the clients',
  },
  {
    id: 'wireguard-port-reserved',
    settings: ({ listenPorts }) =>
      listenPorts.map((port) => ({ path: 'net/ipv4/ip_local_reserved_ports', value: `${port}`, list: true })),
    attack:
      'a program on the exit is given the WireGuard port while the tunnel is made anew, and the exit is gone',
    why: 'the port lies among those that the kernel gives out',
  },
  {
    id: 'uplink-advertisements',
    family: 6,
    settings: ({ uplink6 }) =>
      uplink6 ? [{ path: `net/ipv6/conf/${uplink6}/accept_ra`, value: '2', from: '1' }] : [],
    attack: 'none: an exit that lives by router advertisements loses its IPv6',
    why: 'a host that forwards ignores them at 1',
  },
];

/** Forwarding itself: enabled last, when every rule is in place. */
export const FORWARDING: readonly SettingRow[] = [
  {
    id: 'forward-4',
    family: 4,
    settings: () => [{ path: 'net/ipv4/ip_forward', value: '1' }],
    attack: 'none: this is the service',
    why: 'IPv4 of the clients',
  },
  {
    id: 'forward-6',
    family: 6,
    settings: () => [{ path: 'net/ipv6/conf/all/forwarding', value: '1', optional: true }],
    attack: 'none: this is the service',
    why: 'IPv6 of the clients',
  },
];

/** Whether a setting is as it should be. */
export function isSet({ value, from, list }: Sysctl, now: string): boolean {
  if (list) return listed(now, value);
  return now.split(/\s+/).join(' ') === value || (from !== undefined && now !== from);
}

/** What is written to make it so: of a list what is there, and the value. */
export function written({ value, list }: Sysctl, now: string | null): string {
  return list && now ? `${now},${value}` : value;
}

/** Whether a list of ports and ranges, as the kernel prints it ("22,8080-8090"), has a port. */
function listed(list: string, port: string): boolean {
  return list.split(',').some((entry) => {
    const [first = '', last = first] = entry.split('-');
    return entry !== '' && Number(first) <= Number(port) && Number(port) <= Number(last);
  });
}
