/**
 * Who may reboot now. Pure. A reboot takes an exit away for a minute or two, and its clients to the next region, so a
 * lease is given only at night, to one node of a region at a time, while no neighbour region is worked on (and a minute
 * after), and where enough exits stay. One that does not come back well keeps every other from going.
 */
import type { NodeId } from '@katafract/shared/units';
import { implausible } from '../health.ts';
import { isUnwell, type NodeFacts, Regions } from './facts.ts';
import { isNight, type RegionGraph } from './graph-rules.ts';
import type { RebootState } from './tables.ts';

export interface RebootFacts {
  readonly id: string;
  readonly node: NodeId;
  readonly state: RebootState;
  readonly anyTime: boolean;
  readonly wantedAt: number;
  readonly leasedAt: number | null;
  readonly until: number | null;
  readonly endedAt: number | null;
  /** An operator has seen to its failure. */
  readonly cleared: boolean;
}

/** In milliseconds. A lease: for the request to reach the node, and the node to begin. */
export const LEASE_MS = 2 * 60_000;
/** From the lease on its silence is expected for so long; after that its peers are given other exits. */
export const REBOOT_EXPECTED_MS = 5 * 60_000;
/** From the lease on: then it must be well again. */
export const WELL_WITHIN_MS = 15 * 60_000;
/** Between the end of one reboot and a lease to a neighbour: never in the same minute. */
export const APART_MS = 60_000;
/** A node that reboots because it needs to is not wanted to again so soon, whatever it says. */
export const AGAIN_MS = 6 * 3_600_000;
/** A clock further off could take a lease for good when it is over. */
const SKEW_MS = 30_000;

export type RebootStep =
  | { readonly do: 'want'; readonly node: NodeId }
  | { readonly do: 'lease'; readonly id: string; readonly node: NodeId; readonly until: number }
  | { readonly do: 'done'; readonly id: string; readonly node: NodeId }
  /** `unused`: the node is well and did not reboot, so nobody else has to wait. */
  | {
      readonly do: 'failed';
      readonly id: string;
      readonly node: NodeId;
      readonly reason: 'not_well' | 'unused';
    };

export interface RebootLook {
  readonly graph: RegionGraph;
  readonly nodes: readonly NodeFacts[];
  /** Those that are open, those that ended lately, and those that failed and nobody saw to. */
  readonly reboots: readonly RebootFacts[];
  readonly now: number;
}

/** What is to be done now; the same look gives the same steps. */
export function stepReboots(look: RebootLook): RebootStep[] {
  const byId = new Map(look.nodes.map((node) => [node.id, node]));
  const ends = look.reboots.flatMap((reboot) => judge(reboot, byId.get(reboot.node), look.now));
  if (ends.length > 0) return ends;
  return [...wants(look), ...leases(look, byId)];
}

function judge(reboot: RebootFacts, node: NodeFacts | undefined, now: number): RebootStep[] {
  const { id, until, leasedAt } = reboot;
  if (reboot.state !== 'leased' || until === null || leasedAt === null) return [];
  const used = node?.said?.lease === id;
  const well = node?.health === 'ok' && node.said?.sound === true;
  if (used && well) return [{ do: 'done', id, node: reboot.node }];
  const over = now >= leasedAt + WELL_WITHIN_MS;
  // its silence is no longer excused by then, so that `ok` means that it was heard
  if (well && !used && now >= leasedAt + REBOOT_EXPECTED_MS + APART_MS) {
    return [{ do: 'failed', id, node: reboot.node, reason: 'unused' }];
  }
  return over ? [{ do: 'failed', id, node: reboot.node, reason: 'not_well' }] : [];
}

/** Nodes whose systems ask for it. */
function wants({ nodes, reboots, now }: RebootLook): RebootStep[] {
  const lately = new Set(
    reboots.filter(({ endedAt }) => endedAt === null || now - endedAt < AGAIN_MS).map(({ node }) => node),
  );
  return nodes
    .filter(({ id, said, lifecycle }) => said?.rebootNeeded && lifecycle !== 'retired' && !lately.has(id))
    .map(({ id }) => ({ do: 'want', node: id }));
}

/** Why no reboot is leased at all; null where they are. */
export function stopped({ nodes, reboots }: Pick<RebootLook, 'nodes' | 'reboots'>): string | null {
  const failed = reboots.find(({ state, cleared }) => state === 'failed' && !cleared);
  if (failed) return `${failed.node} did not come back from its reboot: clear ${failed.id} to go on`;
  const serving = nodes.filter(({ lifecycle }) => lifecycle === 'active');
  return implausible(serving.filter(isUnwell).length * 2, serving.length)
    ? 'too many exits are not well'
    : null;
}

function leases(look: RebootLook, byId: ReadonlyMap<NodeId, NodeFacts>): RebootStep[] {
  const { graph, nodes, reboots, now } = look;
  if (stopped(look) !== null) return [];
  const regions = new Regions(graph, nodes);
  // a region rests for a while after each reboot, and its neighbours with it
  const resting = new Set(
    reboots
      .filter(({ leasedAt, endedAt }) => leasedAt !== null && endedAt !== null && now - endedAt < APART_MS)
      .map(({ node }) => byId.get(node)?.region),
  );
  const waiting = reboots.filter(({ state }) => state === 'wanted');
  const order = [...waiting].sort((a, b) => a.wantedAt - b.wantedAt || (a.id < b.id ? -1 : 1));
  const steps: RebootStep[] = [];
  for (const reboot of order) {
    const node = byId.get(reboot.node);
    if (!node || obstacle(look, regions, reboot, node) !== null) continue;
    if ([node.region, ...graph.neighbours(node.region)].some((region) => resting.has(region))) continue;
    regions.take(node);
    steps.push({ do: 'lease', id: reboot.id, node: node.id, until: now + LEASE_MS });
  }
  return steps;
}

/** Why a node has to wait, in plain words; null where it may go. */
function obstacle({ graph, now }: RebootLook, regions: Regions, reboot: RebootFacts, node: NodeFacts) {
  const region = graph.regions.get(node.region);
  if (node.lifecycle === 'draining') return 'it is being drained';
  if (node.health !== 'ok' || node.said === null) return 'it is not well';
  if (Math.abs(node.said.skew) > SKEW_MS) return 'its clock is wrong';
  if (!reboot.anyTime && region && !isNight(region, now)) return 'it is not night there';
  if (node.maintained || regions.working(node.region) > 0) return 'its region is being worked on';
  if (!regions.neighboursRest(node.region)) return 'a neighbour region is being worked on';
  if (!regions.spares(node)) return 'its region would be below its minimum of exits';
  if (regions.well(node.region) < 2 && !regions.neighboursServe(node.region)) {
    return 'no neighbour region could serve its clients';
  }
  return null;
}

/** Why each wanted reboot still waits, for people. */
export function obstacles(look: RebootLook): Map<string, string> {
  const byId = new Map(look.nodes.map((node) => [node.id, node]));
  const regions = new Regions(look.graph, look.nodes);
  const stop = stopped(look);
  const found = new Map<string, string>();
  for (const reboot of look.reboots.filter(({ state }) => state === 'wanted')) {
    const node = byId.get(reboot.node);
    const why = stop ?? (node ? obstacle(look, regions, reboot, node) : 'its node is gone');
    found.set(reboot.id, why ?? 'its turn comes next');
  }
  return found;
}
