/**
 * How the ledger is written down, pure: a snapshot text and journal lines, each under a checksum, and the way back.
 * The journal is a list of changes to its snapshot; a crash can tear its last line, never one before it.
 */
import { createHash } from 'node:crypto';
import type { NodeConfig, PeerTuple } from '@katafract/shared/desired';
import { type PeerEntry, setDigest } from '@katafract/shared/digest';
import type { Digest, Generation, Lineage, NodeId, PublicKey } from '@katafract/shared/units';
import { addressesUnique, type Change, digestAfter, fromTuple, type Held, PeerTable } from './table.ts';

const VERSION = 1;

/** The first line of a snapshot; one line a peer follows, so that reading it makes little that is thrown away. */
interface StoredHeader {
  readonly v: typeof VERSION;
  readonly node: NodeId;
  readonly lineage: Lineage;
  readonly generation: Generation;
  readonly digest: Digest;
  readonly config: NodeConfig | null;
}

interface StoredDelta {
  readonly lineage: Lineage;
  readonly generation: Generation;
  readonly digest: Digest;
  readonly config: NodeConfig | null;
  readonly del: readonly PublicKey[];
  readonly set: readonly PeerTuple[];
}

/** A snapshot with its table, which the ledger then changes in place. */
export interface Restored extends Held {
  readonly peers: PeerTable;
}

export interface Recovery {
  /** null: nothing was ever received, or what was written cannot be believed. */
  readonly held: Restored | null;
  /** The lines that count; shorter than the file's where its end was torn. */
  readonly journal: string;
  /** What was wrong, for the log; null where nothing was. */
  readonly fault: 'snapshot_corrupt' | 'snapshot_foreign' | 'journal_torn' | 'journal_corrupt' | null;
}

function tuple(peer: PeerEntry): PeerTuple {
  return [peer.publicKey, peer.ipv4, peer.ipv6];
}

/** First 16 hex digits of SHA-256: finds torn and rotten text. */
function checksum(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}

/** `checksum text\n`, for the journal and the snapshot alike. */
function seal(text: string): string {
  return `${checksum(text)} ${text}\n`;
}

function unseal(line: string): string | null {
  const text = line.slice(17);
  return line[16] === ' ' && checksum(text) === line.slice(0, 16) ? text : null;
}

export function snapshotText(node: NodeId, held: Held): string {
  const { lineage, generation, digest, config } = held;
  const header: StoredHeader = { v: VERSION, node, lineage, generation, digest, config };
  const lines = [JSON.stringify(header)];
  for (const peer of held.peers.values()) lines.push(JSON.stringify(tuple(peer)));
  return seal(lines.join('\n'));
}

export function journalLine(change: Change): string {
  const { lineage, generation, digest, config } = change;
  const stored: StoredDelta = {
    lineage,
    generation,
    digest,
    config,
    del: change.remove,
    set: change.set.map(tuple),
  };
  return seal(JSON.stringify(stored));
}

/** Reads back what was written for `node`. Checksums say that we wrote it, so its shape is not checked again. */
export function recover(snapshot: string | null, journal: string, node: NodeId): Recovery {
  const nothing = (fault: Recovery['fault']): Recovery => ({ held: null, journal: '', fault });
  if (snapshot === null) return nothing(journal === '' ? null : 'journal_corrupt');
  const text = unseal(snapshot.trimEnd());
  if (text === null) return nothing('snapshot_corrupt');
  const [line = ''] = text.split('\n', 1);
  const { v, node: owner, ...header } = JSON.parse(line) as StoredHeader;
  if (v !== VERSION) return nothing('snapshot_corrupt');
  if (owner !== node) return nothing('snapshot_foreign');
  const peers = new PeerTable(storedPeers(text, line.length + 1));
  const sound = setDigest(peers.values()) === header.digest && peers.addressesUnique;
  return sound ? replay({ ...header, peers }, journal) : nothing('snapshot_corrupt');
}

function* storedPeers(text: string, from: number): Generator<PeerEntry> {
  for (let start = from; start < text.length; ) {
    const end = text.indexOf('\n', start);
    const stop = end < 0 ? text.length : end;
    yield fromTuple(JSON.parse(text.slice(start, stop)) as PeerTuple);
    start = stop + 1;
  }
}

function toChange({ lineage, generation, digest, config, del, set }: StoredDelta): Change {
  return { kind: 'delta', lineage, generation, digest, config, remove: del, set: set.map(fromTuple) };
}

function plausible(change: Change, { peers, digest }: Held): boolean {
  return digestAfter(change, peers, digest) === change.digest && addressesUnique(change, peers);
}

/** The state after a change. A delta changes the table of `before` in place. */
export function held(change: Change, before: Restored | null): Restored {
  const { lineage, generation, digest } = change;
  const config = change.config ?? before?.config ?? null;
  if (change.kind === 'snapshot' || !before) {
    return { lineage, generation, digest, config, peers: new PeerTable(change.set) };
  }
  before.peers.apply(change);
  return { lineage, generation, digest, config, peers: before.peers };
}

function replay(snapshot: Restored, journal: string): Recovery {
  let state = snapshot;
  let start = 0;
  while (start < journal.length) {
    const end = journal.indexOf('\n', start);
    const text = end < 0 ? null : unseal(journal.slice(start, end));
    const change = text === null ? null : toChange(JSON.parse(text) as StoredDelta);
    // Lines up to the snapshot's own generation are left over from a crash between writing it and the new journal.
    const covered = change !== null && !newer(change, snapshot);
    if (change === null || !(covered || (newer(change, state) && plausible(change, state)))) {
      const torn = end < 0 || end === journal.length - 1;
      return {
        held: state,
        journal: journal.slice(0, start),
        fault: torn ? 'journal_torn' : 'journal_corrupt',
      };
    }
    if (!covered) state = held(change, state);
    start = end + 1;
  }
  return { held: state, journal, fault: null };
}

function newer(change: Change, than: Held): boolean {
  return (
    change.lineage > than.lineage || (change.lineage === than.lineage && change.generation > than.generation)
  );
}
