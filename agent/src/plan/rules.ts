/**
 * The firewall of an exit, as one table: what each rule is, which attack it stops and why it stands where it stands.
 * Rules are written exactly as iptables-save prints them, so that looking whether they are in place is comparing text.
 *
 * Drops stand in `mangle`, which every packet passes before `filter`: no accept of anybody else, wherever he puts it,
 * lets through what was dropped there. `filter` holds what answers (only there may a rule reject) and accepts what is
 * left; what nobody accepted falls to the policy. So either table alone, flushed by hand, leaves clients apart.
 *
 * Sources: the kernel's nft_nat.sh (test_port_shadow), Port Shadow (CVE-2021-3773; Mixon-Baca et al., PETS 2024),
 * RFC 1918, 3927, 4193, 5737 and 6890 for what is not the internet, RFC 5382 for NAT.
 *
 * What a packet costs is the rules that look at it, so a connection that every rule of `mangle FORWARD` has let through
 * carries a mark, and is spared them from then on. The mark is a digest of those rules: what was opened under others, or
 * while somebody had flushed them, has none or another, and each of its packets meets all rules again.
 *
 * `wg+` means every tunnel interface; a host's own WireGuard interfaces (a mesh, say) must have another prefix.
 */
import type { Family } from '../ports.ts';
import type { RuleContext } from './context.ts';
import { deal } from './subnets.ts';

/** Chains of this prefix are ours, also those of other versions. */
export const CHAIN_PREFIX = 'KATAFRACT-';

/**
 * Built-in chains into which we hook, each by one jump at its very head to a chain of ours that is named after it. A
 * host's tables are put right in this order: what drops comes before what accepts.
 */
export const PLACES = [
  { table: 'raw', parent: 'PREROUTING' },
  { table: 'raw', parent: 'OUTPUT' },
  { table: 'mangle', parent: 'INPUT' },
  { table: 'mangle', parent: 'FORWARD' },
  { table: 'nat', parent: 'PREROUTING' },
  { table: 'nat', parent: 'POSTROUTING' },
  { table: 'filter', parent: 'INPUT' },
  { table: 'filter', parent: 'FORWARD' },
] as const;
export type Place = `${(typeof PLACES)[number]['table']} ${(typeof PLACES)[number]['parent']}`;

export interface RuleRow {
  readonly id: string;
  readonly place: Place;
  /** Both where absent. */
  readonly family?: Family;
  /** The rule after `-A CHAIN`; several where it is one rule per item of a list, none where it does not apply. */
  readonly rules: (context: RuleContext) => readonly string[];
  /** Nothing depends on it: it only spares packets the rules that could not match them. */
  readonly spares?: true;
  /** What an attacker could do without it. */
  readonly attack: string;
  /** Why so, and why here. */
  readonly why: string;
}

/** A built-in chain's policy: what becomes of packets that no rule decided. */
export interface PolicyRow extends Omit<RuleRow, 'rules' | 'spares'> {
  readonly policy: 'DROP';
}

/**
 * Never the internet: private nets, the mesh, cloud metadata, and whatever else only the exit could reach. In IPv6 the
 * internet is one prefix (RFC 4291, 2.4), and all else is not.
 */
const NOT_INTERNET: Record<Family, readonly string[]> = {
  4: [
    '-d 10.0.0.0/8',
    '-d 100.64.0.0/10',
    '-d 168.63.129.16/32',
    '-d 169.254.0.0/16',
    '-d 172.16.0.0/12',
    '-d 192.0.0.0/24',
    '-d 192.168.0.0/16',
    '-d 198.18.0.0/15',
    '-d 224.0.0.0/3',
  ],
  6: ['! -d 2000::/3'],
};

const ECHO_REQUEST: Record<Family, string> = {
  4: '-p icmp -m icmp --icmp-type 8',
  6: '-p ipv6-icmp -m icmp6 --icmpv6-type 128',
};
const NO_ROUTE: Record<Family, string> = { 4: 'icmp-net-unreachable', 6: 'icmp6-no-route' };
const NO_PORT: Record<Family, string> = { 4: 'icmp-port-unreachable', 6: 'icmp6-port-unreachable' };

/**
 * The upper half of a connection's mark (the lower one is for others to use); in place of CHECKED comes the digest of the
 * rules of the chain, as `wantedRules` writes them.
 */
