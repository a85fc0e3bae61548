/** Keys by which operators sign what they say over the broker, and what was said already. */
import type { NodePublicJwk } from '@katafract/shared/node-token';
import type { NodeId } from '@katafract/shared/units';
import { index, jsonb, pgTable, text, uuid } from 'drizzle-orm/pg-core';
import { when } from '../platform/columns.ts';

export const operatorKeys = pgTable('operator_keys', {
  /** Whose it is; an operator has one key at a time. */
  name: text().primaryKey(),
  publicJwk: jsonb('public_jwk').$type<NodePublicJwk>().notNull(),
  /** RFC 7638. */
  thumbprint: text().notNull().unique(),
  createdBy: text('created_by').notNull(),
  createdAt: when('created_at').notNull(),
  revokedAt: when('revoked_at'),
});

/**
 * Commands that were decided, obeyed or not, until they would be too old anyway: each works once, and none after a later
 * one of the same operator for the same node.
 */
export const operatorCommands = pgTable(
  'operator_commands',
  {
    id: uuid().primaryKey(),
    operator: text().notNull(),
    nodeId: text('node_id').$type<NodeId>().notNull(),
    at: when('at').notNull(),
    /** No command that is older could still be in time. */
    forgetAt: when('forget_at').notNull(),
  },
  (table) => [index('operator_commands_order').on(table.operator, table.nodeId, table.at)],
);
