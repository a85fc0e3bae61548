/** What the decisions of capacity.ts look at, read from the database: a few statements whatever the fleet's size. */
import type { NodeId, RegionId } from '@katafract/shared/units';
import type { Sql } from '../../platform/db.ts';
import { type ExitFacts, type FleetFacts, type RegionFacts, type Sample, THRESHOLDS } from './forecast.ts';
import type { Growth, ProviderName } from './provider.ts';
import type { MachineState } from './tables.ts';

const DAY = 86_400_000;
export const SAMPLE_MS = THRESHOLDS.sampleMs;
/** Of a day, this share of the samples must be there for its peak to be known (a controller may have been away). */
const ENOUGH_SAMPLES = 0.9;
const SAMPLES_KEPT_MS = 14 * DAY;

/** What regions needed over time; changes only with a sample, so it need not be read for each decision. */
export interface History {
  readonly samples: ReadonlyMap<RegionId, readonly Sample[]>;
  /** The most within a day; absent where less than a day is known. */
  readonly peaks: ReadonlyMap<RegionId, number>;
}

export async function readHistory(sql: Sql, now: number): Promise<History> {
  const since = (ms: number) => new Date(now - ms);
  const [rows, peaks] = await Promise.all([
    sql<{ region: RegionId; at: number; peers: number }[]>`
      select region_id as region, extract(epoch from at)::float8 * 1000 as at, peers from demand_samples
      where at >= ${since(THRESHOLDS.trendMs)} order by region_id, at`,
    sql<{ region: RegionId; peak: number }[]>`
      select region_id as region, max(peers) as peak from demand_samples
      where at >= ${since(THRESHOLDS.peakMs + SAMPLE_MS)} group by region_id
      having count(*) >= ${Math.floor((THRESHOLDS.peakMs / SAMPLE_MS) * ENOUGH_SAMPLES)}`,
  ]);
  return { samples: byRegion(rows), peaks: new Map(peaks.map(({ region, peak }) => [region, peak])) };
}

interface ExitRow extends Omit<ExitFacts, 'since'> {
  readonly region: RegionId;
  readonly since: string | null;
}

/** Peers that are leaving a node are on another already, so only the others are counted there. */
export function readExits(sql: Sql): Promise<ExitRow[]> {
  return sql<ExitRow[]>`
    with busy as (
      select rn.node_id from rollout_nodes rn join rollouts r on r.id = rn.rollout_id
      where r.ended_at is null and rn.state in ('updating', 'reverting')
      union select node_id from reboots where state = 'leased'
    )
    select n.id as node, n.region_id as region, n.state, coalesce(h.state, 'ok') as health, h.since, n.capacity,
           case when n.peer_count > 0 and (n.state in ('draining', 'drained') or h.state = 'down')
                then (select count(*)::int from placements p
                      where p.node_id = n.id and not p.removed and p.role <> 'leaving')
                else n.peer_count end as peers,
           m.id as machine, b.node_id is not null as busy, s.id is not null as replaced
    from nodes n
    left join node_health h on h.node_id = n.id
    left join machines m on m.node_id = n.id and m.state = 'serving' and m.provider <> 'manual'
    left join machines s on s.replaces = n.id and s.ended_at is null
    left join busy b on b.node_id = n.id
    where n.state <> 'retired' order by n.id`;
}

interface MachineRow {
  readonly region: RegionId;
  readonly node: NodeId;
  readonly provider: ProviderName;
  readonly capacity: number;
  readonly state: MachineState;
  readonly problem: string | null;
  readonly bySystem: boolean;
  readonly replaces: NodeId | null;
  readonly since: string;
  readonly wantedAt: string;
  readonly endedAt: string | null;
}

