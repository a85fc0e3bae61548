import type { Digest, Generation, Lineage } from '@katafract/shared/units';
import { describe, expect, it } from 'vitest';
import { carryOn, distanceKm, type Head } from './rules.ts';

const FRANKFURT = { latitude: 50.11, longitude: 8.68 };
const NEW_YORK = { latitude: 40.71, longitude: -74.01 };

describe('distance', () => {
  it('is the great circle', () => {
    expect(distanceKm(FRANKFURT, NEW_YORK)).toBeCloseTo(6206, -2);
    expect(distanceKm(FRANKFURT, FRANKFURT)).toBe(0);
  });
});

describe('what carries a node on', () => {
  const A = 'a'.repeat(32) as Digest;
  const B = 'b'.repeat(32) as Digest;
  const head: Head = {
    lineage: 3 as Lineage,
    generation: 10 as Generation,
    digest: A,
    swept: 4 as Generation,
  };
  const held = (lineage: number, generation: number, digest = A, want: 'delta' | 'snapshot' = 'delta') =>
    carryOn({ lineage: lineage as Lineage, generation: generation as Generation, digest, want }, head);

  it.each([
    ['the newest state', held(3, 10), { do: 'nothing' }],
    ['an older generation', held(3, 7), { do: 'delta', from: 7 }],
    ['just what is swept', held(3, 4), { do: 'delta', from: 4 }],
    ['less than what is swept', held(3, 3), { do: 'snapshot' }],
    ['a history of its own', held(3, 7, B, 'snapshot'), { do: 'snapshot' }],
    ['an older lineage', held(2, 99), { do: 'snapshot' }],
    ['a newer lineage', held(4, 1), { do: 'raise', above: 4 }],
    ['a generation never given out', held(3, 11), { do: 'raise', above: 3 }],
    ['other content under the same numbers', held(3, 10, B), { do: 'raise', above: 3 }],
    ['another configuration under the same numbers', held(3, 10, A, 'snapshot'), { do: 'raise', above: 3 }],
  ])('%s', (_, decision, expected) => expect(decision).toEqual(expected));
});
