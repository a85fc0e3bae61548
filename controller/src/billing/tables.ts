/**
 * What is paid for, and the inbox of what stores say. Of a payer nothing is kept but the store's own id of the purchase;
 * of a store's message nothing but its id, its type and which purchase it is about.
 */
import type { Tier } from '@katafract/shared/sigil';
import { sql } from 'drizzle-orm';
import { boolean, index, integer, pgTable, primaryKey, text, unique, uuid } from 'drizzle-orm/pg-core';
import { when } from '../platform/columns.ts';
import { subscriptions } from '../sigil/tables.ts';
import type { Source } from './rules.ts';
import type { Standing, StoreName } from './stores/port.ts';

/** Which subscription a claim secret opens. */
export const claims = pgTable('claims', {
  /** UUID made of the hash of the secret: what an app presents is compared by it. */
  claim: uuid().primaryKey(),
  subscriptionId: uuid('subscription_id')
    .notNull()
    .unique()
    .references(() => subscriptions.id),
  createdAt: when('created_at').notNull().defaultNow(),
});

export const entitlements = pgTable(
  'entitlements',
  {
    id: uuid().primaryKey(),
    source: text().$type<Source>().notNull(),
    /** The store's own id of the purchase; of a code or a grant its id here. */
    reference: text().notNull(),
    /** Null until it was paid for, and for ever where it bears no claim. */
    subscriptionId: uuid('subscription_id').references(() => subscriptions.id),
    claim: uuid(),
    tier: text().$type<Tier>(),
    standing: text().$type<Standing>().notNull(),
    renews: boolean().notNull(),
    expiresAt: when('expires_at').notNull(),
    contested: boolean().notNull().default(false),
    /** Counts for its subscription at present; the worker takes it back when its time has come. */
    live: boolean().notNull(),
    /** When its store was last read. */
    readAt: when('read_at').notNull(),
    createdAt: when('created_at').notNull().defaultNow(),
  },
  (table) => [
    unique('entitlements_reference').on(table.source, table.reference),
    index('entitlements_subscription').on(table.subscriptionId),
    index('entitlements_ending').on(table.expiresAt).where(sql`${table.live}`),
    index('entitlements_renewing').on(table.expiresAt).where(sql`${table.renews}`),
  ],
);

/** Messages of stores by their own id, so that each counts once. */
export const storeMessages = pgTable(
  'store_messages',
  {
    store: text().$type<StoreName>().notNull(),
    eventId: text('event_id').notNull(),
    /** Of the store's documented vocabulary, or `unknown`. */
    type: text().notNull(),
    /** Null where there is nothing to read again. */
    reference: text(),
    receivedAt: when('received_at').notNull(),
    /** When a reading of the store that began after it had come was written down. */
    handledAt: when('handled_at'),
  },
  (table) => [
    primaryKey({ columns: [table.store, table.eventId] }),
    index('store_messages_waiting').on(table.store, table.reference).where(sql`${table.handledAt} is null`),
    index('store_messages_handled').on(table.handledAt),
  ],
);

/** Purchases to be read at their store again. A row is there as long as there is something to do. */
export const storeReads = pgTable(
  'store_reads',
  {
    store: text().$type<StoreName>().notNull(),
    reference: text().notNull(),
    /** Rises with every wish for a reading: one that rose while the store was read asks for another. */
    wanted: integer().notNull().default(1),
    since: when('since').notNull(),
    dueAt: when('due_at').notNull(),
    /** Nobody waits for it: those that somebody waits for go first. */
    background: boolean().notNull(),
    /** Attempts that failed. */
    attempts: integer().notNull().default(0),
    /** The fencing token of whoever reads now: the result of one that has lost it is void. */
    fence: uuid(),
    leasedUntil: when('leased_until'),
  },
  (table) => [
    primaryKey({ columns: [table.store, table.reference] }),
    index('store_reads_due').on(table.store, table.background, table.dueAt),
  ],
);

/** How far each store was asked for what its messages may have missed. */
export const storeCursors = pgTable('store_cursors', {
  store: text().$type<StoreName>().primaryKey(),
  /** Everything up to here was asked for. */
  through: when('through').notNull(),
});

/** Gift codes; each is kept as a hash. */
export const vouchers = pgTable('vouchers', {
  /** SHA-256 of the code, hex. */
  codeHash: text('code_hash').primaryKey(),
  id: uuid().notNull().unique(),
  tier: text().$type<Tier>().notNull(),
  days: integer().notNull(),
  redeemBefore: when('redeem_before').notNull(),
  /** Of the secret it was redeemed for. */
  claim: uuid(),
  redeemedAt: when('redeemed_at'),
  createdAt: when('created_at').notNull().defaultNow(),
});
