/**
 * SQL of the generation log: commit, head, delta, snapshot, lineage, sweep. The one idea of the design lives in
 * `commitChanges`.
 */
import type { NodeConfig, PeerTuple } from '@katafract/shared/desired';
import { EMPTY_DIGEST, entryDigest, xorDigest } from '@katafract/shared/digest';
import { KatafractError } from '@katafract/shared/errors';
import type { Haven } from '@katafract/shared/haven';
import type {
  Digest,
  Generation,
  Ipv4,
  Ipv6,
  Lineage,
  NodeId,
  PeerId,
  PublicKey,
} from '@katafract/shared/units';
import type { Upkeep } from '@katafract/shared/upkeep';
import { bitsToDigest, digestToBits } from '../platform/columns.ts';
import type { Sql, Tx } from '../platform/db.ts';
import type { Advance, Update } from './changes.ts';
import type { ReportRow } from './reports.ts';
import type { Head } from './rules.ts';
import type { PlacementRole } from './tables.ts';

/** One row of a node's table to be set, or to be taken away and left as a tombstone. */
export interface RowChange {
  readonly node: NodeId;
  readonly publicKey: PublicKey;
  readonly ipv4: Ipv4;
  readonly ipv6: Ipv6;
  /** Null takes the row away. */
  readonly peer: PeerId | null;
  readonly role: PlacementRole;
  readonly rank: number;
}

/** What one transaction does to one node's table. */
interface Step {
  digest: Digest;
  count: number;
  readonly set: PeerTuple[];
  readonly del: PublicKey[];
}

function stepsByNode(changes: readonly RowChange[]): Map<NodeId, Step> {
  const steps = new Map<NodeId, Step>();
  for (const change of changes) {
    const step = steps.get(change.node) ?? { digest: EMPTY_DIGEST, count: 0, set: [], del: [] };
    steps.set(change.node, step);
    step.digest = xorDigest(step.digest, entryDigest(change));
    step.count += change.peer === null ? -1 : 1;
    if (change.peer === null) step.del.push(change.publicKey);
    else step.set.push([change.publicKey, change.ipv4, change.ipv6]);
  }
  return steps;
}

/**
 * Commits changes of nodes' tables inside a transaction: locks the nodes in id order, raises each one's generation by
 * one, stamps the touched rows with it and folds them into the set digest, in one statement. The row lock makes commit
 * order equal generation order. A caller changes a key at most once per node, and only rows that are really there (to
 * remove) or really absent (to set): the digest is a fold of changes, never a recount.
 */
export async function commitChanges({ sql }: Tx, changes: readonly RowChange[]): Promise<Advance[]> {
  if (changes.length === 0) return [];
  const steps = stepsByNode(changes);
  const nodes = [...steps].map(([id, { digest, count }]) => ({ id, fold: digestToBits(digest), count }));
  const [, bumped] = await Promise.all([
    sql`select 1 from nodes where id = any(${[...steps.keys()] as string[]}::text[]) order by id for update`,
    sql<{ id: NodeId; lineage: Lineage; generation: Generation; digest: string; peerCount: number }[]>`
      with change as (
        select * from jsonb_to_recordset(${sql.json(nodes)}) as c(id text, fold text, count int)
      ), bumped as (
        update nodes n
        set generation = n.generation + 1,
            digest = n.digest # change.fold::bit(128),
            peer_count = n.peer_count + change.count
        from change where n.id = change.id
        returning n.id, n.lineage, n.generation, n.digest, n.peer_count
      ), stamped as (
        insert into placements (node_id, public_key, peer_id, ipv4, ipv6, role, rank, generation, removed)
        select r.node, r."publicKey", r.peer, r.ipv4, r.ipv6, r.role, r.rank, bumped.generation, r.peer is null
        from jsonb_to_recordset(${sql.json(changes as readonly object[] as never)}) as r(
          node text, "publicKey" text, peer uuid, ipv4 text, ipv6 text, role text, rank int)
        join bumped on bumped.id = r.node
        on conflict (node_id, public_key) do update set
          peer_id = excluded.peer_id, ipv4 = excluded.ipv4, ipv6 = excluded.ipv6, role = excluded.role,
          rank = excluded.rank, generation = excluded.generation, removed = excluded.removed, release_at = null
      )
      select id, lineage::float8, generation::float8, digest::text, peer_count as "peerCount" from bumped`,
  ]);
  return bumped.map(({ id, lineage, generation, digest, peerCount }) => {
    const { set, del } = steps.get(id) as Step;
    const from = (generation - 1) as Generation;
    return { node: id, lineage, from, to: generation, digest: bitsToDigest(digest), peerCount, set, del };
  });
}

