/** Carries out the steps of tunnel.ts. Decides nothing but whether a step is there. */
import type { Exit } from '@katafract/shared/api';
import { KatafractError } from '@katafract/shared/errors';
import { type Command, command, type Exec } from './ports.ts';
import {
  freeTable,
  linkStep,
  pathSteps,
  readMarkCheck,
  type Step,
  setConfig,
  type Tunnel,
} from './tunnel.ts';

export type Wanted = Pick<Tunnel, 'interface' | 'addresses' | 'mtu' | 'dns'>;

/**
 * Looks at the machine and fixes how the tunnel will fit in. Changes nothing.
 * @throws KatafractError `interface_taken`; `dns_unsupported` where resolvers are wanted and resolvconf is missing
 */
export async function planTunnel(exec: Exec, wanted: Wanted, note: (line: string) => void): Promise<Tunnel> {
  const ipv6 = (await answer(exec, command('sysctl', '-n', 'net.ipv6.conf.all.disable_ipv6'))) === '0';
  const firewall = (await answer(exec, command('iptables-save', '--version'))) !== null;
  if (!firewall)
    note('iptables is missing: no protection of the tunnel address, and a strict rp_filter will block');
  if (wanted.dns.length > 0 && (await answer(exec, command('sh', '-c', 'command -v resolvconf'))) === null) {
    throw new KatafractError('dns_unsupported', '--dns needs resolvconf, which is not installed');
  }
  const listings: string[] = [];
  for (const family of ipv6 ? ['-4', '-6'] : ['-4']) {
    listings.push(await exec.run(command('ip', '-N', family, 'rule', 'show')));
    listings.push(await exec.run(command('ip', '-N', family, 'route', 'show', 'table', 'all')));
  }
  const restoreMarkCheck = firewall && (await exec.run(readMarkCheck)).trim() === '0';
  const tunnel = { ...wanted, table: freeTable(listings), ipv6, firewall, restoreMarkCheck };
  if (await isThere(exec, linkStep(tunnel))) {
    throw new KatafractError('interface_taken', `${tunnel.interface} exists and is not ours`);
  }
  return tunnel;
}

/** Trimmed output; null where the command fails or is missing, which is then the answer. */
async function answer(exec: Exec, question: Command): Promise<string | null> {
  try {
    return (await exec.run(question)).trim();
  } catch (error) {
    if (failedCommand(error)) return null;
    throw error;
  }
}

function failedCommand(error: unknown): boolean {
  return error instanceof KatafractError && ['command_failed', 'command_missing'].includes(error.code);
}

/** @throws KatafractError `wireguard_missing`, `command_failed`: takeDown clears what there is by then */
export async function bringUp(exec: Exec, tunnel: Tunnel, privateKey: string, exit: Exit): Promise<void> {
  await make(exec, linkStep(tunnel));
  await exec.run(setConfig(tunnel, privateKey, exit));
  for (const step of pathSteps(tunnel)) await make(exec, step);
}

async function make(exec: Exec, step: Step): Promise<void> {
  try {
    await exec.run(step.make);
  } catch (error) {
    if (step.otherwise === undefined || !failedCommand(error)) throw error;
    await exec.run(step.otherwise).catch((second: unknown) => {
      throw new KatafractError('wireguard_missing', `${String(error)}; ${String(second)}`, { cause: second });
    });
  }
}

/**
 * Takes back what is there of a tunnel, in reverse order; repeatable, and goes on past a step that fails.
 * @throws KatafractError `undo_failed`
 */
export async function takeDown(exec: Exec, tunnel: Tunnel): Promise<void> {
  const failures: unknown[] = [];
  for (const step of [linkStep(tunnel), ...pathSteps(tunnel)].reverse()) {
    try {
      if (step.undo !== undefined && (await isThere(exec, step))) await exec.run(step.undo.command);
    } catch (error) {
      if (!failedCommand(error)) throw error;
      failures.push(error);
    }
  }
  if (failures.length === 0) return;
  throw new KatafractError('undo_failed', failures.map(String).join('; '), { cause: failures[0] });
}

/** Every change that can be looked for is there. */
export async function isStanding(exec: Exec, tunnel: Tunnel): Promise<boolean> {
  for (const step of [linkStep(tunnel), ...pathSteps(tunnel)]) {
    if (step.undo !== undefined && !(await isThere(exec, step))) return false;
  }
  return true;
}

/** True where there is no way to look: to undo it then is harmless. */
async function isThere(exec: Exec, { undo }: Step): Promise<boolean> {
  if (undo?.look === undefined || undo.there === undefined) return true;
  return undo.there.test(await exec.run(undo.look));
}

export interface Link {
  /** Of this device; of the exit. Null where unset. */
  readonly publicKey: string | null;
  readonly exitKey: string | null;
  /** Milliseconds since the epoch; null before the first one. */
  readonly handshakeAt: number | null;
  readonly rxBytes: number;
  readonly txBytes: number;
}

/** Of the exit that everything goes through; others on the interface are only watched, and have no routes. */
export async function readLink(exec: Exec, name: string): Promise<Link> {
  const publicKey = (await exec.run(command('wg', 'show', name, 'public-key'))).trim();
  const routes = await ask(exec, name, 'allowed-ips');
  const exitKey = [...routes].find(([, [prefixes = '']]) => prefixes.includes('/0'))?.[0] ?? null;
  const {
    handshakeAt = null,
    rxBytes = 0,
    txBytes = 0,
  } = (await readPeers(exec, name)).get(exitKey ?? '') ?? {};
  return { publicKey: publicKey === '(none)' ? null : publicKey, exitKey, handshakeAt, rxBytes, txBytes };
}

/** By single questions, because `wg show dump` prints the private key. @returns columns after the first, by key */
async function ask(exec: Exec, name: string, what: string): Promise<Map<string, string[]>> {
  const text = (await exec.run(command('wg', 'show', name, what))).trim();
  const rows = text === '' ? [] : text.split('\n').map((line) => line.split('\t'));
  return new Map(rows.map(([key = '', ...columns]) => [key, columns]));
}

/** What WireGuard says of each exit it knows, by public key. */
export async function readPeers(
  exec: Exec,
  name: string,
): Promise<Map<string, Pick<Link, 'handshakeAt' | 'rxBytes' | 'txBytes'>>> {
  const transfer = await ask(exec, name, 'transfer');
  const handshakes = await ask(exec, name, 'latest-handshakes');
  const peers = [...handshakes].map(([key, [seconds = '0']]) => {
    const [rx = '0', tx = '0'] = transfer.get(key) ?? [];
    const handshakeAt = Number(seconds) === 0 ? null : Number(seconds) * 1000;
    return [key, { handshakeAt, rxBytes: Number(rx), txBytes: Number(tx) }] as const;
  });
  return new Map(peers);
}
