/** Subscriptions (pseudonyms with a tier and an expiry) and the Sigils issued for them. No person appears here. */
import type { Tier } from '@katafract/shared/sigil';
import { index, integer, pgTable, text, timestamp, uuid } from 'drizzle-orm/pg-core';

const when = (name: string) => timestamp(name, { withTimezone: true });

export const subscriptions = pgTable('subscriptions', {
  /** The `sub` of every Sigil of this subscription. */
  id: uuid().primaryKey(),
  tier: text().$type<Tier>().notNull(),
  expiresAt: when('expires_at').notNull(),
  revokedAt: when('revoked_at'),
  /** Peers it has now; kept by the transactions that add and remove them, under this row's lock. */
  peerCount: integer('peer_count').notNull().default(0),
  createdAt: when('created_at').notNull().defaultNow(),
});

export const sigils = pgTable(
  'sigils',
  {
    /** The `jti`. */
    id: uuid().primaryKey(),
    subscriptionId: uuid('subscription_id')
      .notNull()
      .references(() => subscriptions.id),
    /** SHA-256 of the compact token, hex: the token itself is kept nowhere. */
    tokenHash: text('token_hash').notNull().unique(),
    expiresAt: when('expires_at').notNull(),
    revokedAt: when('revoked_at'),
    createdAt: when('created_at').notNull().defaultNow(),
  },
  (table) => [index('sigils_subscription').on(table.subscriptionId)],
);
