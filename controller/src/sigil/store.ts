/** SQL of subscriptions and Sigils. */
import type { Jkt } from '@katafract/shared/dpop';
import { BINDINGS_NAMED, type Tier } from '@katafract/shared/sigil';
import { and, desc, eq, isNull, lt, ne, sql } from 'drizzle-orm';
import type { Database, Tx } from '../platform/db.ts';
import type { BindingFacts, SigilState, SubscriptionState } from './rules.ts';
import { devices, sigils, subscriptions } from './tables.ts';

export type SigilRow = typeof sigils.$inferSelect;
export type DeviceRow = typeof devices.$inferSelect;

const stateOf = (row: { tier: Tier; expiresAt: Date; revokedAt: Date | null }): SubscriptionState => ({
  tier: row.tier,
  expiresAt: row.expiresAt.getTime(),
  revoked: row.revokedAt !== null,
});

interface StateRow {
  hash: string;
  sigilId: string;
  subscriptionId: string;
  expiresAt: number;
  revoked: boolean;
  device: Jkt | null;
  tier: Tier;
  subscriptionExpiresAt: number;
  subscriptionRevoked: boolean;
}

/**
 * Looks Sigils up by the hash of their token, however many requests are waiting in one statement: a look-up that
 * arrives while another is under way joins the next one. Each therefore sees what was committed before it was asked.
 */
export function sigilLookup(db: Database): (hash: string) => Promise<SigilState | null> {
  type Waiting = { resolve: (state: SigilState | null) => void; reject: (error: unknown) => void };
  let waiting = new Map<string, Waiting[]>();
  let busy = false;

  async function drain(): Promise<void> {
    busy = true;
    while (waiting.size > 0) {
      const batch = waiting;
      waiting = new Map();
      try {
        const found = await readStates(db, [...batch.keys()]);
        for (const [hash, callers] of batch)
          for (const { resolve } of callers) resolve(found.get(hash) ?? null);
      } catch (error) {
        for (const callers of batch.values()) for (const { reject } of callers) reject(error);
      }
    }
    busy = false;
  }

  return (hash) =>
    new Promise((resolve, reject) => {
      waiting.set(hash, [...(waiting.get(hash) ?? []), { resolve, reject }]);
      if (!busy) void drain();
    });
}

async function readStates(db: Database, hashes: string[]): Promise<Map<string, SigilState>> {
  const rows = await db.sql<StateRow[]>`
    select s.token_hash as hash, s.id as "sigilId", s.subscription_id as "subscriptionId",
      (extract(epoch from s.expires_at) * 1000)::float8 as "expiresAt", s.revoked_at is not null as revoked,
      s.device,
      u.tier, (extract(epoch from u.expires_at) * 1000)::float8 as "subscriptionExpiresAt",
      u.revoked_at is not null as "subscriptionRevoked"
    from sigils s join subscriptions u on u.id = s.subscription_id
    where s.token_hash = any(${hashes})`;
  return new Map(
    rows.map(({ hash, tier, subscriptionExpiresAt, subscriptionRevoked, ...state }) => [
      hash,
      { ...state, subscription: { tier, expiresAt: subscriptionExpiresAt, revoked: subscriptionRevoked } },
    ]),
  );
}

/** Told to every controller when the end of a subscription has moved, for whoever waits for the next one. */
export const ENDS_CHANNEL = 'kf_ends';

export async function insertSubscription(
  { orm, sql }: Tx,
  row: { id: string; tier: Tier; expiresAt: number },
): Promise<void> {
  await orm.insert(subscriptions).values({ ...row, expiresAt: new Date(row.expiresAt) });
  await sql`select pg_notify(${ENDS_CHANNEL}, '')`;
}

/** Takes the row lock under which a subscription's Sigils and peers change. */
export async function lockSubscription(
  { orm }: Tx,
  id: string,
): Promise<(SubscriptionState & { peerCount: number }) | null> {
  const [row] = await orm.select().from(subscriptions).where(eq(subscriptions.id, id)).for('update');
  return row ? { ...stateOf(row), peerCount: row.peerCount } : null;
}

