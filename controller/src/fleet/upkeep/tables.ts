/** Releases of the agent on their way through the fleet, and reboots. */
import type { NodeId } from '@katafract/shared/units';
import { sql } from 'drizzle-orm';
import {
  boolean,
  check,
  index,
  integer,
  pgTable,
  primaryKey,
  text,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core';
import { when } from '../../platform/columns.ts';
import { nodes } from '../tables.ts';

/** `rolling_back` until everything that had the version has its own again. */
export const ROLLOUT_STATES = [
  'running',
  'paused',
  'rolling_back',
  'rolled_back',
  'cancelled',
  'done',
] as const;
export type RolloutState = (typeof ROLLOUT_STATES)[number];

export const rollouts = pgTable(
  'rollouts',
  {
    id: uuid().primaryKey(),
    version: text().notNull(),
    state: text().$type<RolloutState>().notNull(),
    /** Waves are 0 (the canaries) to `waves` - 1; this one is on its way. */
    wave: integer().notNull().default(0),
    waves: integer().notNull(),
    waveSince: when('wave_since').notNull(),
    /** How long a wave must be well before the next begins, and how long a node may take. */
    soakSeconds: integer('soak_seconds').notNull(),
    timeoutSeconds: integer('timeout_seconds').notNull(),
    /** Nodes that may fail after the canaries, of which none may, before it goes back. */
    maxFailures: integer('max_failures').notNull(),
    /** Nodes that were not well when the wave began: its gate does not open while there are more. */
    unwell: integer().notNull().default(0),
    wantedBy: text('wanted_by').notNull(),
    /** Why it went back, or was paused by itself. */
    reason: text(),
    startedAt: when('started_at').notNull(),
    endedAt: when('ended_at'),
  },
  (table) => [
    uniqueIndex('rollouts_open').on(sql`(true)`).where(sql`${table.endedAt} is null`),
    check(
      'rollouts_state',
      sql`${table.state} in ('running', 'paused', 'rolling_back', 'rolled_back', 'cancelled', 'done')`,
    ),
  ],
);

/** `skipped`: away when its turn came, it was told and is not waited for. `failed` has been told its `before` again. */
export const ROLLOUT_NODE_STATES = [
  'waiting',
  'updating',
  'updated',
  'failed',
  'skipped',
  'reverting',
  'reverted',
] as const;
export type RolloutNodeState = (typeof ROLLOUT_NODE_STATES)[number];

export const rolloutNodes = pgTable(
  'rollout_nodes',
  {
    rolloutId: uuid('rollout_id')
      .notNull()
      .references(() => rollouts.id),
    nodeId: text('node_id')
      .$type<NodeId>()
      .notNull()
      .references(() => nodes.id),
    wave: integer().notNull(),
    state: text().$type<RolloutNodeState>().notNull().default('waiting'),
    /** What it ran before, and is given again when the rollout goes back. */
    before: text(),
    since: when('since').notNull(),
    reason: text(),
  },
  (table) => [
    primaryKey({ columns: [table.rolloutId, table.nodeId] }),
    check(
      'rollout_nodes_state',
      sql`${table.state} in ('waiting', 'updating', 'updated', 'failed', 'skipped', 'reverting', 'reverted')`,
    ),
  ],
);

export const REBOOT_STATES = ['wanted', 'leased', 'done', 'failed', 'cancelled'] as const;
export type RebootState = (typeof REBOOT_STATES)[number];

/** Each reboot that is wanted or was; its id is the lease. */
export const reboots = pgTable(
  'reboots',
  {
    id: uuid().primaryKey(),
    nodeId: text('node_id')
      .$type<NodeId>()
      .notNull()
      .references(() => nodes.id),
    state: text().$type<RebootState>().notNull(),
    /** `operator:<name>`, or `system` where the node said that it needs one. */
    wantedBy: text('wanted_by').notNull(),
    /** Does not wait for the night; everything else holds. */
    anyTime: boolean('any_time').notNull().default(false),
    wantedAt: when('wanted_at').notNull(),
    leasedAt: when('leased_at'),
    /** The lease is good until then; the node should be well again soon after. */
    until: when('until'),
    endedAt: when('ended_at'),
    reason: text(),
    /** A failed one keeps every other from being leased until an operator has seen to it. */
    clearedAt: when('cleared_at'),
  },
  (table) => [
    uniqueIndex('reboots_open').on(table.nodeId).where(sql`${table.endedAt} is null`),
    index('reboots_node').on(table.nodeId, table.wantedAt),
    check('reboots_state', sql`${table.state} in ('wanted', 'leased', 'done', 'failed', 'cancelled')`),
  ],
);