interface HeadRow {
  lineage: Lineage;
  generation: Generation;
  digest: string;
  swept: Generation;
  allowShrink: boolean;
  configGeneration: number;
  listenPort: number;
  tunnels: number;
  mtu: number;
  upkeep: Upkeep | null;
}
/** Settings of a node's region that are part of its config. */
export interface RegionConfig {
  readonly haven: Haven | null;
  readonly sshFromMesh: boolean;
}
interface LogRow extends HeadRow {
  /** In one row of the answer only: a table of 50,000 rows must not carry it 50,000 times. */
  region: RegionConfig | null;
  publicKey: PublicKey | null;
  ipv4: Ipv4;
  ipv6: Ipv6;
  removed: boolean;
}

/** Where a node's config comes from besides its rows: the fleet's address plan. */
export type ConfigOf = (
  row: Pick<HeadRow, 'listenPort' | 'tunnels' | 'mtu' | 'upkeep'>,
  region: RegionConfig,
) => NodeConfig;

const regionColumn = (sql: Sql) => sql`
  case when row_number() over () = 1 then (
    select jsonb_build_object('haven', r.haven, 'sshFromMesh', r.ssh_from_mesh) from regions r where r.id = n.region_id
  ) end as region`;

function regionOf(rows: readonly LogRow[]): RegionConfig {
  const found = rows.find(({ region }) => region !== null)?.region;
  if (!found) throw new Error('a node is in a region');
  return found;
}

const headColumns = (sql: Sql) => sql`
  n.lineage::float8, n.generation::float8, n.digest::text, n.swept_generation::float8 as swept,
  (n.allow_shrink or n.state in ('draining', 'drained')) as "allowShrink", n.config_generation::float8 as "configGeneration",
  n.listen_port as "listenPort", n.tunnels, n.mtu, n.upkeep`;

function toHead({ lineage, generation, digest, swept }: HeadRow): Head {
  return { lineage, generation, digest: bitsToDigest(digest), swept };
}

export async function readHead(sql: Sql, node: NodeId): Promise<Head | null> {
  const [row] = await sql<HeadRow[]>`select ${headColumns(sql)} from nodes n where n.id = ${node}`;
  return row ? toHead(row) : null;
}

/** @param only these nodes; otherwise all */
export async function readHeads(sql: Sql, only?: readonly NodeId[]): Promise<Map<NodeId, Head>> {
  const rows = await sql<(HeadRow & { id: NodeId })[]>`
    select n.id, ${headColumns(sql)} from nodes n ${only ? sql`where n.id = any(${names(only)}::text[])` : sql``}`;
  return new Map(rows.map((row) => [row.id, toHead(row)]));
}

const names = (nodes: readonly NodeId[]) => nodes as readonly string[] as string[];

/** What these nodes' kernels were last known to have. */
export async function readApplied(sql: Sql, nodes: readonly NodeId[]): Promise<Map<NodeId, ReportRow>> {
  if (nodes.length === 0) return new Map();
  const rows = await sql<ReportRow[]>`
    select node_id as node, applied_lineage::float8 as lineage, applied_generation::float8 as generation
    from node_reports where node_id = any(${names(nodes)}::text[])`;
  return new Map(rows.map((row) => [row.node, row]));
}

