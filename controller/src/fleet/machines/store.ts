/** Rows of machines: wishes, and the steps from one state to the next, each a transaction with its audit entry. */
import type { NodeId, RegionId } from '@katafract/shared/units';
import type { Audit, AuditAction } from '../../audit/audit.ts';
import type { Sql, Tx } from '../../platform/db.ts';
import { uuidv7 } from '../../platform/ids.ts';
import type { NodeState } from '../tables.ts';
import type { Growth, ProviderName } from './provider.ts';
import type { MachineState } from './tables.ts';

/** Whoever wishes for machines takes turns, so that limits hold and no name is given twice. */
const WISHES_LOCK = 7_261_007;
/** What nothing is left to be done about, until something else says so. */
export const PARKED = new Date('9999-01-01T00:00:00Z');

export interface MachineRow {
  readonly id: string;
  readonly region: RegionId;
  readonly node: NodeId;
  readonly provider: ProviderName;
  readonly growth: Growth;
  readonly state: MachineState;
  readonly reason: string;
  readonly wantedBy: string;
  readonly replaces: NodeId | null;
  readonly ref: string | null;
  readonly address: string | null;
  readonly tries: number;
  readonly problem: string | null;
  readonly since: string;
  readonly wantedAt: string;
  readonly endedAt: string | null;
}

const columns = (sql: Sql) => sql`
  id, region_id as region, node_id as node, provider, growth, state, reason, wanted_by as "wantedBy", replaces, ref,
  address, tries, problem, since, wanted_at as "wantedAt", ended_at as "endedAt"`;

export async function readMachine(sql: Sql, id: string): Promise<MachineRow | null> {
  const [row] = await sql<MachineRow[]>`select ${columns(sql)} from machines where id = ${id}`;
  return row ?? null;
}

/** The one that is not over and stands, or will stand, behind a node. */
export async function machineOf(sql: Sql, node: NodeId): Promise<MachineRow | null> {
  const [row] = await sql<MachineRow[]>`
    select ${columns(sql)} from machines where node_id = ${node} and ended_at is null`;
  return row ?? null;
}

export interface Listing {
  /** Only those that are not over. */
  readonly open: boolean;
  readonly limit: number;
  /** The last one of the page before. */
  readonly after?: { readonly at: string; readonly id: string } | undefined;
}

/** Newest first; one more than `limit` where there is another page. */
export function listMachines(sql: Sql, { open, limit, after }: Listing): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    select ${columns(sql)} from machines where true
      ${open ? sql`and ended_at is null` : sql``}
      ${after ? sql`and (wanted_at, id) < (${after.at}, ${after.id})` : sql``}
    order by wanted_at desc, id desc limit ${limit + 1}`;
}

/** Those with something to do now. */
export function dueMachines(sql: Sql, now: number, limit: number): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    select ${columns(sql)} from machines
    where ended_at is null and next_try_at <= ${new Date(now)} order by next_try_at limit ${limit}`;
}

/** When one has something to do next; null where none has. */
export async function nextDue(sql: Sql): Promise<number | null> {
  const [row] = await sql<{ at: string | null }[]>`
    select min(next_try_at) as at from machines where ended_at is null and next_try_at < ${PARKED}`;
  return row?.at == null ? null : Date.parse(row.at);
}

/** Parked ones whose node has left the fleet meanwhile. */
export async function wakeRetired(sql: Sql, now: number): Promise<number> {
  const rows = await sql`
    update machines m set next_try_at = ${new Date(now)} from nodes n
    where n.id = m.node_id and n.state = 'retired' and m.state = 'serving' and m.next_try_at = ${PARKED}
    returning m.id`;
  return rows.length;
}

export interface Wish {
  readonly region: RegionId;
  readonly growth: Growth;
  readonly reason: string;
  readonly wantedBy: string;
  readonly replaces?: NodeId;
}

/** Until the transaction ends nobody else wishes for a machine. */
export async function lockWishes({ sql }: Tx): Promise<void> {
  await sql`select pg_advisory_xact_lock(${WISHES_LOCK})`;
}

/** Writes a wish down. Under `lockWishes`. @param id where it is to be a certain one */
export async function insertWish(
  tx: Tx,
  audit: Audit,
  wish: Wish,
  now: number,
  id = uuidv7(now),
): Promise<string> {
  const { sql } = tx;
  const { region, growth, reason, wantedBy, replaces } = wish;
  const node = await freshName(sql, region);
  const at = new Date(now);
  await sql`
    insert into machines (id, region_id, node_id, provider, growth, state, reason, wanted_by, replaces, next_try_at,
                          since, wanted_at)
    values (${id}, ${region}, ${node}, ${growth.provider}, ${sql.json({ ...growth })}, 'wanted', ${reason},
            ${wantedBy}, ${replaces ?? null}, ${at}, ${at}, ${at})`;
  const detail = { region, node, provider: growth.provider, reason, replaces: replaces ?? null };
  await audit.record(tx, [{ actor: wantedBy, action: 'machine.wanted', subject: `machine:${id}`, detail }]);
  return id;
}

