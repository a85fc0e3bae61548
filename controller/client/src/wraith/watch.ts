/**
 * `wraith` stays and keeps the tunnel on an exit that answers: the manager of failover/ with the ports of this
 * machine. Each change to the tunnel is made under the lock of the state directory, so that `wraith down` works beside
 * it and ends it.
 */
import type { Exit, Peer } from '@katafract/shared/api';
import { KatafractError } from '@katafract/shared/errors';
import { Failover, type FailoverPorts } from '../failover/manager.ts';
import { KnownRegions } from '../failover/regions.ts';
import type { Patience } from '../failover/rules.ts';
import type { Client } from '../sdk.ts';
import { readLink, readPeers } from './apply.ts';
import { readJournal, WATCH_FILE } from './commands.ts';
import { readDevice, savePeer } from './device.ts';
import { type Command, command, type Ports } from './ports.ts';
import { knockAt, type Tunnel, useExit } from './tunnel.ts';

const REGIONS_FILE = 'regions.json';
/** Looked up in the routing table alone, where no exit has a literal address. */
const ANYWHERE = '192.0.2.1';

export interface WatchWish {
  readonly patience?: Patience | undefined;
  /** Runs a change while no other `wraith` works on this state directory; throws `busy`. */
  readonly exclusively: <T>(task: () => Promise<T>) => Promise<T>;
  readonly signal: AbortSignal;
}

/**
 * Watches the tunnel that is up until the signal, and leaves it up then.
 * @throws KatafractError `not_up`; `tunnel_gone` where it was taken down meanwhile; `command_missing` without ping
 */
export async function watch(ports: Ports, client: Client, wish: WatchWish): Promise<void> {
  const journal = await readJournal(ports);
  const device = await readDevice(ports.files);
  if (journal === null || device?.peer === undefined) {
    throw new KatafractError('not_up', 'there is no tunnel to watch: `wraith up` first');
  }
  const { peer } = device;
  const { exitKey } = await readLink(ports.exec, journal.interface);
  const inUse = peer.exits.find(({ publicKey }) => publicKey === exitKey) ?? peer.exits[0];
  if (inUse === undefined) throw new KatafractError('exit_unknown', 'this peer has no exits');
  const regions = new KnownRegions(client, {
    read: () => ports.files.read(REGIONS_FILE),
    write: (text) => ports.files.write(REGIONS_FILE, text),
  });
  await regions.load().catch((error: unknown) => {
    ports.note(`the kept region list is of no use: ${String(error)}`);
  });
  const { patience, signal } = wish;
  const real = failoverPorts(ports, { client, journal, peer, regions, wish });
  const options = { exits: peer.exits, inUse: inUse.node, draining: drainingOf(regions), patience };
  try {
    await new Failover(real, options).run(signal);
  } finally {
    await ports.files.remove(WATCH_FILE);
  }
}

function drainingOf({ regions }: KnownRegions): Set<string> {
  const exits = regions.flatMap((region) => region.exits);
  return new Set(exits.filter(({ draining }) => draining === true).map(({ node }) => node));
}

interface Watched {
  readonly client: Client;
  readonly journal: Tunnel;
  readonly peer: Peer;
  readonly regions: KnownRegions;
  readonly wish: WatchWish;
}

function failoverPorts(ports: Ports, watched: Watched): FailoverPorts {
  const { client, journal, peer, regions, wish } = watched;
  const { exec, files, clock } = ports;
  const name = journal.interface;
  const [gateway = '10.64.0.1'] = peer.dns;
  const change = (make: () => Promise<Command>) =>
    wish.exclusively(async () => {
      if ((await readJournal(ports)) === null) throw gone();
      await exec.run(await make());
    });
  return {
    clock,
    random: Math.random,
    probe: (waitMs) =>
      succeeds(ports, command('ping', '-n', '-q', '-c1', '-W', String(waitMs / 1000), '-I', name, gateway)),
    link: (exits) => hasLink(ports, journal, exits),
    async links() {
      try {
        return await readPeers(exec, name);
      } catch (error) {
        throw (await readJournal(ports)) === null ? gone() : error;
      }
    },
    use: (exit, gently) =>
      change(async () => {
        const others = [...(await readPeers(exec, name)).keys()].filter((key) => key !== exit.publicKey);
        return useExit(journal, exit, others, !gently);
      }),
    knock: (exit) => change(async () => knockAt(journal, exit)),
    roundTrip: (exit) => roundTrip(ports, journal, exit),
    async peer(signal) {
      const fresh = await client.peer(peer.id, { signal });
      await wish.exclusively(() => savePeer(files, fresh));
      return fresh;
    },
    async draining(signal) {
      await regions.refresh(signal);
      return drainingOf(regions);
    },
    note: ports.note,
    report: (status) => files.write(WATCH_FILE, `${JSON.stringify(status)}\n`),
  };
}

const gone = () => new KatafractError('tunnel_gone', 'the tunnel was taken down');

async function output({ exec }: Ports, question: Command): Promise<string | null> {
  try {
    return await exec.run(question);
  } catch (error) {
    // its exit code is the answer; a command that is not there has none
    if (error instanceof KatafractError && error.code === 'command_failed') return null;
    throw error;
  }
}

const succeeds = async (ports: Ports, question: Command) => (await output(ports, question)) !== null;

/** Address of an endpoint; null for a name, which could only be resolved through the tunnel. */
function addressOf({ endpoint }: Exit): string | null {
  const host = endpoint.slice(0, endpoint.lastIndexOf(':')).replace(/^\[|\]$/g, '');
  return /^[0-9.]+$/.test(host) || host.includes(':') ? host : null;
}

/** A route that WireGuard's own packets would take, over an interface whose cable is in. */
async function hasLink(ports: Ports, { table }: Tunnel, exits: readonly Exit[]): Promise<boolean> {
  const addresses = exits.map(addressOf).filter((address) => address !== null);
  for (const address of addresses.length > 0 ? addresses : [ANYWHERE]) {
    const route = await output(ports, command('ip', 'route', 'get', address, 'mark', String(table)));
    const through = / dev (\S+)/.exec(route ?? '')?.[1];
    if (through === undefined) continue;
    const link = await output(ports, command('ip', '-o', 'link', 'show', 'dev', through));
    if (link !== null && /[<,]LOWER_UP[,>]/.test(link)) return true;
  }
  return false;
}

async function roundTrip(ports: Ports, { table }: Tunnel, exit: Exit): Promise<number | null> {
  const address = addressOf(exit);
  if (address === null) return null;
  // by the mark of WireGuard's own packets, or they would go through the tunnel
  const mark = ['-m', String(table)];
  const echo = command('ping', '-n', '-q', '-c3', '-i0.3', '-W1', ...mark, address);
  const text = await output(ports, echo);
  const [, least] = /= ([\d.]+)\//.exec(text ?? '') ?? [];
  return least === undefined ? null : Number(least);
}
