import type { NodeId, RegionId } from '@katafract/shared/units';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { assess, type Decision } from './capacity.ts';
import {
  type ComingFacts,
  type ExitFacts,
  type FleetFacts,
  forecast,
  type Limits,
  type RegionFacts,
  type Sample,
  THRESHOLDS,
  trendOf,
} from './forecast.ts';
import type { Growth } from './provider.ts';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const NOW = 1_000 * DAY;
const LIMITS: Limits = {
  mostAtOnce: 3,
  mostADay: 10,
  leadMs: 10 * MINUTE,
  cooldownMs: 10 * MINUTE,
  replaceAfterMs: 10 * MINUTE,
};
const FRA = 'fra' as RegionId;
const growth: Growth = {
  provider: 'lab',
  location: 'fsn1',
  size: 'small',
  capacity: 100,
  bandwidthMbit: null,
  maxExits: 5,
};
const exit = (name: string, more: Partial<ExitFacts> = {}): ExitFacts => ({
  node: name as NodeId,
  state: 'active',
  health: 'ok',
  since: 0,
  capacity: 100,
  peers: 0,
  machine: null,
  busy: false,
  replaced: false,
  ...more,
});
const region = (more: Partial<RegionFacts> = {}): RegionFacts => ({
  region: FRA,
  minExits: 0,
  growth,
  automatic: true,
  exits: [exit('fra-1')],
  coming: [],
  samples: [],
  peak: null,
  wantedAt: null,
  changedAt: null,
  failures: 0,
  failedAt: null,
  problem: null,
  ...more,
});
const others = ['hel-1', 'hel-2', 'hel-3'].map((name) => exit(name));
const calm = region({ region: 'hel' as RegionId, growth: null, exits: others });
const fleet = (...regions: RegionFacts[]): FleetFacts => ({ regions: [...regions, calm], open: 0, today: 0 });
const judge = (facts: RegionFacts, more: Partial<FleetFacts> = {}, limits = LIMITS) => {
  const found = assess({ ...fleet(facts), ...more }, limits, NOW).find((one) => one.forecast.region === FRA);
  if (!found) throw new Error('not judged');
  return found;
};
const decisionOf = (...args: Parameters<typeof judge>) => judge(...args).decision;
/** One peer more every `everyMs`, up to `peers` now. */
const rising = (peers: number, everyMs: number): Sample[] =>
  Array.from({ length: 24 }, (_, age) => ({
    at: NOW - age * 5 * MINUTE,
    peers: peers - Math.floor((age * 5 * MINUTE) / everyMs),
  })).reverse();

describe('a forecast', () => {
  it('says in one sentence what its numbers are', () => {
    const facts = region({
      exits: [exit('fra-1', { peers: 70 }), exit('fra-2', { peers: 50 })],
      coming: [{ capacity: 100, automatic: true, replaces: null }],
      samples: rising(120, 5 * MINUTE),
    });
    expect(forecast(facts, LIMITS, NOW)).toEqual({
      region: 'fra',
      exits: 2,
      peers: 120,
      room: 200,
      coming: 1,
      comingRoom: 100,
      used: 0.6,
      trend: 12,
      expected: 123,
      expectedUsed: 0.615,
      headroom: 77,
      explained:
        'fra: 120 peers on 2 exits with room for 200 (60 % used), 12 more an hour: 123 expected in 15 min, ' +
        '62 % of the room, and 1 machine with room for 100 on the way',
    });
  });

  it('counts a suspect exit, and neither one that is down nor one that goes', () => {
    const exits = [
      exit('fra-1', { health: 'suspect', peers: 1 }),
      exit('fra-2', { health: 'down', peers: 2 }),
      exit('fra-3', { state: 'draining', peers: 3 }),
      exit('fra-4', { state: 'cordoned', peers: 4 }),
      exit('fra-5', { state: 'joining' }),
    ];
    expect(forecast(region({ exits }), LIMITS, NOW)).toMatchObject({ exits: 2, peers: 10, room: 104 });
  });

  it('follows a steady rise, whatever single samples say, and no fall', () => {
    const wild = fc.array(fc.record({ at: fc.nat(23), peers: fc.nat(100_000) }), { maxLength: 5 });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 60 }), wild, (minutes, odd) => {
        const samples = rising(10_000, minutes * MINUTE);
        for (const { at, peers } of odd) samples[at] = { at: samples[at]?.at ?? 0, peers };
        const trend = trendOf(samples, NOW);
        expect(trend).toBeGreaterThanOrEqual((60 / minutes) * 0.5 - 12);
        expect(trend).toBeLessThanOrEqual((60 / minutes) * 2 + 12);
      }),
    );
    const falling = rising(1000, MINUTE).map(({ at, peers }) => ({ at, peers: 2000 - peers }));
    expect(trendOf(falling, NOW)).toBe(0);
    expect(trendOf(rising(1000, MINUTE).slice(-3), NOW)).toBe(0);
  });
});

