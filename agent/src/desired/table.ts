/**
 * The peer table a node holds, with the owner of each address, and one change to it. A change is what a verified
 * message comes down to; applying it costs O(change), whatever the size of the table.
 */
import type { NodeConfig, PeerTuple } from '@katafract/shared/desired';
import { EMPTY_DIGEST, entryDigest, type PeerEntry } from '@katafract/shared/digest';
import type { Digest, Generation, Lineage, PublicKey } from '@katafract/shared/units';

/** A step from one generation to another. A snapshot's `set` is the whole table and its `remove` is empty. */
export interface Change {
  readonly kind: 'delta' | 'snapshot';
  readonly lineage: Lineage;
  readonly generation: Generation;
  /** Of the table after the change. */
  readonly digest: Digest;
  /** null: as it was. */
  readonly config: NodeConfig | null;
  readonly remove: readonly PublicKey[];
  readonly set: readonly PeerEntry[];
}

/** The reading half, which is all that the rules get. */
export interface PeerRows {
  readonly size: number;
  get(key: string): PeerEntry | undefined;
  /** The key that holds an address (IPv4 or IPv6). */
  ownerOf(address: string): PublicKey | undefined;
  values(): IterableIterator<PeerEntry>;
}

export function fromTuple([publicKey, ipv4, ipv6]: PeerTuple): PeerEntry {
  return { publicKey, ipv4, ipv6 };
}

export class PeerTable implements PeerRows {
  readonly #rows = new Map<string, PeerEntry>();
  readonly #owners = new Map<string, PublicKey>();

  constructor(peers: Iterable<PeerEntry> = []) {
    for (const peer of peers) this.#put(peer);
  }

  get size(): number {
    return this.#rows.size;
  }

  /** Whether no two rows have an address in common. */
  get addressesUnique(): boolean {
    return this.#owners.size === 2 * this.#rows.size;
  }

  get(key: string): PeerEntry | undefined {
    return this.#rows.get(key);
  }

  ownerOf(address: string): PublicKey | undefined {
    return this.#owners.get(address);
  }

  values(): IterableIterator<PeerEntry> {
    return this.#rows.values();
  }

  /** Applies the rows of a delta: removals first, so that an address may pass from one key to another. */
  apply(change: Pick<Change, 'remove' | 'set'>): void {
    for (const key of change.remove) this.#drop(key);
    for (const peer of change.set) this.#drop(peer.publicKey);
    for (const peer of change.set) this.#put(peer);
  }

  #put(peer: PeerEntry): void {
    this.#drop(peer.publicKey);
    this.#rows.set(peer.publicKey, peer);
    this.#owners.set(peer.ipv4, peer.publicKey);
    this.#owners.set(peer.ipv6, peer.publicKey);
  }

  #drop(key: PublicKey): void {
    const row = this.#rows.get(key);
    if (!row) return;
    this.#rows.delete(key);
    if (this.#owners.get(row.ipv4) === key) this.#owners.delete(row.ipv4);
    if (this.#owners.get(row.ipv6) === key) this.#owners.delete(row.ipv6);
  }
}

/** What a delta leaves at each key it names: the new row, or null where the key goes. A set wins over a removal. */
export function outcome(change: Pick<Change, 'remove' | 'set'>): Map<PublicKey, PeerEntry | null> {
  const rows = new Map<PublicKey, PeerEntry | null>();
  for (const key of change.remove) rows.set(key, null);
  for (const peer of change.set) rows.set(peer.publicKey, peer);
  return rows;
}

/** Nothing held. */
export const NO_ROWS: PeerRows = {
  size: 0,
  get: () => undefined,
  ownerOf: () => undefined,
  values: () => [][Symbol.iterator](),
};

/** Digest of the table after a change, without applying it. @param digest of the table before */
export function digestAfter(
  change: Pick<Change, 'kind' | 'remove' | 'set'>,
  peers: PeerRows,
  digest: Digest,
): Digest {
  const whole = change.kind === 'snapshot';
  let sum = BigInt(`0x${whole ? EMPTY_DIGEST : digest}`);
  for (const [key, row] of outcome(change)) {
    const before = whole ? undefined : peers.get(key);
    if (before) sum ^= BigInt(`0x${entryDigest(before)}`);
    if (row) sum ^= BigInt(`0x${entryDigest(row)}`);
  }
  return sum.toString(16).padStart(32, '0') as Digest;
}

/**
 * Whether every address would have one owner after the change. Two owners could never converge: the kernel gives an
 * address to whoever was set last.
 */
export function addressesUnique(change: Pick<Change, 'kind' | 'remove' | 'set'>, peers: PeerRows): boolean {
  const rows = outcome(change);
  const before = change.kind === 'snapshot' ? NO_ROWS : peers;
  const taken = new Set<string>();
  for (const row of rows.values()) {
    for (const address of row ? [row.ipv4, row.ipv6] : []) {
      if (taken.has(address)) return false;
      taken.add(address);
      const owner = before.ownerOf(address);
      // An owner named by the change has just given the address up, or holds it in `taken`.
      if (owner !== undefined && !rows.has(owner)) return false;
    }
  }
  return true;
}

/** What the node holds of the controller's word. */
export interface Held {
  readonly lineage: Lineage;
  readonly generation: Generation;
  readonly digest: Digest;
  readonly config: NodeConfig | null;
  readonly peers: PeerRows;
}
