import fc from 'fast-check';
import { expect, it } from 'vitest';
import { EMPTY_DIGEST, entryDigest, type PeerEntry, setDigest, xorDigest } from './digest.ts';
import type { Ipv4, Ipv6, PublicKey } from './units.ts';

const peer = (number: number): PeerEntry => ({
  publicKey: `key ${number}` as PublicKey,
  ipv4: `10.64.0.${number}` as Ipv4,
  ipv6: `fd00::${number}` as Ipv6,
});
const peers = fc.uniqueArray(fc.nat(200), { maxLength: 40 }).map((list) => list.map(peer));

it('does not depend on the order, and changing one entry is the same step forth and back', () => {
  fc.assert(
    fc.property(peers, fc.nat(), (list, turn) => {
      const at = list.length === 0 ? 0 : turn % list.length;
      expect(setDigest([...list.slice(at), ...list.slice(0, at)])).toBe(setDigest(list));
      const stepwise = list.reduce((sum, one) => xorDigest(sum, entryDigest(one)), EMPTY_DIGEST);
      expect(stepwise).toBe(setDigest(list));
      expect(list.reduce((sum, one) => xorDigest(sum, entryDigest(one)), stepwise)).toBe(EMPTY_DIGEST);
    }),
  );
});

it('tells sets apart that differ in one key or one address', () => {
  expect(setDigest([peer(1)])).not.toBe(setDigest([peer(2)]));
  expect(setDigest([{ ...peer(1), ipv4: peer(2).ipv4 }])).not.toBe(setDigest([peer(1)]));
  expect(setDigest([{ ...peer(1), ipv6: peer(2).ipv6 }])).not.toBe(setDigest([peer(1)]));
  expect(setDigest([])).toBe(EMPTY_DIGEST);
});
