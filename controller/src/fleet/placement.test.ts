import { KatafractError } from '@katafract/shared/errors';
import type { NodeId, RegionId } from '@katafract/shared/units';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Choice, type Displaced, Placement, type Wanted } from './placement.ts';
import * as oracle from './placement-oracle.ts';
import { type Candidate, isAvailable, SILENT_MS } from './rules.ts';

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
    health: 'ok',
    provider: null,
    capacity: 100,
    peerCount: 0,
    cpu: 0,
    bandwidth: 0,
    lastSeen: NOW,
    ...change,
  };
};
const placePeer = (nodes: readonly Candidate[], wish: Wanted) => new Placement(nodes).place(wish);
const replacePeer = (nodes: readonly Candidate[], wish: Displaced) => new Placement(nodes).replace(wish);
const place = (nodes: Candidate[], region: string, standbys: number) =>
  placePeer(nodes, { region: region as RegionId, standbys, now: NOW }).map(({ node }) => node);

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

  it('counts busy cores and lines, prefers another provider that is not much further, and avoids the full', () => {
    expect(place([node('fra-1', { cpu: 0.9 }), node('fra-2', { peerCount: 20 })], 'fra', 0)).toEqual([
      'fra-2',
    ]);
    expect(place([node('fra-1', { bandwidth: 0.9 }), node('fra-2', { peerCount: 20 })], 'fra', 0)).toEqual([
      'fra-2',
    ]);
    const first = node('fra-1', { provider: 'a' });
    const near = node('fra-2', { provider: 'a', peerCount: 1 });
    const other = node('ams-1', { provider: 'b' });
    expect(place([first, near, other, node('nyc-1')], 'fra', 2)).toEqual(['fra-1', 'ams-1', 'fra-2']);
    expect(place([first, near, node('nyc-1', { provider: 'b' })], 'fra', 1)).toEqual(['fra-1', 'fra-2']);
    expect(place([first, node('fra-2', { peerCount: 95 }), other], 'fra', 1)).toEqual(['fra-1', 'ams-1']);
  });

  it('takes nodes in doubt only as a last resort, says so, and never those that are down', () => {
    const wish = { region: 'fra' as RegionId, standbys: 2, now: NOW };
    const doubtful = [
      node('fra-1', { health: 'suspect' }),
      node('fra-2', { peerCount: 90 }),
      node('fra-3', { health: 'down' }),
      node('nyc-1'),
    ];
    expect(placePeer(doubtful, wish)).toEqual([
      { node: 'fra-2', reason: 'region' },
      { node: 'nyc-1', reason: 'nearest' },
      { node: 'fra-1', reason: 'last_resort' },
    ]);
  });

  it('leaves out nodes that are full, draining, cordoned, retired, joining, silent or never heard', () => {
    const out = [
      node('fra-1', { peerCount: 100 }),
      node('fra-2', { state: 'cordoned' }),
      node('fra-3', { state: 'retired' }),
      node('fra-4', { state: 'joining' }),
      node('fra-5', { lastSeen: NOW - SILENT_MS - 1 }),
      node('fra-6', { lastSeen: null }),
      node('fra-8', { state: 'draining' }),
      node('fra-9', { state: 'drained' }),
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

describe('another place for a peer', () => {
  const again = (nodes: Candidate[], present: string[], hurry = true, region = 'fra') =>
    replacePeer(nodes, {
      region: region as RegionId,
      present: present as NodeId[],
      exits: present.length,
      hurry,
      now: NOW,
    }).map((choice) => `${choice.node} ${choice.reason}`);
  const fleet = (change: Record<string, Partial<Candidate>>) =>
    ['fra-1', 'fra-2', 'fra-3', 'ams-1', 'nyc-1'].map((id) => node(id, change[id]));

  it.each([
    [
      'a standby takes over from a dead primary, a new one joins',
      { 'fra-1': { health: 'down' } },
      ['fra-1', 'ams-1'],
      ['ams-1 promoted', 'fra-2 nearest'],
    ],
    [
      'the standby of the region first',
      { 'fra-1': { health: 'down' } },
      ['fra-1', 'ams-1', 'fra-3'],
      ['fra-3 promoted', 'ams-1 kept', 'fra-2 nearest'],
    ],
    [
      'a dead standby is replaced, the primary stays',
      { 'fra-2': { health: 'down' } },
      ['fra-1', 'fra-2'],
      ['fra-1 kept', 'fra-3 nearest'],
    ],
    [
      'a standby in doubt comes after one that is well',
      { 'fra-1': { health: 'down' }, 'fra-2': { health: 'suspect' } },
      ['fra-1', 'fra-2', 'ams-1'],
      ['ams-1 promoted', 'fra-2 kept', 'fra-3 nearest'],
    ],
    [
      'all of its exits dead: others',
      { 'fra-1': { health: 'down' }, 'ams-1': { health: 'down' } },
      ['fra-1', 'ams-1'],
      ['fra-2 region', 'fra-3 nearest'],
    ],
  ] as [string, Record<string, Partial<Candidate>>, string[], string[]][])(
    '%s',
    (_, change, present, expected) => {
      const found = again(fleet(change), present);
      expect(found).toEqual(expected);
    },
  );

  it('without hurry a node of the region is told first, rather than making a standby abroad the primary', () => {
    const nodes = fleet({ 'fra-1': { state: 'draining' } });
    expect(again(nodes, ['fra-1', 'ams-1'], false)).toEqual(['fra-2 region', 'ams-1 kept']);
    const alone = nodes.filter(({ id }) => id !== 'fra-2' && id !== 'fra-3');
    expect(again(alone, ['fra-1'], false)).toEqual(['ams-1 nearest']);
    expect(again([node('fra-1', { state: 'draining' })], ['fra-1'], false)).toEqual([]);
  });

  it('moves nothing without a reason; never onto a node that cannot take it; always the same way', () => {
    const candidate = fc.record({
      city: fc.constantFrom<City>('fra', 'ams', 'nyc', 'sgp'),
      peerCount: fc.integer({ min: 0, max: 110 }),
      health: fc.constantFrom<Candidate['health']>('ok', 'ok', 'suspect', 'down'),
      provider: fc.constantFrom(null, 'a', 'b'),
      state: fc.constantFrom<Candidate['state']>('active', 'active', 'cordoned', 'draining'),
    });
    fc.assert(
      fc.property(
        fc.array(candidate, { minLength: 1, maxLength: 12 }),
        fc.array(fc.nat(), { minLength: 1, maxLength: 4 }),
        fc.boolean(),
        (list, picks, hurry) => {
          const nodes = list.map(({ city, ...rest }, index) => node(`${city}-${index}`, rest));
          const present = [...new Set(picks.map((pick) => nodes[pick % nodes.length]?.id ?? ''))] as NodeId[];
          const wish = { region: 'fra' as RegionId, present, exits: present.length, hurry, now: NOW };
          const choices = replacePeer(nodes, wish);
          expect(replacePeer([...nodes].reverse(), wish)).toEqual(choices);
          const stays = (id: NodeId) =>
            nodes.some(
              (one) => one.id === id && one.health !== 'down' && ['active', 'cordoned'].includes(one.state),
            );
          const kept = present.filter(stays);
          const ids = choices.map((choice) => choice.node);
          expect(new Set(ids).size).toBe(ids.length);
          expect(ids.length).toBeLessThanOrEqual(present.length);
          for (const id of ids) {
            const one = nodes.find((each) => each.id === id);
            expect(kept.includes(id) || (one !== undefined && isAvailable(one, NOW))).toBe(true);
          }
          if (present[0] !== undefined && stays(present[0])) expect(ids[0]).toBe(present[0]);
          if (kept.length === present.length) expect(ids).toEqual(present);
          if (kept.length > 0)
            expect(kept.every((id) => ids.includes(id)) || ids.length === present.length).toBe(true);
        },
      ),
    );
  });
});

describe('a better place for a peer in no need', () => {
  const improve = (nodes: readonly Candidate[], present: string[], exits: number) =>
    new Placement(nodes).improve({
      region: 'fra' as RegionId,
      present: present as NodeId[],
      exits,
      now: NOW,
    });

  it('is in its own region again, and as many standbys as it should have', () => {
    const [fra, ams, nyc] = [node('fra-1'), node('ams-1'), node('nyc-1')];
    expect(improve([fra, ams, nyc], ['ams-1', 'nyc-1'], 2)).toEqual([
      { node: 'fra-1', reason: 'home' },
      { node: 'ams-1', reason: 'kept' },
    ]);
    expect(improve([fra, ams, nyc], ['ams-1', 'fra-1'], 2)).toEqual([
      { node: 'fra-1', reason: 'home' },
      { node: 'ams-1', reason: 'kept' },
    ]);
    expect(improve([fra, ams, nyc], ['fra-1'], 3)).toEqual([
      { node: 'fra-1', reason: 'kept' },
      { node: 'ams-1', reason: 'nearest' },
      { node: 'nyc-1', reason: 'nearest' },
    ]);
    expect(improve([fra, ams, nyc], ['fra-1', 'nyc-1'], 2)).toBeNull();
    expect(improve([node('fra-1', { peerCount: 95 }), ams], ['ams-1'], 1)).toBeNull();
    expect(improve([node('fra-1', { health: 'suspect' }), ams], ['ams-1'], 2)).toBeNull();
    expect(improve([fra, node('ams-1', { health: 'down' })], ['ams-1'], 1)).toBeNull();
  });

  it('once found leaves nothing to be found; nothing that is well is given up but for a way home', () => {
    const candidate = fc.record({
      city: fc.constantFrom<City>('fra', 'ams', 'nyc', 'sgp'),
      peerCount: fc.integer({ min: 0, max: 110 }),
      health: fc.constantFrom<Candidate['health']>('ok', 'ok', 'suspect', 'down'),
      state: fc.constantFrom<Candidate['state']>('active', 'active', 'cordoned', 'draining'),
    });
    fc.assert(
      fc.property(
        fc.array(candidate, { minLength: 1, maxLength: 12 }),
        fc.array(fc.nat(), { minLength: 1, maxLength: 4 }),
        fc.integer({ min: 1, max: 4 }),
        (list, picks, exits) => {
          const nodes = list.map(({ city, ...rest }, index) => node(`${city}-${index}`, rest));
          const present = [...new Set(picks.map((pick) => nodes[pick % nodes.length]?.id ?? ''))];
          const found = improve(nodes, present, exits);
          if (found === null) return;
          const ids = found.map((choice) => choice.node as string);
          const added = nodes.filter(({ id }) => ids.includes(id) && !present.includes(id));
          for (const one of added) expect(isAvailable(one, NOW) && one.health === 'ok').toBe(true);
          if (ids[0] !== present[0]) {
            expect(ids[0]?.startsWith('fra')).toBe(true);
            expect(present[0]?.startsWith('fra')).toBe(false);
            expect(ids.length).toBeGreaterThanOrEqual(Math.min(present.length, exits));
          } else {
            expect(ids.slice(0, present.length)).toEqual(present);
            expect(ids.length).toBeGreaterThan(present.length);
          }
          expect(ids.length).toBeLessThanOrEqual(exits);
          const grown = nodes.map((one) =>
            added.includes(one) ? { ...one, peerCount: one.peerCount + 1 } : one,
          );
          expect(improve(grown, ids, exits)).toBeNull();
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe('among many nodes', () => {
  const REGIONS = 12;
  const candidate = fc.record({
    region: fc.nat(REGIONS - 1),
    peerCount: fc.oneof(fc.integer({ min: 0, max: 105 }), fc.constantFrom(0, 50, 91)),
    cpu: fc.constantFrom(0, 0, 0.7, 1),
    bandwidth: fc.constantFrom(0, 0, 0.8),
    health: fc.constantFrom<Candidate['health']>('ok', 'ok', 'ok', 'suspect', 'down'),
    provider: fc.constantFrom(null, 'a', 'b', 'c'),
    state: fc.constantFrom<Candidate['state']>(
      'active',
      'active',
      'active',
      'cordoned',
      'draining',
      'retired',
    ),
    lastSeen: fc.constantFrom(NOW, NOW, NOW - SILENT_MS - 1, null),
  });
  /** On a coarse grid, so that some are equally far or at the same place. */
  const spot = fc.record({
    latitude: fc.integer({ min: -6, max: 6 }).map((at) => at * 10),
    longitude: fc.integer({ min: -17, max: 17 }).map((at) => at * 10),
  });
  const said = (choose: () => Choice[]) => {
    try {
      return choose();
    } catch (error) {
      if (error instanceof KatafractError) return error.code;
      throw error;
    }
  };

  it('answers what comparing every node with every other answers', () => {
    fc.assert(
      fc.property(
        fc.array(candidate, { minLength: 1, maxLength: 60 }),
        fc.array(spot, { minLength: REGIONS, maxLength: REGIONS }),
        fc.array(
          fc.record({
            region: fc.nat(REGIONS),
            present: fc.uniqueArray(fc.nat(65), { maxLength: 4 }),
            exits: fc.integer({ min: 0, max: 5 }),
            hurry: fc.boolean(),
          }),
          { minLength: 1, maxLength: 8 },
        ),
        (list, spots, wishes) => {
          const nodes = list.map(({ region, ...rest }, at) =>
            node(`n-${at}`, {
              ...rest,
              region: `r${region}` as RegionId,
              place: spots[region] ?? CITIES.fra,
            }),
          );
          const placement = new Placement(nodes, new Placement(nodes));
          for (const { region: at, present: places, exits, hurry } of wishes) {
            const region = `r${at}` as RegionId;
            const wanted = { region, standbys: exits, now: NOW };
            expect(said(() => placement.place(wanted))).toEqual(said(() => oracle.placePeer(nodes, wanted)));
            const present = places.map((one) => `n-${one}` as NodeId);
            const displaced = { region, present, exits, hurry, now: NOW };
            expect(placement.replace(displaced)).toEqual(oracle.replacePeer(nodes, displaced));
          }
        },
      ),
      { numRuns: 500 },
    );
  });
});
