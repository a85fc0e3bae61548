/**
 * (j) Thousands of agents on one controller, as it ships, with its embedded broker and a real Postgres: what it takes
 * to listen to them. The agents' processes are beside it on the same machine, so only what the controller and the
 * database themselves took (proc(5)) is looked at.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, type Sql } from '../../controller/src/platform/db.ts';
import { CONTROLLER } from '../lab/bundles.ts';
import { exec, Program } from '../lab/process.ts';
import { waitFor } from '../lab/wait.ts';
import { freePort } from '../ports.ts';
import type { TestPostgres } from '../postgres.ts';
import { Place } from './place.ts';
import { databaseTicks, residentMiB, ticks } from './processes.ts';
import type { Report } from './report.ts';
import type { AgentIdentity, AgentOperations } from './work/agents.ts';

const REGIONS = 50;
const CONNECTS_A_SECOND = 250;
/** After the last has connected: until what came of that is done, in s. */
const SETTLE = 15;
const GOAL_AT = 1000;
const GOAL_CORE = 0.5;

const sleep = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

export interface AgentsOptions {
  readonly counts: readonly number[];
  /** Of steady state. */
  readonly seconds: number;
  /** Where a CPU profile of each controller goes; null for none. */
  readonly profiles: NodeJS.ProcessEnv;
}

interface Delay {
  readonly median: number;
  readonly p99: number;
  readonly max: number;
}

interface Found {
  readonly agents: number;
  /** Until all had connected and held what they were sent, in s. */
  readonly ramp: number;
  /** Share of one core. */
  readonly controller: number;
  readonly database: number;
  readonly residentMiB: number;
  readonly beatsPerSecond: number;
  readonly sent: number;
  readonly heard: number;
  readonly batchesPerSecond: number;
  readonly rowsPerBatch: number;
  readonly commitsPerSecond: number;
  readonly disconnects: number;
  readonly loop: Delay;
}

/** A controller process with its agents beside it. */
class Crowd {
  readonly #folder = mkdtempSync(join(tmpdir(), 'katafract-bench-'));
  readonly #loopFile = join(this.#folder, 'loop.json');
  readonly #sql: Sql;
  readonly program: Program;
  readonly agents: Place<AgentOperations>;
  readonly #api: string;
  readonly brokerUrl: string;

  private constructor(
    url: string,
    sql: Sql,
    agents: Place<AgentOperations>,
    ports: { http: number; mqtt: number },
    profiles: NodeJS.ProcessEnv,
  ) {
    this.#sql = sql;
    this.agents = agents;
    this.#api = `http://127.0.0.1:${ports.http}`;
    this.brokerUrl = `mqtt://127.0.0.1:${ports.mqtt}`;
    const probe = `--import=${new URL('loop-probe.mjs', import.meta.url).href}`;
    this.program = new Program(process.execPath, [CONTROLLER], join(this.#folder, 'controller.log'), {
      env: {
        DATABASE_URL: url,
        KATAFRACT_DATA_DIR: this.#folder,
        KATAFRACT_API_LISTEN: `127.0.0.1:${ports.http}`,
        KATAFRACT_MQTT_LISTEN: `127.0.0.1:${ports.mqtt}`,
        KATAFRACT_PUBLIC_URL: 'http://api.bench',
        KATAFRACT_BENCH_LOOP: this.#loopFile,
        ...profiles,
        NODE_OPTIONS: [profiles.NODE_OPTIONS, probe].filter(Boolean).join(' '),
      },
    });
  }

  static async gather(url: string, sql: Sql, count: number, profiles: NodeJS.ProcessEnv): Promise<Crowd> {
    const agents = await Place.agents();
    await enroll(sql, await agents.do('make', { count }));
    const ports = { http: await freePort(), mqtt: await freePort() };
    const crowd = new Crowd(url, sql, agents, ports, profiles);
    await crowd.program.waitFor(/Operator token/);
    return crowd;
  }

  /** Sum of a metric over its series. */
  async metric(name: string, labels = ''): Promise<number> {
    const lines = (await (await fetch(`${this.#api}/metrics`)).text()).split('\n');
    const series = lines.filter((line) => /^[a-z_]+/.exec(line)?.[0] === name && line.includes(labels));
    return series.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }

