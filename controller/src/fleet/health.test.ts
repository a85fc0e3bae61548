import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DOWN_MS,
  goodNeeded,
  hearingSince,
  implausible,
  judge,
  recall,
  type Seen,
  SUSPECT_MS,
  shouldAsk,
  UNWATCHED_MS,
  type Verdict,
} from './health.ts';

const WELL: Seen = {
  heardAt: 0,
  left: false,
  beat: 0,
  applied: '1 1',
  behind: false,
  mismatch: false,
  rules: 'ok',
  dns: 'off',
};
const start = (change: Partial<Verdict> = {}): Verdict => ({
  ...recall({ state: 'ok', reason: 'well', since: 0, flaps: 0 }),
  beat: 0,
  ...change,
});
const look = (was: Verdict, seen: Partial<Seen>, now: number, hearing = 0) =>
  judge(was, { ...WELL, ...seen }, { now, hearingSince: hearing });

/** A heartbeat every 10 s from `from` on, each judged at once. */
function beats(was: Verdict, from: number, count: number, seen: Partial<Seen> = {}) {
  let verdict = was;
  const states: string[] = [];
  for (let at = from; at < from + count * 10_000; at += 10_000) {
    verdict = look(verdict, { heardAt: at, beat: at, ...seen }, at);
    states.push(`${verdict.state} ${verdict.reason}`);
  }
  return { verdict, states };
}

describe('silence', () => {
  it.each([
    [SUSPECT_MS - 1, 'ok', 'well'],
    [SUSPECT_MS, 'suspect', 'silent'],
    [DOWN_MS - 1, 'suspect', 'silent'],
    [DOWN_MS, 'down', 'silent'],
  ])('of %i ms', (now, state, reason) => expect(look(start(), {}, now)).toMatchObject({ state, reason }));

  it('of those who could not be heard means nothing, and what was down stays so until it speaks', () => {
    expect(look(start(), {}, 100_000, 90_000).state).toBe('ok');
    const down = start({ state: 'down', reason: 'silent', since: 50_000 });
    expect(look(down, {}, 100_000, 90_000).state).toBe('down');
    expect(look(down, { heardAt: 99_000 }, 100_000, 90_000)).toMatchObject({
      state: 'suspect',
      reason: 'returned',
    });
  });

  it('counts only while somebody listens', () => {
    expect(hearingSince(10, { now: 900, lastLook: 100, broker: true })).toBe(10);
    expect(hearingSince(10, { now: 900, lastLook: 100, broker: false })).toBe(900);
    const late = 100 + UNWATCHED_MS + 1;
    expect(hearingSince(10, { now: late, lastLook: 100, broker: true })).toBe(late);
  });
});

describe('while it updates or reboots', () => {
  const expectedUntil = 120_000;

  it('silence and a last will say nothing, and all else says what it always does', () => {
    for (const now of [DOWN_MS, expectedUntil - 1]) {
      const silent = look(start(), { left: true, expectedUntil }, now);
      expect(silent).toMatchObject({ state: 'ok', nextLookAt: expectedUntil });
    }
    expect(beats(start(), 10_000, 4, { rules: 'failed', expectedUntil }).states.at(-1)).toBe('suspect rules');
  });

  it('no longer than that: then it is down at once, and one that was down before stays so', () => {
    const silent = look(start(), { expectedUntil }, expectedUntil - 1);
    expect(look(silent, { expectedUntil }, expectedUntil).state).toBe('down');
    const down = start({ state: 'down', reason: 'silent', since: 50_000 });
    expect(look(down, { expectedUntil }, 60_000).state).toBe('down');
  });
});

