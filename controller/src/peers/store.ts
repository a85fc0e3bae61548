/** Reads of peers with their placements, and the row changes that several operations share. */
import type { Jkt } from '@katafract/shared/dpop';
import type { Tier } from '@katafract/shared/sigil';
import type { Generation, NodeId, PeerId, PublicKey, RegionId } from '@katafract/shared/units';
import type { PlacementRole } from '../fleet/tables.ts';
import type { Sql } from '../platform/db.ts';

export interface PlacementRow {
  readonly node: NodeId;
  readonly role: PlacementRole;
  readonly rank: number;
  readonly generation: Generation;
  /** When a `leaving` one may let go. */
  readonly releaseAt?: string | null;
}

export interface PeerRow {
  readonly id: PeerId;
  readonly subscriptionId: string;
  readonly publicKey: PublicKey;
  readonly addressIndex: number;
  readonly region: RegionId;
  /** The device that asked for it. */
  readonly device: Jkt | null;
  readonly createdAt: string;
  readonly provisionedAt: string;
  /** In the order a device tries them; those it is leaving come last. */
  readonly placements: readonly PlacementRow[];
}

const columns = (sql: Sql) => sql`
  p.id, p.subscription_id as "subscriptionId", p.public_key as "publicKey", p.address_index as "addressIndex",
  p.region_id as region, p.device, p.created_at as "createdAt", p.provisioned_at as "provisionedAt",
  coalesce((
    select jsonb_agg(jsonb_build_object('node', x.node_id, 'role', x.role, 'rank', x.rank, 'generation', x.generation,
                                        'releaseAt', x.release_at)
                     order by x.rank, x.node_id)
    from placements x where x.peer_id = p.id), '[]') as placements`;

/** One peer, if it belongs to the subscription. */
export async function readPeer(sql: Sql, subscriptionId: string, id: PeerId): Promise<PeerRow | null> {
  const [row] = await sql<PeerRow[]>`
    select ${columns(sql)} from peers p where p.id = ${id} and p.subscription_id = ${subscriptionId}`;
  return row ?? null;
}

/** A page of a subscription's peers in id order; one more than `limit` says that there is another page. */
export async function listPeers(
  sql: Sql,
  subscriptionId: string,
  page: { after?: string | undefined; limit: number },
): Promise<PeerRow[]> {
  return sql<PeerRow[]>`
    select ${columns(sql)} from peers p
    where p.subscription_id = ${subscriptionId} ${page.after ? sql`and p.id > ${page.after}` : sql``}
    order by p.id limit ${page.limit + 1}`;
}

/**
 * Locks a subscription, then a peer of it. Every operation on peers takes its locks in this order (subscription,
 * peer, pool, nodes), so that none can deadlock with another.
 */
export async function lockPeer(sql: Sql, id: PeerId, subscriptionId: string | null): Promise<PeerRow | null> {
  const [owner] = await sql<{ id: string }[]>`
    select s.id from subscriptions s where s.id = (select subscription_id from peers where id = ${id}) for update`;
  if (!owner || (subscriptionId !== null && owner.id !== subscriptionId)) return null;
  const [locked] = await sql`select 1 from peers where id = ${id} for update`;
  return locked ? readPeer(sql, owner.id, id) : null;
}

/** Every peer of a subscription, or of one device of it, under the subscription's lock. */
export async function lockPeersOf(sql: Sql, subscriptionId: string, device?: Jkt): Promise<PeerRow[]> {
  await sql`select 1 from subscriptions where id = ${subscriptionId} for update`;
  return sql<PeerRow[]>`
    select ${columns(sql)} from peers p where p.subscription_id = ${subscriptionId}
      ${device === undefined ? sql`` : sql`and p.device = ${device}`} order by p.id for update of p`;
}

/**
 * Locks many peers at once: their subscriptions, then they themselves, each in id order, so that it keeps to the order
 * that lockPeer keeps to.
 * @returns those that are still there
 */
export async function lockPeers(sql: Sql, ids: readonly PeerId[]): Promise<(PeerRow & { tier: Tier })[]> {
  if (ids.length === 0) return [];
  const list = ids as readonly string[] as string[];
  const owners = await sql<{ id: string; tier: Tier }[]>`
    select id, tier from subscriptions
    where id in (select subscription_id from peers where id = any(${list}::uuid[])) order by id for update`;
  const tiers = new Map(owners.map(({ id, tier }) => [id, tier]));
  const rows = await sql<PeerRow[]>`
    select ${columns(sql)} from peers p where p.id = any(${list}::uuid[]) order by p.id for update of p`;
  return rows.map((row) => ({ ...row, tier: tiers.get(row.subscriptionId) ?? 'free' }));
}
