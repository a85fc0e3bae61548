/** Peers, where they are placed, and the pool their addresses come from. */
import type { Generation, Ipv4, Ipv6, NodeId, PeerId, PublicKey, RegionId } from '@katafract/shared/units';
import { sql } from 'drizzle-orm';
import {
  bigint,
  boolean,
  check,
  index,
  integer,
  pgTable,
  primaryKey,
  text,
  timestamp,
  uuid,
} from 'drizzle-orm/pg-core';
import { nodes, regions } from '../fleet/tables.ts';
import { subscriptions } from '../sigil/tables.ts';

const when = (name: string) => timestamp(name, { withTimezone: true });

export const peers = pgTable(
  'peers',
  {
    id: uuid().$type<PeerId>().primaryKey(),
    subscriptionId: uuid('subscription_id')
      .notNull()
      .references(() => subscriptions.id),
    publicKey: text('public_key').$type<PublicKey>().notNull().unique(),
    /** Index in the address pool: both addresses follow from it. */
    addressIndex: integer('address_index').notNull().unique(),
    regionId: text('region_id')
      .$type<RegionId>()
      .notNull()
      .references(() => regions.id),
    createdAt: when('created_at').notNull().defaultNow(),
    provisionedAt: when('provisioned_at').notNull().defaultNow(),
  },
  (table) => [index('peers_subscription').on(table.subscriptionId, table.id)],
);

/** `leaving`: replaced by a move, kept until `release_at` so that the device can switch before it breaks. */
export const PLACEMENT_ROLES = ['primary', 'standby', 'leaving'] as const;
export type PlacementRole = (typeof PLACEMENT_ROLES)[number];

/**
 * One row per key on a node: at once the node's desired table and its generation log, since each row carries the
 * generation that last touched it. A removal stays as a tombstone until its node has passed it.
 */
export const placements = pgTable(
  'placements',
  {
    nodeId: text('node_id')
      .$type<NodeId>()
      .notNull()
      .references(() => nodes.id),
    publicKey: text('public_key').$type<PublicKey>().notNull(),
    /** Null in a tombstone. */
    peerId: uuid('peer_id').$type<PeerId>(),
    ipv4: text().$type<Ipv4>().notNull(),
    ipv6: text().$type<Ipv6>().notNull(),
    role: text().$type<PlacementRole>().notNull(),
    /** Order in which a device tries its exits: 0 is the primary. */
    rank: integer().notNull(),
    generation: bigint({ mode: 'number' }).$type<Generation>().notNull(),
    removed: boolean().notNull().default(false),
    releaseAt: when('release_at'),
  },
  (table) => [
    primaryKey({ columns: [table.nodeId, table.publicKey] }),
    index('placements_log').on(table.nodeId, table.generation),
    index('placements_peer').on(table.peerId),
    index('placements_release').on(table.releaseAt).where(sql`${table.releaseAt} is not null`),
    check('placements_tombstone', sql`${table.removed} = (${table.peerId} is null)`),
    check('placements_role', sql`${table.role} in ('primary', 'standby', 'leaving')`),
  ],
);

/** One row: the first index never given out. Taking the next one is a single-row update. */
export const addressPool = pgTable('address_pool', {
  id: integer().primaryKey(),
  nextIndex: integer('next_index').notNull(),
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
