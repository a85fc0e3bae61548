/** SQL of subscriptions and Sigils. */
import type { Tier } from '@katafract/shared/sigil';
import { and, desc, eq, gt, isNull, lt, lte } from 'drizzle-orm';
import type { Database, Tx } from '../platform/db.ts';
import type { SigilState, SubscriptionState } from './rules.ts';
import { sigils, subscriptions } from './tables.ts';

export type SigilRow = typeof sigils.$inferSelect;

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

export async function insertSubscription(
  { orm }: Tx,
  row: { id: string; tier: Tier; expiresAt: number },
): Promise<void> {
  await orm.insert(subscriptions).values({ ...row, expiresAt: new Date(row.expiresAt) });
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
  { orm }: Tx,
  id: string,
  change: { tier: Tier; expiresAt: number },
): Promise<void> {
  await orm
    .update(subscriptions)
    .set({ tier: change.tier, expiresAt: new Date(change.expiresAt), lapsedAt: null })
    .where(eq(subscriptions.id, id));
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

/** Whether a subscription has a Sigil that is neither revoked nor expired. */
export async function hasLiveSigil({ orm }: Tx, subscriptionId: string, now: Date): Promise<boolean> {
  const rows = await orm
    .select({ id: sigils.id })
    .from(sigils)
    .where(
      and(eq(sigils.subscriptionId, subscriptionId), isNull(sigils.revokedAt), gt(sigils.expiresAt, now)),
    )
    .limit(1);
  return rows.length > 0;
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

/** Subscriptions that ran out before `before` and were not dealt with yet, oldest first. */
export async function lapsedSubscriptions(
  { orm }: Pick<Tx, 'orm'>,
  before: Date,
  limit: number,
): Promise<string[]> {
  const rows = await orm
    .select({ id: subscriptions.id })
    .from(subscriptions)
    .where(
      and(
        lte(subscriptions.expiresAt, before),
        isNull(subscriptions.lapsedAt),
        isNull(subscriptions.revokedAt),
      ),
    )
    .orderBy(subscriptions.expiresAt)
    .limit(limit);
  return rows.map((row) => row.id);
}

export async function markLapsed({ orm }: Tx, id: string, at: Date): Promise<void> {
  await orm.update(subscriptions).set({ lapsedAt: at }).where(eq(subscriptions.id, id));
}

export async function countPeers({ sql }: Pick<Tx, 'sql'>, subscriptionId: string): Promise<number> {
  const [row] = await sql<{ peerCount: number }[]>`
    select peer_count as "peerCount" from subscriptions where id = ${subscriptionId}`;
  return row?.peerCount ?? 0;
}
