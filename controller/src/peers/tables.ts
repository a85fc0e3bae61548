/** Peers and the pool their addresses come from. Where they are placed is in fleet/tables.ts. */
import type { Jkt } from '@katafract/shared/dpop';
import type { PeerId, PublicKey, RegionId } from '@katafract/shared/units';
import { index, integer, pgTable, primaryKey, text, uuid } from 'drizzle-orm/pg-core';
import { regions } from '../fleet/tables.ts';
import { when } from '../platform/columns.ts';
import { subscriptions } from '../sigil/tables.ts';

export const peers = pgTable(
  'peers',
  {
    id: uuid().$type<PeerId>().primaryKey(),
    /**
     * Of `subscriptions`, which are never deleted. No foreign key: every insert happens under the lock of that very
     * row, so a check would find nothing, and it was measured to take 0.15 ms a peer.
     */
    subscriptionId: uuid('subscription_id').notNull(),
    publicKey: text('public_key').$type<PublicKey>().notNull().unique(),
    /** Index in the address pool: both addresses follow from it. */
    addressIndex: integer('address_index').notNull().unique(),
    regionId: text('region_id')
      .$type<RegionId>()
      .notNull()
      .references(() => regions.id),
    /** The device that asked for it: its peers go with it. Null where the Sigil was bound to none. */
    device: text().$type<Jkt>(),
    createdAt: when('created_at').notNull().defaultNow(),
    provisionedAt: when('provisioned_at').notNull().defaultNow(),
  },
  (table) => [index('peers_subscription').on(table.subscriptionId, table.id)],
);

/** One row: how many of the pool's draws were made. Making the next one is a single-row update. */
export const addressPool = pgTable('address_pool', {
  id: integer().primaryKey(),
  drawn: integer().notNull(),
  /** Indexes below were given out one after the other, before draws spread them over the pool. */
  sequentialUntil: integer('sequential_until').notNull(),
  /** What draws are counted in; null until a controller that draws has started. */
  prefix4: integer(),
});

/** Freed indexes, resting before they may be reused; the oldest comes first. */
export const restingAddresses = pgTable(
  'resting_addresses',
  { addressIndex: integer('address_index').primaryKey(), releasedAt: when('released_at').notNull() },
  (table) => [index('resting_addresses_released').on(table.releasedAt)],
);

/** What an Idempotency-Key already made. Written in the transaction that made it. */
export const idempotencyKeys = pgTable(
  'idempotency_keys',
  {
    /** Who sent it: a subscription or an operator. */
    scope: text().notNull(),
    key: text().notNull(),
    /** SHA-256 of the request; the same key with another request is an error. */
    requestHash: text('request_hash').notNull(),
    resourceId: uuid('resource_id').notNull(),
    createdAt: when('created_at').notNull().defaultNow(),
  },
  (table) => [
    primaryKey({ columns: [table.scope, table.key] }),
    index('idempotency_keys_created').on(table.createdAt),
  ],
);

/** Peers of subscriptions that lapsed: on no exit, and back under the same addresses if the subscription recovers. */
export const suspendedPeers = pgTable(
  'suspended_peers',
  {
    id: uuid().$type<PeerId>().primaryKey(),
    subscriptionId: uuid('subscription_id')
      .notNull()
      .references(() => subscriptions.id),
    publicKey: text('public_key').$type<PublicKey>().notNull(),
    /** Rests, and is taken back from there; gone once another peer got it. */
    addressIndex: integer('address_index').notNull(),
    regionId: text('region_id')
      .$type<RegionId>()
      .notNull()
      .references(() => regions.id),
    device: text().$type<Jkt>(),
    createdAt: when('created_at').notNull(),
    suspendedAt: when('suspended_at').notNull(),
  },
  (table) => [index('suspended_peers_subscription').on(table.subscriptionId, table.id)],
);
