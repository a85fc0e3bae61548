/** Subscriptions (pseudonyms with a tier and an expiry) and the Sigils issued for them. No person appears here. */
import type { Jkt } from '@katafract/shared/dpop';
import type { Tier } from '@katafract/shared/sigil';
import { sql } from 'drizzle-orm';
import { index, integer, pgTable, primaryKey, text, uuid } from 'drizzle-orm/pg-core';
import { when } from '../platform/columns.ts';

export const subscriptions = pgTable(
  'subscriptions',
  {
    /** The `sub` of every Sigil of this subscription. */
    id: uuid().primaryKey(),
    tier: text().$type<Tier>().notNull(),
    expiresAt: when('expires_at').notNull(),
    revokedAt: when('revoked_at'),
    /** When its peers were removed because it had run out; null again once it is renewed. */
    lapsedAt: when('lapsed_at'),
    /** Peers it has now; kept by the transactions that add and remove them, under this row's lock. */
    peerCount: integer('peer_count').notNull().default(0),
    createdAt: when('created_at').notNull().defaultNow(),
  },
  (table) => [
    index('subscriptions_lapsing')
      .on(table.expiresAt)
      .where(sql`${table.lapsedAt} is null and ${table.revokedAt} is null`),
  ],
);

/** Devices that may hold a Sigil of a subscription: a thumbprint of a random key, and nothing else of a device. */
export const devices = pgTable(
  'devices',
  {
    subscriptionId: uuid('subscription_id')
      .notNull()
      .references(() => subscriptions.id),
    /** RFC 7638. */
    jkt: text().$type<Jkt>().notNull(),
    boundAt: when('bound_at').notNull(),
    /** An operator shut it out; the row stays, so that it cannot be bound again. */
    revokedAt: when('revoked_at'),
  },
  (table) => [primaryKey({ columns: [table.subscriptionId, table.jkt] })],
);

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
    /** What it was signed by and said. Ed25519 is deterministic, so the same token can be made again from these. */
    kid: text().notNull(),
    tier: text().$type<Tier>().notNull(),
    issuer: text().notNull(),
    /** Thumbprint of the device it is bound to; null: whoever bears it. */
    device: text().$type<Jkt>(),
    /** The devices it names. */
    bindings: text().$type<Jkt>().array(),
    /** Whole seconds, as in the token. */
    issuedAt: when('issued_at').notNull(),
    expiresAt: when('expires_at').notNull(),
    revokedAt: when('revoked_at'),
    /** The operator and the Idempotency-Key that asked for it. */
    idempotencyKey: text('idempotency_key').unique(),
    /** SHA-256 of that request: the same key with another request is an error. */
    requestHash: text('request_hash'),
  },
  (table) => [
    index('sigils_subscription').on(table.subscriptionId, table.device),
    index('sigils_expiry').on(table.expiresAt),
  ],
);
