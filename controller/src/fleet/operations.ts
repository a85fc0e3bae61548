/** What operators do to regions and nodes, and the lists they and the apps read. */
import { portOf } from '@katafract/shared/addresses';
import type { Region } from '@katafract/shared/api';
import { KatafractError } from '@katafract/shared/errors';
import type { Endpoint, NodeId } from '@katafract/shared/units';
import type { Heartbeat } from '@katafract/shared/uplink';
import { type Audit, actorOf } from '../audit/audit.ts';
import type { Database } from '../platform/db.ts';
import type { Bus } from './bus.ts';
import { checkPorts } from './enrollment.ts';
import type { Fleet } from './fleet.ts';
import type { HealthReason, HealthState } from './health.ts';
import { nodeUnknown } from './log.ts';
import type { RegionRow } from './roster.ts';
import type { NodeState } from './tables.ts';

export interface OperationsDeps {
  readonly db: Database;
  readonly audit: Audit;
  readonly fleet: Fleet;
}

export interface RetireDeps extends OperationsDeps {
  readonly bus: Pick<Bus, 'evict'>;
}

/** Every region with the exits that apps may use. */
export function regionList(fleet: Fleet): Region[] {
  return fleet.roster.regions().map(({ region, nodes, available }) => ({
    ...region,
    available,
    exits: nodes
      .filter(({ state }) => state !== 'drained')
      .map(({ id, endpoint, publicKey, state }) => ({
        node: id,
        endpoint,
        publicKey,
        ...(state === 'draining' ? { draining: true as const } : {}),
      })),
  }));
}

export interface NodeView {
  id: NodeId;
  region: RegionRow['id'];
  /** In a word: its life, or `suspect` or `down` where it should be serving and is not well. */
  state: NodeState | 'suspect' | 'down';
  lifecycle: NodeState;
  condition: { state: HealthState; reason: HealthReason; since: string } | null;
  provider: string | null;
  bandwidthMbit: number | null;
  endpoint: Endpoint;
  tunnels: number;
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

type StoredNode = Omit<NodeView, 'state' | 'connected' | 'applied' | 'lineage' | 'generation'>;

/** One word for people: a node that is gone or was never there is that first, then one that is down. */
export function inAWord(lifecycle: NodeState, health: HealthState | undefined): NodeView['state'] {
  const serves = lifecycle === 'active' || lifecycle === 'cordoned' || lifecycle === 'draining';
  if (!serves || health === undefined || health === 'ok') return lifecycle;
  return health === 'down' || lifecycle === 'active' ? health : lifecycle;
}

export async function nodeList(deps: OperationsDeps, only?: NodeId): Promise<NodeView[]> {
  const { sql } = deps.db;
  const rows = await sql<StoredNode[]>`
    select n.id, n.region_id as region, n.state as lifecycle, n.endpoint, n.tunnels, n.public_key as "publicKey", n.capacity,
           n.provider, n.bandwidth_mbit as "bandwidthMbit", n.peer_count as peers,
           r.agent_version as "agentVersion", r.last_seen_at as "lastSeenAt", r.health,
           case when h.state is null then null
                else jsonb_build_object('state', h.state, 'reason', h.reason, 'since', h.since) end as condition
    from nodes n left join node_reports r on r.node_id = n.id left join node_health h on h.node_id = n.id
    ${only ? sql`where n.id = ${only}` : sql``} order by n.id`;
  return rows.map((row) => ({
    ...row,
    state: inAWord(row.lifecycle, row.condition?.state),
    condition: row.condition && { ...row.condition, since: new Date(row.condition.since).toISOString() },
    lastSeenAt: row.lastSeenAt === null ? null : new Date(row.lastSeenAt).toISOString(),
    ...deps.fleet.progress(row.id),
  }));
}

export interface NodeChange {
  state?: 'active' | 'cordoned' | undefined;
  capacity?: number | undefined;
  bandwidthMbit?: number | undefined;
  provider?: string | undefined;
  endpoint?: Endpoint | undefined;
  listenPort?: number | undefined;
  mtu?: number | undefined;
  allowShrink?: boolean | undefined;
}

/**
 * @throws KatafractError `node_unknown` (404), `node_retired` (409), `node_draining` (409) for another state then,
 * `ports_out_of_range` (422)
 */
export async function changeNode(
  deps: OperationsDeps,
  node: NodeId,
  change: NodeChange,
  operator: string,
): Promise<NodeView> {
  const reconfigures = change.listenPort !== undefined || change.mtu !== undefined;
  await deps.db.transaction(async (tx) => {
    const [row] = await tx.sql<{ state: string; tunnels: number }[]>`
      select state, tunnels from nodes where id = ${node} for update`;
    if (!row) throw nodeUnknown(node);
    if (change.listenPort !== undefined) checkPorts(change.listenPort, row.tunnels);
    if (change.endpoint !== undefined) checkPorts(portOf(change.endpoint), row.tunnels);
    if (row.state === 'retired')
      throw new KatafractError('node_retired', `${node} is retired`, { status: 409 });
    if (row.state === 'draining' && change.state !== undefined)
      throw new KatafractError('node_draining', `${node} is being drained`, { status: 409 });
    await tx.sql`
      update nodes set
        state = coalesce(${change.state ?? null}, state),
        capacity = coalesce(${change.capacity ?? null}, capacity),
        bandwidth_mbit = coalesce(${change.bandwidthMbit ?? null}, bandwidth_mbit),
        provider = coalesce(${change.provider ?? null}, provider),
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
  await deps.fleet.changed([node]);
  const [view] = await nodeList(deps, node);
  if (!view) throw nodeUnknown(node);
  return view;
}

/**
 * @param operator null where the system itself wants it
 * @throws KatafractError `node_unknown` (404), `node_has_peers` (409)
 */
export async function retireNode(deps: RetireDeps, node: NodeId, operator: string | null): Promise<void> {
  await deps.db.transaction(async (tx) => {
    const [row] = await tx.sql<{ peers: number }[]>`
      select peer_count as peers from nodes where id = ${node} for update`;
    if (!row) throw nodeUnknown(node);
    if (row.peers > 0) {
      throw new KatafractError('node_has_peers', `${node} still carries ${row.peers} peers`, { status: 409 });
    }
    await tx.sql`
      update drains set state = 'done', ended_at = now() where node_id = ${node} and state in ('running', 'paused')`;
    await tx.sql`update nodes set state = 'retired', retired_at = now() where id = ${node} and state <> 'retired'`;
    await deps.audit.record(tx, [
      { actor: actorOf(operator), action: 'node.retired', subject: `node:${node}`, detail: {} },
    ]);
  });
  await deps.bus.evict(node);
  await deps.fleet.changed([node]);
}