/** `<region>-m<n>`, n above every one that was ever given, or is the name of a node or in a join token. */
async function freshName(sql: Sql, region: RegionId): Promise<string> {
  const [row] = await sql<{ last: number }[]>`
    select coalesce(max(substring(id from ${`^${region}-m(\\d{1,6})$`})::int), 0) as last
    from (select node_id as id from machines where region_id = ${region}
          union all select id from nodes where starts_with(id, ${`${region}-m`})
          union all select node_id from join_tokens where starts_with(node_id, ${`${region}-m`})) named`;
  return `${region}-m${(row?.last ?? 0) + 1}`;
}

export interface Move {
  readonly to: MachineState;
  readonly action?: AuditAction;
  readonly actor?: string;
  readonly detail?: Readonly<Record<string, unknown>>;
  /** Unchanged where absent. */
  readonly problem?: string | null;
  readonly ref?: string;
  readonly address?: string;
}

/**
 * Takes a machine from the state it was read in to the next one.
 * @returns false where it is in another one by now, and nothing was changed
 */
export async function move(
  tx: Tx,
  audit: Audit,
  machine: MachineRow,
  step: Move,
  now: number,
): Promise<boolean> {
  const { sql } = tx;
  const at = new Date(now);
  const over = step.to === 'gone' || step.to === 'failed';
  const rows = await sql`
    update machines set state = ${step.to}, since = ${at}, tries = 0, next_try_at = ${at},
      problem = ${step.problem === undefined ? machine.problem : step.problem},
      ref = coalesce(${step.ref ?? null}, ref), address = coalesce(${step.address ?? null}, address),
      ended_at = ${over ? at : null}
    where id = ${machine.id} and state = ${machine.state} and ended_at is null returning id`;
  if (rows.length === 0) return false;
  if (step.action === undefined) return true;
  const detail = { node: machine.node, ...step.detail };
  const { actor = 'system', action } = step;
  await audit.record(tx, [{ actor, action, subject: `machine:${machine.id}`, detail }]);
  return true;
}

/** Has a machine looked at again later, in the state it is in. */
export async function postpone(sql: Sql, machine: MachineRow, until: Date): Promise<void> {
  await sql`
    update machines set next_try_at = ${until} where id = ${machine.id} and state = ${machine.state}`;
}

/** Notes that a step failed. A code that ends the machine is not replaced by one of clearing up after it. */
export async function noteFailure(
  sql: Sql,
  machine: MachineRow,
  problem: string,
  until: Date,
): Promise<void> {
  await sql`
    update machines set tries = tries + 1, problem = ${problem}, next_try_at = ${until}
    where id = ${machine.id} and state = ${machine.state}`;
}

/** What a machine needs to know of a node; null where there is none of that name. */
export async function readNode(
  sql: Sql,
  node: NodeId,
): Promise<{ state: NodeState; peers: number; health: string } | null> {
  const [row] = await sql<{ state: NodeState; peers: number; health: string }[]>`
    select n.state, n.peer_count as peers, coalesce(h.state, 'ok') as health
    from nodes n left join node_health h on h.node_id = n.id where n.id = ${node}`;
  return row ?? null;
}

/** What the region's growth says of a machine becomes that of its node. */
export async function describeNode(sql: Sql, { node, provider, growth }: MachineRow): Promise<void> {
  await sql`
    update nodes set provider = ${provider}, capacity = ${growth.capacity},
      bandwidth_mbit = coalesce(${growth.bandwidthMbit}, bandwidth_mbit)
    where id = ${node}`;
}

/** Nobody joins by them any more. */
export async function endTokens(sql: Sql, node: NodeId, now: number): Promise<void> {
  await sql`
    update join_tokens set expires_at = ${new Date(now)}
    where node_id = ${node} and used_at is null and expires_at > ${new Date(now)}`;
}

/** How many there are in each state that is not the end, and since when. */
export function countMachines(sql: Sql): Promise<{ state: MachineState; count: number; oldest: string }[]> {
  return sql`
    select state, count(*)::int as count, min(since) as oldest from machines where ended_at is null group by state`;
}

/** Of one provider, all that are not over. */
export function openOf(sql: Sql, provider: ProviderName): Promise<MachineRow[]> {
  return sql<MachineRow[]>`
    select ${columns(sql)} from machines where provider = ${provider} and ended_at is null`;
}
