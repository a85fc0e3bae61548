/**
 * A tunnel as data: every change `up` makes to this machine, with the look that tells whether it is there and the
 * command that takes it back. Pure. The routing is wg-quick's (add_default in wg-quick.bash): packets without the
 * tunnel's own mark look into a table of their own, whose default route is the tunnel, unless the main table knows
 * something more specific, such as the local network.
 *
 * Beyond wg-quick, that table ends in an unreachable route: should the interface vanish (a dead wireguard-go), traffic
 * stops instead of leaving in the clear, until `up` or `down` puts things right.
 */
import type { Exit } from '@katafract/shared/api';
import { Ipv4, Ipv6 } from '@katafract/shared/units';
import { z } from 'zod';
import { type Command, command, SECRET_PATH } from './ports.ts';

/** What is wanted, and what was found on this machine when it was brought up; kept in the journal until `down`. */
export const Tunnel = z.object({
  interface: z
    .string()
    .regex(/^[a-z][a-z0-9-]{0,14}$/, 'an interface name is 1 to 15 of a-z, 0-9 and hyphen'),
  addresses: z.object({ ipv4: Ipv4, ipv6: Ipv6 }),
  /** Bytes. */
  mtu: z.number().int().min(1280).max(9000),
  /** Resolvers to set; empty: the machine keeps its own. */
  dns: z.array(z.union([Ipv4, Ipv6])),
  /** Number of the routing table and of the mark on WireGuard's own packets. */
  table: z.number().int(),
  /** False on a machine with IPv6 switched off: nothing can leak there, and its commands would fail. */
  ipv6: z.boolean(),
  /** False without iptables. */
  firewall: z.boolean(),
  /** net.ipv4.conf.all.src_valid_mark was 0 and is to become 0 again. */
  restoreMarkCheck: z.boolean(),
});
export type Tunnel = z.infer<typeof Tunnel>;

export interface Step {
  readonly make: Command;
  /** In place of `make` where that fails. */
  readonly otherwise?: Command;
  /** Absent where the change goes away with the interface. */
  readonly undo?: { readonly command: Command; readonly look?: Command; readonly there?: RegExp };
}

/** wg-quick counts up from here too; a table in use by one is skipped by the other. */
const FIRST_TABLE = 51_820;
/** Just ahead of main (32766); the second one, for more specific routes of main, is looked at first. */
const PRIORITY = { tunnel: 32_001, main: 32_000 } as const;
/** Behind every other route of the table. */
const LAST_METRIC = 4_278_198_272;

/** @param listings `ip -N route show table all` and `ip -N rule` of both families */
export function freeTable(listings: readonly string[]): number {
  const used = new Set(
    listings.flatMap((text) =>
      [...text.matchAll(/(?:table|lookup) (\d+)/g)].map(([, table]) => Number(table)),
    ),
  );
  let table = FIRST_TABLE;
  while (used.has(table)) table++;
  return table;
}

/** Input of `wg setconf`: one exit, everything through it. */
export function wgConfig(tunnel: Pick<Tunnel, 'table'>, privateKey: string, exit: Exit): string {
  return `[Interface]
PrivateKey = ${privateKey}
FwMark = ${tunnel.table}
[Peer]
PublicKey = ${exit.publicKey}
Endpoint = ${exit.endpoint}
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
`;
}

export function setConfig(tunnel: Tunnel, privateKey: string, exit: Exit): Command {
  const secret = wgConfig(tunnel, privateKey, exit);
  return { ...command('wg', 'setconf', tunnel.interface, SECRET_PATH), secret };
}

const KEEPALIVE = ['persistent-keepalive', '25'];

/**
 * Everything through this exit from now on, in one command: routes move from one peer to another, and none is ever
 * without. Made anew, its peer has no old session to believe in and shakes hands at once.
 * @param others public keys of the peers there are beside it
 */
export function useExit(
  { interface: name }: Pick<Tunnel, 'interface'>,
  exit: Exit,
  others: readonly string[],
  anew: boolean,
): Command {
  const peer = ['peer', exit.publicKey];
  const again = anew ? [...peer, 'remove', ...peer, 'endpoint', exit.endpoint, ...KEEPALIVE] : peer;
  const leave = others.flatMap((key) => ['peer', key, 'remove']);
  return command('wg', 'set', name, ...again, 'allowed-ips', '0.0.0.0/0,::/0', ...leave);
}

/** An exit that is only watched: a peer without routes, made anew so that it shakes hands at once. */
export function knockAt({ interface: name }: Pick<Tunnel, 'interface'>, exit: Exit): Command {
  const peer = ['peer', exit.publicKey];
  return command('wg', 'set', name, ...peer, 'remove', ...peer, 'endpoint', exit.endpoint, ...KEEPALIVE);
}

export function linkStep({ interface: name }: Tunnel): Step {
  return {
    make: command('ip', 'link', 'add', 'dev', name, 'type', 'wireguard'),
    otherwise: command('wireguard-go', name),
    undo: {
      command: command('ip', 'link', 'delete', 'dev', name),
      look: command('ip', '-o', 'link', 'show'),
      there: new RegExp(`^\\d+: ${name}[:@]`, 'm'),
    },
  };
}

