/** What the command `wraith` does: one function a verb. main.ts reads the options and wires the ports. */
import type { Exit, Peer } from '@katafract/shared/api';
import { sleep } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import { configFor, mtuOf } from '../config.ts';
import type { FailoverStatus } from '../failover/manager.ts';
import { qrSvg, qrText } from '../qr.ts';
import type { Client } from '../sdk.ts';
import { bringUp, isStanding, type Link, planTunnel, readLink, takeDown, type Wanted } from './apply.ts';
import {
  forgetDevice,
  type ProvisionedDevice,
  parseState,
  readDevice,
  settleDevice,
  type Wish,
} from './device.ts';
import type { Ports } from './ports.ts';
import { setConfig, Tunnel } from './tunnel.ts';

/** The journal: written before the first change to this machine, removed after the last one is undone. */
const JOURNAL = 'tunnel.json';
/** What a watching `wraith` says of the exit in use; there while it runs. */
export const WATCH_FILE = 'failover.json';
const DEFAULT_MTU = 1420;
const HANDSHAKE_WAIT_MS = 10_000;

export async function readJournal({ files }: Pick<Ports, 'files'>): Promise<Tunnel | null> {
  const text = await files.read(JOURNAL);
  return text === null ? null : parseState(Tunnel, text, JOURNAL);
}

async function clear(ports: Ports, tunnel: Tunnel): Promise<void> {
  await takeDown(ports.exec, tunnel);
  await ports.files.remove(JOURNAL);
  await ports.files.remove(WATCH_FILE);
}

export interface UpWish extends Wish {
  readonly interface: string;
  /** Node to go through, of the peer's exits; undefined: the primary. */
  readonly exit: string | undefined;
  readonly mtu: number | undefined;
  readonly dns: boolean;
}

/**
 * Brings the tunnel up, or brings one that is up to what is wished; returns after the handshake. A broken one is
 * cleared away first, since its block on traffic would keep the API out of reach too.
 * @throws KatafractError of the API and of planTunnel; `exit_unknown`; `no_handshake`: the tunnel stays, and with it
 * the block on traffic beside it, until another `up` or `down`
 */
export async function up(ports: Ports, client: Client, wish: UpWish): Promise<Exit> {
  const journal = await readJournal(ports);
  const standing = journal !== null && (await isStanding(ports.exec, journal));
  if (journal !== null && !standing) {
    ports.note('clearing away what an earlier run left');
    await clear(ports, journal);
  }
  const device = await settleDevice(ports, client, wish);
  const exit = chooseExit(device.peer, wish.exit);
  const wanted = wantedTunnel(device.peer, wish);
  if (journal !== null && standing && sameTunnel(journal, wanted)) {
    await switchExit(ports, journal, device, exit);
  } else {
    if (journal !== null && standing) await clear(ports, journal);
    await raise(ports, wanted, device, exit);
  }
  await handshake(ports, wanted.interface, exit);
  return exit;
}

function chooseExit(peer: Peer, node: string | undefined): Exit {
  const exit = node === undefined ? peer.exits[0] : peer.exits.find((candidate) => candidate.node === node);
  if (exit !== undefined) return exit;
  const known = peer.exits.map((candidate) => candidate.node).join(', ') || 'none';
  throw new KatafractError('exit_unknown', `no such exit; this peer has: ${known}`, { status: 404 });
}

function wantedTunnel(peer: Peer, wish: UpWish): Wanted {
  const { addresses, dns } = peer;
  const mtu = wish.mtu ?? mtuOf(peer) ?? DEFAULT_MTU;
  return { interface: wish.interface, addresses, mtu, dns: wish.dns ? dns : [] };
}

function sameTunnel(held: Tunnel, wanted: Wanted): boolean {
  const text = ({ interface: name, addresses, mtu, dns }: Wanted) =>
    [name, addresses.ipv4, addresses.ipv6, mtu, ...dns].join(' ');
  return text(held) === text(wanted);
}

/** In place: routes and rules stay, so nothing leaves beside the tunnel meanwhile. */
async function switchExit(
  ports: Ports,
  tunnel: Tunnel,
  device: ProvisionedDevice,
  exit: Exit,
): Promise<void> {
  const link = await readLink(ports.exec, tunnel.interface);
  if (link.publicKey === device.keys.publicKey && link.exitKey === exit.publicKey) return;
  await ports.exec.run(setConfig(tunnel, device.keys.privateKey, exit));
}