describe('a region', () => {
  it('grows where more than 80 % of its room are used, or will be', () => {
    expect(decisionOf(region({ exits: [exit('fra-1', { peers: 80 })] })).do).toBe('none');
    expect(decisionOf(region({ exits: [exit('fra-1', { peers: 81 })] }))).toMatchObject({
      do: 'grow',
      why: 'capacity',
      count: 1,
    });
    const samples = rising(79, 5 * MINUTE);
    expect(decisionOf(region({ exits: [exit('fra-1', { peers: 79 })], samples })).do).toBe('grow');
    // as many as it takes, as far as the fleet allows
    expect(decisionOf(region({ exits: [exit('fra-1', { peers: 300 })] }))).toMatchObject({ count: 3 });
  });

  it('grows where it has fewer exits than it should, but not for one that may be back soon', () => {
    expect(decisionOf(region({ minExits: 2 }))).toMatchObject({ do: 'grow', why: 'minimum', count: 1 });
    expect(decisionOf(region({ exits: [] }))).toMatchObject({ do: 'grow', why: 'minimum' });
    const down = exit('fra-2', { health: 'down', since: NOW - 9 * MINUTE });
    expect(decisionOf(region({ minExits: 2, exits: [exit('fra-1'), down] })).do).toBe('none');
    const full = exit('fra-1', { peers: 90 });
    const rebooting = { ...down, since: NOW - 2 * MINUTE };
    expect(decisionOf(region({ exits: [full, rebooting] })).do).toBe('none');
    expect(decisionOf(region({ exits: [full, down] })).do).toBe('grow');
  });

  it('has an exit replaced that is down for good, once', () => {
    const down = exit('fra-2', { health: 'down', since: NOW - 10 * MINUTE });
    expect(decisionOf(region({ minExits: 2, exits: [exit('fra-1'), down] }))).toMatchObject({
      do: 'replace',
      node: 'fra-2',
    });
    const coming: ComingFacts[] = [{ capacity: 100, automatic: true, replaces: down.node }];
    const replaced = [exit('fra-1'), { ...down, replaced: true }];
    expect(decisionOf(region({ minExits: 2, exits: replaced, coming })).do).toBe('none');
    expect(
      decisionOf(region({ growth: { ...growth, provider: 'manual' }, automatic: false, exits: [down] })).do,
    ).not.toBe('replace');
  });

  it('says so where it cannot have what it needs', () => {
    const exits = [exit('fra-1', { peers: 90 })];
    const codeOf = (decision: Decision) => (decision.do === 'alert' ? decision.code : decision.do);
    expect(codeOf(decisionOf(region({ exits, growth: null, automatic: null })))).toBe('no_automatic_growth');
    expect(codeOf(decisionOf(region({ exits, automatic: null })))).toBe('provider_off');
    expect(codeOf(decisionOf(region({ exits, growth: { ...growth, maxExits: 1 } })))).toBe('at_maximum');
    expect(codeOf(decisionOf(region({ exits }), { open: 3 }))).toBe('limit_reached');
    expect(codeOf(decisionOf(region({ exits }), { today: 10 }))).toBe('limit_reached');
    const failed = { failures: 1, failedAt: NOW - MINUTE, problem: 'machine_refused' };
    expect(codeOf(decisionOf(region({ exits, ...failed })))).toBe('machines_fail');
    const waiting: ComingFacts[] = [{ capacity: 100, automatic: false, replaces: null }];
    expect(codeOf(decisionOf(region({ exits, coming: waiting, automatic: false })))).toBe(
      'waiting_for_person',
    );
    const dead = others.map((one) => ({ ...one, health: 'down' as const, since: 0 }));
    expect(
      codeOf(decisionOf(region({ exits }), { regions: [region({ exits }), { ...calm, exits: dead }] })),
    ).toBe('fleet_implausible');
  });

  it('waits longer and longer while machines come to nothing', () => {
    const at = (failures: number, ago: number) =>
      decisionOf(
        region({
          exits: [],
          failures,
          failedAt: NOW - ago,
          wantedAt: NOW - ago,
          problem: 'machine_never_joined',
        }),
      ).do;
    expect([at(1, 9 * MINUTE), at(1, 10 * MINUTE)]).toEqual(['alert', 'grow']);
    expect([at(4, 79 * MINUTE), at(4, 80 * MINUTE)]).toEqual(['alert', 'grow']);
    expect([at(40, 12 * HOUR - 1), at(40, 12 * HOUR)]).toEqual(['alert', 'grow']);
  });

  it('gives back a machine of ours alone, only from a region at rest that has long had no use for it', () => {
    const exits = [exit('fra-1', { peers: 20 }), exit('fra-m1', { peers: 10, machine: 'm1' })];
    const idle = region({ exits, peak: 40, changedAt: NOW - 6 * HOUR });
    expect(decisionOf(idle)).toMatchObject({ do: 'shrink', machine: 'm1' });
    const stays: Partial<RegionFacts>[] = [
      { peak: null },
      { peak: 51 },
      { minExits: 2 },
      { changedAt: NOW - 6 * HOUR + 1 },
      { exits: [exits[0] as ExitFacts, { ...(exits[1] as ExitFacts), machine: null }] },
      { exits: [exits[1] as ExitFacts] },
      { exits: [...exits, exit('fra-3', { state: 'draining' })] },
      { exits: [...exits, exit('fra-3', { health: 'suspect' })] },
      { exits: [...exits, exit('fra-3', { busy: true })] },
      { coming: [{ capacity: 100, automatic: true, replaces: null }] },
    ];
    for (const more of stays) expect(decisionOf({ ...idle, ...more }).do).not.toBe('shrink');
  });

  it('does not grow while it is well below', () => {
    const facts = fc
      .record({
        peers: fc.array(fc.integer({ min: 0, max: 80 }), { minLength: 1, maxLength: 6 }),
        failures: fc.nat(5),
        minExits: fc.nat(1),
      })
      .map(({ peers, ...more }) =>
        region({ ...more, exits: peers.map((count, at) => exit(`fra-${at}`, { peers: count })) }),
      );
    fc.assert(
      fc.property(facts, (one) => {
        expect(decisionOf(one).do).toBe('none');
      }),
    );
  });
});

