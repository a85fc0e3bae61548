/**
 * The rules of the receiver (DESIGN.md "Wire"), pure: from what is held, what is staged and one verified message to a
 * verdict. Nothing here is trusted to arrive once, in order or at all; the numbers and the digest decide.
 */
import type { Delta, Desired, NodeConfig, Snapshot } from '@katafract/shared/desired';
import { EMPTY_DIGEST, type PeerEntry } from '@katafract/shared/digest';
import type { Digest, Generation, Lineage, PublicKey } from '@katafract/shared/units';
import {
  addressesUnique,
  type Change,
  digestAfter,
  fromTuple,
  type Held,
  NO_ROWS,
  type PeerRows,
} from './table.ts';

/** Why a well-formed message was refused; stable, it labels a counter in the heartbeat. */
export type ReceiveRefusal =
  /** A lower lineage, or a snapshot of a lower generation. */
  | 'stale'
  /** The rows do not come out at the digest they were signed with. */
  | 'digest'
  /** The numbers that are held, with other content. */
  | 'conflict'
  /** Two keys would hold one address. */
  | 'address'
  /** A snapshot that removes more than half of a large table, without the signed consent. */
  | 'shrink';

/** Parts of one message that have arrived; `parts` is keyed by the part's number. */
export interface Staging {
  readonly identity: string;
  readonly lineage: Lineage;
  readonly generation: Generation;
  readonly parts: ReadonlyMap<number, Desired>;
}

export type Verdict =
  /** Nothing to do. `acknowledge`: say again what is held, our answer may have been lost. */
  | { readonly kind: 'ignore'; readonly acknowledge: boolean }
  /** Something between what is held and this is missing: say hello. */
  | { readonly kind: 'gap' }
  | { readonly kind: 'stage'; readonly staging: Staging }
  | { readonly kind: 'accept'; readonly change: Change }
  /** A snapshot of exactly what is held: reconcile in full and acknowledge. */
  | { readonly kind: 'same' }
  /** `resend`: say hello and ask for a snapshot, since our histories differ. */
  | { readonly kind: 'refuse'; readonly reason: ReceiveRefusal; readonly resend: boolean };

/** What the receiver has; `held` is null while nothing was ever received, which is not the same as an empty table. */
export interface Receiver {
  readonly held: Held | null;
  /** Lineage the node was enrolled under; nothing older is believed even while nothing is held. */
  readonly enrolledLineage: Lineage;
  readonly staging: Staging | null;
}

/** A snapshot may remove up to half of the table freely; smaller tables than this may vanish altogether. */
export const SHRINK_GUARD_ROWS = 100;

/** Judges one message that was opened by verifyDesired. */
export function receive(receiver: Receiver, message: Desired): Verdict {
  const { held, enrolledLineage } = receiver;
  if (message.lineage < (held?.lineage ?? enrolledLineage)) {
    return { kind: 'refuse', reason: 'stale', resend: false };
  }
  const early =
    message.kind === 'delta' ? judgeDeltaNumbers(held, message) : judgeSnapshotNumbers(held, message);
  if (early) return early;
  const staged = stage(receiver.staging, message);
  if (staged === null) return { kind: 'ignore', acknowledge: false };
  if (staged.parts.size < message.parts) return { kind: 'stage', staging: staged };
  return judgeWhole(held, message, staged);
}

function judgeDeltaNumbers(held: Held | null, message: Delta): Verdict | null {
  if (!held || message.lineage !== held.lineage) return { kind: 'gap' };
  if (message.to <= held.generation) return { kind: 'ignore', acknowledge: true };
  return message.from === held.generation ? null : { kind: 'gap' };
}

function judgeSnapshotNumbers(held: Held | null, message: Snapshot): Verdict | null {
  if (!held || message.lineage > held.lineage || message.to > held.generation) return null;
  if (message.to < held.generation) return { kind: 'refuse', reason: 'stale', resend: false };
  return message.digest === held.digest ? null : { kind: 'refuse', reason: 'conflict', resend: true };
}

/** Adds a part; a newer message replaces what was staged, a part of an older one is dropped (null). */
function stage(staging: Staging | null, message: Desired): Staging | null {
  const from = message.kind === 'delta' ? message.from : '';
  const identity = [message.kind, message.lineage, from, message.to, message.digest, message.parts].join(' ');
  const same = staging?.identity === identity;
  if (staging && !same && older(message, staging)) return null;
  const parts = new Map(same ? staging.parts : []);
  parts.set(message.part, message);
  return { identity, lineage: message.lineage, generation: message.to, parts };
}

function older(message: Desired, staging: Staging): boolean {
  return (
    message.lineage < staging.lineage ||
    (message.lineage === staging.lineage && message.to < staging.generation)
  );
}

function judgeWhole(held: Held | null, message: Desired, staged: Staging): Verdict {
  const parts = [...staged.parts.values()];
  const change = assemble(message, parts);
  const { config } = change;
  const before = held?.peers ?? NO_ROWS;
  if (digestAfter(change, before, held?.digest ?? EMPTY_DIGEST) !== message.digest) {
    return { kind: 'refuse', reason: 'digest', resend: true };
  }
  if (!addressesUnique(change, before)) return { kind: 'refuse', reason: 'address', resend: false };
  if (message.kind === 'delta' || !held) return { kind: 'accept', change };
  if (message.lineage === held.lineage && message.to === held.generation) {
    const other = config !== null && held.config !== null && !sameConfig(config, held.config);
    return other ? { kind: 'refuse', reason: 'conflict', resend: true } : { kind: 'same' };
  }
  const consent = parts.every((part) => part.kind === 'snapshot' && part.allowShrink === true);
  if (!consent && shrinks(change, held.peers)) return { kind: 'refuse', reason: 'shrink', resend: false };
  return { kind: 'accept', change };
}

function assemble(message: Desired, parts: readonly Desired[]): Change {
  const remove: PublicKey[] = [];
  const set: PeerEntry[] = [];
  let config: NodeConfig | null = null;
  for (const part of parts) {
    if (part.kind === 'delta') for (const key of part.del) remove.push(key);
    for (const tuple of part.set) set.push(fromTuple(tuple));
    config = part.config ?? config;
  }
  const generation: Generation = message.to;
  const digest: Digest = message.digest;
  return { kind: message.kind, lineage: message.lineage, generation, digest, config, remove, set };
}

export function sameConfig(left: NodeConfig, right: NodeConfig): boolean {
  // both were read by one schema, so their fields come in one order
  return JSON.stringify(left) === JSON.stringify(right);
}

/** Counts the keys that go, not the difference of sizes: a table replaced by as many others is gone just as much. */
function shrinks(change: Change, peers: PeerRows): boolean {
  if (peers.size < SHRINK_GUARD_ROWS) return false;
  let kept = 0;
  for (const peer of change.set) if (peers.get(peer.publicKey)) kept++;
  return peers.size - kept > peers.size / 2;
}