async function raise(ports: Ports, wanted: Wanted, device: ProvisionedDevice, exit: Exit): Promise<void> {
  const tunnel = await planTunnel(ports.exec, wanted, ports.note);
  await ports.files.write(JOURNAL, `${JSON.stringify(tunnel, null, 2)}\n`);
  try {
    await bringUp(ports.exec, tunnel, device.keys.privateKey, exit);
  } catch (error) {
    await clear(ports, tunnel);
    throw error;
  }
}

async function handshake({ exec, clock }: Ports, name: string, exit: Exit): Promise<void> {
  const deadline = clock.now() + HANDSHAKE_WAIT_MS;
  for (;;) {
    const link = await readLink(exec, name);
    if (link.exitKey === exit.publicKey && link.handshakeAt !== null) return;
    if (clock.now() >= deadline) break;
    await sleep(clock, 50);
  }
  const hint = 'try another with --exit (see `wraith status`), or `wraith down`';
  throw new KatafractError('no_handshake', `${exit.node} does not answer; ${hint}`, { status: 504 });
}

/** Undoes exactly what `up` did, also where it got only half way. @returns false where nothing was up */
export async function down(ports: Ports): Promise<boolean> {
  const journal = await readJournal(ports);
  if (journal === null) return false;
  await clear(ports, journal);
  return true;
}

/** Gives the peer back to the API and forgets the keys; the next `up` starts as a new device. */
export async function forget(ports: Ports, client: Client): Promise<void> {
  const device = await readDevice(ports.files);
  if (device !== null) await forgetDevice(ports.files, client, device);
}

export interface Status {
  /** `broken`: brought up, and since then something of it went missing; traffic is held back. */
  readonly state: 'up' | 'down' | 'broken';
  readonly interface?: string;
  readonly exit?: Exit;
  /** Null before the first handshake. */
  readonly handshakeAgeMs?: number | null;
  readonly rxBytes?: number;
  readonly txBytes?: number;
  readonly standbys: readonly Exit[];
  /** Where somebody watches: the exit in use, since when and why. */
  readonly watch?: FailoverStatus;
}

/** What is up, by the kernel's word; asks nobody beyond this machine. */
export async function status(ports: Ports): Promise<Status> {
  const journal = await readJournal(ports);
  const exits = (await readDevice(ports.files))?.peer?.exits ?? [];
  if (journal === null) return { state: 'down', standbys: exits };
  const { interface: name } = journal;
  if (!(await isStanding(ports.exec, journal))) return { state: 'broken', interface: name, standbys: exits };
  const link: Link = await readLink(ports.exec, name);
  const exit = exits.find((candidate) => candidate.publicKey === link.exitKey);
  return {
    state: 'up',
    interface: name,
    ...(exit === undefined ? {} : { exit }),
    handshakeAgeMs: link.handshakeAt === null ? null : Math.max(0, ports.clock.now() - link.handshakeAt),
    rxBytes: link.rxBytes,
    txBytes: link.txBytes,
    standbys: exits.filter((candidate) => candidate !== exit),
    ...(await readWatch(ports)),
  };
}

async function readWatch({ files }: Ports): Promise<{ watch?: FailoverStatus }> {
  const text = await files.read(WATCH_FILE);
  return text === null ? {} : { watch: parseState(Watched, text, WATCH_FILE) };
}

const Watched = z.object({
  exit: z.string(),
  since: z.number(),
  reason: z.enum(['start', 'dead', 'leaving', 'gone', 'home']),
  home: z.string().nullable(),
  waiting: z.string().nullable(),
});

/**
 * The device's wg-quick file as a QR code. A phone that imports it becomes this device: for one of its own, use a
 * state directory of its own.
 * @throws KatafractError `device_in_use` while the tunnel of this state directory is up: two devices with one key
 * take the tunnel from each other
 */
export async function qr(ports: Ports, client: Client, wish: Wish, format: 'text' | 'svg'): Promise<string> {
  if ((await readJournal(ports)) !== null) {
    const hint = 'give the other device a --state-dir of its own';
    throw new KatafractError('device_in_use', `this machine uses that key; ${hint}`, { status: 409 });
  }
  const { peer, keys } = await settleDevice(ports, client, wish);
  const config = configFor(peer, chooseExit(peer, undefined), keys.privateKey);
  return format === 'svg' ? qrSvg(config) : qrText(config);
}
