/**
 * (c) Acknowledged provisions a second over ten exits, each peer with a standby on another, against a bare route that
 * inserts one row: the two in turn, with the same callers, from a process on a device. The exits share the machine's
 * cores with the controller here, as they do nowhere else; the processor time of each part says what would remain.
 */

import { fileURLToPath } from 'node:url';
import type { Fleet } from './bed.ts';
import { NODE_TYPESCRIPT } from './place.ts';
import { PARTS, type Part, processorTime } from './processes.ts';
import type { Report } from './report.ts';
import { median } from './stats.ts';
import type { LoadResult } from './work/caller.ts';

const FLOOR = fileURLToPath(new URL('floor.ts', import.meta.url));
const FLOOR_PORT = 8090;
/** Connections to the database: the controller's default. */
const POOL = 16;
export const CALLERS = [1, 8, 64] as const;

export interface ThroughputOptions {
  readonly rounds: number;
  readonly seconds: number;
}

interface Compared {
  readonly callers: number;
  readonly api: LoadResult[];
  readonly floor: LoadResult[];
  /** Processor time of all rounds of the API, in ms. */
  readonly spent: Record<Part, number>;
}

export async function measureThroughput(
  fleet: Fleet,
  report: Report,
  regions: readonly string[],
  options: ThroughputOptions,
): Promise<void> {
  const device = await fleet.device;
  const address = new URL(fleet.api).hostname;
  const [command = '', ...args] = [...NODE_TYPESCRIPT, FLOOR];
  const env = {
    DATABASE_URL: fleet.databaseUrl,
    HOST: address,
    PORT: String(FLOOR_PORT),
    POOL: String(POOL),
  };
  const server = fleet.lab.artemis.start('floor', command, args, env);
  await server.waitFor(/listening/);
  const owners = await Promise.all(
    Array.from({ length: Math.max(...CALLERS) }, () => fleet.subscribe('ops')),
  );
  const tokens = owners.map(({ sigil }) => sigil);
  const api = (callers: number, seconds: number) =>
    device.do('load', { url: `${fleet.api}/v1/peers`, callers, seconds, tokens, regions });
  const floor = (callers: number, seconds: number) =>
    device.do('load', {
      url: `http://${address}:${FLOOR_PORT}/rows`,
      callers,
      seconds,
      tokens: [],
      regions: [],
    });
  await floor(8, 2);
  await api(8, 2);
  const compared: Compared[] = [];
  for (const callers of CALLERS) {
    const spent = Object.fromEntries(PARTS.map((part) => [part, 0])) as Record<Part, number>;
    const one: Compared = { callers, api: [], floor: [], spent };
    for (let round = 0; round < options.rounds; round++) {
      one.floor.push(await floor(callers, options.seconds));
      const before = await processorTime(fleet, fleet.db.sql);
      one.api.push(await api(callers, options.seconds));
      const after = await processorTime(fleet, fleet.db.sql);
      for (const part of PARTS) spent[part] += after[part] - before[part];
    }
    report.step(
      `${callers} callers: ${median(one.api.map(({ perSecond }) => perSecond)).toFixed(0)} provisions a second`,
    );
    compared.push(one);
  }
  await server.stop();
  reportThroughput(report, compared, options.seconds);
}

function reportThroughput(report: Report, compared: readonly Compared[], seconds: number): void {
  const rows = compared.map(({ callers, api, floor, spent }) => ({
    callers,
    perSecond: median(api.map(({ perSecond }) => perSecond)),
    floorPerSecond: median(floor.map(({ perSecond }) => perSecond)),
    share: median(api.map(({ perSecond }, round) => perSecond / (floor[round]?.perSecond ?? Number.NaN))),
    medianMs: median(api.map(({ ms }) => ms.median)),
    p99Ms: median(api.map(({ ms }) => ms.p99)),
    others: api.map(({ others }) => others),
    msEach: msEach(
      spent,
      api.reduce((sum, { perSecond }) => sum + perSecond * seconds, 0),
    ),
  }));
  report.table(
    '(c) acked provisions a second, ten exits, one standby each',
    ['callers', 'a second', 'floor', 'share of it', 'median ms', 'p99 ms', 'not acked'],
    rows.map((row) => [
      String(row.callers),
      row.perSecond,
      row.floorPerSecond,
      row.share,
      row.medianMs,
      row.p99Ms,
      String(row.others.flatMap((other) => Object.values(other)).reduce((sum, count) => sum + count, 0)),
    ]),
  );
  report.table(
    '(c) processor time of one provision, in ms, by part',
    ['callers', ...PARTS],
    rows.map(({ callers, msEach }) => [String(callers), ...PARTS.map((part) => msEach[part])]),
  );
  report.record('c', rows);
  const most = rows.at(-1);
  if (!most) return;
  report.judge(
    'c',
    `${most.callers} callers: acked provisions a second`,
    most.perSecond,
    'more',
    1000,
    'a second',
  );
  report.judge('c', `${most.callers} callers: share of the bare insert route`, most.share, 'more', 0.25);
}

function msEach(spent: Record<Part, number>, provisions: number): Record<Part, number> {
  return Object.fromEntries(PARTS.map((part) => [part, spent[part] / provisions])) as Record<Part, number>;
}