export const CHECKED = '<checked>';
const MARK = `${CHECKED}/0xffff0000`;

/** Ports that clients leave by; the host's own connections use the ones above (ip_local_port_range). */
export const CLIENT_PORTS = { first: 10_000, last: 49_999 } as const;

const dns = ({ subnet }: RuleContext, target: string) =>
  ['udp', 'tcp'].map(
    (protocol) => `-d ${subnet.host} -i wg+ -p ${protocol} -m ${protocol} --dport 53 -j ${target}`,
  );
const echo = ({ family, subnet }: RuleContext, target: string) => [
  `-d ${subnet.host} -i wg+ ${ECHO_REQUEST[family]} -j ${target}`,
];
const wireguard = ({ listenPorts }: RuleContext, rule: (port: number) => string) => listenPorts.map(rule);

const forgedSource = ({ subnet }: RuleContext) => [`! -s ${subnet.pool} -i wg+ -j DROP`];
const FORGED_WHY =
  'IPv6 has no rp_filter setting, and its match took a twentieth of the throughput; clients are of the pool';
const connectionLimit = ({ family, connectionsPerClient }: RuleContext) => [
  `-i wg+ -m conntrack --ctstate NEW -m connlimit --connlimit-above ${connectionsPerClient} ` +
    `--connlimit-mask ${family === 4 ? 32 : 128} --connlimit-saddr -j DROP`,
];

