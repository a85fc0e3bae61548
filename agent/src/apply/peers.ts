/**
 * Hands a batch to the kernel. One bad row must not keep the good ones out: a refused batch is halved until the rows at
 * fault stand alone, within a budget, and they are what is reported.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { PeerBatch, PeerTablePort } from '../ports.ts';

/** Most attempts per call; a kernel that refuses everything must not cost a process per peer. */
const MOST_ATTEMPTS = 64;

export interface PeersApplied {
  /** Keys the kernel may not have taken. */
  readonly failed: ReadonlySet<string>;
  /** The last error, for the log. */
  readonly error: unknown;
  /** The interface is gone: nothing but a full pass can help. */
  readonly tunnelMissing: boolean;
}

export async function applyPeers(table: PeerTablePort, batch: PeerBatch): Promise<PeersApplied> {
  const failed = new Set<string>();
  const todo: PeerBatch[] = [batch];
  let attempts = 0;
  let error: unknown = null;
  let tunnelMissing = false;
  for (let next = todo.pop(); next; next = todo.pop()) {
    if (next.remove.length + next.set.length === 0) continue;
    if (tunnelMissing || attempts >= MOST_ATTEMPTS) {
      fail(next, failed);
      continue;
    }
    attempts++;
    try {
      await table.set(next);
    } catch (cause) {
      error = cause;
      tunnelMissing = cause instanceof KatafractError && cause.code === 'tunnel_missing';
      const halves = tunnelMissing ? [] : halve(next);
      if (halves.length === 0) fail(next, failed);
      todo.push(...halves);
    }
  }
  return { failed, error, tunnelMissing };
}

function fail(batch: PeerBatch, failed: Set<string>): void {
  for (const key of batch.remove) failed.add(key);
  for (const peer of batch.set) failed.add(peer.publicKey);
}

/** Two smaller batches, the one to be done first last (a stack); none where there is but one row. */
function halve(batch: PeerBatch): PeerBatch[] {
  const { remove, set } = batch;
  if (remove.length + set.length <= 1) return [];
  if (remove.length > 0 && set.length > 0) {
    return [
      { remove: [], set },
      { remove, set: [] },
    ];
  }
  const middle = (length: number) => Math.ceil(length / 2);
  return [
    { remove: remove.slice(middle(remove.length)), set: set.slice(middle(set.length)) },
    { remove: remove.slice(0, middle(remove.length)), set: set.slice(0, middle(set.length)) },
  ];
}