export async function changeSubscription(
  { orm, sql }: Tx,
  id: string,
  change: { tier: Tier; expiresAt: number },
): Promise<void> {
  await orm
    .update(subscriptions)
    .set({ tier: change.tier, expiresAt: new Date(change.expiresAt), lapsedAt: null })
    .where(eq(subscriptions.id, id));
  await sql`select pg_notify(${ENDS_CHANNEL}, '')`;
}

/** Revokes a subscription and every Sigil of it. */
export async function markSubscriptionRevoked({ orm }: Tx, id: string, at: Date): Promise<void> {
  await orm.update(subscriptions).set({ revokedAt: at }).where(eq(subscriptions.id, id));
  await orm
    .update(sigils)
    .set({ revokedAt: at })
    .where(and(eq(sigils.subscriptionId, id), isNull(sigils.revokedAt)));
}

export async function insertSigil({ orm }: Tx, row: typeof sigils.$inferInsert): Promise<void> {
  await orm.insert(sigils).values(row);
}

export async function findSigil({ orm }: Pick<Tx, 'orm'>, id: string): Promise<SigilRow | null> {
  const [row] = await orm.select().from(sigils).where(eq(sigils.id, id));
  return row ?? null;
}

export async function findByIdempotencyKey({ orm }: Pick<Tx, 'orm'>, key: string): Promise<SigilRow | null> {
  const [row] = await orm.select().from(sigils).where(eq(sigils.idempotencyKey, key));
  return row ?? null;
}

export async function markSigilRevoked({ orm }: Tx, id: string, at: Date): Promise<void> {
  await orm.update(sigils).set({ revokedAt: at }).where(eq(sigils.id, id));
}

/** Whether somebody can still act for a subscription: by a live Sigil for its bearer, or as a device that may claim. */
export async function isUsable({ sql }: Tx, subscriptionId: string, now: Date): Promise<boolean> {
  const [row] = await sql<{ usable: boolean }[]>`
    select exists (select from sigils where subscription_id = ${subscriptionId} and device is null
                   and revoked_at is null and expires_at > ${now})
        or exists (select from devices where subscription_id = ${subscriptionId} and revoked_at is null) as usable`;
  return row?.usable ?? false;
}

/** Newest first; one more than `limit`. */
export function listSigils(
  { orm }: Pick<Tx, 'orm'>,
  filter: { subscription?: string | undefined; before?: string | undefined; limit: number },
): Promise<SigilRow[]> {
  return orm
    .select()
    .from(sigils)
    .where(
      and(
        filter.subscription === undefined ? undefined : eq(sigils.subscriptionId, filter.subscription),
        filter.before === undefined ? undefined : lt(sigils.id, filter.before),
      ),
    )
    .orderBy(desc(sigils.id))
    .limit(filter.limit + 1);
}

export async function countPeers({ sql }: Pick<Tx, 'sql'>, subscriptionId: string): Promise<number> {
  const [row] = await sql<{ peerCount: number }[]>`
    select peer_count as "peerCount" from subscriptions where id = ${subscriptionId}`;
  return row?.peerCount ?? 0;
}

/** A device and those beside it; the caller holds the subscription's lock. */
export async function bindingFacts(
  { sql }: Tx,
  subscriptionId: string,
  jkt: Jkt,
): Promise<BindingFacts & { others: Jkt[] }> {
  const of = sql`from devices d where d.subscription_id = ${subscriptionId} and d.revoked_at is null`;
  const [row] = await sql<
    { known: boolean; revoked: boolean; bound: number; ahead: number; others: Jkt[] }[]
  >`
    select own.jkt is not null as known, own.revoked_at is not null as revoked,
      (select count(*)::int ${of}) as bound,
      (select count(*)::int ${of} and (d.bound_at, d.jkt) < (own.bound_at, own.jkt)) as ahead,
      array(select d.jkt ${of} and d.jkt <> ${jkt} order by d.bound_at desc, d.jkt limit ${BINDINGS_NAMED}) as others
    from (values (1)) one left join devices own on own.subscription_id = ${subscriptionId} and own.jkt = ${jkt}`;
  if (!row) return { own: null, bound: 0, ahead: 0, others: [] };
  const { known, revoked, ...facts } = row;
  return { ...facts, own: known ? { revoked } : null };
}

