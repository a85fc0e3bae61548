import { NodeId, RegionId } from '@katafract/shared/units';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import type { NodeFacts } from './facts.ts';
import { isNight, offsetMinutes, type RegionFacts, regionGraph, updatesWindow } from './graph-rules.ts';
import { planWaves } from './waves-rules.ts';

const region = (id: string, change: Partial<RegionFacts> = {}): RegionFacts => ({
  id: RegionId.parse(id),
  latitude: 50,
  longitude: 8,
  timeZone: null,
  minExits: 0,
  ...change,
});
const regions = fc
  .array(
    fc.record({
      latitude: fc.integer({ min: -60, max: 70 }),
      longitude: fc.integer({ min: -180, max: 180 }),
    }),
    {
      minLength: 1,
      maxLength: 25,
    },
  )
  .map((places) => places.map((place, at) => region(`r${at}`, place)));
const SUMMER = Date.UTC(2026, 6, 1, 12);
const WINTER = Date.UTC(2026, 0, 1, 12);

it('neighbours are mutual and differ in colour; everybody has one; the order of the regions means nothing', () => {
  fc.assert(
    fc.property(regions, (list) => {
      const graph = regionGraph(list);
      const turned = regionGraph([...list].reverse());
      for (const { id } of list) {
        const near = graph.neighbours(id);
        if (list.length > 1) expect(near.size).toBeGreaterThan(0);
        for (const other of near) {
          expect(graph.neighbours(other).has(id)).toBe(true);
          expect(graph.colour(other)).not.toBe(graph.colour(id));
        }
        expect(turned.colour(id)).toBe(graph.colour(id));
        expect([...turned.neighbours(id)].sort()).toEqual([...near].sort());
      }
    }),
    { numRuns: 100 },
  );
});

it('knows the hour of a region, in summer and winter, by its time zone or by the sun', () => {
  const berlin = region('fra', { timeZone: 'Europe/Berlin' });
  expect([offsetMinutes(berlin, SUMMER), offsetMinutes(berlin, WINTER)]).toEqual([120, 60]);
  expect(offsetMinutes(region('ash', { timeZone: 'America/New_York' }), WINTER)).toBe(-300);
  expect(offsetMinutes(region('akl', { timeZone: 'Pacific/Auckland' }), WINTER)).toBe(-660);
  expect(offsetMinutes(region('sin', { longitude: 104 }), WINTER)).toBe(420);
  expect(offsetMinutes(region('x1', { timeZone: 'Nowhere/Atall', longitude: -77 }), WINTER)).toBe(-300);
  expect(isNight(berlin, Date.UTC(2026, 6, 1, 0, 0))).toBe(true);
  expect(isNight(berlin, Date.UTC(2026, 6, 1, 2, 59))).toBe(true);
  expect(isNight(berlin, Date.UTC(2026, 6, 1, 3, 0))).toBe(false);
  expect(isNight(berlin, Date.UTC(2026, 0, 1, 0, 0))).toBe(false);
});

it("windows for updates are in the region's night, and neighbours' ones apart where their clocks agree", () => {
  fc.assert(
    fc.property(regions, fc.integer({ min: WINTER, max: SUMMER }), (list, now) => {
      const zoned = list.map((one) => ({ ...one, timeZone: 'Europe/Berlin' }));
      const graph = regionGraph(zoned);
      for (const one of zoned) {
        const { fromMinute, minutes } = updatesWindow(graph, one, now);
        expect(minutes).toBeGreaterThanOrEqual(30);
        for (const at of [fromMinute, fromMinute + minutes - 1]) {
          const offset = offsetMinutes(one, now);
          const local = (((at + offset) % 1440) + 1440) % 1440;
          expect(local).toBeGreaterThanOrEqual(120);
          expect(local).toBeLessThan(300);
        }
        if (graph.colours > 6) continue;
        for (const near of graph.neighbours(one.id)) {
          const other = updatesWindow(graph, graph.regions.get(near) ?? one, now);
          expect(other.fromMinute).not.toBe(fromMinute);
        }
      }
    }),
    { numRuns: 100 },
  );
});

it('waves: every node once, without gaps, canaries first and few, growing, no neighbours in one', () => {
  const fleet = fc.tuple(
    regions,
    fc.array(fc.tuple(fc.nat(24), fc.double({ min: 0, max: 1, noNaN: true })), { maxLength: 120 }),
  );
  fc.assert(
    fc.property(fleet, ([list, places]) => {
      const nodes = places.map(
        ([at, load], index): NodeFacts => ({
          id: NodeId.parse(`n-${String(index).padStart(3, '0')}`),
          region: RegionId.parse(`r${at % list.length}`),
          lifecycle: 'active',
          health: 'ok',
          load,
          maintained: false,
          leased: false,
          runs: '1.0.0',
          said: null,
          part: null,
        }),
      );
      const graph = regionGraph(list);
      const waves = planWaves(graph, nodes);
      expect(waves.size).toBe(nodes.length);
      const count = Math.max(-1, ...waves.values()) + 1;
      let before = 0;
      for (let wave = 0; wave < count; wave++) {
        const inWave = nodes.filter(({ id }) => waves.get(id) === wave);
        expect(inWave.length).toBeGreaterThan(0);
        if (wave === 0) expect(inWave.length).toBe(Math.min(5, Math.ceil(nodes.length / 100)));
        else {
          expect(inWave.length).toBeLessThanOrEqual(4 * before);
          const there = new Set(inWave.map(({ region: id }) => id));
          for (const id of there)
            for (const near of graph.neighbours(id)) expect(there.has(near)).toBe(false);
        }
        before += inWave.length;
      }
    }),
    { numRuns: 100 },
  );
});

it('a canary is not the only exit of its region, and has the least to do', () => {
  const exits = [
    ['a-1', 'r0', 0.1],
    ['b-1', 'r1', 0.5],
    ['b-2', 'r1', 0.3],
  ] as const;
  const nodes = exits.map(
    ([id, at, load]): NodeFacts => ({
      id: NodeId.parse(id),
      region: RegionId.parse(at),
      lifecycle: 'active',
      health: 'ok',
      load,
      maintained: false,
      leased: false,
      runs: null,
      said: null,
      part: null,
    }),
  );
  const graph = regionGraph([region('r0'), region('r1', { longitude: 60 })]);
  const [canary] = [...planWaves(graph, nodes)].filter(([, wave]) => wave === 0);
  expect(canary).toEqual(['b-2', 0]);
});
