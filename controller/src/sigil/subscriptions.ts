/** Subscriptions as rows: made, and brought to another tier or expiry, each change with its audit entry. */
import { randomUUID } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import type { Tier } from '@katafract/shared/sigil';
import type { AuditEntry } from '../audit/audit.ts';
import type { Tx } from '../platform/db.ts';
import { renew, type SubscriptionState } from './rules.ts';
import * as store from './store.ts';

/** `expiresAt` in milliseconds since the epoch. */
export interface Terms {
  readonly tier: Tier;
  readonly expiresAt: number;
}

/** What was written, and what the audit log must say of it. */
export interface Subscribed {
  readonly subscriptionId: string;
  readonly entries: readonly AuditEntry[];
}

const shown = ({ tier, expiresAt }: Terms) => ({ tier, expiresAt: new Date(expiresAt).toISOString() });

/** Takes the lock of a subscription. @throws KatafractError `subscription_unknown` (404) */
export async function locked(tx: Tx, id: string): Promise<SubscriptionState & { peerCount: number }> {
  const present = await store.lockSubscription(tx, id);
  if (!present) throw new KatafractError('subscription_unknown', 'no such subscription', { status: 404 });
  return present;
}

/** A new subscription under a pseudonym of its own. */
export async function open(tx: Tx, { tier, expiresAt }: Terms, actor: string): Promise<Subscribed> {
  const id = randomUUID();
  await store.insertSubscription(tx, { id, tier, expiresAt });
  const subject = `subscription:${id}`;
  const detail = shown({ tier, expiresAt });
  return { subscriptionId: id, entries: [{ actor, action: 'subscription.created', subject, detail }] };
}

/**
 * Brings a subscription up to what a Sigil that is minted for it says (see rules.renew).
 * @throws KatafractError `subscription_unknown` (404), `subscription_revoked` (409)
 */
export async function prolong(tx: Tx, id: string, wish: Terms, actor: string): Promise<Subscribed> {
  const present = await locked(tx, id);
  const next = renew(present, wish);
  if (!next.changed) return { subscriptionId: id, entries: [] };
  return { subscriptionId: id, entries: await change(tx, id, present, next, actor) };
}

/**
 * Sets both, an earlier expiry too.
 * @throws KatafractError `subscription_unknown` (404), `subscription_revoked` (409): that is final
 */
export async function set(tx: Tx, id: string, next: Terms, actor: string): Promise<Subscribed> {
  const present = await locked(tx, id);
  if (present.revoked)
    throw new KatafractError('subscription_revoked', 'the subscription was revoked', { status: 409 });
  return { subscriptionId: id, entries: await change(tx, id, present, next, actor) };
}

async function change(tx: Tx, id: string, from: Terms, to: Terms, actor: string): Promise<AuditEntry[]> {
  await store.changeSubscription(tx, id, to);
  if (from.tier === to.tier && from.expiresAt === to.expiresAt) return [];
  const detail = { from: shown(from), to: shown(to) };
  return [{ actor, action: 'subscription.changed', subject: `subscription:${id}`, detail }];
}
