/** Signing keys, private halves sealed with the master key. */
import type { NodePublicJwk } from '@katafract/shared/node-token';
import { index, jsonb, pgTable, text } from 'drizzle-orm/pg-core';
import { when } from './columns.ts';

export const signingKeys = pgTable(
  'signing_keys',
  {
    kid: text().primaryKey(),
    /** `state` signs desired state, `sigil` signs Sigils. */
    use: text().$type<'state' | 'sigil'>().notNull(),
    publicJwk: jsonb('public_jwk').$type<NodePublicJwk>().notNull(),
    /** Compact JWE (dir, A256GCM) of the private JWK. */
    sealedJwk: text('sealed_jwk').notNull(),
    createdAt: when('created_at').notNull().defaultNow(),
    /** No longer signs from here on. */
    retiredAt: when('retired_at'),
    /** No longer verifies from here on: it leaves the JWKS. */
    expiresAt: when('expires_at'),
  },
  (table) => [index('signing_keys_use').on(table.use)],
);
