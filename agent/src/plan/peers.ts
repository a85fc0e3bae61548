/** Plans the peer table, pure: what to tell the kernel so that it holds what is held. */
import { EMPTY_DIGEST, entryDigest, type PeerEntry, rowDigest, xorDigest } from '@katafract/shared/digest';
import type { Digest } from '@katafract/shared/units';
import type { Held } from '../desired/table.ts';
import type { PeerBatch, Tunnels } from '../ports.ts';

/** What a look at the kernel's table found, against the held one. */
export interface PeerObservation {
  readonly tunnels: Tunnels;
  /** Rows of the kernel that are not as held (or not held at all): key to AllowedIPs text. */
  readonly different: ReadonlyMap<string, string>;
  /** Held keys that the kernel does not have. */
  readonly missing: readonly string[];
  /** Peers with a handshake in the last RECENT_SECONDS. */
  readonly recent: number;
  /** Keys of which the kernel knows more than it needs (idle.ts). */
  readonly idle: readonly string[];
}

/** The batch that puts exactly these keys right: set where held, removed where not. */
export function planKeys(held: Held | null, keys: Iterable<string>): PeerBatch {
  const remove: string[] = [];
  const set: PeerEntry[] = [];
  if (!held) return { remove, set };
  for (const key of keys) {
    const row = held.peers.get(key);
    if (row) set.push(row);
    else remove.push(key);
  }
  return { remove, set };
}

/** The batch that makes these keys anew, as far as they are held, so that the kernel knows nothing of them but that. */
export function planForgetting(held: Held | null, keys: Iterable<string>): PeerBatch {
  const { set } = planKeys(held, keys);
  return { remove: set.map((row) => row.publicKey), set };
}

/**
 * Every key to act on after a full look.
 * @param known keys that the kernel took while we were looking: whatever the dump shows of them is out of date
 * @param doubtful keys that have to be told again whatever was seen
 *
 * While nothing was ever received nothing is planned: the peers that are there may be all that users have.
 */
export function planTable(
  held: Held | null,
  seen: PeerObservation,
  known: ReadonlySet<string>,
  doubtful: Iterable<string>,
): Set<string> {
  const keys = new Set<string>();
  if (!held) return keys;
  for (const key of seen.different.keys()) if (!known.has(key)) keys.add(key);
  for (const key of seen.missing) if (!known.has(key)) keys.add(key);
  for (const key of doubtful) keys.add(key);
  return keys;
}

/** What the kernel holds once the pass is over. */
export interface KernelSummary {
  readonly digest: Digest;
  readonly peers: number;
}

/**
 * Digest and count of the kernel's table: those of the held one, but for the keys where the kernel is known to differ.
 * @param wrong keys that differ: all that were planned before applying, those that failed after it
 */
export function summarize(
  held: Held | null,
  seen: PeerObservation,
  wrong: ReadonlySet<string>,
): KernelSummary {
  let digest = held?.digest ?? EMPTY_DIGEST;
  let peers = held?.peers.size ?? 0;
  const missing = new Set(seen.missing);
  const differing = held ? wrong : new Set(seen.different.keys());
  for (const key of differing) {
    const row = held?.peers.get(key);
    const text = seen.different.get(key);
    const kernelHas = text !== undefined || (row !== undefined && !missing.has(key));
    const kernelDigest =
      text !== undefined ? rowDigest(key, text) : kernelHas && row ? entryDigest(row) : EMPTY_DIGEST;
    if (row) digest = xorDigest(digest, entryDigest(row));
    digest = xorDigest(digest, kernelDigest);
    peers += (kernelHas ? 1 : 0) - (row ? 1 : 0);
  }
  return { digest, peers };
}
