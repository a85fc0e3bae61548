/**
 * The firewall of an exit, as one table: what each rule is, which attack it stops and why it stands where it stands.
 * Rules are written exactly as iptables-save prints them, so that looking whether they are in place is comparing text.
 *
 * `wg+` means every tunnel interface; a host's own WireGuard interfaces (a mesh, say) must have another prefix.
 */
import type { NodeConfig } from '@katafract/shared/desired';
import type { Family, Uplinks } from '../ports.ts';
import { type Subnet, subnet4, subnet6 } from './subnets.ts';

export const FAMILIES: readonly Family[] = [4, 6];

/** Own chains, each with the built-in chain that jumps to it first of all. */
export const CHAINS = [
  { table: 'filter', chain: 'KATAFRACT-FORWARD', parent: 'FORWARD' },
  { table: 'filter', chain: 'KATAFRACT-INPUT', parent: 'INPUT' },
  { table: 'nat', chain: 'KATAFRACT-POSTROUTING', parent: 'POSTROUTING' },
] as const;
export type Chain = (typeof CHAINS)[number]['chain'];
/** Chains of this prefix are ours, also those of other versions. */
export const CHAIN_PREFIX = 'KATAFRACT-';

/** What the rules depend on, for one family. */
export interface RuleContext {
  readonly family: Family;
  readonly subnet: Subnet;
  /** Interface that leads to the internet; null where there is none. */
  readonly uplink: string | null;
}

interface RuleRow {
  readonly id: string;
  readonly chain: Chain;
  /** The rule after `-A CHAIN`; several where it is one rule per item of a list, none where it does not apply. */
  readonly rules: (context: RuleContext) => readonly string[];
  /** What a client could do without it. */
  readonly attack: string;
  /** Why so, and why here. */
  readonly why: string;
}

/** Never the internet: private nets, the mesh, cloud metadata, and whatever else only the exit could reach. */
const FORBIDDEN: Record<Family, readonly string[]> = {
  4: [
    '10.0.0.0/8',
    '100.64.0.0/10',
    '168.63.129.16/32',
    '169.254.0.0/16',
    '172.16.0.0/12',
    '192.0.0.0/24',
    '192.168.0.0/16',
    '198.18.0.0/15',
    '224.0.0.0/4',
    '240.0.0.0/4',
  ],
  6: ['::ffff:0.0.0.0/96', '64:ff9b::/96', 'fc00::/7', 'fe80::/10', 'ff00::/8'],
};

const ECHO_REQUEST: Record<Family, string> = {
  4: '-p icmp -m icmp --icmp-type 8',
  6: '-p ipv6-icmp -m icmp6 --icmpv6-type 128',
};
const NO_ROUTE: Record<Family, string> = { 4: 'icmp-net-unreachable', 6: 'icmp6-no-route' };

/** In the order in which the kernel tries them. */
export const RULES: readonly RuleRow[] = [
  {
    id: 'client-to-client',
    chain: 'KATAFRACT-FORWARD',
    rules: () => ['-i wg+ -o wg+ -j DROP'],
    attack: 'a client reaches another client, on the same or on another tunnel interface',
    why: 'first, so that no later accept can open it',
  },
  {
    id: 'forbidden-destinations',
    chain: 'KATAFRACT-FORWARD',
    rules: ({ family }) => FORBIDDEN[family].map((net) => `-d ${net} -i wg+ -j DROP`),
    attack: "a client reaches the mesh, the operator's private networks or the cloud's metadata service",
    why: 'before the accept, which would let them out wherever the uplink leads',
  },
  {
    id: 'tunnel-to-uplink',
    chain: 'KATAFRACT-FORWARD',
    rules: ({ subnet, uplink }) => (uplink ? [`-s ${subnet.pool} -i wg+ -o ${uplink} -j ACCEPT`] : []),
    attack: 'none: this is the service',
    why: 'from the pool only: whatever else came out of the tunnel would leave untranslated',
  },
  {
    id: 'uplink-to-tunnel',
    chain: 'KATAFRACT-FORWARD',
    rules: ({ uplink }) =>
      uplink ? [`-i ${uplink} -o wg+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`] : [],
    attack: 'none: these are the answers',
    why: 'a client is reached only by what it asked for',
  },
  {
    id: 'no-uplink',
    chain: 'KATAFRACT-FORWARD',
    rules: ({ family, uplink }) => (uplink ? [] : [`-i wg+ -j REJECT --reject-with ${NO_ROUTE[family]}`]),
    attack: 'a client waits for a family that this exit cannot carry, and some apps then leave the tunnel',
    why: 'an answer at once lets it take the other family',
  },
  {
    id: 'tunnel-to-anything',
    chain: 'KATAFRACT-FORWARD',
    rules: () => ['-i wg+ -j DROP'],
    attack: 'a client reaches any other interface of the exit',
    why: 'last of the tunnel: whatever was not accepted',
  },
  {
    id: 'anything-to-tunnel',
    chain: 'KATAFRACT-FORWARD',
    rules: () => ['-o wg+ -j DROP'],
    attack: 'a neighbour of the exit routes into the tunnels',
    why: 'whatever is no answer',
  },
  {
    id: 'dns',
    chain: 'KATAFRACT-INPUT',
    rules: ({ subnet }) => [
      `-d ${subnet.host} -i wg+ -p udp -m udp --dport 53 -j ACCEPT`,
      `-d ${subnet.host} -i wg+ -p tcp -m tcp --dport 53 -j ACCEPT`,
    ],
    attack: 'none: the resolver is for clients',
    why: 'at the gateway address and no other of the exit',
  },
  {
    id: 'echo',
    chain: 'KATAFRACT-INPUT',
    rules: ({ family, subnet }) => [`-d ${subnet.host} -i wg+ ${ECHO_REQUEST[family]} -j ACCEPT`],
    attack: 'none: clients tell a dead exit by it',
    why: 'at the gateway address and no other of the exit',
  },
  {
    id: 'client-to-exit',
    chain: 'KATAFRACT-INPUT',
    rules: () => ['-i wg+ -j DROP'],
    attack: 'a client reaches services of the exit at its tunnel, public or mesh address',
    why: 'FORWARD never sees these packets: they are for the exit itself',
  },
  {
    id: 'masquerade',
    chain: 'KATAFRACT-POSTROUTING',
    rules: ({ subnet, uplink }) => (uplink ? [`-s ${subnet.pool} -o ${uplink} -j MASQUERADE`] : []),
    attack: "a client's tunnel address shows on the internet",
    why: "the pool's packets only, on the uplink only: nothing else of the host is translated",
  },
];

export function ruleContext(family: Family, config: NodeConfig, uplinks: Uplinks): RuleContext {
  return family === 4
    ? { family, subnet: subnet4(config), uplink: uplinks.uplink4 }
    : { family, subnet: subnet6(config), uplink: uplinks.uplink6 };
}

/** The rules of one chain, in order. */
export function chainRules(chain: Chain, context: RuleContext): string[] {
  return RULES.filter((row) => row.chain === chain).flatMap((row) => row.rules(context));
}
