/** The audit log of account and provisioning actions; append-only. */
import { bigint, index, jsonb, pgTable, text, timestamp } from 'drizzle-orm/pg-core';

export const auditLog = pgTable(
  'audit_log',
  {
    id: bigint({ mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    at: timestamp({ withTimezone: true }).notNull().defaultNow(),
    /** `subscription:<id>`, `operator:<name>`, `node:<id>` or `system`. */
    actor: text().notNull(),
    /** e.g. `peer.provisioned`; the vocabulary is in audit.ts. */
    action: text().notNull(),
    /** `peer:<id>`, `node:<id>`, `sigil:<id>`, `subscription:<id>`. */
    subject: text().notNull(),
    /** What is needed to undo the action, and nothing about a person. */
    detail: jsonb().$type<Record<string, unknown>>().notNull(),
  },
  (table) => [
    index('audit_log_subject').on(table.subject, table.id),
    index('audit_log_action').on(table.action, table.id),
  ],
);
