/** WireGuard through `wg`: an interface with its peers and the few settings it has of its own; several as one table. */
import { allowedIps, type PeerEntry } from '@katafract/shared/digest';
import { KatafractError } from '@katafract/shared/errors';
import type { PeerBatch, PeerTablePort, PeerVisitor, Tunnel, TunnelPort } from '../ports.ts';
import type { Exec } from './exec.ts';

/**
 * Peers in one `wg set`. A peer is about 110 bytes of arguments, and the kernel takes 2 MB of them; larger batches were
 * measured to be no faster.
 */
const PEERS_PER_COMMAND = 4000;

/** There is no such interface; the second is how a kernel without WireGuard says so. */
const NO_TUNNEL = /No such device|Protocol not supported/;

export interface TunnelInterface extends TunnelPort {
  /** As in PeerTablePort, of this interface's own peers; null where there is no such interface. */
  dump(visit: PeerVisitor): Promise<Tunnel | null>;
  set(batch: PeerBatch): Promise<void>;
}

/**
 * The peers of several interfaces as one table. Nobody but this knows that there are several: a peer that is set is taken
 * from all but its own, and one that is seen on another than its own is seen as wrong.
 * @param tunnelOf the interface that a client belongs to, from 0, by its IPv4 address; null for one of no pool
 */
export function peerTable(
  interfaces: readonly TunnelInterface[],
  tunnelOf: (ipv4: string) => number | null,
): PeerTablePort {
  const several = interfaces.length > 1;
  return {
    dump: (visit) =>
      Promise.all(
        interfaces.map((each, at) =>
          each.dump(
            several
              ? (key, allowed, handshake, known) => {
                  const own = tunnelOf(allowed.slice(0, allowed.indexOf('/'))) === at;
                  visit(key, own ? allowed : `${allowed} on interface ${at}`, handshake, known);
                }
              : visit,
          ),
        ),
      ),
    async set({ remove, set }) {
      const batches = interfaces.map((each, at) => {
        const own = ({ ipv4 }: PeerEntry) => !several || tunnelOf(ipv4) === at;
        const others = set.filter((peer) => !own(peer)).map(({ publicKey }) => publicKey);
        return each.set({ remove: [...remove, ...others], set: set.filter(own) });
      });
      const failed = (await Promise.allSettled(batches)).filter(({ status }) => status === 'rejected');
      const errors = failed.map((each) => (each as PromiseRejectedResult).reason as unknown);
      // the one that smaller batches do not help against goes first
      const gone = errors.find((error) => error instanceof KatafractError && error.code === 'tunnel_missing');
      if (failed.length > 0) throw gone ?? errors[0];
    },
  };
}

/**
 * @param privateKeyFile readable by its owner only; `wg` reads the key from it, so that it is never an argument
 * @param supervised where the kernel has no WireGuard somebody else keeps a wireguard-go for this tunnel
 */
export function wireguard(
  exec: Exec,
  name: string,
  privateKeyFile: string,
  supervised = false,
): TunnelInterface {
  return {
    dump: (visit) => dump(exec, name, visit),
    async set(batch) {
      for (const args of commands(name, batch)) await modify(exec, args);
    },
    create: () => create(exec, name, supervised),
    setPrivateKey: () => modify(exec, ['set', name, 'private-key', privateKeyFile]),
    setListenPort: (port) => modify(exec, ['set', name, 'listen-port', String(port)]),
  };
}

function* commands(name: string, batch: PeerBatch): Generator<string[]> {
  let args = ['set', name];
  let peers = 0;
  for (const step of steps(batch)) {
    args.push(...step);
    if (++peers < PEERS_PER_COMMAND) continue;
    yield args;
    args = ['set', name];
    peers = 0;
  }
  if (peers > 0) yield args;
}

function* steps({ remove, set }: PeerBatch): Generator<string[]> {
  for (const key of remove) yield ['peer', key, 'remove'];
  for (const peer of set) yield ['peer', peer.publicKey, 'allowed-ips', allowedIps(peer)];
}

function stderrOf(error: unknown): string {
  const stderr = error instanceof KatafractError ? error.detail?.stderr : undefined;
  return typeof stderr === 'string' ? stderr : '';
}

