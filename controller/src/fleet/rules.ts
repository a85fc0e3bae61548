/**
 * Pure decisions of the fleet: where a peer goes, and what a node that says "this is what I hold" must be sent.
 * Nothing here reads a clock, a database or a network.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { Digest, Generation, Lineage, NodeId, RegionId } from '@katafract/shared/units';
import type { HealthState } from './health.ts';
import type { NodeState } from './tables.ts';

export interface Place {
  readonly latitude: number;
  readonly longitude: number;
}

/** Great-circle distance in kilometres (haversine formula, Sinnott 1984), on a sphere of 6371 km. */
export function distanceKm(from: Place, to: Place): number {
  const radians = (degrees: number) => (degrees * Math.PI) / 180;
  const half = (angle: number) => Math.sin(angle / 2) ** 2;
  const a =
    half(radians(to.latitude - from.latitude)) +
    Math.cos(radians(from.latitude)) *
      Math.cos(radians(to.latitude)) *
      half(radians(to.longitude - from.longitude));
  return 2 * 6371 * Math.asin(Math.min(1, Math.sqrt(a)));
}

/** What placement needs to know of a node. */
export interface Candidate {
  readonly id: NodeId;
  readonly region: RegionId;
  readonly place: Place;
  readonly state: NodeState;
  readonly health: HealthState;
  /** Whose machine it is; null where nobody said. */
  readonly provider: string | null;
  readonly capacity: number;
  readonly peerCount: number;
  /** Share of its cores that was busy at its last heartbeat, and of its bandwidth where that is known; 0 to 1. */
  readonly cpu: number;
  readonly bandwidth: number;
  /** Milliseconds since the epoch of the last sign of life; null where there never was one. */
  readonly lastSeen: number | null;
}

/** A node silent for longer than this gets no new peers, whatever it was last judged to be (three heartbeats). */
export const SILENT_MS = 30_000;

export function isAvailable(node: Candidate, now: number): boolean {
  const heard = node.lastSeen !== null && now - node.lastSeen <= SILENT_MS;
  return node.state === 'active' && node.health !== 'down' && heard && node.peerCount < node.capacity;
}

/** Above this share, busy cores or lines make a node look fuller than its peers alone do. */
const BUSY = 0.6;
/** Fuller than this, a standby is rather looked for further away; kilometres that a full node, or one provider, costs. */
const FULL = 0.9;
const FULL_KM = 1000;
const SAME_PROVIDER_KM = 500;

/** How full a node is: peers against its capacity, and what it has to do beyond that. Only for comparing. */
export function loadOf({ peerCount, capacity, cpu, bandwidth }: Candidate): number {
  return peerCount / capacity + Math.max(0, cpu - BUSY) + Math.max(0, bandwidth - BUSY);
}

/** Why a peer is where it is: stable words for the audit log. */
export type PlacementReason =
  /** Least loaded of the region. */
  | 'region'
  /** Nearest to the primary that has room, on another provider if that is not much further. */
  | 'nearest'
  /** It had the peer before, and nothing speaks against it. */
  | 'kept'
  /** It had the peer as a standby, and the primary goes. */
  | 'promoted'
  /** Nothing better than a node whose health is in doubt. */
  | 'last_resort';

export interface Choice {
  readonly node: NodeId;
  readonly reason: PlacementReason;
}

const byId = (a: Candidate, b: Candidate) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
/** Nodes in doubt come last of all. */
const doubt = (node: Candidate) => (node.health === 'suspect' ? 1 : 0);

/**
 * Chooses the exits of a new peer: the primary is the least loaded node of the region, the standbys are the nearest other
 * nodes, the less loaded first among equals. The id settles what is left, so the same inputs give the same exits.
 * @throws KatafractError `region_unavailable` (503) where no node of the region takes peers.
 */
export function placePeer(
  nodes: readonly Candidate[],
  wish: { region: RegionId; standbys: number; now: number },
): Choice[] {
  const usable = nodes.filter((node) => isAvailable(node, wish.now));
  const primary = bestOfRegion(usable, wish.region);
  if (!primary) {
    throw new KatafractError('region_unavailable', `no exit in region ${wish.region} takes new peers now`, {
      status: 503,
      retryAfter: 10,
    });
  }
  return addStandbys(usable, [{ node: primary, reason: chosen(primary, 'region') }], wish.standbys + 1);
}

export interface Displaced {
  readonly region: RegionId;
  /** Where the peer is now, in the order its device tries them. */
  readonly present: readonly NodeId[];
  /** Exits it should have, if there are as many. */
  readonly exits: number;
  /** It must leave at once: whatever already has the peer takes over. Otherwise a better primary may be told first. */
  readonly hurry: boolean;
  readonly now: number;
}

/**
 * Chooses anew for a peer whose exits may not all keep it: those of `present` that are down, draining or gone are left,
 * every other one is kept. A standby takes a lost primary's place; without hurry one of the peer's region, even a new
 * one, comes before a standby abroad.
 * @returns the exits, the primary first; none where no node at all could take the peer
 */