describe('faults', () => {
  it('makes a node suspect at once by its last will', () => {
    expect(look(start(), { left: true }, 1)).toMatchObject({ state: 'suspect', reason: 'left' });
  });

  it.each([
    ['rules', { rules: 'failed' }, 15_000],
    ['dns', { dns: 'failed' }, 25_000],
    ['digest', { mismatch: true }, 25_000],
    ['behind', { behind: true }, 60_000],
  ] as const)('%s: only when it lasts, and never down while it is heard', (reason, seen, patience) => {
    const { states } = beats(start(), 10_000, 12, seen);
    const first = states.indexOf(`suspect ${reason}`);
    expect(first * 10_000).toBeGreaterThanOrEqual(patience);
    expect(first * 10_000).toBeLessThan(patience + 10_000);
    expect(states.slice(first)).toEqual(states.slice(first).map(() => `suspect ${reason}`));
  });

  it('a node that is behind and makes progress is well', () => {
    let verdict = start();
    for (let at = 10_000; at < 300_000; at += 10_000) {
      verdict = look(verdict, { heardAt: at, beat: at, behind: true, applied: `1 ${at}` }, at);
      expect(verdict.state).toBe('ok');
    }
  });

  it('what is repaired by the next heartbeat is nothing', () => {
    const failed = look(start(), { heardAt: 10_000, beat: 10_000, rules: 'failed' }, 10_000);
    expect(beats(failed, 20_000, 3, { rules: 'repaired' }).states).toEqual(Array(3).fill('ok well'));
  });
});

describe('the way back', () => {
  it('takes several good heartbeats, and more each time it flaps within the hour', () => {
    let verdict = start({ flaps: 0 });
    const needed: number[] = [];
    for (let at = 100_000; needed.length < 5; ) {
      verdict = look(verdict, { heardAt: at, left: true, beat: at }, at);
      expect(verdict.state).toBe('suspect');
      let count = 0;
      while (verdict.state !== 'ok') {
        at += 10_000;
        count++;
        verdict = look(verdict, { heardAt: at, beat: at }, at);
      }
      needed.push(count);
      at += 1000;
    }
    expect(needed).toEqual([3, 6, 12, 24, 48]);
    expect(goodNeeded(100)).toBe(48);
    const calm = look({ ...verdict, since: 0 }, { heardAt: 9e6, left: true }, 9e6);
    expect(calm.flaps).toBe(1);
  });

  it('starts over with every fault on the way', () => {
    const suspect = look(start(), { left: true }, 1);
    const two = beats(suspect, 10_000, 2).verdict;
    expect(two.good).toBe(2);
    const again = look(two, { heardAt: 30_000, beat: 30_000, rules: 'failed' }, 30_000);
    expect(beats(again, 40_000, 3).states.map((state) => state.split(' ')[0])).toEqual([
      'suspect',
      'suspect',
      'ok',
    ]);
  });
});

const seenAt = (now: number) =>
  fc.record({
    expectedFor: fc.option(fc.integer({ min: -20_000, max: 90_000 })),
    heardAt: fc.option(fc.integer({ min: 0, max: now })),
    left: fc.boolean(),
    beat: fc.option(fc.integer({ min: 0, max: now })),
    applied: fc.constantFrom('1 1', '1 2'),
    behind: fc.boolean(),
    mismatch: fc.boolean(),
    rules: fc.constantFrom('ok' as const, 'repaired' as const, 'failed' as const, null),
    dns: fc.constantFrom('ok' as const, 'failed' as const, 'off' as const, null),
  });
const history = fc.array(
  fc.integer({ min: 1, max: 40_000 }).chain((step) => fc.tuple(fc.constant(step), seenAt(step))),
  { minLength: 1, maxLength: 30 },
);

it('over any history: down exactly when silent or not heard since, never ok with a ripe fault; nothing between looks', () => {
  fc.assert(
    fc.property(history, fc.integer({ min: 0, max: 60_000 }), (steps, hearing) => {
      let verdict = start();
      let now = 1_000_000;
      for (const [step, seen] of steps) {
        now += step;
        // heard between the last look and this one, or not at all lately
        const heardAt = seen.heardAt === null ? null : now - seen.heardAt;
        const { expectedFor, ...rest } = seen;
        const what = { ...rest, heardAt, expectedUntil: expectedFor === null ? null : now + expectedFor };
        const expected = expectedFor !== null && expectedFor > 0;
        const at = { now, hearingSince: 1_000_000 - 60_000 + hearing };
        const before = verdict;
        const next = judge(before, what, at);
        const silence = now - Math.max(heardAt ?? 0, at.hearingSince);
        const unheard = before.state === 'down' && (heardAt ?? 0) <= before.since;
        expect(next.state === 'down').toBe((!expected && silence >= DOWN_MS) || unheard);
        if (next.state === 'ok') expect(seen.left && !expected).toBe(false);
        if (next.state === before.state) expect(next.since).toBe(before.since);
        expect(next.nextLookAt).toBeGreaterThan(now);
        const moment = Math.min(next.nextLookAt - 1, now + 600_000);
        const later = judge(next, what, { ...at, now: moment });
        if (next.state !== 'down') expect(later.state).toBe(next.state);
        // whatever was expected, it is down as soon as that is over and its silence long enough
        const end = Math.max(what.expectedUntil ?? 0, Math.max(heardAt ?? 0, at.hearingSince) + DOWN_MS, now);
        expect(judge(next, what, { ...at, now: end }).state).toBe('down');
        verdict = next;
      }
    }),
    { numRuns: 500 },
  );
});

