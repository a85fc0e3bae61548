/** The rules in a world of exits that come and go: the loop of the manager, with a clock of its own. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Action, decide, type FailoverState, initialState, probeWait, RULES } from './rules.ts';

/** From `at` on: which exits are alive, which leave, whether the device's own link is there. */
interface Change {
  readonly at: number;
  readonly dead: readonly string[];
  readonly leaving?: readonly string[];
  readonly link?: boolean;
  /** Cut off behind the first hop: no exit can be reached. */
  readonly cut?: boolean;
  /** Shake hands, and lead nowhere. */
  readonly hollow?: readonly string[];
}

interface Done {
  readonly at: number;
  readonly action: Action;
  readonly exit: string;
}

const START = 1_000_000_000;

/** WireGuard as the rules see it: a peer made anew shakes hands at once, or whenever its exit comes back (every 5 s). */
class World {
  now = START;
  state: FailoverState;
  readonly done: Done[] = [];
  readonly #exits: readonly string[];
  readonly #changes: readonly Change[];
  readonly #random: () => number;
  readonly #loss: number;
  readonly #handshakes = new Map<string, number>();
  readonly #tried = new Map<string, number>();

  constructor(exits: readonly string[], changes: readonly Change[], random = () => 0.5, loss = 0) {
    this.#exits = exits;
    this.#changes = changes;
    this.#random = random;
    this.#loss = loss;
    this.state = initialState(exits[0] ?? '', START);
    this.#handshakes.set(exits[0] ?? '', START);
  }

  get #world(): Change {
    return this.#changes.findLast(({ at }) => at <= this.now - START) ?? { at: 0, dead: [] };
  }

  #reaches(node: string): boolean {
    const { dead, link = true, cut = false } = this.#world;
    return link && !cut && !dead.includes(node) && this.#random() >= this.#loss;
  }

  #shake(): void {
    for (const [node, tried] of this.#tried) {
      if (this.#handshakes.has(node) || (this.now !== tried && (this.now - tried) % 5000 > 250)) continue;
      if (this.#reaches(node)) this.#handshakes.set(node, this.now);
    }
  }

  run(until: number): void {
    while (this.now - START < until) this.look();
  }

  look(): void {
    const before = this.state.exit;
    const answered = this.#reaches(before) && !this.#world.hollow?.includes(before);
    this.now += answered ? 20 : probeWait(this.state);
    this.#shake();
    const exits = this.#exits.map((node) => ({
      node,
      leaving: this.#world.leaving?.includes(node) ?? false,
      handshakeAt: this.#handshakes.has(node)
        ? Math.floor((this.#handshakes.get(node) ?? 0) / 1000) * 1000
        : null,
    }));
    const link = this.#world.link ?? true;
    const random = this.#random();
    const decision = decide(this.state, { exits, link, answered, received: answered, random }, this.now);
    this.state = decision.state;
    const { action } = decision;
    if (action.kind === 'knock') this.#renew(action.at);
    if (action.kind === 'switch' && !action.gently) this.#renew(action.to);
    if (action.kind !== 'stay') this.done.push({ at: this.now - START, action, exit: this.state.exit });
    this.now = Math.max(this.now, decision.lookAt);
  }

  #renew(node: string): void {
    this.#handshakes.delete(node);
    this.#tried.set(node, this.now);
    this.#shake();
  }

  get switches(): { at: number; to: string; reason: string }[] {
    return this.done.flatMap(({ at, action }) =>
      action.kind === 'switch' ? [{ at, to: action.to, reason: action.reason }] : [],
    );
  }
}

/** As seeded by fast-check, so that a failure can be had again. */
function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const EXITS = ['fra-1', 'fra-2', 'hel-1'];
const MINUTE = 60_000;

