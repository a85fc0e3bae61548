/**
 * The transaction in which money becomes access: an entitlement is written, and its subscription and its peers follow
 * from all entitlements it has. Locks are taken in one order: the wish of the reading (inbox.ts) or the voucher, the
 * claim, the subscription, then what peers take.
 */
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { Audit, AuditEntry } from '../audit/audit.ts';
import type { Peers } from '../peers/peers.ts';
import type { AfterCommit, Tx } from '../platform/db.ts';
import { uuidv7 } from '../platform/ids.ts';
import { ENDS_CHANNEL, type Sigils } from '../sigil/sigil.ts';
import {
  apply,
  type Entitlement,
  isLive,
  type SubscriptionStanding,
  standingOfSubscription,
} from './rules.ts';
import * as store from './store.ts';
import type { StoreName, StoreView } from './stores/port.ts';

export interface SettleDeps {
  readonly sigils: Sigils;
  readonly peers: Peers;
  readonly audit: Audit;
  /** How long a subscription keeps its peers after it ran out by the clock, in ms. */
  readonly graceMs: number;
}

export interface Recorded {
  readonly outcome: 'applied' | 'unchanged' | 'unclaimable' | 'unknown';
  readonly afterCommit: AfterCommit;
}

const nothing: AfterCommit = () => undefined;

/**
 * Writes down what a store says of a purchase, and lets its subscription follow.
 * @param view null where the store knows of none
 */
export async function record(
  deps: SettleDeps,
  tx: Tx,
  at: { store: StoreName; reference: string; view: StoreView | null; now: number },
): Promise<Recorded> {
  const { now, reference } = at;
  const present = await store.findEntitlement(tx.sql, at.store, reference);
  const change = apply(present, at.view);
  if (!change) return { outcome: 'unknown', afterCommit: nothing };
  const { next } = change;
  const subscriptionId = present?.subscriptionId ?? (await subscriptionFor(deps, tx, next, now));
  const subscription = subscriptionId && (await store.lockSubscription(tx, subscriptionId));
  const id = present?.id ?? uuidv7(now);
  const live = Boolean(subscription && !subscription.revoked) && isLive(next, now);
  const row = { ...next, id, source: at.store, reference, subscriptionId, live };
  await store.writeEntitlement(tx, row, new Date(now));
  if (!subscriptionId) return { outcome: 'unclaimable', afterCommit: nothing };
  if (change.changed) await deps.audit.record(tx, entriesOf(subscriptionId, at.store, present, next));
  const afterCommit = await settle(deps, tx, subscriptionId, now);
  return { outcome: change.changed ? 'applied' : 'unchanged', afterCommit };
}

/**
 * The subscription of a claim: the one it has opened, or a new one as soon as there is more than a purchase that waits
 * for its payment. What was over when it was first read opens one as well, which is over: what we know must not hang
 * on which of its messages came in time, and whoever holds the secret is told that it ended.
 */
async function subscriptionFor(
  deps: SettleDeps,
  tx: Tx,
  next: Entitlement,
  now: number,
): Promise<string | null> {
  const { claim, tier, standing } = next;
  if (claim === null) return null;
  await store.lockClaim(tx, claim);
  const known = await store.findClaim(tx.sql, claim);
  if (known !== null || tier === null || standing === 'pending') return known;
  const expiresAt = isLive(next, now) ? next.expiresAt : Math.min(next.expiresAt, now);
  return openFor(deps, tx, claim, { tier, expiresAt }, now);
}

/** Opens a subscription for a claim that has none, under `lockClaim`. */
export async function openFor(
  { sigils }: Pick<SettleDeps, 'sigils'>,
  tx: Tx,
  claim: string,
  terms: { tier: Tier; expiresAt: number },
  now: number,
  actor = 'system',
): Promise<string> {
  const id = await sigils.openSubscription(tx, terms, actor);
  await store.insertClaim(tx, claim, id, new Date(now));
  return id;
}

function entriesOf(
  subscriptionId: string,
  source: string,
  present: Entitlement | null,
  next: Entitlement,
): AuditEntry[] {
  const shown = (one: Entitlement | null) =>
    one && {
      tier: one.tier,
      standing: one.standing,
      renews: one.renews,
      expiresAt: new Date(one.expiresAt).toISOString(),
    };
  const common = { actor: 'system', subject: `subscription:${subscriptionId}` };
  const detail = { source, from: shown(present), to: shown(next) };
  const contested = next.contested && !present?.contested;
  return [
    { ...common, action: 'entitlement.changed', detail },
    ...(contested ? [{ ...common, action: 'entitlement.contested' as const, detail: { source } }] : []),
  ];
}

/**
 * Brings a subscription and its peers to what its entitlements are worth now. The caller holds its lock. What an
 * operator revoked stays as it is; one without entitlements (minted by an operator) ends by its own expiry.
 * @returns what to run after the commit
 */
export async function settle(
  deps: SettleDeps,
  tx: Tx,
  subscriptionId: string,
  now: number,
): Promise<AfterCommit> {
  const present = await store.lockSubscription(tx, subscriptionId);
  if (!present || present.revoked) return nothing;
  const entitlements = await store.entitlementsOf(tx.sql, subscriptionId);
  const standing =
    entitlements.length === 0 ? byItself(present, now) : standingOfSubscription(entitlements, now);
  return standing.over
    ? end(deps, tx, subscriptionId, present, { since: standing.since, now })
    : prolong(deps, tx, subscriptionId, present, standing);
}

function byItself({ tier, expiresAt }: store.SubscriptionRow, now: number): SubscriptionStanding {
  return expiresAt <= now ? { over: true, since: expiresAt } : { over: false, tier, expiresAt };
}

async function prolong(
  { sigils, peers }: SettleDeps,
  tx: Tx,
  id: string,
  present: store.SubscriptionRow,
  { tier, expiresAt }: { tier: Tier; expiresAt: number },
): Promise<AfterCommit> {
  const same = present.tier === tier && present.expiresAt === expiresAt;
  if (same && !present.lapsed) return nothing;
  await sigils.setSubscription(tx, id, { tier, expiresAt });
  if (present.lapsed) return peers.resumeOfSubscription(tx, id);
  return present.peerCount > TIERS[tier].devices ? peers.fitToTier(tx, id, tier) : nothing;
}

/** By a store's word at once; by the clock when the grace for a late renewal is over as well. */
async function end(
  { peers, audit, graceMs }: SettleDeps,
  tx: Tx,
  id: string,
  present: store.SubscriptionRow,
  { since, now }: { since: number | null; now: number },
): Promise<AfterCommit> {
  const expiresAt = since ?? Math.min(present.expiresAt, now);
  const lapses = !present.lapsed && (since === null || since + graceMs <= now);
  if (expiresAt === present.expiresAt && !lapses) return nothing;
  const lapsedAt = lapses ? new Date(now) : undefined;
  await store.endSubscription(tx, id, { expiresAt: new Date(expiresAt), lapsedAt });
  await tx.sql`select pg_notify(${ENDS_CHANNEL}, '')`;
  if (!lapses) return nothing;
  const detail = { peers: present.peerCount };
  await audit.record(tx, [
    { actor: 'system', action: 'subscription.lapsed', subject: `subscription:${id}`, detail },
  ]);
  return peers.suspendOfSubscription(tx, id);
}
