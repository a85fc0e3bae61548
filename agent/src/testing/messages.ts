/** Peers, tables and messages for tests. */
import type { Delta, NodeConfig, Snapshot } from '@katafract/shared/desired';
import { type PeerEntry, setDigest } from '@katafract/shared/digest';
import type { Digest, Generation, Ipv4, Ipv6, Lineage, NodeId, PublicKey } from '@katafract/shared/units';
import { type Held, PeerTable } from '../desired/table.ts';

export const NODE = 'fra-1' as NodeId;
export const CONFIG = {
  listenPort: 51820,
  mtu: 1420,
  gateway4: '10.64.0.1/10',
  gateway6: 'fd4b:6174:6166::1/64',
} as NodeConfig;

/** A key that says its number. */
export function key(n: number): PublicKey {
  return Buffer.from(String(n).padStart(32, '0')).toString('base64') as PublicKey;
}

/** Peer number `n`, at address number `at`. */
export function peer(n: number, at = n): PeerEntry {
  return {
    publicKey: key(n),
    ipv4: `10.64.${at >> 8}.${at & 255}` as Ipv4,
    ipv6: `fd4b:6174:6166::${at.toString(16)}` as Ipv6,
  };
}

export function peers(from: number, to: number): PeerEntry[] {
  return Array.from({ length: to - from + 1 }, (_, index) => peer(from + index));
}

export function held(
  lineage: number,
  generation: number,
  rows: readonly PeerEntry[],
  config: NodeConfig | null = CONFIG,
): Held {
  return {
    lineage: lineage as Lineage,
    generation: generation as Generation,
    digest: setDigest(rows),
    config,
    peers: new PeerTable(rows),
  };
}

const tuple = ({ publicKey, ipv4, ipv6 }: PeerEntry): [PublicKey, Ipv4, Ipv6] => [publicKey, ipv4, ipv6];

/** A snapshot of `rows` cut into `parts`. */
export function snapshot(
  lineage: number,
  to: number,
  rows: readonly PeerEntry[],
  options: { parts?: number; allowShrink?: true; config?: NodeConfig; digest?: Digest } = {},
): Snapshot[] {
  const { parts = 1, allowShrink, config, digest = setDigest(rows) } = options;
  const size = Math.ceil(rows.length / parts);
  return Array.from({ length: parts }, (_, index) => ({
    v: 1,
    kind: 'snapshot',
    node: NODE,
    lineage: lineage as Lineage,
    to: to as Generation,
    digest,
    part: index + 1,
    parts,
    set: rows.slice(index * size, (index + 1) * size).map(tuple),
    ...(allowShrink ? { allowShrink } : {}),
    ...(config ? { config } : {}),
  }));
}

/** A snapshot in one part. */
export function whole(lineage: number, to: number, rows: readonly PeerEntry[]): Snapshot {
  const [message] = snapshot(lineage, to, rows);
  if (!message) throw new Error('a snapshot has a part');
  return message;
}

/** A delta in one part; `after` is the table it should leave. */
export function delta(
  lineage: number,
  from: number,
  to: number,
  change: {
    set?: readonly PeerEntry[];
    del?: readonly number[];
    after: readonly PeerEntry[];
    config?: NodeConfig;
  },
): Delta {
  return {
    v: 1,
    kind: 'delta',
    node: NODE,
    lineage: lineage as Lineage,
    from: from as Generation,
    to: to as Generation,
    digest: setDigest(change.after),
    part: 1,
    parts: 1,
    set: (change.set ?? []).map(tuple),
    del: (change.del ?? []).map(key),
    ...(change.config ? { config: change.config } : {}),
  };
}