async function modify(exec: Exec, args: string[]): Promise<void> {
  try {
    await exec.run('wg', args);
  } catch (cause) {
    if (!NO_TUNNEL.test(stderrOf(cause))) throw cause;
    throw new KatafractError('tunnel_missing', 'the tunnel interface is gone', { cause });
  }
}

/**
 * Reads `wg show NAME dump` line by line as it streams: megabytes, of which nothing is kept. A chunk is read in place;
 * only the line that two chunks share is put together.
 */
async function dump(exec: Exec, name: string, visit: PeerVisitor): Promise<Tunnel | null> {
  let tunnel: Tunnel | null = null;
  let rest = '';
  const line = (text: string, start: number, end: number) => {
    if (tunnel) visitRow(text, start, visit);
    else tunnel = parseInterface(text.slice(start, end));
  };
  const onOutput = (text: string) => {
    let end = text.indexOf('\n');
    if (end < 0) {
      rest += text;
      return;
    }
    const first = rest + text.slice(0, end + 1);
    line(first, 0, first.length - 1);
    let start = end + 1;
    for (end = text.indexOf('\n', start); end >= 0; end = text.indexOf('\n', start)) {
      line(text, start, end);
      start = end + 1;
    }
    rest = text.slice(start);
  };
  try {
    await exec.run('wg', ['show', name, 'dump'], { onOutput });
  } catch (error) {
    if (NO_TUNNEL.test(stderrOf(error))) return null;
    throw error;
  }
  return tunnel;
}

/** private-key public-key listen-port fwmark; the private key is not looked at. */
function parseInterface(line: string): Tunnel {
  const [, publicKey = '', listenPort = '0'] = line.split('\t');
  return { publicKey, listenPort: Number(listenPort) };
}

/** public-key preshared-key endpoint allowed-ips latest-handshake rx tx keepalive; of the endpoint only whether it is there. */
function visitRow(text: string, start: number, visit: PeerVisitor): void {
  const key = text.indexOf('\t', start);
  const endpoint = text.indexOf('\t', key + 1) + 1;
  const allowed = text.indexOf('\t', endpoint) + 1;
  const end = text.indexOf('\t', allowed);
  const known = !text.startsWith('(none)', endpoint);
  visit(text.slice(start, key), text.slice(allowed, end), digitsAt(text, end + 1), known);
}

/** The number that begins there. */
function digitsAt(text: string, start: number): number {
  let value = 0;
  for (let at = start; ; at++) {
    const digit = text.charCodeAt(at) - 48;
    if (!(digit >= 0 && digit <= 9)) return value;
    value = value * 10 + digit;
  }
}

async function create(exec: Exec, name: string, supervised: boolean): Promise<void> {
  try {
    await exec.run('ip', ['link', 'add', 'dev', name, 'type', 'wireguard']);
    return;
  } catch (cause) {
    // "Unknown device type" or "Operation not supported": this kernel has no WireGuard.
    if (!/not supported|Unknown device type/.test(stderrOf(cause))) throw cause;
  }
  if (supervised) return awaitInterface(exec, name);
  try {
    await exec.run('wireguard-go', [name], { detached: true });
  } catch (cause) {
    throw new KatafractError(
      'wireguard_missing',
      'this kernel has no WireGuard, and wireguard-go is not installed or did not start',
      { cause },
    );
  }
}

/** Looks for this long, in ms; the next pass looks again. */
const PATIENCE_MS = 5000;
const LOOK_EVERY_MS = 50;

/** @throws KatafractError `wireguard_missing` where the interface does not come */
async function awaitInterface(exec: Exec, name: string): Promise<void> {
  for (let waited = 0; ; waited += LOOK_EVERY_MS) {
    try {
      await exec.run('ip', ['link', 'show', 'dev', name]);
      return;
    } catch (cause) {
      if (waited >= PATIENCE_MS) {
        throw new KatafractError(
          'wireguard_missing',
          'this kernel has no WireGuard, and the unit that runs wireguard-go for it is not up',
          { cause },
        );
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
    }
  }
}
