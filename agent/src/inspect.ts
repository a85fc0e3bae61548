/**
 * What `status` and `plan` show: the same looking and planning as the running agent's, beside it and changing nothing.
 * Counts and steps only: no key, no address of a peer.
 */
import type { Held } from './desired/table.ts';
import { observePeers } from './observe/peers.ts';
import {
  type HostIdentity,
  type HostObservation,
  type HostStep,
  type HostWish,
  planHost,
} from './plan/host.ts';
import { IdleLook, NOTHING_SEEN } from './plan/idle.ts';
import { type PeerObservation, planKeys, planTable, summarize } from './plan/peers.ts';
import type { HavenView, PeerTablePort, SteadyClock } from './ports.ts';

export interface InspectPorts {
  readonly peers: PeerTablePort;
  readonly lookAtHost: (wish: HostWish) => Promise<HostObservation>;
  readonly clock: Pick<SteadyClock, 'now' | 'elapsed'>;
}

export interface Inspection {
  readonly holds: {
    readonly lineage: number;
    readonly generation: number;
    readonly digest: string;
    readonly peers: number;
  } | null;
  readonly observes: {
    readonly tunnel: boolean;
    readonly listenPorts: readonly number[];
    readonly digest: string;
    readonly peers: number;
    readonly recent: number;
    readonly uplink4: string | null;
    readonly uplink6: string | null;
    /** The DNS filter; `off` where none is wanted. */
    readonly dns: HavenView['state'] | 'off';
  };
  readonly differs: {
    readonly peersToSet: number;
    readonly peersToRemove: number;
    /** In the order in which they would be taken. */
    readonly steps: readonly HostStep[];
  };
}

export async function inspect(
  ports: InspectPorts,
  identity: HostIdentity,
  held: Held | null,
  wish: HostWish,
  filter: HavenView | null,
): Promise<Inspection> {
  const times = { now: ports.clock.now(), elapsed: ports.clock.elapsed() };
  const [seen, host] = await Promise.all([
    observePeers(ports.peers, () => held, new IdleLook(NOTHING_SEEN, times)),
    ports.lookAtHost(wish),
  ]);
  const keys = planTable(held, seen, new Set(), []);
  const batch = planKeys(held, keys);
  return {
    holds: held && {
      lineage: held.lineage,
      generation: held.generation,
      digest: held.digest,
      peers: held.peers.size,
    },
    observes: { ...observed(held, seen, host, keys), dns: filter?.state ?? 'off' },
    differs: {
      peersToSet: batch.set.length,
      peersToRemove: batch.remove.length,
      steps: planHost(identity, wish, host, seen.tunnels),
    },
  };
}

function observed(
  held: Held | null,
  seen: PeerObservation,
  host: HostObservation,
  wrong: ReadonlySet<string>,
): Omit<Inspection['observes'], 'dns'> {
  return {
    tunnel: seen.tunnels.every((tunnel) => tunnel !== null) && [...host.links.values()].every(({ up }) => up),
    listenPorts: seen.tunnels.flatMap((tunnel) => tunnel?.listenPort ?? []),
    ...summarize(held, seen, wrong),
    recent: seen.recent,
    uplink4: host.uplink4,
    uplink6: host.uplink6,
  };
}

/** Whether nothing would be done. */
export function inOrder({ holds, observes, differs }: Inspection): boolean {
  const filters = observes.dns === 'off' || observes.dns === 'ok';
  return filters && holds !== null && differs.peersToSet + differs.peersToRemove + differs.steps.length === 0;
}

export function statusText(node: string, { holds, observes, differs }: Inspection): string {
  const rows: [string, string][] = [
    ['node', node],
    [
      'holds',
      holds
        ? `generation ${holds.generation} of lineage ${holds.lineage}, ${holds.peers} peers`
        : 'nothing received yet',
    ],
    [
      'observes',
      observes.tunnel
        ? `tunnel on port ${observes.listenPorts.join(', ')}, ${observes.peers} peers, ${observes.recent} with a recent handshake`
        : 'no tunnel',
    ],
    ['dns', observes.dns],
    ['uplink', `IPv4 ${observes.uplink4 ?? 'none'}, IPv6 ${observes.uplink6 ?? 'none'}`],
    [
      'differs',
      `${differs.peersToSet} peers to set, ${differs.peersToRemove} to remove, ${differs.steps.length} host steps`,
    ],
  ];
  return rows.map(([name, text]) => `${name.padEnd(10)}${text}`).join('\n');
}

export function planText({ differs }: Inspection): string {
  const peers = differs.peersToSet + differs.peersToRemove;
  const lines = differs.steps.map(stepText);
  if (peers > 0) lines.push(`peers: set ${differs.peersToSet}, remove ${differs.peersToRemove}`);
  return lines.length > 0 ? lines.join('\n') : 'nothing to do';
}

function stepText(step: HostStep): string {
  const { kind, ...rest } = step;
  if (step.kind === 'rules')
    return `rules, IPv${step.family}:\n${step.text.trimEnd().replaceAll(/^/gm, '  ')}`;
  const values = Object.values(rest).join(' = ');
  return values ? `${kind}: ${values}` : kind;
}