/** Weeks of a fleet whose machines take as long as they should, with the decisions carried out. */
interface Sim {
  readonly exits: { name: string; since: number; machine: string | null; capacity: number }[];
  readonly coming: { at: number; capacity: number }[];
  readonly samples: Sample[];
  readonly log: { at: number; do: 'grow' | 'shrink' | 'fail'; count: number }[];
  changedAt: number | null;
  wantedAt: number | null;
  failures: number;
  failedAt: number | null;
}
const STEP_MS = 15 * MINUTE;

function simulate(options: {
  days: number;
  starts: readonly { exits: number; capacity: number; ours?: boolean }[];
  demand: (region: number, at: number) => number;
  fails?: (at: number) => boolean;
}): Sim[] {
  const sims = options.starts.map(
    ({ exits, capacity, ours = false }): Sim => ({
      exits: Array.from({ length: exits }, (_, n) => ({
        name: `s${n}`,
        since: 0,
        machine: ours ? 'ours' : null,
        capacity,
      })),
      coming: [],
      samples: [],
      log: [],
      changedAt: null,
      wantedAt: null,
      failures: 0,
      failedAt: null,
    }),
  );
  const wished: number[] = [];
  for (let now = NOW; now < NOW + options.days * DAY; now += STEP_MS) {
    for (const [index, sim] of sims.entries()) arrive(sim, now, options.fails?.(now + index) ?? false);
    const regions = sims.map((sim, index) => factsOf(sim, index, options.demand(index, now), now));
    const open = sims.reduce((total, { coming }) => total + coming.length, 0);
    const today = wished.filter((at) => at > now - DAY).length;
    for (const { forecast: at, decision } of assess({ regions, open, today }, LIMITS, now)) {
      const sim = sims[Number(at.region.slice(1))];
      if (sim) carryOut(sim, decision, now, wished);
    }
    const onTheWay = sims.reduce((total, { coming }) => total + coming.length, 0);
    expect(onTheWay).toBeLessThanOrEqual(LIMITS.mostAtOnce);
    expect(wished.filter((at) => at > now - DAY).length).toBeLessThanOrEqual(LIMITS.mostADay);
  }
  return sims;
}

function arrive(sim: Sim, now: number, fails: boolean): void {
  for (const { at, capacity } of sim.coming.splice(0)) {
    if (at > now) sim.coming.push({ at, capacity });
    else if (fails) {
      sim.failures++;
      sim.failedAt = now;
      sim.log.push({ at: now, do: 'fail', count: 1 });
    } else {
      sim.exits.push({
        name: `m${sim.log.length}-${sim.exits.length}`,
        since: now,
        machine: 'ours',
        capacity,
      });
      sim.failures = 0;
      sim.changedAt = now;
    }
  }
}