/**
 * Everything after `from`, in one statement and so in one consistent view; null where tombstones of that range are
 * swept already, or the node is unknown.
 */
export async function readDelta(
  sql: Sql,
  node: NodeId,
  from: Generation,
  config: ConfigOf,
): Promise<Update | null> {
  const rows = await sql<LogRow[]>`
    select ${headColumns(sql)}, ${regionColumn(sql)}, p.public_key as "publicKey", p.ipv4, p.ipv6, p.removed
    from nodes n left join placements p on p.node_id = n.id and p.generation > ${from}
    where n.id = ${node}`;
  const [head] = rows;
  if (!head || from < head.swept) return null;
  const present = rows.filter((row) => row.publicKey !== null);
  return {
    kind: 'delta',
    node,
    ...toHead(head),
    from,
    to: head.generation,
    set: present.filter((row) => !row.removed).map(toTuple),
    del: present.filter((row) => row.removed).map((row) => row.publicKey as PublicKey),
    ...(head.configGeneration > from ? { config: config(head, regionOf(rows)) } : {}),
  };
}

/**
 * The whole table, in one statement. It may shrink the node's where an operator said so, where the node is being
 * emptied, and where tombstones that the node has not passed account for it, as after it was down and its peers were
 * given other exits: then this database knows each row that goes, which one that lost history does not.
 * @throws KatafractError `node_unknown` (404)
 */
export async function readSnapshot(sql: Sql, node: NodeId, config: ConfigOf): Promise<Update> {
  const rows = await sql<(LogRow & { tombstones: number })[]>`
    select ${headColumns(sql)}, ${regionColumn(sql)}, p.public_key as "publicKey", p.ipv4, p.ipv6, p.removed,
           gone.tombstones
    from nodes n left join placements p on p.node_id = n.id and not p.removed
    cross join (select count(*)::int as tombstones from placements where node_id = ${node} and removed) gone
    where n.id = ${node}`;
  const [head] = rows;
  if (!head) throw nodeUnknown(node);
  const present = rows.filter((row) => row.publicKey !== null);
  return {
    kind: 'snapshot',
    node,
    ...toHead(head),
    from: 0 as Generation,
    to: head.generation,
    set: present.map(toTuple),
    del: [],
    config: config(head, regionOf(rows)),
    allowShrink: head.allowShrink || head.tombstones >= Math.max(1, present.length),
  };
}

function toTuple(row: LogRow): PeerTuple {
  return [row.publicKey as PublicKey, row.ipv4, row.ipv6];
}

export function nodeUnknown(node: string): KatafractError {
  return new KatafractError('node_unknown', `no such node: ${node}`, { status: 404 });
}

/** Starts a new history of one node, above everything anyone holds of it. */
export async function raiseLineage(sql: Sql, node: NodeId, above: Lineage): Promise<Head> {
  const [row] = await sql<HeadRow[]>`
    update nodes n set lineage = greatest(n.lineage, ${above}) + 1 where n.id = ${node}
    returning ${headColumns(sql)}`;
  if (!row) throw nodeUnknown(node);
  return toHead(row);
}

/** Takes tombstones away that their node has passed; from then on whoever holds less gets a snapshot. */
export async function sweepTombstones(sql: Sql): Promise<number> {
  const rows = await sql<{ count: number }[]>`
    with passed as (
      select n.id, n.swept_generation as beyond, r.applied_generation as upto
      from nodes n join node_reports r on r.node_id = n.id and r.applied_lineage = n.lineage
      where r.applied_generation > n.swept_generation order by n.id for update of n
    ), gone as (
      delete from placements p using passed
      where p.node_id = passed.id and p.removed and p.generation > passed.beyond and p.generation <= passed.upto
      returning 1
    ), marked as (
      update nodes n set swept_generation = passed.upto from passed where n.id = passed.id
    )
    select count(*)::int as count from gone`;
  return rows[0]?.count ?? 0;
}
