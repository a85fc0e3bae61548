/**
 * Changes to nodes' tables: what a transaction did (Advance), how several of them become one message (coalesce), and
 * how a message becomes signed parts. Pure.
 */
import { type Desired, type NodeConfig, PART_ROWS, type PeerTuple } from '@katafract/shared/desired';
import { PROTOCOL } from '@katafract/shared/topics';
import type { Digest, Generation, Lineage, NodeId, PublicKey } from '@katafract/shared/units';

/** One committed step of one node: its table went from `from` to `to`. */
export interface Advance {
  readonly node: NodeId;
  readonly lineage: Lineage;
  readonly from: Generation;
  readonly to: Generation;
  /** Of the table at `to`. */
  readonly digest: Digest;
  readonly peerCount: number;
  readonly set: readonly PeerTuple[];
  readonly del: readonly PublicKey[];
}

/** A range of the log, ready to be sent. */
export interface Update {
  readonly kind: 'delta' | 'snapshot';
  readonly node: NodeId;
  readonly lineage: Lineage;
  /** Ignored in a snapshot. */
  readonly from: Generation;
  readonly to: Generation;
  readonly digest: Digest;
  readonly set: readonly PeerTuple[];
  readonly del: readonly PublicKey[];
  readonly config?: NodeConfig;
  readonly allowShrink?: boolean;
}

/** Joins contiguous steps into one: of each key only its last word remains. */
export function coalesce(steps: readonly Advance[]): Update | null {
  const [first] = steps;
  const last = steps.at(-1);
  if (!first || !last) return null;
  const { node, lineage } = first;
  if (steps.length === 1) return { kind: 'delta', ...pick(first), node, lineage };
  const final = new Map<PublicKey, PeerTuple | null>();
  for (const step of steps) {
    for (const key of step.del) final.set(key, null);
    for (const tuple of step.set) final.set(tuple[0], tuple);
  }
  const set: PeerTuple[] = [];
  const del: PublicKey[] = [];
  for (const [key, tuple] of final) tuple ? set.push(tuple) : del.push(key);
  return { kind: 'delta', node, lineage, from: first.from, to: last.to, digest: last.digest, set, del };
}

function pick(step: Advance) {
  const { from, to, digest, set, del } = step;
  return { from, to, digest, set, del };
}

/** Cuts an update into messages of at most PART_ROWS rows each; an empty one is still one message. */
export function toMessages(update: Update): Desired[] {
  const rows = Math.max(update.set.length, update.del.length);
  const parts = Math.max(1, Math.ceil(rows / PART_ROWS));
  return Array.from({ length: parts }, (_, index) => {
    const cut = <T>(list: readonly T[]) => list.slice(index * PART_ROWS, (index + 1) * PART_ROWS);
    const common = {
      v: PROTOCOL,
      node: update.node,
      lineage: update.lineage,
      to: update.to,
      digest: update.digest,
      part: index + 1,
      parts,
      set: cut(update.set),
      ...(update.config ? { config: update.config } : {}),
    } as const;
    return update.kind === 'snapshot'
      ? { ...common, kind: 'snapshot', ...(update.allowShrink ? { allowShrink: true as const } : {}) }
      : { ...common, kind: 'delta', from: update.from, del: cut(update.del) };
  });
}

/**
 * What a node is asked for a sign of life with: a step that it has taken already, which changes nothing and is
 * acknowledged at once (or, where its history is another one, answered with a hello).
 */
export function question(
  node: NodeId,
  at: {
    readonly head: { readonly lineage: Lineage; readonly digest: Digest };
    readonly acked: { readonly lineage: Lineage; readonly generation: Generation };
  },
): Desired {
  const { lineage, digest } = at.head;
  const has = at.acked.lineage === lineage ? at.acked.generation : 0;
  // a node that is not known to have taken any step is asked about one it cannot be waiting for
  const to = has > 0 ? has : 2;
  const range = { from: (to - 1) as Generation, to: to as Generation };
  return { v: PROTOCOL, node, lineage, ...range, digest, part: 1, parts: 1, kind: 'delta', set: [], del: [] };
}