export async function insertDevice({ orm }: Tx, row: typeof devices.$inferInsert): Promise<void> {
  await orm.insert(devices).values(row);
}

const isDevice = (subscriptionId: string, jkt: Jkt) =>
  and(eq(devices.subscriptionId, subscriptionId), eq(devices.jkt, jkt), isNull(devices.revokedAt));

/** @returns whether it was bound */
export async function deleteDevice({ orm }: Tx, subscriptionId: string, jkt: Jkt): Promise<boolean> {
  return (await orm.delete(devices).where(isDevice(subscriptionId, jkt)).returning()).length > 0;
}

/** @returns whether it was bound */
export async function markDeviceRevoked(
  { orm }: Tx,
  subscriptionId: string,
  jkt: Jkt,
  at: Date,
): Promise<boolean> {
  const rows = await orm
    .update(devices)
    .set({ revokedAt: at })
    .where(isDevice(subscriptionId, jkt))
    .returning();
  return rows.length > 0;
}

/** Ends every Sigil of a device. */
export async function markDeviceSigilsRevoked(
  { orm }: Tx,
  subscriptionId: string,
  jkt: Jkt,
  at: Date,
): Promise<void> {
  await orm
    .update(sigils)
    .set({ revokedAt: at })
    .where(and(eq(sigils.subscriptionId, subscriptionId), eq(sigils.device, jkt), isNull(sigils.revokedAt)));
}

/** Forgets what a device has long exchanged, but for the one it may have to show again. */
export async function forgetExchanged(
  { orm }: Tx,
  device: { subscriptionId: string; jkt: Jkt },
  before: Date,
  keep: string | null,
): Promise<void> {
  await orm
    .delete(sigils)
    .where(
      and(
        eq(sigils.subscriptionId, device.subscriptionId),
        eq(sigils.device, device.jkt),
        lt(sigils.expiresAt, before),
        keep === null ? undefined : ne(sigils.id, keep),
      ),
    );
}

/** Forgets Sigils that ended before `before`, some at a time. @returns how many */
export async function forgetSigils({ sql }: Pick<Tx, 'sql'>, before: Date, limit: number): Promise<number> {
  const rows = await sql`
    delete from sigils where id in (
      select id from sigils where expires_at < ${before} limit ${limit} for update skip locked) returning 1`;
  return rows.length;
}

/** Devices that are bound, newest first. */
export function listDevices(
  { orm }: Pick<Tx, 'orm'>,
  subscriptionId: string,
  limit: number,
): Promise<DeviceRow[]> {
  return orm
    .select()
    .from(devices)
    .where(and(eq(devices.subscriptionId, subscriptionId), isNull(devices.revokedAt)))
    .orderBy(desc(devices.boundAt), devices.jkt)
    .limit(limit);
}

/** Every device, also those shut out, in order of thumbprint; one more than `limit`. */
export function pageDevices(
  { orm }: Pick<Tx, 'orm'>,
  subscriptionId: string,
  page: { after?: string | undefined; limit: number },
): Promise<DeviceRow[]> {
  const { after, limit } = page;
  return orm
    .select()
    .from(devices)
    .where(
      and(
        eq(devices.subscriptionId, subscriptionId),
        after === undefined ? undefined : sql`${devices.jkt} > ${after}`,
      ),
    )
    .orderBy(devices.jkt)
    .limit(limit + 1);
}