function factsOf(sim: Sim, index: number, demand: number, now: number): RegionFacts {
  const peers = Math.round(demand);
  sim.samples.push({ at: now, peers });
  while ((sim.samples[0]?.at ?? now) < now - THRESHOLDS.peakMs) sim.samples.shift();
  const day = sim.samples.length >= DAY / STEP_MS;
  return region({
    region: `r${index}` as RegionId,
    minExits: 1,
    exits: sim.exits.map(({ name, machine, capacity }) =>
      exit(name, { machine: machine && name, capacity, peers: peers / sim.exits.length }),
    ),
    coming: sim.coming.map(({ capacity }) => ({ capacity, automatic: true, replaces: null })),
    samples: sim.samples,
    peak: day ? Math.max(...sim.samples.map((one) => one.peers)) : null,
    changedAt: sim.changedAt,
    wantedAt: sim.wantedAt,
    failures: sim.failures,
    failedAt: sim.failedAt,
    problem: 'machine_never_joined',
  });
}

function carryOut(sim: Sim, decision: Decision, now: number, wished: number[]): void {
  if (decision.do === 'grow') {
    for (let each = 0; each < decision.count; each++) {
      sim.coming.push({ at: now + LIMITS.leadMs, capacity: growth.capacity });
      wished.push(now);
    }
    sim.wantedAt = now;
    sim.log.push({ at: now, do: 'grow', count: decision.count });
    expect(sim.exits.length + sim.coming.length).toBeLessThanOrEqual(growth.maxExits);
  } else if (decision.do === 'shrink') {
    const [gone] = sim.exits.splice(
      sim.exits.findIndex(({ name }) => name === decision.node),
      1,
    );
    expect(gone?.machine).not.toBeNull();
    expect(sim.exits.length).toBeGreaterThanOrEqual(1);
    sim.changedAt = now;
    sim.log.push({ at: now, do: 'shrink', count: 1 });
  }
}

describe('over weeks', () => {
  const start = fc.record({
    exits: fc.integer({ min: 1, max: 3 }),
    capacity: fc.integer({ min: 20, max: 300 }),
  });

  it('a constant demand never makes it swing', () => {
    fc.assert(
      fc.property(start, fc.integer({ min: 0, max: 600 }), (begin, demand) => {
        const [sim] = simulate({ days: 6, starts: [begin], demand: () => demand });
        const kinds = (sim?.log ?? []).map((one) => one.do);
        expect(kinds.join(' ')).toMatch(/^(?:(?:grow ?)*|(?:shrink ?)*)$/);
      }),
      { numRuns: 30 },
    );
  });

  it('a demand that falls for good gives back what it does not need, and then is at rest', () => {
    const [sim] = simulate({
      days: 8,
      starts: [{ exits: 1, capacity: 100 }],
      demand: (_, at) => (at < NOW + 2 * DAY ? 380 : 30),
    });
    expect(sim?.log.map((one) => one.do)).toEqual(['grow', 'grow', 'shrink', 'shrink', 'shrink', 'shrink']);
    expect(sim?.exits.map(({ machine }) => machine)).toEqual([null]);
  });

  it('whatever the demand and however often machines fail, no limit is exceeded', () => {
    const curve = fc.record({
      base: fc.integer({ min: 0, max: 300 }),
      daily: fc.integer({ min: 0, max: 300 }),
      noise: fc.integer({ min: 0, max: 100 }),
      jumpDay: fc.integer({ min: 0, max: 14 }),
      jump: fc.integer({ min: 0, max: 2000 }),
    });
    const world = fc.record({
      regions: fc.array(fc.tuple(start, curve), { minLength: 2, maxLength: 4 }),
      failing: fc.integer({ min: 0, max: 10 }),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(world, ({ regions, failing, seed }) => {
        const noise = (n: number) => (Math.imul(n ^ seed, 0x9e3779b1) >>> 0) / 2 ** 32;
        simulate({
          days: 14,
          starts: regions.map(([begin]) => begin),
          fails: (at) => noise(at) * 10 < failing,
          demand: (index, at) => {
            const of = regions[index]?.[1];
            if (!of) return 0;
            const wave = 1 + Math.sin((2 * Math.PI * at) / DAY);
            const jumped = at > NOW + of.jumpDay * DAY ? of.jump : 0;
            return of.base + of.daily * wave + of.noise * noise(at + index) + jumped;
          },
        });
      }),
      { numRuns: 12 },
    );
  });
});
