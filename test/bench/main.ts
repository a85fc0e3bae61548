/**
 * `npm run bench`: how fast, how much, how large, each figure beside what it must be held against and measured in the
 * same run. Prints tables and writes `.bench/<date>.json`. Figures depend on the machine, ratios hardly do; it is never
 * a test, and no figure makes it fail.
 *
 *   (a) POST to acked, against SSH and against the sum of its parts     (d) bytes of a change
 *   (b) the same, by peers already on the exit                          (e) snapshot of 50,000 peers to a cold node
 *   (c) acked provisions a second, against a bare insert                (f) memory and idle work
 *   (g) payment to Sigil, lapse to peer gone from the kernel            (h) verified requests, against unverified
 *   (i) death of an exit to its device on another                       (j) thousands of agents on one controller
 *   (k) 10,000 nodes and 1,000,000 peers in virtual time                 (l) a drain of 5,000 peers under pings
 *   (m) a client through all rules of an exit, against a bare tunnel
 */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { connect } from '../../controller/src/platform/db.ts';
import { REGIONS } from '../lab/lab.ts';
import { startPostgres, type TestPostgres } from '../postgres.ts';
import { Shop } from '../stores/shop.ts';
import { measureAgents } from './agents.ts';
import { Fleet, type FleetOptions, profiling } from './bed.ts';
import { measureBilling } from './billing.ts';
import { measureBytes } from './bytes.ts';
import { DRAIN_FLEET, measureDrain } from './drain.ts';
import { measureEdge } from './edge.ts';
import { measureFailover } from './failover.ts';
import { measureFootprint } from './footprint.ts';
import { describeMachine, type Machine } from './machine.ts';
import { measureProvision, measureSizes } from './provision.ts';
import { Report } from './report.ts';
import { measureSimulation } from './simulation.ts';
import { measureSnapshot } from './snapshot.ts';
import { measureThroughput } from './throughput.ts';
import { measureVerified } from './verified.ts';

const FOLDER = fileURLToPath(new URL('../../.bench', import.meta.url));
const USAGE = `npm run bench -- [--only a,b,…] [--quick] [--profile]

  --only     some of the measures (see the top of test/bench/main.ts)
  --quick    fewer rounds: to see that it works, not to quote
  --profile  also a CPU profile of the controller and of each agent, in .bench/profiles; costs some of the speed
`;
/** Those of one fleet with an exit for each size. */
const SIZED = ['a', 'b', 'd', 'e', 'f'];
const ALL = [...SIZED, 'c', 'g', 'h', 'i', 'j', 'k', 'l', 'm'];
/** An exit for each size, in a region of its own, so that a caller chooses the exit by the region. */
const SIZES = [
  { exit: 'exit-0', region: 'r0', peers: 0 },
  { exit: 'exit-1k', region: 'r1k', peers: 1000 },
  { exit: 'exit-10k', region: 'r10k', peers: 10_000 },
  { exit: 'exit-50k', region: 'r50k', peers: 50_000 },
] as const;

const FULL = {
  provision: { rounds: 30, each: 20 },
  sizes: { rounds: 20, each: 10 },
  throughput: { rounds: 3, seconds: 6 },
  changes: 15,
  snapshots: 5,
  footprint: { settle: 60, watch: 30 },
  billing: 20,
  verified: { rounds: 5, requests: 8000 },
  deaths: 40,
  agents: { counts: [1000, 5000], seconds: 60 },
  drained: 5000,
  edge: { turns: 40 },
  simulated: [
    { nodes: 1000, peers: 100_000, seconds: 75 },
    { nodes: 3000, peers: 300_000, seconds: 60 },
    { nodes: 10_000, peers: 1_000_000, seconds: 60 },
  ],
};
const QUICK: typeof FULL = {
  provision: { rounds: 5, each: 10 },
  sizes: { rounds: 4, each: 5 },
  throughput: { rounds: 1, seconds: 3 },
  changes: 5,
  snapshots: 1,
  footprint: { settle: 15, watch: 20 },
  billing: 3,
  verified: { rounds: 1, requests: 2000 },
  deaths: 4,
  agents: { counts: [1000], seconds: 20 },
  drained: 1000,
  edge: { turns: 4 },
  simulated: [{ nodes: 1000, peers: 50_000, seconds: 60 }],
};

interface Options {
  readonly only: ReadonlySet<string>;
  readonly quick: boolean;
  readonly profile: boolean;
  readonly how: typeof FULL;
}

function readOptions(): Options | null {
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      quick: { type: 'boolean' },
      profile: { type: 'boolean' },
      help: { type: 'boolean' },
    },
  });
  const only = new Set(values.only?.split(',').map((name) => name.trim()) ?? ALL);
  const unknown = [...only].filter((name) => !ALL.includes(name));
  if (values.help || unknown.length > 0) {
    console.log(unknown.length > 0 ? `unknown measure: ${unknown.join(', ')}\n\n${USAGE}` : USAGE);
    process.exitCode = unknown.length > 0 ? 2 : 0;
    return null;
  }
  const { quick = false, profile = false } = values;
  return { only, quick, profile, how: quick ? QUICK : FULL };
}

