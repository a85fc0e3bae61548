/** SQL of entitlements, of the claims that open their subscriptions, and of vouchers. */
import type { Tier } from '@katafract/shared/sigil';
import type { Sql, Tx } from '../platform/db.ts';
import type { Entitlement, Source } from './rules.ts';
import type { StoreName } from './stores/port.ts';

export interface EntitlementRow extends Entitlement {
  readonly id: string;
  readonly source: Source;
  readonly reference: string;
  readonly subscriptionId: string | null;
}

const columns = (sql: Sql) => sql`
  id, source, reference, subscription_id as "subscriptionId", claim, tier, standing, renews, contested,
  (extract(epoch from expires_at) * 1000)::float8 as "expiresAt"`;

export async function findEntitlement(
  sql: Sql,
  source: Source,
  reference: string,
): Promise<EntitlementRow | null> {
  const [row] = await sql<EntitlementRow[]>`
    select ${columns(sql)} from entitlements where source = ${source} and reference = ${reference}`;
  return row ?? null;
}

/** All of a subscription. Whoever writes one holds the subscription's row lock. */
export function entitlementsOf(sql: Sql, subscriptionId: string): Promise<EntitlementRow[]> {
  return sql<EntitlementRow[]>`
    select ${columns(sql)} from entitlements where subscription_id = ${subscriptionId} order by id`;
}

export async function writeEntitlement(
  { sql }: Tx,
  row: EntitlementRow & { readonly live: boolean },
  now: Date,
): Promise<void> {
  await sql`
    insert into entitlements (id, source, reference, subscription_id, claim, tier, standing, renews, expires_at,
                              contested, live, read_at, created_at)
    values (${row.id}, ${row.source}, ${row.reference}, ${row.subscriptionId}, ${row.claim}, ${row.tier},
            ${row.standing}, ${row.renews}, ${new Date(row.expiresAt)}, ${row.contested}, ${row.live}, ${now}, ${now})
    on conflict (source, reference) do update set
      subscription_id = excluded.subscription_id, claim = excluded.claim, tier = excluded.tier,
      standing = excluded.standing, renews = excluded.renews, expires_at = excluded.expires_at,
      contested = excluded.contested, live = excluded.live, read_at = excluded.read_at`;
}

/** Entitlements that still count although their time is over, the longest over first. */
export function endedEntitlements(sql: Sql, now: Date, limit: number) {
  return sql<{ id: string; subscriptionId: string; source: Source; reference: string }[]>`
    select id, subscription_id as "subscriptionId", source, reference from entitlements
    where live and expires_at <= ${now} order by expires_at limit ${limit}`;
}

/** Under the subscription's lock. @returns whether it still counted */
export async function endEntitlement({ sql }: Tx, id: string, now: Date): Promise<boolean> {
  const rows = await sql`
    update entitlements set live = false where id = ${id} and live and expires_at <= ${now} returning 1`;
  return rows.length > 0;
}

/** When the next thing ends: an entitlement, or a subscription's grace. Milliseconds since the epoch. */
export async function nextEnd(sql: Sql, graceMs: number): Promise<number | null> {
  const [row] = await sql<{ at: number | null }[]>`
    select (extract(epoch from least(
      (select min(expires_at) from entitlements where live),
      (select min(expires_at) + ${graceMs} * interval '1 millisecond' from subscriptions
       where lapsed_at is null and revoked_at is null)
    )) * 1000)::float8 as at`;
  return row?.at ?? null;
}

/** References of a store that count at present, in order. */
export async function* liveReferences(
  database: { readonly sql: Sql },
  store: StoreName,
): AsyncIterable<string> {
  for (let after = ''; ; ) {
    const rows = await database.sql<{ reference: string }[]>`
      select reference from entitlements where source = ${store} and live and reference > ${after}
      order by reference limit 500`;
    for (const { reference } of rows) yield reference;
    const last = rows.at(-1);
    if (!last) return;
    after = last.reference;
  }
}

export interface SubscriptionRow {
  readonly tier: Tier;
  readonly expiresAt: number;
  readonly revoked: boolean;
  readonly lapsed: boolean;
  readonly peerCount: number;
}

/** Takes the row lock under which everything of a subscription changes. */
export async function lockSubscription({ sql }: Tx, id: string): Promise<SubscriptionRow | null> {
  const [row] = await sql<SubscriptionRow[]>`
    select tier, (extract(epoch from expires_at) * 1000)::float8 as "expiresAt", revoked_at is not null as revoked,
           lapsed_at is not null as lapsed, peer_count as "peerCount"
    from subscriptions where id = ${id} for update`;
  return row ?? null;
}

/** @param change.lapsedAt absent where that stays as it is */
export async function endSubscription(
  { sql }: Tx,
  id: string,
  { expiresAt, lapsedAt }: { expiresAt: Date; lapsedAt: Date | undefined },
): Promise<void> {
  await sql`
    update subscriptions set expires_at = ${expiresAt}, lapsed_at = coalesce(${lapsedAt ?? null}, lapsed_at)
    where id = ${id}`;
}

/** Subscriptions that ran out before `before` and were not dealt with yet, oldest first. */
export async function lapsedSubscriptions(sql: Sql, before: Date, limit: number): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select id from subscriptions
    where expires_at <= ${before} and lapsed_at is null and revoked_at is null
    order by expires_at limit ${limit}`;
  return rows.map(({ id }) => id);
}

/** Makes everything that may open a subscription for one claim take turns, for the rest of the transaction. */
export async function lockClaim({ sql }: Tx, claim: string): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtextextended(${claim}, 7261005))`;
}

export async function findClaim(sql: Sql, claim: string): Promise<string | null> {
  const [row] = await sql<{ id: string }[]>`select subscription_id as id from claims where claim = ${claim}`;
  return row?.id ?? null;
}

export async function insertClaim(
  { sql }: Tx,
  claim: string,
  subscriptionId: string,
  now: Date,
): Promise<void> {
  await sql`
    insert into claims (claim, subscription_id, created_at) values (${claim}, ${subscriptionId}, ${now})`;
}

export interface VoucherRow {
  readonly id: string;
  readonly tier: Tier;
  readonly days: number;
  readonly redeemBefore: number;
  readonly claim: string | null;
}

export async function lockVoucher({ sql }: Tx, codeHash: string): Promise<VoucherRow | null> {
  const [row] = await sql<VoucherRow[]>`
    select id, tier, days, (extract(epoch from redeem_before) * 1000)::float8 as "redeemBefore", claim
    from vouchers where code_hash = ${codeHash} for update`;
  return row ?? null;
}

export async function markRedeemed({ sql }: Tx, id: string, claim: string, now: Date): Promise<void> {
  await sql`update vouchers set claim = ${claim}, redeemed_at = ${now} where id = ${id}`;
}

export async function insertVouchers(
  { sql }: Tx,
  rows: readonly { id: string; codeHash: string }[],
  { tier, days, redeemBefore, now }: { tier: Tier; days: number; redeemBefore: Date; now: Date },
): Promise<void> {
  await sql`
    insert into vouchers (code_hash, id, tier, days, redeem_before, created_at)
    select v."codeHash", v.id, ${tier}, ${days}, ${redeemBefore}, ${now}
    from jsonb_to_recordset(${sql.json(rows as readonly object[] as never)}) as v(id uuid, "codeHash" text)`;
}
