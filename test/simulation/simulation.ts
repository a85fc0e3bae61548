/**
 * A fleet of thousands of nodes in virtual time: the controller as createContext wires it (its jobs, rules, SQL and a
 * real Postgres), given a clock that a test moves and a broker behind which the nodes are simulated. Time stands still
 * while the controller works, so a pass takes as long as it takes and is measured; what happens is drawn from a seed.
 *
 *      clock ──► jobs ──► rules, SQL ──► Postgres ◄── invariants
 *        │         │ ▲
 *        ▼         ▼ │ Bus
 *      agenda ──► nodes ◄── events (deaths, regions, drains, reboots)
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadConfig } from '@katafract/controller/config';
import { type Context, createContext } from '@katafract/controller/context';
import { distanceKm, type Place } from '@katafract/controller/fleet/rules';
import { connect, openDatabase, type Sql } from '@katafract/controller/platform/db';
import { createLogger } from '@katafract/controller/platform/log';
import type { RegionId } from '@katafract/shared/units';
import { Random } from '../model/random.ts';
import { VirtualClock } from '../model/virtual-clock.ts';
import { type Event, script } from './events.ts';
import { SimulatedFleet, SLOT_MS } from './fleet.ts';
import { InFlight } from './in-flight.ts';
import { Invariants, type Watched } from './invariants.ts';
import { type Passes, PassTimes } from './passes.ts';
import { populate, type Size } from './population.ts';

/** Midnight somewhere at any time; this one is in winter. */
const START = Date.UTC(2027, 0, 12, 1);
const POOL_CONNECTIONS = 8;

export interface SimulationOptions {
  /** A migrated, empty database. */
  readonly database: string;
  readonly size: Size;
  readonly seed: number;
  /** Virtual. */
  readonly seconds: number;
  readonly onStep?: (text: string) => void;
}

export interface SimulationResult extends Watched {
  readonly size: Size;
  readonly seconds: number;
  /** Wall-clock time in s. */
  readonly populated: number;
  readonly simulated: number;
  readonly passes: readonly Passes[];
  readonly statements: number;
  readonly happened: Readonly<Record<string, number>>;
  readonly moved: number;
  readonly sent: SimulatedFleet['sent'];
  /** MiB: of the process, simulated nodes included, and what the controller added to its heap. */
  readonly residentMiB: number;
  readonly heapMiB: number;
  readonly databaseMiB: number;
}

/** Time passes only when nothing is on its way. */
class PatientClock extends VirtualClock {
  readonly #idle: () => Promise<void>;

  constructor(start: number, idle: () => Promise<void>) {
    super(start);
    this.#idle = idle;
  }

  override async settle(): Promise<void> {
    await super.settle();
    await this.#idle();
  }
}

const MiB = 2 ** 20;
const heap = () => {
  globalThis.gc?.();
  return process.memoryUsage().heapUsed;
};
const seconds = (since: number) => (performance.now() - since) / 1000;

export async function simulate(options: SimulationOptions): Promise<SimulationResult> {
  const dataDir = await mkdtemp(join(tmpdir(), 'katafract-simulation-'));
  const sql = connect(options.database, {
    max: 4,
    onnotice: () => undefined,
    connection: { application_name: 'simulation', maintenance_work_mem: '512MB' } as never,
  });
  sql.options.parsers[20] = Number;
  try {
    return await run(options, sql, dataDir);
  } finally {
    await sql.end({ timeout: 5 }); // a copy that broke off would be waited for
    await rm(dataDir, { recursive: true });
  }
}

async function run(options: SimulationOptions, sql: Sql, dataDir: string): Promise<SimulationResult> {
  const { size, seed, onStep = () => undefined } = options;
  const random = new Random(seed);
  const config = loadConfig({
    DATABASE_URL: options.database,
    KATAFRACT_DATA_DIR: dataDir,
    KATAFRACT_PUBLIC_URL: 'http://simulation.test',
  });
  const began = performance.now();
  const nodes = await populate(sql, config.plan, size, { random, now: START });
  const populated = seconds(began);
  onStep(`${size.nodes} nodes and ${size.peers} peers are there after ${populated.toFixed(0)} s`);
  const work = new InFlight();
  const clock = new PatientClock(START, () => work.idle());
  const fleet = new SimulatedFleet(nodes, random, START);
  const before = heap();
  const log = createLogger('error', { write: (line) => process.stderr.write(line) });
  const db = work.around(await openDatabase(options.database, log, { max: POOL_CONNECTIONS }));
  const ctx = await createContext(config, { clock, log, bus: fleet, db });
  const invariants = new Invariants(sql, fleet);
  try {
    const told = performance.now();
    const at = { ctx, clock, fleet, invariants, passes: new PassTimes(ctx.metrics.jobSeconds) };
    const happened = await live(at, script(ctx, fleet, random, options.seconds * 1000), options);
    const reboots = await invariants.reboots(await distances(sql));
    return {
      ...{ size, seconds: options.seconds, populated, simulated: seconds(told), ...invariants.found },
      ...{ passes: await at.passes.all(), statements: work.statements, sent: fleet.sent },
      happened: { ...happened, leases: reboots },
      moved: await moved(sql),
      heapMiB: (heap() - before) / MiB,
      residentMiB: process.memoryUsage().rss / MiB,
      databaseMiB: await databaseMiB(sql),
    };
  } finally {
    await ctx.close();
  }
}

interface Live {
  readonly ctx: Context;
  readonly clock: PatientClock;
  readonly fleet: SimulatedFleet;
  readonly invariants: Invariants;
  readonly passes: PassTimes;
}

/** Slot by slot: time passes, events happen, nodes speak; what must hold is looked at on the way. */
async function live(
  { clock, fleet, invariants, passes }: Live,
  events: Event[],
  options: SimulationOptions,
): Promise<Record<string, number>> {
  const happened: Record<string, number> = {};
  const due = [...events];
  const end = options.seconds * 1000;
  const every = (at: number, ms: number) => at % ms === 0;
  for (let at = SLOT_MS; at <= end; at += SLOT_MS) {
    await clock.advance(SLOT_MS);
    while (due[0] && due[0].at <= at) {
      const event = due.shift();
      await event?.happen();
      if (event) happened[event.what] = (happened[event.what] ?? 0) + 1;
    }
    fleet.step(START + at);
    await clock.settle();
    await passes.look();
    if (every(at, 1000)) await invariants.verdicts();
    if (every(at, 10_000)) await invariants.primaries(clock.now());
    if (every(at, 30_000)) options.onStep?.(`${at / 1000} virtual seconds`);
    if (at === end || at === Math.floor(end / 2 / SLOT_MS) * SLOT_MS) await invariants.recount();
  }
  return happened;
}

async function distances(sql: Sql): Promise<(a: RegionId, b: RegionId) => number> {
  const rows = await sql<({ id: RegionId } & Place)[]>`select id, latitude, longitude from regions`;
  const places = new Map(rows.map((row) => [row.id, row]));
  return (a, b) => {
    const [one, other] = [places.get(a), places.get(b)];
    return one && other ? distanceKm(one, other) : Number.POSITIVE_INFINITY;
  };
}

async function moved(sql: Sql): Promise<number> {
  const [row] = await sql<{ count: number }[]>`
    select count(*)::int as count from audit_log where action = 'peer.replaced'`;
  return row?.count ?? 0;
}

async function databaseMiB(sql: Sql): Promise<number> {
  const [row] = await sql<{ size: number }[]>`select pg_database_size(current_database())::float8 as size`;
  return (row?.size ?? 0) / MiB;
}
