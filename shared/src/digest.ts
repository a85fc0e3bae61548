/**
 * The set digest: 128 bits that say which peers a table holds, whatever the order they came in. Each entry is hashed
 * (SHA-256, first 16 bytes) and the hashes are XORed, so adding and removing an entry is the same O(1) step, in
 * TypeScript (here) as in SQL (`digest # entry` on bit(128)).
 *
 * It detects drift; it does not authenticate. An XOR of hashes can be steered by whoever chooses hundreds of entries
 * (Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing", 1997), but to gain by that he would have to
 * change the kernel of the node as well, and then he could report any digest he likes. What a node applies is
 * authenticated by the signature over desired state.
 */
import { createHash } from 'node:crypto';
import type { Digest, Ipv4, Ipv6, PublicKey } from './units.ts';

/** What the kernel is told about one peer, and all of it that the digest covers. */
export interface PeerEntry {
  readonly publicKey: PublicKey;
  readonly ipv4: Ipv4;
  readonly ipv6: Ipv6;
}

export const EMPTY_DIGEST = '0'.repeat(32) as Digest;

/** The AllowedIPs of a peer exactly as `wg show dump` prints them. */
export function allowedIps(peer: Pick<PeerEntry, 'ipv4' | 'ipv6'>): string {
  return `${peer.ipv4}/32,${peer.ipv6}/128`;
}

/** Hash of one table row: its key and its AllowedIPs text, so foreign rows seen in a kernel hash too. */
export function rowDigest(publicKey: string, allowed: string): Digest {
  return createHash('sha256').update(`${publicKey} ${allowed}`).digest('hex').slice(0, 32) as Digest;
}

export function entryDigest(peer: PeerEntry): Digest {
  return rowDigest(peer.publicKey, allowedIps(peer));
}

/** XOR of two digests: adds an entry to a set, or takes it out again. */
export function xorDigest(left: Digest, right: Digest): Digest {
  return (BigInt(`0x${left}`) ^ BigInt(`0x${right}`)).toString(16).padStart(32, '0') as Digest;
}

/** Digest of a whole set. */
export function setDigest(peers: Iterable<PeerEntry>): Digest {
  let sum = 0n;
  for (const peer of peers) sum ^= BigInt(`0x${entryDigest(peer)}`);
  return sum.toString(16).padStart(32, '0') as Digest;
}
