/** Machines that the fleet asked a provider for, and what regions needed over time. */
import type { NodeId, RegionId } from '@katafract/shared/units';
import { sql } from 'drizzle-orm';
import {
  check,
  index,
  integer,
  jsonb,
  pgTable,
  primaryKey,
  text,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core';
import { when } from '../../platform/columns.ts';
import { regions } from '../tables.ts';
import type { Growth, ProviderName } from './provider.ts';

/**
 * wanted → creating → booting → serving → leaving (its node drains) → removing → gone; `failed` ends a wish that its
 * provider refuses or that never came up, after what it left was removed.
 */
export const MACHINE_STATES = [
  'wanted',
  'creating',
  'booting',
  'serving',
  'leaving',
  'removing',
  'gone',
  'failed',
] as const;
export type MachineState = (typeof MACHINE_STATES)[number];

export const machines = pgTable(
  'machines',
  {
    id: uuid().primaryKey(),
    regionId: text('region_id')
      .$type<RegionId>()
      .notNull()
      .references(() => regions.id),
    /** Name of the node that it becomes; never used before. */
    nodeId: text('node_id').$type<NodeId>().notNull(),
    provider: text().$type<ProviderName>().notNull(),
    /** As the region's growth was when it was ordered. */
    growth: jsonb().$type<Growth>().notNull(),
    state: text().$type<MachineState>().notNull(),
    /** `capacity`, `minimum`, `replace` or `operator`, with numbers, for people. */
    reason: text().notNull(),
    wantedBy: text('wanted_by').notNull(),
    /** The node whose peers it takes over, which is then drained and retired. */
    replaces: text().$type<NodeId>(),
    /** The provider's own id. */
    ref: text(),
    address: text(),
    tries: integer().notNull().default(0),
    /** Code of the last failure. */
    problem: text(),
    nextTryAt: when('next_try_at').notNull(),
    /** When this state began. */
    since: when('since').notNull(),
    wantedAt: when('wanted_at').notNull(),
    endedAt: when('ended_at'),
  },
  (table) => [
    uniqueIndex('machines_node').on(table.nodeId),
    uniqueIndex('machines_replaces').on(table.replaces).where(sql`${table.endedAt} is null`),
    index('machines_open').on(table.nextTryAt).where(sql`${table.endedAt} is null`),
    check(
      'machines_state',
      sql`${table.state} in ('wanted', 'creating', 'booting', 'serving', 'leaving', 'removing', 'gone', 'failed')`,
    ),
  ],
);

/** Peers of a region (primaries) and room for them, at whole intervals: what the forecast looks back on. */
export const demandSamples = pgTable(
  'demand_samples',
  {
    regionId: text('region_id')
      .$type<RegionId>()
      .notNull()
      .references(() => regions.id),
    at: when('at').notNull(),
    peers: integer().notNull(),
    capacity: integer().notNull(),
  },
  (table) => [primaryKey({ columns: [table.regionId, table.at] })],
);
