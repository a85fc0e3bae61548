/**
 * Two namespaces, made by hand:
 *
 *      device                                        exit
 *   ┌────────────────────┐  veth, "the provider"  ┌───────────────────────────────────────────┐
 *   │ up0 192.0.2.2      ├────────────────────────┤ up0 192.0.2.1                             │
 *   │     2001:db8:1::2  │                        │     2001:db8:1::1                         │
 *   │ default → exit     │                        │ lo  198.51.100.1, 2001:db8:2::1 (far away)│
 *   │                    │      WireGuard         │                                           │
 *   │ (made by wraith)   ╞════════════════════════╡ <x> 10.64.0.1/10, fd6b:…::1/64  port 51820│
 *   │                    ╞════════════════════════╡ <y> a second exit               port 51821│
 *   └────────────────────┘                        └───────────────────────────────────────────┘
 *
 * The far addresses answer over the provider as well as through the tunnel, so a packet that leaves beside the tunnel
 * is seen and not just missing. The device checks reverse paths strictly, which is the hard case for a tunnel.
 */
import { execFile, execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { promisify } from 'node:util';
import type { Peer } from '@katafract/shared/api';
import { generateKeyPair } from '../keys.ts';
import type { Exec } from '../wraith/ports.ts';
import type { TestExit } from './api.ts';

const execute = promisify(execFile);
export const FAR = { ipv4: '198.51.100.1', ipv6: '2001:db8:2::1' } as const;

export interface TunnelLab {
  readonly device: string;
  /** Name for the interface that `wraith` makes, so that its socket is its own machine-wide. */
  readonly tunnel: string;
  readonly exits: TestExit[];
  /** WireGuard interfaces of the two exits: their sockets are visible from everywhere. */
  readonly interfaces: [string, string];
  /** Runs a command in the device's namespace. */
  inside(program: string, ...args: string[]): Promise<string>;
  /** All that a tunnel could change in the device's namespace, as text. */
  state(): Promise<string>;
  /** Whether an address answers, and by way of which interface the packets go. */
  reach(address: string): Promise<{ answers: boolean; by: string }>;
  /** Whether the device answers the provider at this address when it is asked beside the tunnel. */
  answersBeside(address: string): Promise<boolean>;
  destroy(): void;
}

export async function makeTunnelLab(): Promise<TunnelLab> {
  sweep();
  const id = process.pid.toString(36);
  const { device, exit, interfaces } = namesOf(id);
  const destroy = () => remove(id);
  process.once('exit', destroy);
  try {
    makeNamespaces(device, exit);
    const exits = await Promise.all([
      makeExit(exit, interfaces[0], { node: 'fra-1', region: 'eu-de', port: 51820 }),
      makeExit(exit, interfaces[1], { node: 'ams-1', region: 'eu-nl', port: 51821 }),
    ]);
    for (const address of ['10.64.0.1/10', 'fd6b:6174:6166::1/64']) {
      sh(`ip -n ${exit} address add ${address} dev ${interfaces[0]}`);
    }
    const inside = async (program: string, ...args: string[]) =>
      (await execute('ip', ['netns', 'exec', device, program, ...args])).stdout;
    return {
      device,
      tunnel: `kfd${id}`,
      exits,
      interfaces,
      inside,
      state: () => stateOf(inside),
      reach: (address) => reach(device, inside, address),
      answersBeside: (address) => succeeds('ip', ['netns', 'exec', exit, ...ping(address), '-I', 'up0']),
      destroy() {
        process.off('exit', destroy);
        destroy();
      },
    };
  } catch (error) {
    destroy();
    throw error;
  }
}

interface Names {
  readonly device: string;
  readonly exit: string;
  readonly interfaces: [string, string];
}

function namesOf(id: string): Names {
  return { device: `kfw-${id}-device`, exit: `kfw-${id}-exit`, interfaces: [`kfx${id}`, `kfy${id}`] };
}

/** Deleting its interface ends a wireguard-go, which would keep the namespace alive. What is gone already is fine. */
function remove(id: string): void {
  const { device, exit, interfaces } = namesOf(id);
  for (const name of interfaces) spawnSync('ip', ['-n', exit, 'link', 'delete', name]);
  spawnSync('ip', ['-n', device, 'link', 'delete', `kfd${id}`]);
  for (const name of [device, exit]) spawnSync('ip', ['netns', 'delete', name]);
}

/** Removes the labs of test processes that were killed. */
function sweep(): void {
  const names = existsSync('/run/netns') ? readdirSync('/run/netns') : [];
  const ids = new Set(names.flatMap((name) => /^kfw-([0-9a-z]+)-/.exec(name)?.[1] ?? []));
  for (const id of ids) {
    if (!existsSync(`/proc/${Number.parseInt(id, 36)}`)) remove(id);
  }
}

function sh(line: string): void {
  const [program = '', ...args] = line.split(' ');
  execFileSync(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
}

function makeNamespaces(device: string, exit: string): void {
  for (const name of [device, exit]) {
    sh(`ip netns add ${name}`);
    sh(`ip netns exec ${name} sysctl -qw net.ipv6.conf.default.accept_dad=0`);
    sh(`ip -n ${name} link set lo up`);
  }
  sh(`ip -n ${exit} link add up0 type veth peer name up0 netns ${device}`);
  for (const [name, last] of [
    [device, 2],
    [exit, 1],
  ] as const) {
    sh(`ip -n ${name} address add 192.0.2.${last}/24 dev up0`);
    sh(`ip -n ${name} address add 2001:db8:1::${last}/64 dev up0`);
    sh(`ip -n ${name} link set up0 up`);
  }
  sh(`ip netns exec ${device} sysctl -qw net.ipv4.conf.all.rp_filter=1`);
  sh(`ip -n ${device} route add default via 192.0.2.1`);
  sh(`ip -n ${device} -6 route add default via 2001:db8:1::1`);
  // For answersBeside: whatever is bound to up0 goes to the device directly.
  sh(`ip -n ${exit} -4 rule add oif up0 table 7`);
  sh(`ip -n ${exit} -6 rule add oif up0 table 7`);
  sh(`ip -n ${exit} -4 route add default via 192.0.2.2 table 7`);
  sh(`ip -n ${exit} -6 route add default via 2001:db8:1::2 table 7`);
  sh(`ip -n ${exit} address add ${FAR.ipv4}/32 dev lo`);
  sh(`ip -n ${exit} address add ${FAR.ipv6}/128 dev lo`);
}

async function makeExit(
  namespace: string,
  name: string,
  at: { node: string; region: string; port: number },
): Promise<TestExit> {
  const { privateKey, publicKey } = await generateKeyPair();
  const kernel = spawnSync('ip', ['-n', namespace, 'link', 'add', name, 'type', 'wireguard']);
  if (kernel.status !== 0) sh(`ip netns exec ${namespace} wireguard-go ${name}`);
  // Through a pipe of the shell's: the one Node makes is a socket, which wg cannot open by name.
  const set = `cat | ip netns exec ${namespace} wg set ${name} listen-port ${at.port} private-key /dev/stdin`;
  execFileSync('sh', ['-c', set], { input: privateKey });
  sh(`ip -n ${namespace} link set ${name} up`);
  return { node: at.node, region: at.region, endpoint: `${FAR.ipv4}:${at.port}`, publicKey };
}

async function stateOf(inside: TunnelLab['inside']): Promise<string> {
  const parts = [
    await inside('ip', '-o', 'link'),
    await inside('ip', '-o', 'address'),
    await inside('sysctl', 'net.ipv4.conf.all.src_valid_mark'),
  ];
  for (const [family, save] of [
    ['-4', 'iptables-save'],
    ['-6', 'ip6tables-save'],
  ] as const) {
    parts.push(
      await inside('ip', family, 'rule'),
      await inside('ip', family, 'route', 'show', 'table', 'all'),
    );
    // Empty tables and chains may stay behind; rules may not.
    parts.push((await inside(save)).replace(/^[^-].*\n/gm, ''));
  }
  return parts.join('\n');
}

function ping(address: string): [string, ...string[]] {
  return ['ping', '-c', '1', '-W', '1', address];
}

function succeeds(program: string, args: string[]): Promise<boolean> {
  return execute(program, args).then(
    () => true,
    () => false,
  );
}

async function reach(
  device: string,
  inside: TunnelLab['inside'],
  address: string,
): Promise<{ answers: boolean; by: string }> {
  const route = await inside('ip', 'route', 'get', address).catch(() => '');
  const answers = await succeeds('ip', ['netns', 'exec', device, ...ping(address)]);
  return { answers, by: / dev (\S+)/.exec(route)?.[1] ?? 'none' };
}

/** An exec port whose commands run in a namespace. */
export function inNamespace(namespace: string, exec: Exec): Exec {
  return {
    run: (command) =>
      exec.run({
        ...command,
        program: 'ip',
        args: ['netns', 'exec', namespace, command.program, ...command.args],
      }),
  };
}

/** Gives a peer to both exits; WireGuard takes the addresses away from an older key by itself. */
export function tellExits(interfaces: readonly string[]): (peer: Peer) => Promise<void> {
  return async ({ publicKey, addresses }) => {
    for (const name of interfaces) {
      const allowed = `${addresses.ipv4}/32,${addresses.ipv6}/128`;
      await execute('wg', ['set', name, 'peer', publicKey, 'allowed-ips', allowed]);
    }
  };
}
