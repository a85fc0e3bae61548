/**
 * SQL of upkeep: one read of everything the rules look at, and the one statement that tells nodes something. Releases
 * and reboots are decided one after the other (`lockUpkeep`), since each leans on what the other does.
 */
import type { NodeId, RegionId } from '@katafract/shared/units';
import type { Upkeep } from '@katafract/shared/upkeep';
import { bitsToDigest } from '../../platform/columns.ts';
import type { Sql, Tx } from '../../platform/db.ts';
import type { HealthState } from '../health.ts';
import type { NodeState } from '../tables.ts';
import type { Telling } from './effects-rules.ts';
import type { NodeFacts, RolloutPart } from './facts.ts';
import { type RegionFacts, type RegionGraph, regionGraph, updatesWindow } from './graph-rules.ts';
import type { RolloutNodeState } from './tables.ts';

const UPKEEP_LOCK = 7_261_007;

/** Until the end of the transaction nobody else decides on upkeep. */
export async function lockUpkeep({ sql }: Tx): Promise<void> {
  await sql`select pg_advisory_xact_lock(${UPKEEP_LOCK})`;
}

/** What a node is told of its upkeep when it enrolls: the version that was last rolled out, and when it takes updates. */
export async function upkeepOfNew(sql: Sql, region: RegionId, now: number): Promise<Upkeep> {
  const graph = await new Graphs().read(sql);
  const [last] = await sql<{ version: string }[]>`
    select version from rollouts where state = 'done' order by ended_at desc limit 1`;
  const where = graph.regions.get(region);
  return {
    ...(last ? { agentVersion: last.version } : {}),
    ...(where ? { updates: updatesWindow(graph, where, now) } : {}),
  };
}

/** The regions' graph, made anew only when they have changed. */
export class Graphs {
  #key = '';
  #graph: RegionGraph = regionGraph([]);