describe('an exit dies', () => {
  it('the device is on the next within 5 s, and home again a minute after that is well', () => {
    const world = new World(EXITS, [
      { at: 10_000, dead: ['fra-1'] },
      { at: 5 * MINUTE, dead: [] },
    ]);
    world.run(10 * MINUTE);
    const [away, back, ...more] = world.switches;
    expect(away).toMatchObject({ to: 'fra-2', reason: 'dead' });
    expect((away?.at ?? 0) - 10_000).toBeLessThan(5000);
    expect(back).toMatchObject({ to: 'fra-1', reason: 'home' });
    expect((back?.at ?? 0) - 5 * MINUTE).toBeGreaterThanOrEqual(MINUTE);
    expect((back?.at ?? 0) - 5 * MINUTE).toBeLessThan(1.5 * MINUTE);
    expect(more).toEqual([]);
  });

  it('passes over a standby that is dead as well, and tries that one last the next time', () => {
    const world = new World(EXITS, [
      { at: 10_000, dead: ['fra-1', 'fra-2'] },
      { at: 30_000, dead: ['fra-1', 'hel-1'] },
    ]);
    world.run(MINUTE);
    expect(world.switches.map(({ to }) => to)).toEqual(['fra-2', 'hel-1', 'fra-1', 'fra-2']);
  });

  it('a nearer standby goes before a farther one', () => {
    const exits = [
      { node: 'fra-1', rttMs: 5 },
      { node: 'sin-1', rttMs: 160 },
      { node: 'hel-1', rttMs: 30 },
    ].map((exit) => ({ ...exit, leaving: false, handshakeAt: null }));
    const dead = { ...initialState('fra-1', 0), trying: false, lost: 2 };
    const { action } = decide(dead, { exits, link: true, answered: false, received: false, random: 0 }, 9000);
    expect(action).toEqual({ kind: 'switch', to: 'hel-1', reason: 'dead', gently: false });
  });

  it('each return that does not last doubles what the next one takes, up to half an hour', () => {
    const world = new World(EXITS, []);
    world.run(3 * MINUTE);
    const waits: number[] = [];
    for (let bounce = 0; bounce < 8; bounce++) {
      const { exit } = world.state;
      expect(exit).toBe('fra-1');
      world.state = { ...world.state, lost: 2, trying: false };
      const left = world.now;
      const dying = decide(
        world.state,
        {
          exits: EXITS.map((node) => ({ node, leaving: false, handshakeAt: null })),
          link: true,
          answered: false,
          received: false,
          random: 0,
        },
        left,
      );
      world.state = dying.state;
      while (world.state.exit !== 'fra-1') world.look();
      waits.push(Math.round((world.now - left) / MINUTE));
    }
    expect(waits).toEqual([1, 2, 4, 8, 16, 30, 30, 30]);
  });
});

describe('stays where it is', () => {
  it('while the device itself is offline, however long', () => {
    const world = new World(EXITS, [
      { at: 10_000, dead: [], link: false },
      { at: 60 * MINUTE, dead: [] },
    ]);
    world.run(70 * MINUTE);
    expect(world.switches).toEqual([]);
    expect(world.state).toMatchObject({ exit: 'fra-1', lost: 0, trying: false });
  });

  it('while anything comes from the exit, though no probe is answered', () => {
    let state: FailoverState = { ...initialState('fra-1', START), trying: false };
    const exits = EXITS.map((node) => ({ node, leaving: false, handshakeAt: START }));
    for (let second = 1; second < 100; second++) {
      const seen = { exits, link: true, answered: false, received: true, random: 0.5 };
      const decision = decide(state, seen, START + second * 1000);
      expect(decision.action).toEqual({ kind: 'stay' });
      state = decision.state;
    }
  });

  it('cut off behind the first hop: each exit is tried once, then it waits at home, longer each time', () => {
    const world = new World(EXITS, [
      { at: 10_000, dead: [], cut: true },
      { at: 20 * MINUTE, dead: [] },
    ]);
    world.run(20 * MINUTE);
    const first = world.switches.slice(0, 3).map(({ to }) => to);
    expect(first).toEqual(['fra-2', 'hel-1', 'fra-1']);
    const returns = world.switches.filter(({ to }) => to === 'fra-1').map(({ at }) => at);
    const pauses = returns.slice(1).map((at, index) => at - (returns[index] ?? 0));
    expect(pauses[0]).toBeLessThan(10_000);
    expect(pauses.at(-1)).toBeGreaterThan(MINUTE);
    world.run(22 * MINUTE);
    expect(world.state).toMatchObject({ exit: 'fra-1', trying: false, backOffs: 0 });
  });
});

it('exits that shake hands and lead nowhere are not walked without end', () => {
  const world = new World(EXITS, [{ at: 10_000, dead: [], hollow: EXITS }]);
  world.run(30 * MINUTE);
  const late = world.switches.filter(({ at }) => at > 20 * MINUTE);
  expect(late.length).toBeLessThan(30);
});

