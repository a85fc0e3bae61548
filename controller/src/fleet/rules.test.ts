import { KatafractError } from '@katafract/shared/errors';
import type { Digest, Generation, Lineage, NodeId, RegionId } from '@katafract/shared/units';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type Candidate,
  carryOn,
  distanceKm,
  type Head,
  isAvailable,
  placePeer,
  SILENT_MS,
} from './rules.ts';

const CITIES = {
  fra: { latitude: 50.11, longitude: 8.68 },
  ams: { latitude: 52.37, longitude: 4.9 },
  nyc: { latitude: 40.71, longitude: -74.01 },
  sgp: { latitude: 1.35, longitude: 103.82 },
};
type City = keyof typeof CITIES;
const NOW = 1_000_000;

const node = (id: string, change: Partial<Candidate> = {}): Candidate => {
  const city = id.slice(0, 3) as City;
  return {
    id: id as NodeId,
    region: city as RegionId,
    place: CITIES[city],
    state: 'active',
    capacity: 100,
    peerCount: 0,
    lastSeen: NOW,
    ...change,
  };
};
const place = (nodes: Candidate[], region: string, standbys: number) =>
  placePeer(nodes, { region: region as RegionId, standbys, now: NOW });

describe('distance', () => {
  it('is the great circle', () => {
    expect(distanceKm(CITIES.fra, CITIES.nyc)).toBeCloseTo(6206, -2);
    expect(distanceKm(CITIES.fra, CITIES.fra)).toBe(0);
  });
});

describe('placement', () => {
  it('takes the least loaded node of the region, then the nearest others', () => {
    const nodes = [
      node('fra-1', { peerCount: 9 }),
      node('fra-2', { peerCount: 3 }),
      node('nyc-1'),
      node('ams-1'),
      node('sgp-1'),
    ];
    expect(place(nodes, 'fra', 3)).toEqual(['fra-2', 'fra-1', 'ams-1', 'nyc-1']);
  });

  it('weighs load against capacity', () => {
    const nodes = [
      node('fra-1', { peerCount: 9, capacity: 1000 }),
      node('fra-2', { peerCount: 3, capacity: 10 }),
    ];
    expect(place(nodes, 'fra', 0)).toEqual(['fra-1']);
  });

  it('leaves out nodes that are full, cordoned, retired, joining, silent or never heard', () => {
    const out = [
      node('fra-1', { peerCount: 100 }),
      node('fra-2', { state: 'cordoned' }),
      node('fra-3', { state: 'retired' }),
      node('fra-4', { state: 'joining' }),
      node('fra-5', { lastSeen: NOW - SILENT_MS - 1 }),
      node('fra-6', { lastSeen: null }),
    ];
    expect(place([...out, node('fra-7'), node('ams-1')], 'fra', 9)).toEqual(['fra-7', 'ams-1']);
    expect(() => place([...out, node('ams-1')], 'fra', 1)).toThrowError(
      expect.objectContaining({ code: 'region_unavailable', status: 503 }),
    );
  });

  it('always gives distinct, available nodes, the primary in the region; the order of its input does not matter', () => {
    const candidate = fc
      .record({
        city: fc.constantFrom<City>('fra', 'ams', 'nyc', 'sgp'),
        peerCount: fc.integer({ min: 0, max: 120 }),
        state: fc.constantFrom<Candidate['state']>('active', 'active', 'cordoned', 'joining'),
      })
      .map(({ city, ...rest }) => ({ city, rest }));
    fc.assert(
      fc.property(
        fc.array(candidate, { maxLength: 12 }),
        fc.integer({ min: 0, max: 3 }),
        fc.nat(),
        (list, standbys, turn) => {
          const nodes = list.map(({ city, rest }, index) => node(`${city}-${index}`, rest));
          const usable = nodes.filter((one) => isAvailable(one, NOW));
          try {
            const chosen = place(nodes, 'fra', standbys);
            const at = turn % nodes.length;
            expect(place([...nodes.slice(at), ...nodes.slice(0, at)], 'fra', standbys)).toEqual(chosen);
            expect(new Set(chosen).size).toBe(chosen.length);
            expect(chosen.length).toBe(Math.min(usable.length, standbys + 1));
            expect(chosen[0]?.startsWith('fra')).toBe(true);
            for (const id of chosen) expect(usable.some((one) => one.id === id)).toBe(true);
          } catch (error) {
            if (!(error instanceof KatafractError)) throw error;
            expect(usable.some((one) => one.region === 'fra')).toBe(false);
          }
        },
      ),
    );
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
