/** Keys by which operators sign what they say over the broker, and what was said already. */
import type { NodePublicJwk } from '@katafract/shared/node-token';
import { jsonb, pgTable, text, timestamp, uuid } from 'drizzle-orm/pg-core';

const when = (name: string) => timestamp(name, { withTimezone: true });

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

/** Commands that were carried out, until they would be too old anyway: each works once. */
export const operatorCommands = pgTable('operator_commands', {
  id: uuid().primaryKey(),
  expiresAt: when('expires_at').notNull(),
});