describe('an exit that leaves', () => {
  it('is left at once for one that has answered a knock, and becomes home again when it stays after all', () => {
    const world = new World(EXITS, [
      { at: 10_000, dead: [], leaving: ['fra-1'] },
      { at: 5 * MINUTE, dead: [] },
    ]);
    world.run(10 * MINUTE);
    expect(world.switches.map(({ to, reason }) => `${to} ${reason}`)).toEqual([
      'fra-2 leaving',
      'fra-1 home',
    ]);
    const [away] = world.switches;
    expect((away?.at ?? 0) - 10_000).toBeLessThan(2500);
    const first = world.done.find(({ action }) => action.kind === 'switch');
    expect(first?.action).toMatchObject({ gently: true });
  });

  it('is kept while no other answers', () => {
    const world = new World(EXITS, [{ at: 10_000, dead: ['fra-2', 'hel-1'], leaving: ['fra-1'] }]);
    world.run(5 * MINUTE);
    expect(world.switches).toEqual([]);
  });
});

const change = fc.record({
  at: fc.integer({ min: 0, max: 20 * MINUTE }),
  dead: fc.subarray(EXITS),
  leaving: fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: fc.subarray(EXITS) }),
  hollow: fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: fc.subarray(EXITS) }),
  link: fc.oneof({ weight: 4, arbitrary: fc.constant(true) }, { weight: 1, arbitrary: fc.constant(false) }),
  cut: fc.oneof({ weight: 4, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
});
const history = fc
  .array(change, { maxLength: 30 })
  .map((changes) => changes.sort((a, b) => a.at - b.at) as Change[]);
const seed = fc.integer();

describe('whatever happens', () => {
  it('no exit is left as dead while its probes are answered', () => {
    const calm = history.map((changes) =>
      changes.map((each) => ({
        ...each,
        dead: each.dead.filter((node) => node !== 'fra-1'),
        hollow: [],
        link: true,
        cut: false,
        leaving: [],
      })),
    );
    fc.assert(
      fc.property(calm, seed, (changes, from) => {
        const world = new World(EXITS, changes, randomOf(from));
        world.run(20 * MINUTE);
        expect(world.switches).toEqual([]);
      }),
    );
  });

  it('with one packet of twenty lost it does not leave a live exit more than now and then', () => {
    fc.assert(
      fc.property(seed, (from) => {
        const world = new World(EXITS, [], randomOf(from), 0.05);
        world.run(60 * MINUTE);
        // three in a row: 0.05^3 a second is one in about two hours; each may cost a return as well
        expect(world.switches.length).toBeLessThan(12);
      }),
      { numRuns: 30 },
    );
  });

  it('it ends on a live exit that can be reached, within the longest back-off and one round', () => {
    const last = fc.record({ live: fc.subarray(EXITS, { minLength: 1 }), hollow: fc.subarray(EXITS) });
    fc.assert(
      fc.property(history, last, seed, (changes, { live, hollow }, from) => {
        const sound = live.filter((node) => !hollow.includes(node));
        fc.pre(sound.length > 0);
        const dead = EXITS.filter((node) => !live.includes(node));
        const world = new World(EXITS, [...changes, { at: 20 * MINUTE, dead, hollow }], randomOf(from));
        const deadline = 20 * MINUTE + 1.25 * RULES.backOffAtMost + MINUTE + 30_000;
        world.run(deadline);
        // a hollow home shakes hands: now and then it is given another trial, and a round ends that
        const round = (EXITS.length + 1) * RULES.trial;
        if (world.switches.some(({ at, reason }) => reason === 'home' && at > deadline - round)) {
          world.run(deadline + round);
        }
        expect(sound).toContain(world.state.exit);
        expect(world.state).toMatchObject({ trying: false, lost: 0 });
      }),
      { numRuns: 200 },
    );
  });

  it('from a sound tunnel it finds the one live exit in a round: under 15 s with three', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...EXITS.slice(1)),
        seed,
        fc.integer({ min: 5000, max: 9000 }),
        (live, from, at) => {
          const dead = EXITS.filter((node) => node !== live);
          const world = new World(EXITS, [{ at, dead }], randomOf(from));
          world.run(at + 15_000);
          expect(world.state).toMatchObject({ exit: live, trying: false });
        },
      ),
    );
  });

  it('never more than ten switches within a minute, none of them while the device is offline', () => {
    fc.assert(
      fc.property(history, seed, (changes, from) => {
        const world = new World(EXITS, changes, randomOf(from), 0.3);
        world.run(25 * MINUTE);
        const times = world.switches.map(({ at }) => at);
        for (const at of times) {
          expect(times.filter((other) => other >= at && other < at + MINUTE).length).toBeLessThanOrEqual(
            RULES.switchesPerMinute,
          );
        }
        const off = (at: number) => changes.findLast((each) => each.at <= at)?.link === false;
        expect(world.switches.filter(({ at, reason }) => off(at) && reason === 'dead')).toEqual([]);
      }),
      { numRuns: 100 },
    );
  });
});