/** Of each chain in the order in which the kernel tries them. */
export const RULES: readonly RuleRow[] = [
  {
    id: 'wireguard-untracked-in',
    place: 'raw PREROUTING',
    rules: (context) =>
      wireguard(
        context,
        (port) => `! -i wg+ -p udp -m udp --dport ${port} -m addrtype --dst-type LOCAL -j CT --notrack`,
      ),
    attack:
      "Port Shadow: a client makes a NAT entry that takes another client's packets to the exit; and the exit's connection table names every client's endpoint",
    why: 'what is not tracked matches no entry and makes none; only what is for the exit itself: its containers may speak WireGuard with others, as its clients may',
  },
  {
    id: 'wireguard-untracked-out',
    place: 'raw OUTPUT',
    rules: (context) => wireguard(context, (port) => `-p udp -m udp --sport ${port} -j CT --notrack`),
    attack: "the exit's connection table names every client's endpoint",
    why: 'the answers, or they would be tracked as connections of their own',
  },
  {
    id: 'ssh-from-mesh',
    place: 'mangle INPUT',
    rules: ({ family, sshPort }) => {
      if (sshPort === null) return [];
      const from = family === 4 ? '! -s 100.64.0.0/10 ' : '';
      return [`${from}! -i lo -p tcp -m tcp --dport ${sshPort} -j DROP`];
    },
    attack: 'anybody on the internet tries keys, and whatever sshd has wrong',
    why: 'operators come by the mesh, which is IPv4; off unless switched on, and never before somebody can come in by it',
  },
  {
    id: 'tunnel-itself-is-done',
    place: 'mangle INPUT',
    spares: true,
    rules: () => ['! -i wg+ -j RETURN'],
    attack: 'none: it only spares time',
    why: 'what follows is about what comes out of a tunnel: the packets of the tunnel itself are spared it',
  },
  {
    id: 'forged-source-to-exit',
    place: 'mangle INPUT',
    family: 6,
    rules: forgedSource,
    attack: "a client asks the exit with somebody else's address, to have him answered",
    why: FORGED_WHY,
  },
  {
    id: 'connection-limit-to-exit',
    place: 'mangle INPUT',
    rules: connectionLimit,
    attack: 'one client fills the connection table with questions, and nobody else gets a connection',
    why: 'a packet that is dropped here makes no entry; what asks the exit itself is counted apart from what passes it',
  },
  {
    id: 'dns-passes',
    place: 'mangle INPUT',
    rules: (context) => (context.dnsOpen ? dns(context, 'RETURN') : []),
    attack: 'none: the resolver is for clients',
    why: 'at the gateway address and no other of the exit; closed while the filter keeps or tells what is asked',
  },
  {
    id: 'echo-passes',
    place: 'mangle INPUT',
    rules: (context) => echo(context, 'RETURN'),
    attack: 'none: clients tell a dead exit by it',
    why: 'at the gateway address and no other of the exit; before the drop of everything else',
  },
  {
    id: 'client-to-exit',
    place: 'mangle INPUT',
    rules: () => ['-i wg+ -j DROP'],
    attack: 'a client reaches services of the exit at its tunnel, public or mesh address',
    why: 'FORWARD never sees these packets: they are for the exit itself',
  },
  {
    id: 'checked-are-done',
    place: 'mangle FORWARD',
    spares: true,
    rules: ({ uplink }) =>
      uplink
        ? [`-i wg+ -o ${uplink}`, `-i ${uplink} -o wg+`].map(
            (way) => `${way} -m connmark --mark ${MARK} -j RETURN`,
          )
        : [],
    attack: 'none: it only spares time',
    why: 'whence and whither is looked at again each time, since routes change; what is out of the window has no connection, and so no mark',
  },
  {
    id: 'client-to-client',
    place: 'mangle FORWARD',
    rules: () => ['-i wg+ -o wg+ -j DROP'],
    attack: 'a client reaches another client, on the same or on another tunnel interface',
    why: 'also while there is no uplink, when the rule for everything but the uplink is not there',
  },
  {
    id: 'unasked-into-tunnel',
    place: 'mangle FORWARD',
    rules: () => ['! -i wg+ -o wg+ -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP'],
    attack: 'a neighbour of the exit routes into the tunnels',
    why: 'a client is reached only by answers to what it asked for',
  },
  {
    id: 'segment-size',
    place: 'mangle FORWARD',
    rules: () =>
      ['-i', '-o'].map(
        (way) => `${way} wg+ -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu`,
      ),
    attack: 'none: connections hang where somebody on the way drops the message that a packet is too big',
    why: 'both ways, so that neither end sends what the tunnel cannot carry',
  },
  {
    id: 'beside-the-uplink',
    place: 'mangle FORWARD',
    rules: ({ uplink }) => (uplink ? [`-i wg+ ! -o ${uplink} -j DROP`] : []),
    attack: 'a client reaches the mesh, containers, or whatever else another interface of the exit leads to',
    why: 'the one way out is the uplink',
  },
  {
    id: 'private-destinations',
    place: 'mangle FORWARD',
    rules: ({ family }) => NOT_INTERNET[family].map((net) => `${net} -i wg+ -j DROP`),
    attack: "a client reaches the operator's private networks or the cloud's metadata service",
    why: 'wherever the uplink leads, it is asked for the internet alone',
  },
  {
    id: 'wireguard-port-as-source',
    place: 'mangle FORWARD',
    rules: (context) => wireguard(context, (port) => `-i wg+ -p udp -m udp --sport ${port} -j DROP`),
    attack:
      "Port Shadow: a client's packet from the WireGuard port claims that port of the exit towards one peer",
    why: 'nothing honest is lost: nested WireGuard takes any other port',
  },
  {
    id: 'out-of-window',
    place: 'mangle FORWARD',
    rules: () => ['-i wg+ -m conntrack --ctstate INVALID -j DROP'],
    attack: "a client's tunnel address shows on the internet, on packets that belong to no connection",
    why: 'address translation leaves alone what connection tracking takes for invalid',
  },
  {
    id: 'forged-source',
    place: 'mangle FORWARD',
    family: 6,
    rules: forgedSource,
    attack: "a client sends with somebody else's address, to have him answered or blamed",
    why: FORGED_WHY,
  },
  {
    id: 'connection-limit',
    place: 'mangle FORWARD',
    rules: connectionLimit,
    attack: 'one client fills the connection table, and nobody else gets a connection',
    why: 'a packet that is dropped here makes no entry',
  },
  {
    id: 'checked',
    place: 'mangle FORWARD',
    spares: true,
    rules: ({ uplink }) =>
      uplink
        ? [`-i wg+ -o ${uplink} -m conntrack --ctstate ESTABLISHED -j CONNMARK --set-xmark ${MARK}`]
        : [],
    attack: 'none: it only spares time',
    why: 'last, so that only what passed all of them gets it; once there was an answer, so that the size of segments is seen to first',
  },
  {
    id: 'dns-bypass',
    place: 'nat PREROUTING',
    rules: ({ subnet }) => {
      return ['udp', 'tcp'].map(
        (protocol) =>
          `! -d ${subnet.host} -i wg+ -p ${protocol} -m ${protocol} --dport 53 -j DNAT --to-destination ${subnet.address}`,
      );
    },
    attack: "a device's queries go to somebody else's resolver, which learns what it looks up",
    why: 'whichever resolver a device is set to, it gets the one of its exit',
  },
  {
    id: 'translate',
    place: 'nat POSTROUTING',
    rules: ({ subnet, uplink, exitAddresses, family }) => {
      if (!uplink) return [];
      const ports = `${CLIENT_PORTS.first}-${CLIENT_PORTS.last}`;
      return deal(subnet.pool, exitAddresses).flatMap(({ source, address }) => {
        const of = `-s ${source} -o ${uplink}`;
        const to = family === 6 ? `[${address}]:${ports}` : `${address}:${ports}`;
        const withPorts = address ? `SNAT --to-source ${to}` : `MASQUERADE --to-ports ${ports}`;
        const rest = address ? `SNAT --to-source ${address}` : 'MASQUERADE';
        return [
          `${of} -p tcp -j ${withPorts} --random-fully`,
          `${of} -p udp -j ${withPorts} --random-fully`,
          `${of} -j ${rest} --random-fully`,
        ];
      });
    },
    attack:
      "a client's tunnel address shows on the internet; and Port Shadow: a client chooses the exit's port that it is seen by",
    why: "the pool's packets only, on the uplink only, from ports that are nobody's else and that nobody can guess",
  },
  {
    id: 'wireguard-accepts',
    place: 'filter INPUT',
    rules: (context) => wireguard(context, (port) => `! -i wg+ -p udp -m udp --dport ${port} -j ACCEPT`),
    attack:
      'none: a firewall of the host that asks for connections would cut off the untracked tunnel itself',
    why: 'not from inside a tunnel; first, since nothing else comes as often',
  },
  {
    id: 'gateway-accepts',
    place: 'filter INPUT',
    rules: (context) => [...dns(context, 'ACCEPT'), ...echo(context, 'ACCEPT')],
    attack: 'none: a firewall of the host that accepts only what it knows would cut clients off',
    why: 'no more than mangle lets through',
  },
  {
    id: 'uplink-to-tunnel',
    place: 'filter FORWARD',
    rules: ({ uplink }) =>
      uplink ? [`-i ${uplink} -o wg+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`] : [],
    attack: 'none: these are the answers',
    why: 'a client is reached only by what it asked for; first, since nothing else comes as often',
  },
  {
    id: 'mail',
    place: 'filter FORWARD',
    rules: () => ['-i wg+ -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset'],
    attack: 'a client sends spam, and the address of the exit ends on block lists',
    why: 'an answer at once, so that no mail program waits; mail is handed in on 465 and 587',
  },
  {
    id: 'dns-over-tls',
    place: 'filter FORWARD',
    rules: ({ family }) => [
      '-i wg+ -p tcp -m tcp --dport 853 -j REJECT --reject-with tcp-reset',
      `-i wg+ -p udp -m udp --dport 853 -j REJECT --reject-with ${NO_PORT[family]}`,
    ],
    attack: "a device's queries go to somebody else's resolver, which learns what it looks up",
    why: 'an answer at once: devices that try encrypted DNS first then ask in the clear, inside the tunnel',
  },
  {
    id: 'no-uplink',
    place: 'filter FORWARD',
    rules: ({ family, uplink }) => (uplink ? [] : [`-i wg+ -j REJECT --reject-with ${NO_ROUTE[family]}`]),
    attack: 'a client waits for a family that this exit cannot carry, and some apps then leave the tunnel',
    why: 'an answer at once lets it take the other family',
  },
  {
    id: 'tunnel-to-uplink',
    place: 'filter FORWARD',
    rules: ({ subnet, uplink }) => (uplink ? [`-s ${subnet.pool} -i wg+ -o ${uplink} -j ACCEPT`] : []),
    attack: 'none: this is the service',
    why: 'no more than that, so that it opens nothing where mangle was flushed',
  },
];

export const POLICIES: readonly PolicyRow[] = [
  {
    id: 'forward-policy',
    place: 'filter FORWARD',
    policy: 'DROP',
    attack: 'all of the above, where somebody flushes the rules: until they are back everything is forwarded',
    why: 'a flush does not reset it; the one thing of others that we touch, and what Docker sets it to as well',
  },
];
