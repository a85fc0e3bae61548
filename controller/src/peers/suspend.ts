/**
 * What becomes of the peers of a subscription that lapses and may come back: they leave every exit, but are remembered
 * with key, address and region. If the subscription recovers, they return under the same addresses, so that a device
 * finds its tunnel as it left it; one whose address or key has gone to another meanwhile is forgotten.
 */
import type { AddressPlan } from '@katafract/shared/addresses';
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { NodeId, PeerId, PublicKey, RegionId } from '@katafract/shared/units';
import type { Audit } from '../audit/audit.ts';
import type { Fleet } from '../fleet/fleet.ts';
import type { AfterCommit, Sql, Tx } from '../platform/db.ts';
import { reclaimIndex, restIndexes } from './addresses.ts';
import { places, setRow } from './rows.ts';

export interface SuspendDeps {
  readonly fleet: Fleet;
  readonly audit: Audit;
  readonly plan: AddressPlan;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

interface SuspendedPeer {
  readonly id: PeerId;
  readonly publicKey: PublicKey;
  readonly addressIndex: number;
  readonly region: RegionId;
}

/** Remembers every peer of a subscription, in the transaction that then removes them. */
export async function remember(sql: Sql, subscriptionId: string, now: Date): Promise<void> {
  await sql`
    insert into suspended_peers
      (id, subscription_id, public_key, address_index, region_id, device, created_at, suspended_at)
    select id, subscription_id, public_key, address_index, region_id, device, created_at, ${now}
    from peers where subscription_id = ${subscriptionId}
    on conflict (id) do nothing`;
}

/** Forgets the suspended peers of a subscription, or of one device of it, for good. */
export async function forget(sql: Sql, subscriptionId: string, device?: string): Promise<void> {
  await sql`
    delete from suspended_peers where subscription_id = ${subscriptionId}
      ${device === undefined ? sql`` : sql`and device = ${device}`}`;
}

/** Forgets those that cannot come back, or have waited since before `before`. */
export async function forgetStale(sql: Sql, before: Date): Promise<number> {
  const rows = await sql`
    delete from suspended_peers p
    where suspended_at < ${before}
       or not exists (select 1 from resting_addresses r where r.address_index = p.address_index)
    returning 1`;
  return rows.length;
}

/**
 * Puts the suspended peers of a subscription back, under its row lock. Those whose region has no exit at the moment
 * stay remembered, and are tried again.
 * @returns what to run after the commit
 */
export async function resume(deps: SuspendDeps, tx: Tx, subscriptionId: string): Promise<AfterCommit> {
  const { fleet, audit } = deps;
  const now = new Date(deps.now());
  const [owner] = await tx.sql<{ tier: Tier; peerCount: number }[]>`
    select tier, peer_count as "peerCount" from subscriptions where id = ${subscriptionId} for update`;
  const waiting = await tx.sql<SuspendedPeer[]>`
    select id, public_key as "publicKey", address_index as "addressIndex", region_id as region
    from suspended_peers where subscription_id = ${subscriptionId} order by id for update`;
  if (!owner || waiting.length === 0) return () => undefined;
  const { devices, standbys } = TIERS[owner.tier];
  const room = Math.max(0, devices - owner.peerCount);
  const wanted = waiting.slice(0, room);
  const placed = fleet.roster.place(wanted.map(({ region }) => ({ region, standbys })));
  const done = new Set<PeerId>(waiting.slice(room).map(({ id }) => id));
  const back: { peer: SuspendedPeer; exits: NodeId[] }[] = [];
  for (const [at, peer] of wanted.entries()) {
    const exits = placed[at];
    if (!Array.isArray(exits)) continue;
    done.add(peer.id);
    if (await insert(tx.sql, peer, now)) back.push({ peer, exits });
  }
  await tx.sql`delete from suspended_peers where id = any(${[...done] as string[]}::uuid[])`;
  await tx.sql`update subscriptions set peer_count = peer_count + ${back.length} where id = ${subscriptionId}`;
  await audit.record(
    tx,
    back.map(({ peer: { id, ...detail }, exits }) => ({
      actor: 'system',
      action: 'peer.resumed',
      subject: `peer:${id}`,
      detail: { ...detail, exits },
    })),
  );
  const { announce } = await fleet.commit(
    tx,
    back.flatMap(({ peer, exits }) => places(exits).map((at) => setRow(deps.plan, peer, at))),
  );
  return announce;
}

/** @returns false where its address or its key has gone to another */
async function insert(sql: Sql, { id, addressIndex }: SuspendedPeer, now: Date): Promise<boolean> {
  if (!(await reclaimIndex(sql, addressIndex))) return false;
  const made = await sql`
    insert into peers (id, subscription_id, public_key, address_index, region_id, device, created_at, provisioned_at)
    select id, subscription_id, public_key, address_index, region_id, device, created_at, ${now}
    from suspended_peers where id = ${id}
    on conflict do nothing returning 1`;
  if (made.length > 0) return true;
  await restIndexes(sql, [addressIndex], now);
  return false;
}

/** Subscriptions that are valid while peers of theirs still wait, for want of an exit or by a renewal elsewhere. */
export async function waitingSubscriptions(sql: Sql, now: Date): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select distinct s.id from suspended_peers p join subscriptions s on s.id = p.subscription_id
    where s.lapsed_at is null and s.revoked_at is null and s.expires_at > ${now} limit 100`;
  return rows.map(({ id }) => id);
}