  async read(sql: Sql): Promise<RegionGraph> {
    const regions = await sql<RegionFacts[]>`
      select id, latitude, longitude, time_zone as "timeZone", min_exits as "minExits" from regions order by id`;
    const key = JSON.stringify(regions);
    if (key !== this.#key) [this.#key, this.#graph] = [key, regionGraph(regions)];
    return this.#graph;
  }
}

interface Row extends Pick<NodeFacts, 'id' | 'region' | 'load' | 'leased' | 'runs'> {
  lifecycle: NodeState;
  health: HealthState;
  maintenanceUntil: string | null;
  digest: string;
  /** What it said, where that is of the config it was last given. */
  version: string | null;
  atHead: boolean;
  beatDigest: string;
  rules: string;
  dns: string;
  agentUpdate: string | null;
  rebootNeeded: boolean | null;
  lease: string | null;
  skew: number;
  wave: number | null;
  state: RolloutNodeState;
  before: string | null;
  since: string;
  reason: string | null;
}

/**
 * Every node, with what it said only where that matters: something is done to it, or it wants to reboot. The rest of
 * ten thousand heartbeats need not be opened for that.
 * @param rollout the one that is open; null for none
 */
export async function readNodes(sql: Sql, rollout: string | null, now: number): Promise<NodeFacts[]> {
  const rows = await sql<Row[]>`
    select n.id, n.region_id as region, n.state as lifecycle, coalesce(h.state, 'ok') as health,
           n.peer_count / n.capacity::float8 as load, n.maintenance_until as "maintenanceUntil",
           n.digest::text as digest, b.state is not distinct from 'leased' as leased, r.agent_version as runs,
           said.version, said."atHead", said."beatDigest", said.rules, said.dns, said."agentUpdate", said."rebootNeeded",
           said.lease, said.skew, p.wave, p.state, p.before, p.since, p.reason
    from nodes n
    left join node_health h on h.node_id = n.id
    left join node_reports r on r.node_id = n.id
    left join reboots b on b.node_id = n.id and b.ended_at is null
    left join rollout_nodes p on p.node_id = n.id and p.rollout_id = ${rollout}
    left join rollouts o on o.id = p.rollout_id
    left join lateral (
      select r.health ->> 'version' as version, (r.health ->> 'generation')::bigint = n.generation as "atHead",
             r.health ->> 'digest' as "beatDigest", r.health ->> 'rules' as rules, r.health ->> 'dns' as dns,
             r.health -> 'upkeep' ->> 'agentUpdate' as "agentUpdate",
             (r.health -> 'upkeep' ->> 'rebootNeeded')::boolean as "rebootNeeded",
             r.health -> 'upkeep' ->> 'lease' as lease,
             (r.health ->> 'at')::float8 - extract(epoch from r.last_seen_at)::float8 * 1000 as skew
      where case
        when p.state in ('updating', 'reverting') or (p.state = 'updated' and p.wave = o.wave) or b.node_id is not null
          or r.health -> 'upkeep' ->> 'rebootNeeded' = 'true'
        then (r.health ->> 'lineage')::bigint = n.lineage
          and (r.health ->> 'generation')::bigint >= n.config_generation
        else false end
    ) said on true
    where n.state not in ('joining', 'retired') or p.node_id is not null
    order by n.id`;
  return rows.map((row) => toFacts(row, now));
}

function toFacts(row: Row, now: number): NodeFacts {
  const { id, region, lifecycle, health, load, leased, runs, maintenanceUntil, version } = row;
  const maintained = maintenanceUntil !== null && Date.parse(maintenanceUntil) > now;
  const whole = !row.atHead || row.beatDigest === bitsToDigest(row.digest);
  const said: NodeFacts['said'] =
    version === null
      ? null
      : {
          version,
          sound: row.rules !== 'failed' && row.dns !== 'failed' && whole,
          updateFailed: row.agentUpdate === 'failed',
          rebootNeeded: row.rebootNeeded === true,
          lease: row.lease,
          skew: row.skew,
        };
  const part: RolloutPart | null =
    row.wave === null
      ? null
      : {
          wave: row.wave,
          state: row.state,
          before: row.before,
          since: Date.parse(row.since),
          reason: row.reason,
        };
  return { id, region, lifecycle, health, load, leased, runs, maintained, said, part };
}

/** Nodes whose time to be silent is over, whatever came of them. */
export async function endMaintenance(sql: Sql, now: Date): Promise<NodeId[]> {
  const rows = await sql<{ id: NodeId }[]>`
    update nodes set maintenance_until = null where maintenance_until <= ${now} returning id`;
  return rows.map(({ id }) => id);
}

/** Tells nodes something of their upkeep. Their generation rises only where that is new to them. */
export async function tellNodes({ sql }: Tx, tellings: readonly Telling[]): Promise<void> {
  if (tellings.length === 0) return;
  const rows = tellings.map(({ node, upkeep, maintenanceUntil: until }) => ({
    node,
    upkeep,
    sets: until !== undefined,
    until: typeof until === 'number' ? new Date(until).toISOString() : null,
  }));
  const ids = tellings.map(({ node }) => node as string);
  await sql`select 1 from nodes where id = any(${ids}::text[]) order by id for update`;
  await sql`
    update nodes n set
      upkeep = told.upkeep,
      maintenance_until = case when told.sets then told.until else n.maintenance_until end,
      generation = n.generation + told.step,
      config_generation = case when told.step = 1 then n.generation + 1 else n.config_generation end
    from (
      select m.id, r.sets, r.until, now.upkeep, (now.upkeep is distinct from coalesce(m.upkeep, '{}'))::int as step
      from jsonb_to_recordset(${sql.json(rows as never)}) as r(node text, upkeep jsonb, sets boolean, until timestamptz)
      join nodes m on m.id = r.node
      cross join lateral (select jsonb_strip_nulls(coalesce(m.upkeep, '{}') || r.upkeep) as upkeep) now
    ) told
    where told.id = n.id`;
}
