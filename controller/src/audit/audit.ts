/**
 * The audit log: what was done to an account, a peer or a node, by whom, and what is needed to undo it. Append-only,
 * and written in the transaction of the action itself, so that neither can be there without the other. It says nothing
 * about a person and nothing about a device's use.
 */
import { and, desc, eq, lt } from 'drizzle-orm';
import type { Database, Tx } from '../platform/db.ts';
import { auditLog } from './tables.ts';

/** Everything that is recorded. Subject and `detail` of each are where it is written. */
export const AUDIT_ACTIONS = [
  'subscription.created',
  'subscription.changed',
  'subscription.lapsed',
  'subscription.revoked',
  'sigil.issued',
  'sigil.revoked',
  'device.bound',
  'device.unbound',
  'device.revoked',
  'peer.provisioned',
  'peer.removed',
  'peer.key_rotated',
  'peer.moved',
  'peer.replaced',
  'peer.suspended',
  'peer.resumed',
  'peer.rolled_back',
  'entitlement.changed',
  'entitlement.contested',
  'grant.made',
  'vouchers.made',
  'voucher.redeemed',
  'region.created',
  'region.changed',
  'join_token.created',
  'join_token.revoked',
  'node.enrolled',
  'node.changed',
  'node.retired',
  'node.health_changed',
  'drain.started',
  'drain.paused',
  'drain.resumed',
  'drain.cancelled',
  'drain.finished',
  'machine.wanted',
  'machine.created',
  'machine.serving',
  'machine.prepared',
  'machine.leaving',
  'machine.kept',
  'machine.failed',
  'machine.gone',
  'machine.vanished',
  'machine.orphan_removed',
  'region.needs_capacity',
  'region.has_capacity',
  'operator_key.registered',
  'operator_key.revoked',
  'rollout.started',
  'rollout.wave_began',
  'rollout.node_changed',
  'rollout.paused',
  'rollout.resumed',
  'rollout.cancelled',
  'rollout.rolling_back',
  'rollout.finished',
  'reboot.wanted',
  'reboot.leased',
  'reboot.finished',
  'reboot.failed',
  'reboot.cleared',
  'reboot.cancelled',
  'signing_key.rotated',
] as const;
export type AuditAction = (typeof AUDIT_ACTIONS)[number];

export interface AuditEntry {
  /** `subscription:<id>`, `operator:<name>`, `node:<id>` or `system`. */
  readonly actor: string;
  readonly action: AuditAction;
  /** `<kind>:<id>` of what it was done to. */
  readonly subject: string;
  readonly detail: Readonly<Record<string, unknown>>;
}

/** @param operator null where the system itself acts */
export const actorOf = (operator: string | null) => (operator === null ? 'system' : `operator:${operator}`);

export interface AuditRecord extends AuditEntry {
  readonly id: number;
  readonly at: Date;
}

export interface AuditFilter {
  readonly subject?: string | undefined;
  readonly action?: AuditAction | undefined;
  readonly actor?: string | undefined;
}

export interface Audit {
  /** Appends, in one statement whatever their number. */
  record(tx: Tx, entries: readonly AuditEntry[]): Promise<void>;
  /** Newest first; one more than `limit` where there is another page. */
  list(filter: AuditFilter, page: { before?: number | undefined; limit: number }): Promise<AuditRecord[]>;
  /** One entry, or null. */
  read(id: number): Promise<AuditRecord | null>;
}

export function createAudit(db: Database): Audit {
  return {
    async record({ sql }, entries) {
      if (entries.length === 0) return;
      await sql`
        insert into audit_log (actor, action, subject, detail)
        select actor, action, subject, detail
        from jsonb_to_recordset(${JSON.stringify(entries)}::text::jsonb)
          as e(actor text, action text, subject text, detail jsonb)`;
    },
    async list({ subject, action, actor }, { before, limit }) {
      const rows = await db.orm
        .select()
        .from(auditLog)
        .where(
          and(
            subject === undefined ? undefined : eq(auditLog.subject, subject),
            action === undefined ? undefined : eq(auditLog.action, action),
            actor === undefined ? undefined : eq(auditLog.actor, actor),
            before === undefined ? undefined : lt(auditLog.id, before),
          ),
        )
        .orderBy(desc(auditLog.id))
        .limit(limit + 1);
      return rows as AuditRecord[];
    },
    async read(id) {
      const [row] = await db.orm.select().from(auditLog).where(eq(auditLog.id, id));
      return (row as AuditRecord | undefined) ?? null;
    },
  };
}
