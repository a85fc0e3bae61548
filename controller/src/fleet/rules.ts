/**
 * Pure decisions of the fleet: where a peer goes, and what a node that says "this is what I hold" must be sent.
 * Nothing here reads a clock, a database or a network.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { Digest, Generation, Lineage, NodeId, RegionId } from '@katafract/shared/units';
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
  readonly capacity: number;
  readonly peerCount: number;
  /** Milliseconds since the epoch of the last sign of life; null where there never was one. */
  readonly lastSeen: number | null;
}

/** A node silent for longer than this gets no new peers (three heartbeats). */
export const SILENT_MS = 30_000;

export function isAvailable(node: Candidate, now: number): boolean {
  const heard = node.lastSeen !== null && now - node.lastSeen <= SILENT_MS;
  return node.state === 'active' && heard && node.peerCount < node.capacity;
}

/**
 * Chooses the exits of a peer: the primary is the least loaded node of the region, the standbys are the nearest other
 * nodes, the less loaded first among equals. The id settles what is left, so the same inputs give the same exits.
 * @throws KatafractError `region_unavailable` (503) where no node of the region takes peers.
 */
export function placePeer(
  nodes: readonly Candidate[],
  wish: { region: RegionId; standbys: number; now: number },
): NodeId[] {
  const usable = nodes.filter((node) => isAvailable(node, wish.now));
  const load = (node: Candidate) => node.peerCount / node.capacity;
  const byId = (a: Candidate, b: Candidate) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
  const [primary] = usable
    .filter((node) => node.region === wish.region)
    .sort((a, b) => load(a) - load(b) || byId(a, b));
  if (!primary) {
    throw new KatafractError('region_unavailable', `no exit in region ${wish.region} takes new peers now`, {
      status: 503,
      retryAfter: 10,
    });
  }
  const distance = new Map(usable.map((node) => [node.id, distanceKm(primary.place, node.place)]));
  const standbys = usable
    .filter((node) => node.id !== primary.id)
    .sort((a, b) => (distance.get(a.id) ?? 0) - (distance.get(b.id) ?? 0) || load(a) - load(b) || byId(a, b))
    .slice(0, wish.standbys);
  return [primary.id, ...standbys.map((node) => node.id)];
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
