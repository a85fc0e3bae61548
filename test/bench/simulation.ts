/**
 * (k) The simulated fleet (test/simulation) at three sizes, each in a process of its own: how long the passes of the
 * controller's jobs take, what memory and database they need, and how both grow. Nothing that must hold may break.
 */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { startPostgres } from '../postgres.ts';
import type { SimulationResult } from '../simulation/simulation.ts';
import { NODE_TYPESCRIPT } from './place.ts';
import type { Report } from './report.ts';
import type { Cell } from './table.ts';

const PROGRAM = fileURLToPath(new URL('../simulation/main.ts', import.meta.url));
/** The longest that one size may take, in ms. */
const PATIENCE_MS = 400_000;
const SHOWN = 14;
const DOWN_GOAL_S = 30;

export interface SimulatedSize {
  readonly nodes: number;
  readonly peers: number;
  /** Virtual. */
  readonly seconds: number;
}

function simulated(
  database: string,
  { nodes, peers, seconds }: SimulatedSize,
  onStep: (text: string) => void,
) {
  const [command = '', ...typescript] = NODE_TYPESCRIPT;
  const size = ['--nodes', nodes, '--peers', peers, '--seconds', seconds].map(String);
  const child = spawn(command, ['--expose-gc', ...typescript, PROGRAM, ...size], {
    env: { ...process.env, DATABASE_URL: database },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: PATIENCE_MS,
    killSignal: 'SIGKILL',
  });
  let output = '';
  let errors = '';
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk;
  });
  child.stderr.on('data', (chunk: Buffer) => {
    errors += chunk;
    for (const line of String(chunk).trim().split('\n')) if (!line.startsWith('{')) onStep(line);
  });
  return new Promise<SimulationResult>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => {
      if (code === 0) resolve(JSON.parse(output.trim().split('\n').at(-1) ?? '') as SimulationResult);
      else reject(new Error(`the simulation ended (${code}): ${errors.slice(-2000)}`));
    });
  });
}

const name = ({ size }: SimulationResult) =>
  `${size.nodes.toLocaleString('en')} / ${size.peers.toLocaleString('en')}`;

/** Jobs by what they took at the largest size. */
function passRows(found: readonly SimulationResult[]): Cell[][] {
  const jobs = (found.at(-1)?.passes ?? []).slice(0, SHOWN);
  return jobs.map(({ job }) => [
    job,
    ...found.flatMap(({ passes }) => {
      const pass = passes.find((one) => one.job === job);
      return [pass?.mean ?? '', pass?.max ?? ''];
    }),
  ]);
}

/** A server as one has it for millions of rows; all else is as it ships. */
const SERVER = { shared_buffers: '1GB', max_wal_size: '8GB' };

async function simulateAll(report: Report, sizes: readonly SimulatedSize[]): Promise<SimulationResult[]> {
  const postgres = await startPostgres(SERVER);
  const found: SimulationResult[] = [];
  try {
    for (const size of sizes) {
      const database = await postgres.createDatabase();
      report.step(`simulating ${size.nodes.toLocaleString('en')} nodes`);
      found.push(await simulated(database.url, size, (text) => report.step(`  ${text}`)));
      await database.drop();
    }
    return found;
  } finally {
    await postgres.stop();
  }
}

export async function measureSimulation(report: Report, sizes: readonly SimulatedSize[]): Promise<void> {
  const found = await simulateAll(report, sizes);
  report.table(
    '(k) ms of a pass by nodes / peers: mean, longest',
    ['job', ...found.flatMap((one) => [name(one), ''])],
    passRows(found),
  );
  report.table(
    '(k) what it takes',
    [
      'nodes / peers',
      'virtual s',
      'wall s',
      'RSS MiB',
      'heap MiB',
      'database MiB',
      'moved',
      'down within s',
      'broken',
    ],
    found.map((one) => [
      name(one),
      String(one.seconds),
      one.simulated,
      one.residentMiB,
      one.heapMiB,
      one.databaseMiB,
      String(one.moved),
      Math.max(...one.verdictMs) / 1000,
      String(one.violations.length),
    ]),
  );
  report.record('k', found);
  for (const one of found) {
    for (const violation of one.violations) console.error(`${name(one)}: ${violation}`);
    report.judge('k', `${name(one)}: invariants broken`, one.violations.length, 'less', 0, 'times');
    const down = Math.max(...one.verdictMs) / 1000;
    report.judge('k', `${name(one)}: a dead node is down, at most`, down, 'less', DOWN_GOAL_S, 's');
  }
}