it('only half of a fleet can plausibly be down at once', () => {
  expect([implausible(1, 2), implausible(2, 3), implausible(0, 0), implausible(1, 1)]).toEqual([
    false,
    true,
    false,
    true,
  ]);
});

/** Mulberry32: repeatable chance. */
function chance(seed: number) {
  let a = seed;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/**
 * One node, a look each second of virtual time: heartbeats every 9 to 11 s, a share of all messages lost both ways,
 * from `diesAt` on nothing.
 */
function simulate(seed: number, o: { hours: number; loss: number; ask: boolean; diesAt?: number }) {
  const random = chance(seed);
  const end = (o.diesAt ?? 0) + o.hours * 3_600_000;
  const heard = { at: 0, beat: 0 };
  let [due, asked, verdict] = [random() * 10_000, 0, start()];
  let [downs, suspects, answer] = [0, 0, Number.POSITIVE_INFINITY];
  let downAt = 0;
  for (let now = random() * 1000; now < end; now += 1000) {
    const alive = (at: number) => o.diesAt === undefined || at < o.diesAt;
    for (; due <= now; due += 9_000 + random() * 2_000) {
      if (alive(due) && random() >= o.loss) Object.assign(heard, { at: due, beat: due });
    }
    if (answer <= now) {
      heard.at = Math.max(heard.at, answer);
      answer = Number.POSITIVE_INFINITY;
    }
    if (o.ask && shouldAsk(heard.at, asked, now)) {
      asked = now;
      if (alive(now) && random() >= o.loss && random() >= o.loss) answer = now + 200;
    }
    const before = verdict.state;
    verdict = look(verdict, { heardAt: heard.at, beat: heard.beat }, now);
    if (verdict.state === before) continue;
    if (verdict.state === 'suspect') suspects++;
    if (verdict.state === 'down') {
      downs++;
      downAt = now;
      if (o.diesAt !== undefined) break;
    }
  }
  return { downs, suspects, downAt };
}

const seeds = (count: number) => Array.from({ length: count }, (_, seed) => seed + 1);
const total = (runs: { downs: number; suspects: number }[], what: 'downs' | 'suspects') =>
  runs.reduce((sum, run) => sum + run[what], 0);

describe('in simulated hours', () => {
  it('400 hours of jittered heartbeats, 5 % of all messages lost: no false alarm, few doubts', () => {
    const runs = seeds(40).map((seed) => simulate(seed, { hours: 10, loss: 0.05, ask: true }));
    expect(total(runs, 'downs')).toBe(0);
    expect(total(runs, 'suspects')).toBeLessThan(10);
  });

  it('without asking there would be plenty', () => {
    const runs = seeds(10).map((seed) => simulate(seed, { hours: 10, loss: 0.05, ask: false }));
    expect(total(runs, 'downs')).toBeGreaterThan(20);
  });

  it('a node that dies at any moment is down within 30 s, lossy or not', () => {
    for (const seed of seeds(500)) {
      const diesAt = 600_000 + seed * 37;
      const loss = seed % 2 === 0 ? 0.05 : 0;
      const { downAt } = simulate(seed, { hours: 0.1, loss, ask: true, diesAt });
      // the last sign of life may even have been before its death
      expect(downAt - diesAt).toBeLessThan(30_000);
      expect(downAt).toBeGreaterThan(diesAt);
    }
  });
});
