/** What operators do to regions and nodes, and the lists they and the apps read. */
import type { Region } from '@katafract/shared/api';
import { KatafractError } from '@katafract/shared/errors';
import type { Endpoint, NodeId } from '@katafract/shared/units';
import type { Heartbeat } from '@katafract/shared/uplink';
import type { Audit } from '../audit/audit.ts';
import type { Database } from '../platform/db.ts';
import type { Bus } from './bus.ts';
import type { Fleet } from './fleet.ts';
import { nodeUnknown } from './log.ts';
import type { RegionRow } from './roster.ts';

export interface OperationsDeps {
  readonly db: Database;
  readonly audit: Audit;
  readonly fleet: Fleet;
}

/** Every region with the exits that apps may use. */
export function regionList(fleet: Fleet): Region[] {
  return fleet.roster.regions().map(({ region, nodes, available }) => ({
    ...region,
    available,
    exits: nodes.map(({ id, endpoint, publicKey }) => ({ node: id, endpoint, publicKey })),
  }));
}

export async function putRegion(deps: OperationsDeps, region: RegionRow, operator: string): Promise<void> {
  const { id, name, country, latitude, longitude } = region;
  await deps.db.transaction(async (tx) => {
    await tx.sql`
      insert into regions (id, name, country, latitude, longitude)
      values (${id}, ${name}, ${country}, ${latitude}, ${longitude})
      on conflict (id) do update set name = excluded.name, country = excluded.country,
        latitude = excluded.latitude, longitude = excluded.longitude`;
    await deps.audit.record(tx, [
      {
        actor: `operator:${operator}`,
        action: 'region.changed',
        subject: `region:${id}`,
        detail: { ...region },
      },
    ]);
  });
  await deps.fleet.changed();
}

export interface NodeView {
  id: NodeId;
  region: RegionRow['id'];
  state: 'joining' | 'active' | 'cordoned' | 'retired';
  endpoint: Endpoint;
  publicKey: string;
  capacity: number;
  peers: number;
  connected: boolean;
  lineage: number;
  generation: number;
  applied: number;
  agentVersion: string | null;
  lastSeenAt: string | null;
  health: Heartbeat | null;
}

type StoredNode = Omit<NodeView, 'connected' | 'applied' | 'lineage' | 'generation'>;

export async function nodeList(deps: OperationsDeps, only?: NodeId): Promise<NodeView[]> {
  const { sql } = deps.db;
  const rows = await sql<StoredNode[]>`
    select n.id, n.region_id as region, n.state, n.endpoint, n.public_key as "publicKey", n.capacity,
           n.peer_count as peers, r.agent_version as "agentVersion", r.last_seen_at as "lastSeenAt", r.health
    from nodes n left join node_reports r on r.node_id = n.id
    ${only ? sql`where n.id = ${only}` : sql``} order by n.id`;
  return rows.map((row) => ({
    ...row,
    lastSeenAt: row.lastSeenAt === null ? null : new Date(row.lastSeenAt).toISOString(),
    ...deps.fleet.progress(row.id),
  }));
}

export interface NodeChange {
  state?: 'active' | 'cordoned' | undefined;
  capacity?: number | undefined;
  endpoint?: Endpoint | undefined;
  listenPort?: number | undefined;
  mtu?: number | undefined;
  allowShrink?: boolean | undefined;
}

/** @throws KatafractError `node_unknown` (404), `node_retired` (409) */
export async function changeNode(
  deps: OperationsDeps,
  node: NodeId,
  change: NodeChange,
  operator: string,
): Promise<NodeView> {
  const reconfigures = change.listenPort !== undefined || change.mtu !== undefined;
  await deps.db.transaction(async (tx) => {
    const [row] = await tx.sql<{ state: string }[]>`select state from nodes where id = ${node} for update`;
    if (!row) throw nodeUnknown(node);
    if (row.state === 'retired')
      throw new KatafractError('node_retired', `${node} is retired`, { status: 409 });
    await tx.sql`
      update nodes set
        state = coalesce(${change.state ?? null}, state),
        capacity = coalesce(${change.capacity ?? null}, capacity),
        endpoint = coalesce(${change.endpoint ?? null}, endpoint),
        listen_port = coalesce(${change.listenPort ?? null}, listen_port),
        mtu = coalesce(${change.mtu ?? null}, mtu),
        allow_shrink = coalesce(${change.allowShrink ?? null}, allow_shrink),
        generation = generation + ${reconfigures ? 1 : 0},
        config_generation = case when ${reconfigures} then generation + 1 else config_generation end
      where id = ${node}`;
    await deps.audit.record(tx, [
      {
        actor: `operator:${operator}`,
        action: 'node.changed',
        subject: `node:${node}`,
        detail: { ...change },
      },
    ]);
  });
  await deps.fleet.changed();
  const [view] = await nodeList(deps, node);
  if (!view) throw nodeUnknown(node);
  return view;
}

/** @throws KatafractError `node_unknown` (404), `node_has_peers` (409) */
export async function retireNode(
  deps: OperationsDeps & { bus: Pick<Bus, 'evict'> },
  node: NodeId,
  operator: string,
): Promise<void> {
  await deps.db.transaction(async (tx) => {
    const [row] = await tx.sql<{ peers: number }[]>`
      select peer_count as peers from nodes where id = ${node} for update`;
    if (!row) throw nodeUnknown(node);
    if (row.peers > 0) {
      throw new KatafractError('node_has_peers', `${node} still carries ${row.peers} peers`, { status: 409 });
    }
    await tx.sql`update nodes set state = 'retired', retired_at = now() where id = ${node} and state <> 'retired'`;
    await deps.audit.record(tx, [
      { actor: `operator:${operator}`, action: 'node.retired', subject: `node:${node}`, detail: {} },
    ]);
  });
  await deps.bus.evict(node);
  await deps.fleet.changed();
}