  /** What has been counted so far; the processor's time first, since to be asked costs some. */
  async look() {
    const [own, database] = [ticks(this.program.pid).own, await databaseTicks(this.#sql)];
    const [commits] = await this.#sql<{ count: number }[]>`
      select xact_commit::float8 as count from pg_stat_database where datname = current_database()`;
    return {
      at: performance.now(),
      own,
      database,
      batches: await this.metric('katafract_report_rows_count'),
      rows: await this.metric('katafract_report_rows_sum'),
      commits: commits?.count ?? 0,
      ...(await this.agents.do('counts', undefined)),
    };
  }

  heard(): Promise<number> {
    return this.metric('katafract_node_messages_total', 'leaf="heartbeat"');
  }

  /** How late its event loop ran since this was last called. */
  async loop(): Promise<Delay> {
    rmSync(this.#loopFile, { force: true });
    process.kill(this.program.pid, 'SIGUSR2');
    return waitFor('the event loop to be told of', () => {
      try {
        return JSON.parse(readFileSync(this.#loopFile, 'utf8')) as Delay;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
        throw error;
      }
    });
  }

  async close(): Promise<void> {
    await this.agents.do('stop', undefined);
    await this.agents.end();
    await this.program.stop();
    rmSync(this.#folder, { recursive: true });
  }
}

/** The rows that enrolling makes, without the journey. */
async function enroll(sql: Sql, agents: readonly AgentIdentity[]): Promise<void> {
  await sql`
    insert into regions (id, name, country, latitude, longitude)
    select 'r' || at, 'Region ' || at, 'DE', (at * 37) % 120 - 60, (at * 71) % 360 - 180
    from generate_series(1, ${REGIONS}) as at`;
  const rows = agents.map(({ identity, ...agent }, at) => ({
    ...agent,
    identity,
    region: `r${(at % REGIONS) + 1}`,
  }));
  await sql`
    insert into nodes (id, region_id, endpoint, public_key, identity, listen_port, mtu, capacity)
    select node, region, '192.0.2.1:51820', "publicKey", identity, 51820, 1420, 1000
    from jsonb_to_recordset(${sql.json(rows as never)}) as r(node text, region text, "publicKey" text, identity jsonb)`;
}

async function listen(crowd: Crowd, count: number, seconds: number): Promise<Found> {
  const { agents } = crowd;
  const started = performance.now();
  await agents.do('connect', { url: crowd.brokerUrl, perSecond: CONNECTS_A_SECOND });
  const all = async () => (await agents.do('counts', undefined)).applied === count;
  await waitFor('every agent to hold what it was sent', all, { deadlineMs: 60_000, everyMs: 200 });
  const ramp = (performance.now() - started) / 1000;
  await sleep(SETTLE);
  await crowd.loop();
  const before = await crowd.look();
  await sleep(seconds);
  const after = await crowd.look();
  const loop = await crowd.loop();
  const memory = residentMiB(crowd.program.pid);
  await agents.do('hush', undefined);
  await sleep(1); // what is on its way arrives
  const sent = (await agents.do('counts', undefined)).heartbeats;
  const heard = await crowd.heard();
  const hertz = Number(await exec('getconf', ['CLK_TCK']));
  const took = (after.at - before.at) / 1000;
  const batches = after.batches - before.batches;
  return {
    agents: count,
    ramp,
    controller: (after.own - before.own) / hertz / took,
    database: (after.database - before.database) / hertz / took,
    residentMiB: memory,
    beatsPerSecond: (after.heartbeats - before.heartbeats) / took,
    sent,
    heard,
    batchesPerSecond: batches / took,
    rowsPerBatch: (after.rows - before.rows) / batches,
    commitsPerSecond: (after.commits - before.commits) / took,
    disconnects: after.disconnects,
    loop,
  };
}

async function oneCrowd(
  postgres: TestPostgres,
  count: number,
  { seconds, profiles }: AgentsOptions,
): Promise<Found> {
  const database = await postgres.createDatabase();
  const sql = connect(database.url, { max: 1, onnotice: () => undefined });
  try {
    const crowd = await Crowd.gather(database.url, sql, count, profiles);
    try {
      return await listen(crowd, count, seconds);
    } catch (error) {
      console.error(crowd.program.log.tail());
      throw error;
    } finally {
      await crowd.close();
    }
  } finally {
    await sql.end();
    await database.drop();
  }
}

export async function measureAgents(
  postgres: TestPostgres,
  report: Report,
  options: AgentsOptions,
): Promise<void> {
  const found: Found[] = [];
  for (const count of options.counts) {
    report.step(`${count.toLocaleString('en')} agents connect`);
    found.push(await oneCrowd(postgres, count, options));
  }
  report.table(
    `(j) agents on one controller, steady for ${options.seconds} s`,
    ['agents', 'core of controller', 'of database', 'RSS MiB', 'heartbeats/s', 'lost', 'connect s'],
    found.map((one) => [
      one.agents.toLocaleString('en'),
      one.controller,
      one.database,
      one.residentMiB,
      one.beatsPerSecond,
      String(one.sent - one.heard),
      one.ramp,
    ]),
  );
  report.table(
    '(j) how they are written, and how late the event loop runs',
    ['agents', 'writes/s', 'nodes a write', 'commits/s', 'late median ms', 'late p99', 'late max', 'cut off'],
    found.map((one) => [
      one.agents.toLocaleString('en'),
      one.batchesPerSecond,
      one.rowsPerBatch,
      one.commitsPerSecond,
      one.loop.median,
      one.loop.p99,
      one.loop.max,
      String(one.disconnects),
    ]),
  );
  report.record('j', found);
  for (const one of found) {
    const agents = `${one.agents.toLocaleString('en')} agents`;
    if (one.agents === GOAL_AT) {
      report.judge(
        'j',
        `${agents}: the controller's share of a core`,
        one.controller,
        'less',
        GOAL_CORE,
        'cores',
      );
    }
    report.judge('j', `${agents}: heartbeats lost of ${one.sent}`, one.sent - one.heard, 'less', 0, 'lost');
  }
}