export function replacePeer(nodes: readonly Candidate[], wish: Displaced): Choice[] {
  const known = new Map(nodes.map((node) => [node.id, node]));
  const stays = (node: Candidate | undefined): node is Candidate =>
    node !== undefined && node.health !== 'down' && (node.state === 'active' || node.state === 'cordoned');
  const kept = wish.present.map((id) => known.get(id)).filter(stays);
  const usable = nodes.filter((node) => isAvailable(node, wish.now) && !wish.present.includes(node.id));
  const was = kept.find((node) => node.id === wish.present[0]);
  // sure ones first, otherwise in the order that the device knows
  const heirs = [...kept].sort((a, b) => doubt(a) - doubt(b));
  const heir = was ?? heirs.find((node) => node.region === wish.region && !doubt(node));
  const newcomer = heir || wish.hurry ? undefined : bestOfRegion(usable, wish.region);
  const primary = heir ?? newcomer ?? heirs[0] ?? nearestTo(nodes, usable, wish);
  if (!primary) return [];
  const reason = was
    ? 'kept'
    : kept.includes(primary)
      ? 'promoted'
      : primary.region === wish.region
        ? 'region'
        : 'nearest';
  const rest = kept.filter((node) => node !== primary).slice(0, Math.max(0, wish.exits - 1));
  const choices: Picked[] = [
    { node: primary, reason: kept.includes(primary) ? reason : chosen(primary, reason) },
  ];
  for (const node of rest) choices.push({ node, reason: 'kept' });
  return addStandbys(
    usable.filter((node) => node !== primary),
    choices,
    wish.exits,
  );
}

interface Picked {
  readonly node: Candidate;
  readonly reason: PlacementReason;
}

const chosen = (node: Candidate, reason: PlacementReason) => (doubt(node) ? 'last_resort' : reason);

function bestOfRegion(usable: readonly Candidate[], region: RegionId): Candidate | undefined {
  const there = usable.filter((node) => node.region === region);
  return least(there, (a, b) => doubt(a) - doubt(b) || loadOf(a) - loadOf(b) || byId(a, b));
}

/** Where the region has nothing to offer: seen from any of its nodes, or from where the peer was. */
function nearestTo(nodes: readonly Candidate[], usable: readonly Candidate[], wish: Displaced) {
  const home =
    nodes.find(({ region }) => region === wish.region) ?? nodes.find(({ id }) => id === wish.present[0]);
  return home ? nearest(usable, home, []) : undefined;
}

function nearest(usable: readonly Candidate[], from: Candidate, beside: readonly Candidate[]) {
  const providers = new Set(beside.map(({ provider }) => provider));
  const cost = new Map(
    usable.map((node) => {
      const shared = node.provider !== null && providers.has(node.provider);
      const further = (shared ? SAME_PROVIDER_KM : 0) + (loadOf(node) > FULL ? FULL_KM : 0);
      return [node.id, distanceKm(from.place, node.place) + further];
    }),
  );
  const costOf = ({ id }: Candidate) => cost.get(id) ?? 0;
  return least(
    usable,
    (a, b) => doubt(a) - doubt(b) || costOf(a) - costOf(b) || loadOf(a) - loadOf(b) || byId(a, b),
  );
}

function least<T>(list: readonly T[], order: (a: T, b: T) => number): T | undefined {
  return list.reduce<T | undefined>(
    (best, one) => (best === undefined || order(one, best) < 0 ? one : best),
    undefined,
  );
}

/** Fills the exits up to `count`, one after the other, since each choice counts for the providers of the next. */
function addStandbys(usable: readonly Candidate[], choices: readonly Picked[], count: number): Choice[] {
  const picked = [...choices];
  const [first] = picked;
  while (first && picked.length < count) {
    const beside = picked.map(({ node }) => node);
    const rest = usable.filter((node) => !beside.includes(node));
    const next = nearest(rest, first.node, beside);
    if (!next) break;
    picked.push({ node: next, reason: chosen(next, 'nearest') });
  }
  return picked.map(({ node, reason }) => ({ node: node.id, reason }));
}

/** The newest state of a node as the database has it. */
export interface Head {
  readonly lineage: Lineage;
  readonly generation: Generation;
  readonly digest: Digest;
  /** Tombstones up to here are swept. */
  readonly swept: Generation;
}

/** What a node says it holds. */
export interface Held {
  readonly lineage: Lineage;
  readonly generation: Generation;
  readonly digest: Digest;
  readonly want: 'delta' | 'snapshot';
}

export type CarryOn =
  /** It holds the newest state. */
  | { do: 'nothing' }
  /** Send everything after the generation it holds. */
  | { do: 'delta'; from: Generation }
  /** Send the whole table. */
  | { do: 'snapshot' }
  /**
   * It holds numbers this database never gave out, or other content under the same numbers: this database has lost
   * transactions. A new lineage, above both, makes the difference visible; then the whole table.
   */
  | { do: 'raise'; above: Lineage };

/** What carries a node from what it holds to the head. Total: every pair of states has one answer. */
export function carryOn(held: Held, head: Head): CarryOn {
  if (held.lineage > head.lineage) return { do: 'raise', above: held.lineage };
  if (held.lineage < head.lineage) return { do: 'snapshot' };
  if (held.generation > head.generation) return { do: 'raise', above: held.lineage };
  if (held.generation === head.generation) {
    if (held.digest !== head.digest) return { do: 'raise', above: held.lineage };
    if (held.want === 'delta') return { do: 'nothing' };
    // Before anything was received it holds what generation 0 is by its numbers, but not by its own knowledge. Later
    // on only a node whose content differs (in its config, which the digest leaves out) asks for what it holds.
    return held.generation === 0 ? { do: 'snapshot' } : { do: 'raise', above: held.lineage };
  }
  if (held.want === 'snapshot' || held.generation < head.swept) return { do: 'snapshot' };
  return { do: 'delta', from: held.generation };
}