/** Everything after the link and its keys, in order; the rules come last, so that no packet finds a half-made path. */
export function pathSteps(tunnel: Tunnel): Step[] {
  const families: Family[] = tunnel.ipv6 ? [4, 6] : [4];
  return [
    ...families.map((family) => addressStep(tunnel, family)),
    { make: command('ip', 'link', 'set', 'dev', tunnel.interface, 'mtu', String(tunnel.mtu), 'up') },
    ...families.flatMap((family) => routeSteps(tunnel, family)),
    ...(tunnel.firewall ? families.flatMap((family) => firewallSteps(tunnel, family)) : []),
    ...(tunnel.restoreMarkCheck ? [markCheckStep] : []),
    ...(tunnel.dns.length > 0 ? [dnsStep(tunnel)] : []),
    ...families.flatMap((family) => ruleSteps(tunnel, family)),
  ];
}

type Family = 4 | 6;

function addressStep(tunnel: Tunnel, family: Family): Step {
  const address = family === 4 ? `${tunnel.addresses.ipv4}/32` : `${tunnel.addresses.ipv6}/128`;
  return { make: command('ip', `-${family}`, 'address', 'add', address, 'dev', tunnel.interface) };
}

function routeSteps({ interface: name, table }: Tunnel, family: Family): Step[] {
  const inTable = ['table', String(table)];
  const last = ['unreachable', 'default', 'metric', String(LAST_METRIC), ...inTable];
  return [
    {
      make: command('ip', `-${family}`, 'route', 'add', ...last),
      undo: {
        command: command('ip', `-${family}`, 'route', 'delete', ...last),
        look: command('ip', '-N', `-${family}`, 'route', 'show', 'table', 'all'),
        // 7 is RTN_UNREACHABLE: -N prints numbers for types too.
        there: new RegExp(
          `^(?:7|unreachable) default .*\\btable ${table} .*\\bmetric ${LAST_METRIC}\\b`,
          'm',
        ),
      },
    },
    { make: command('ip', `-${family}`, 'route', 'add', 'default', 'dev', name, ...inTable) },
  ];
}

function ruleSteps({ table }: Tunnel, family: Family): Step[] {
  const rule = (priority: number, selector: string[], there: string): Step => {
    const full = [...selector, 'priority', String(priority)];
    return {
      make: command('ip', `-${family}`, 'rule', 'add', ...full),
      undo: {
        command: command('ip', `-${family}`, 'rule', 'delete', ...full),
        look: command('ip', '-N', `-${family}`, 'rule', 'show'),
        there: new RegExp(`^${priority}:\\s+${there}\\s*$`, 'm'),
      },
    };
  };
  const main = ['table', 'main', 'suppress_prefixlength', '0'];
  const tunnel = ['not', 'fwmark', String(table), 'table', String(table)];
  const mark = `0x${table.toString(16)}`;
  return [
    rule(PRIORITY.main, main, 'from all lookup (?:main|254) suppress_prefixlength 0'),
    rule(PRIORITY.tunnel, tunnel, `not from all fwmark ${mark} lookup ${table}`),
  ];
}

/**
 * As wg-quick has them: nobody beside the tunnel may send to its address (CVE-2019-14899), and answers from the exit
 * carry the mark that they were asked with, without which a strict rp_filter drops them.
 */
function firewallSteps(tunnel: Tunnel, family: Family): Step[] {
  const name = tunnel.interface;
  const prefix = family === 4 ? 'iptables' : 'ip6tables';
  const address = family === 4 ? tunnel.addresses.ipv4 : tunnel.addresses.ipv6;
  const comment = `-m comment --comment "wraith tunnel ${name}"`;
  const step = (table: string, rules: string[]): Step => {
    const restore = (action: string): Command => ({
      ...command(`${prefix}-restore`, '--noflush', '--wait', '5'),
      input: `*${table}\n${rules.map((rule) => `${action} ${rule} ${comment}\n`).join('')}COMMIT\n`,
    });
    const look = command(`${prefix}-save`, '-t', table);
    return {
      make: restore('-I'),
      undo: { command: restore('-D'), look, there: new RegExp(`"wraith tunnel ${name}"`) },
    };
  };
  const mark = String(tunnel.table);
  return [
    step('raw', [`PREROUTING ! -i ${name} -d ${address} -m addrtype ! --src-type LOCAL -j DROP`]),
    step('mangle', [
      `POSTROUTING -p udp -m mark --mark ${mark} -j CONNMARK --save-mark`,
      `PREROUTING -p udp -m connmark --mark ${mark} -j CONNMARK --restore-mark`,
    ]),
  ];
}

const MARK_CHECK = 'net.ipv4.conf.all.src_valid_mark';
export const readMarkCheck = command('sysctl', '-n', MARK_CHECK);
/** Lets the reverse path check see the mark. */
const markCheckStep: Step = {
  make: command('sysctl', '-q', `${MARK_CHECK}=1`),
  undo: { command: command('sysctl', '-q', `${MARK_CHECK}=0`), look: readMarkCheck, there: /^1$/m },
};

/** Both resolvconf implementations take this; deleting what is not there is no error to them. */
function dnsStep({ interface: name, dns }: Tunnel): Step {
  const input = dns.map((server) => `nameserver ${server}\n`).join('');
  return {
    make: { ...command('resolvconf', '-a', name, '-m', '0', '-x'), input },
    undo: { command: command('resolvconf', '-d', name, '-f') },
  };
}
