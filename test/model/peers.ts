/** Peers and addresses of the model, made from numbers. */
import { createHash } from 'node:crypto';
import type { PeerTuple } from '@katafract/shared/desired';
import type { Ipv4, Ipv6, PublicKey } from '@katafract/shared/units';

const keys = new Map<number, PublicKey>();

/** The key of peer `index`. */
export function keyOf(index: number): PublicKey {
  const known = keys.get(index);
  if (known) return known;
  const key = createHash('sha256').update(`peer ${index}`).digest('base64') as PublicKey;
  keys.set(index, key);
  return key;
}

export function ipv4Of(index: number): Ipv4 {
  return `10.64.${(index >> 8) & 255}.${index & 255}` as Ipv4;
}

export function ipv6Of(index: number): Ipv6 {
  return `fd00::${index.toString(16)}` as Ipv6;
}

export function tuple(key: number, address: number): PeerTuple {
  return [keyOf(key), ipv4Of(address), ipv6Of(address)];
}
