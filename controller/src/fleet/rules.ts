/**
 * Pure decisions of the fleet: which nodes take peers (placement.ts chooses among them), and what a node that says
 * "this is what I hold" must be sent. Nothing here reads a clock, a database or a network.
 */
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

/** How full a node is: peers against its capacity, and what it has to do beyond that. Only for comparing. */
export function loadOf({ peerCount, capacity, cpu, bandwidth }: Candidate): number {
  return peerCount / capacity + Math.max(0, cpu - BUSY) + Math.max(0, bandwidth - BUSY);
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