/** Those that are open, and those of the last day. */
function readMachines(sql: Sql, now: number): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    select region_id as region, node_id as node, provider, (growth ->> 'capacity')::int as capacity, state, problem,
           wanted_by = 'system' as "bySystem", replaces, since, wanted_at as "wantedAt", ended_at as "endedAt"
    from machines where ended_at is null or ended_at > ${new Date(now - DAY)} or wanted_at > ${new Date(now - DAY)}
    order by wanted_at, id`;
}

/** Whether a provider makes machines by itself; null where it is off. */
export type AutomaticOf = (provider: ProviderName) => boolean | null;

export async function readFacts(
  sql: Sql,
  now: number,
  history: History,
  automaticOf: AutomaticOf,
): Promise<FleetFacts> {
  const [regions, exits, machines] = await Promise.all([
    sql<{ region: RegionId; minExits: number; growth: Growth | null }[]>`
      select id as region, min_exits as "minExits", growth from regions order by id`,
    readExits(sql),
    readMachines(sql, now),
  ]);
  const exitsOf = byRegion(exits);
  const machinesOf = byRegion(machines);
  const automatic = machines.filter(({ provider }) => provider !== 'manual');
  return {
    regions: regions.map(({ region, minExits, growth }) => ({
      region,
      minExits,
      growth,
      automatic: growth === null ? null : automaticOf(growth.provider),
      ...ofRegion(exitsOf.get(region) ?? [], machinesOf.get(region) ?? []),
      samples: history.samples.get(region) ?? [],
      peak: history.peaks.get(region) ?? null,
    })),
    open: automatic.filter(isComing).length,
    today: automatic.filter(({ bySystem, wantedAt }) => bySystem && Date.parse(wantedAt) > now - DAY).length,
  };
}

function byRegion<Row extends { readonly region: RegionId }>(rows: readonly Row[]): Map<RegionId, Row[]> {
  const groups = new Map<RegionId, Row[]>();
  for (const row of rows) {
    const group = groups.get(row.region);
    if (group) group.push(row);
    else groups.set(row.region, [row]);
  }
  return groups;
}

const COMING: readonly MachineState[] = ['wanted', 'creating', 'booting'];
const isComing = ({ state }: MachineRow) => COMING.includes(state);
const latest = (times: readonly (string | null)[]): number | null => {
  const known = times.filter((at) => at !== null).map((at) => Date.parse(at));
  return known.length === 0 ? null : Math.max(...known);
};

/** @param machines in the order in which they were wanted */
function ofRegion(
  exits: readonly ExitRow[],
  machines: readonly MachineRow[],
): Omit<RegionFacts, 'region' | 'minExits' | 'growth' | 'automatic' | 'samples' | 'peak'> {
  const coming = machines.filter(isComing);
  const arriving = new Set(coming.map(({ node }) => node));
  const came = machines.findLastIndex(({ state }) => state === 'serving' || state === 'leaving');
  const failed = machines.slice(came + 1).filter(({ state }) => state === 'failed');
  const last = failed.at(-1);
  return {
    // one that has enrolled and said nothing yet is counted once, as a machine
    exits: exits
      .filter(({ node }) => !arriving.has(node))
      .map(({ region: _, since, ...exit }) => ({ ...exit, since: since === null ? 0 : Date.parse(since) })),
    coming: coming.map(({ capacity, provider, replaces }) => ({
      capacity,
      automatic: provider !== 'manual',
      replaces,
    })),
    wantedAt: latest(machines.filter(({ bySystem }) => bySystem).map(({ wantedAt }) => wantedAt)),
    changedAt: latest(machines.flatMap(({ since, endedAt }) => [since, endedAt])),
    failures: failed.length,
    failedAt: latest(failed.map(({ endedAt }) => endedAt)),
    problem: last?.problem ?? null,
  };
}

/** Writes down what every region carries now, once an interval, and forgets what is too old. */
export async function sample(sql: Sql, now: number): Promise<void> {
  const at = new Date(now - (now % SAMPLE_MS));
  const exits = await readExits(sql);
  const rows = [...byRegion(exits)].map(([region, list]) => ({
    region,
    peers: list.reduce((total, { peers }) => total + peers, 0),
    capacity: list.reduce(
      (total, { state, health, capacity }) =>
        total + (state === 'active' && health !== 'down' ? capacity : 0),
      0,
    ),
  }));
  await sql`
    insert into demand_samples (region_id, at, peers, capacity)
    select region, ${at}, peers, capacity
    from jsonb_to_recordset(${sql.json(rows)}) as r(region text, peers int, capacity int)
    on conflict do nothing`;
  await sql`delete from demand_samples where at < ${new Date(now - SAMPLES_KEPT_MS)}`;
}
