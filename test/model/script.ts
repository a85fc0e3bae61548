/** What happens in one run, as data: a list of operations, each with a seed of its own and the time until the next. */
import fc from 'fast-check';
import { WEATHER, type Weather } from './faults.ts';
import { TOPOLOGIES, type Topology } from './fleet.ts';

export type Action =
  /** Peers come, go, get another key for their addresses. */
  | { do: 'add'; count: number }
  | { do: 'remove'; count: number }
  | { do: 'rotate' }
  /** Addresses pass from peers that go to peers that come. */
  | { do: 'exchange'; count: number }
  /** Thousands of rows at once, which come, or go where there are as many. */
  | { do: 'bulk'; count: number; go: boolean }
  | { do: 'configure' }
  | { do: 'sweep' }
  /** The database falls back by some commits; the controller goes on with it, or starts anew. */
  | { do: 'restore'; commits: number; restart: boolean }
  /** Somebody uses `wg` by hand. */
  | { do: 'meddle'; how: 'rogue' | 'remove' | 'readdress' | 'steal' | 'delete interface' }
  | { do: 'weather'; weather: Weather }
  /** The agent dies after so many ms; what it left on disk and in the kernel stays, but for what is named. */
  | { do: 'crash'; within: number; loses: 'nothing' | 'kernel' | 'disk' | 'both'; down: number }
  /** A controller dies and comes back; with a broker inside it the node loses its connection. */
  | { do: 'restart controller'; which: number; down: number }
  | { do: 'disconnect'; down: number }
  /** Somebody on the way says something. */
  | { do: 'attack'; how: Attack };

/**
 * Signed by another key, an old message again, one for another node, one with a bit flipped, head and signature of one
 * with the body of another, unsigned, signed as something else, of a version to come.
 */
const ATTACKS = ['forge', 'replay', 'redirect', 'flip', 'splice', 'unsigned', 'typ', 'version'] as const;
export type Attack = (typeof ATTACKS)[number];

export interface Operation {
  readonly action: Action;
  readonly seed: number;
  /** Milliseconds until the next one. */
  readonly pause: number;
}

export interface Script {
  readonly seed: number;
  readonly topology: Topology;
  readonly operations: readonly Operation[];
}

const { constant, constantFrom, integer, record, boolean, oneof } = fc;
const seed = fc.noShrink(integer({ min: 0, max: 0x7fffffff }));
const time = (...longest: number[]) => oneof(...longest.map((max) => integer({ min: 0, max })));

const add = record({ do: constant('add' as const), count: integer({ min: 1, max: 4 }) });
const actions: { weight: number; arbitrary: fc.Arbitrary<Action> }[] = [
  { weight: 8, arbitrary: add },
  { weight: 4, arbitrary: record({ do: constant('remove'), count: integer({ min: 1, max: 3 }) }) },
  { weight: 3, arbitrary: record({ do: constant('rotate') }) },
  { weight: 2, arbitrary: record({ do: constant('exchange'), count: integer({ min: 1, max: 3 }) }) },
  { weight: 2, arbitrary: record({ do: constant('configure') }) },
  { weight: 2, arbitrary: record({ do: constant('sweep') }) },
  {
    weight: 2,
    arbitrary: record({ do: constant('restore'), commits: integer({ min: 1, max: 4 }), restart: boolean() }),
  },
  {
    weight: 4,
    arbitrary: record({
      do: constant('meddle'),
      how: constantFrom('rogue', 'remove', 'readdress', 'steal', 'delete interface'),
    }),
  },
  {
    weight: 6,
    arbitrary: record({
      do: constant('weather'),
      weather: constantFrom(...(Object.keys(WEATHER) as Weather[])),
    }),
  },
  {
    weight: 4,
    arbitrary: record({
      do: constant('crash'),
      within: time(5, 500),
      loses: constantFrom('nothing', 'nothing', 'kernel', 'disk', 'both'),
      down: time(100, 20_000),
    }),
  },
  {
    weight: 2,
    arbitrary: record({
      do: constant('restart controller'),
      which: integer({ min: 0, max: 1 }),
      down: time(100, 20_000),
    }),
  },
  { weight: 3, arbitrary: record({ do: constant('disconnect'), down: time(100, 20_000) }) },
  {
    weight: 4,
    arbitrary: record({
      do: constant('attack'),
      how: constantFrom('replay' as const, ...ATTACKS),
    }),
  },
];

const bulk = record({
  do: constant('bulk' as const),
  count: integer({ min: 1500, max: 4500 }),
  go: boolean(),
});
const usual = oneof(...actions);
const heavy = oneof({ weight: 12, arbitrary: bulk }, ...actions);
const pause = time(10, 1000, 1000, 12_000);
const topology = constantFrom('embedded' as const, ...TOPOLOGIES);

function operations(action: fc.Arbitrary<Action>, most: number): fc.Arbitrary<Operation[]> {
  return fc.array(record({ action, seed, pause }), { minLength: 1, maxLength: most, size: 'max' });
}

/** The usual run: a table of a few dozen peers, where everything meets everything. */
export const scripts: fc.Arbitrary<Script> = record({ seed, topology, operations: operations(usual, 24) });

/** Runs in which an update takes several parts. */
export const bulkScripts: fc.Arbitrary<Script> = record({
  seed,
  topology,
  operations: operations(heavy, 12),
});

/** Runs that begin with so many changes that the journal of the agent is about to be folded into a snapshot. */
export const wornScripts: fc.Arbitrary<Script> = fc
  .tuple(seed, topology, fc.constantFrom('slow', 'crawling', 'flaky disk', 'storm'), operations(heavy, 8))
  .map(([first, where, weather, rest]) => {
    const step = (action: Action): Operation => ({ action, seed: first, pause: 100 });
    const wear = [false, true, false].map((go) => step({ do: 'bulk', count: 4400, go }));
    const last = [step({ do: 'weather', weather }), step({ do: 'bulk', count: 4400, go: true })];
    return { seed: first, topology: where, operations: [...wear, ...last, ...rest] };
  });