interface Run {
  readonly postgres: TestPostgres;
  readonly report: Report;
  readonly options: Options;
}

/** Brings a fleet up, works with it, and takes it down whatever came of it. */
async function withFleet(
  { postgres, report, options }: Run,
  spec: Pick<FleetOptions, 'regions' | 'exits' | 'controllerEnv' | 'devices'>,
  work: (fleet: Fleet) => Promise<void>,
): Promise<void> {
  const onStep = (text: string) => report.step(text);
  const profiles = options.profile ? join(FOLDER, 'profiles') : null;
  const fleet = await Fleet.up(postgres, { ...spec, onStep, profiles });
  try {
    await work(fleet);
  } catch (error) {
    console.error(fleet.lab.logTails());
    throw error;
  } finally {
    await fleet.close();
  }
}

function oneExitASize(run: Run): Promise<void> {
  const exits = SIZES.map(({ exit: name, region }) => ({ name, region }));
  const place = { country: 'DE', latitude: 50 };
  const regions = SIZES.map(({ region: id }, at) => ({ id, name: id, longitude: at * 10, ...place }));
  return withFleet(run, { regions, exits }, (fleet) => measureSized(fleet, run));
}

async function measureSized(fleet: Fleet, { report, options: { only, how } }: Run): Promise<void> {
  const sizes = SIZES.map(({ exit, peers }) => ({ exit: fleet.exit(exit), peers }));
  const [empty, , middle, largest] = sizes;
  if (!empty || !middle || !largest) throw new Error('four sizes');
  if (only.has('a')) await measureProvision(fleet, report, how.provision);
  for (const { exit, peers } of sizes) {
    if (peers === 0 || !['b', 'd', 'e', 'f'].some((name) => only.has(name))) continue;
    await fleet.commitPeers(exit, peers);
    await fleet.converged(exit, peers);
    report.step(`${exit.name} has its ${peers.toLocaleString('en')} peers`);
  }
  if (only.has('b')) await measureSizes(fleet, report, sizes, how.sizes);
  if (only.has('d')) await measureBytes(fleet, report, sizes, how.changes);
  if (only.has('f')) await measureFootprint(fleet, report, [empty, middle], how.footprint);
  if (only.has('e')) await measureSnapshot(fleet, report, largest.exit, how.snapshots);
}

function tenExits(run: Run): Promise<void> {
  const regions = REGIONS.map(({ id }) => id);
  const exits = regions.flatMap((region) => [1, 2].map((at) => ({ name: `${region}-${at}`, region })));
  const { report, options } = run;
  return withFleet(run, { regions: REGIONS, exits }, (fleet) =>
    measureThroughput(fleet, report, regions, options.how.throughput),
  );
}

function dyingExits(run: Run): Promise<void> {
  const exits = ['fra', 'hel', 'sin'].map((region) => ({ name: `${region}-1`, region }));
  const { report, options } = run;
  return withFleet(run, { regions: REGIONS, exits }, (fleet) =>
    measureFailover(fleet, report, options.how.deaths),
  );
}

async function paidFor(run: Run): Promise<void> {
  const regions = [{ id: 'r0', name: 'r0', country: 'DE', latitude: 50, longitude: 8 }];
  const exits = ['exit-1', 'exit-2'].map((name) => ({ name, region: 'r0' }));
  const shop = await Shop.open();
  try {
    await withFleet(run, { regions, exits, controllerEnv: shop.env }, async (fleet) => {
      await shop.join(fleet.lab);
      await measureBilling(fleet, shop, run.report, run.options.how.billing);
    });
  } finally {
    await shop.close();
  }
}

async function machine(postgres: TestPostgres): Promise<Machine> {
  const database = await postgres.createDatabase();
  const sql = connect(database.url, { max: 1 });
  try {
    return await describeMachine(sql, tmpdir());
  } finally {
    await sql.end();
    await database.drop();
  }
}

async function main(): Promise<void> {
  const options = readOptions();
  if (!options) return;
  const postgres = await startPostgres();
  try {
    const { only, quick, profile } = options;
    const report = new Report(await machine(postgres), { only: [...only], quick, profile });
    const run = { postgres, report, options };
    if (SIZED.some((name) => only.has(name))) await oneExitASize(run);
    if (only.has('c')) await tenExits(run);
    if (only.has('g')) await paidFor(run);
    if (only.has('i')) await dyingExits(run);
    if (only.has('j')) {
      const profiles = profiling(profile ? join(FOLDER, 'profiles') : null);
      await measureAgents(postgres, report, { ...options.how.agents, profiles });
    }
    if (only.has('l')) {
      await withFleet(run, { regions: REGIONS, ...DRAIN_FLEET }, (fleet) =>
        measureDrain(fleet, report, options.how.drained),
      );
    }
    if (only.has('m')) await measureEdge(report, options.how.edge);
    if (only.has('k')) await measureSimulation(report, options.how.simulated);
    if (only.has('h')) await measureVerified(postgres, report, options.how.verified);
    console.log(`written to ${report.finish(FOLDER)}`);
  } finally {
    await postgres.stop();
  }
}

await main();
