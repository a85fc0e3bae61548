/** What operators give away: grants, each with a claim secret that we make, and voucher codes. */
import { type ClaimSecret, claimHash } from '@katafract/shared/claim';
import { KatafractError } from '@katafract/shared/errors';
import type { Tier } from '@katafract/shared/sigil';
import type { AfterCommit, Tx } from '../platform/db.ts';
import { uniqueViolation } from '../platform/db.ts';
import { uuidv7 } from '../platform/ids.ts';
import { type Asked, keyExpired, onceOnly, uuidOf } from '../platform/once.ts';
import { claimSecretOf, codeHash, normalCode, voucherCodeOf } from './codes.ts';
import type { ReaderDeps } from './reader.ts';
import { claimKey, given } from './rules.ts';
import { openFor, settle } from './settle.ts';
import * as store from './store.ts';

export interface GiftDeps extends ReaderDeps {
  /** What makes a repeated request's secrets the same again. */
  readonly seedSecret: Uint8Array;
}

export interface GrantRequest {
  readonly tier: Tier;
  /** Milliseconds since the epoch. */
  readonly expiresAt: number;
  readonly reason: 'complimentary' | 'support';
  /** A subscription that is there; absent: a new one, with a secret to claim it. */
  readonly subscription?: string | undefined;
}

export interface Granted {
  readonly subscription: string;
  /** Shown here only; null for a subscription that was there. */
  readonly secret: ClaimSecret | null;
}

export interface VoucherRequest {
  readonly tier: Tier;
  readonly days: number;
  readonly count: number;
  /** Milliseconds since the epoch. */
  readonly redeemBefore: number;
}

export interface Vouchers {
  /** Names them in the audit log. */
  readonly batch: string;
  /** Shown here only. */
  readonly codes: readonly string[];
}

const LONGEST_MS = 3650 * 86_400_000;

/** @throws KatafractError `expiry_past`, `expiry_too_far` (422) */
function checkEnd(at: number, now: number): void {
  if (at <= now) throw new KatafractError('expiry_past', 'the time given is in the past', { status: 422 });
  if (at > now + LONGEST_MS)
    throw new KatafractError('expiry_too_far', 'nothing is given for more than ten years', { status: 422 });
}

/**
 * Grants a subscription that nobody pays for, or adds to one that is there.
 * @throws KatafractError `expiry_past`, `expiry_too_far` (422), `subscription_unknown` (404), `subscription_revoked`
 * (409), `idempotency_key_reused` (422), `idempotency_expired` (409)
 */
export async function grant(deps: GiftDeps, request: GrantRequest, asked: Asked): Promise<Granted> {
  const now = deps.clock.now();
  const { tier, expiresAt, reason } = request;
  const once = onceOnly(deps.seedSecret, 'grants', request, asked);
  const secret = request.subscription === undefined ? claimSecretOf(once.seed) : null;
  const key = secret && (claimKey(await claimHash(secret)) ?? '');
  const actor = `operator:${asked.operator}`;
  return transact(deps, async (tx) => {
    const before = await once.seen(tx);
    if (before !== null) return { result: { subscription: before, secret }, afterCommit: () => undefined };
    checkEnd(expiresAt, now);
    const subscriptionId =
      key === null
        ? (request.subscription ?? '')
        : await openFor(deps, tx, key, { tier, expiresAt }, now, actor);
    const subscription = await store.lockSubscription(tx, subscriptionId);
    if (!subscription)
      throw new KatafractError('subscription_unknown', 'no such subscription', { status: 404 });
    if (subscription.revoked)
      throw new KatafractError('subscription_revoked', 'the subscription was revoked', { status: 409 });
    if (key === null) await keepMinted(tx, subscriptionId, subscription, now);
    const id = uuidOf(once.seed, 'grant');
    const row = {
      ...given(key, tier, expiresAt),
      id,
      source: 'grant',
      reference: id,
      subscriptionId,
      live: true,
    } as const;
    await store.writeEntitlement(tx, row, new Date(now));
    const detail = { tier, expiresAt: new Date(expiresAt).toISOString(), reason };
    await deps.audit.record(tx, [
      { actor, action: 'grant.made', subject: `subscription:${subscriptionId}`, detail },
    ]);
    const afterCommit = await settle(deps, tx, subscriptionId, now);
    await once.remember(tx, subscriptionId, new Date(now));
    return { result: { subscription: subscriptionId, secret }, afterCommit };
  });
}

/** What an operator minted has no entitlement of its own: it gets one, or the first grant beside it would replace it. */
async function keepMinted(
  tx: Tx,
  subscriptionId: string,
  { tier, expiresAt }: store.SubscriptionRow,
  now: number,
): Promise<void> {
  if (expiresAt <= now || (await store.entitlementsOf(tx.sql, subscriptionId)).length > 0) return;
  const id = uuidv7(now);
  const row = {
    ...given(null, tier, expiresAt),
    id,
    source: 'grant',
    reference: id,
    subscriptionId,
    live: true,
  } as const;
  await store.writeEntitlement(tx, row, new Date(now));
}

/**
 * Makes voucher codes; only their hashes are kept.
 * @throws KatafractError `expiry_past`, `expiry_too_far`, `idempotency_key_reused` (422), `idempotency_expired` (409)
 */
export async function makeVouchers(deps: GiftDeps, request: VoucherRequest, asked: Asked): Promise<Vouchers> {
  const now = deps.clock.now();
  const { tier, days, count, redeemBefore } = request;
  const once = onceOnly(deps.seedSecret, 'vouchers', request, asked);
  const batch = uuidOf(once.seed, 'batch');
  const codes = Array.from({ length: count }, (_, index) => voucherCodeOf(once.seed, index));
  const rows = codes.map((code, index) => ({
    id: uuidOf(once.seed, `id of voucher ${index}`),
    codeHash: codeHash(normalCode(code) ?? ''),
  }));
  return transact(deps, async (tx) => {
    const result = { batch, codes };
    if ((await once.seen(tx)) !== null) return { result, afterCommit: () => undefined };
    checkEnd(redeemBefore, now);
    await store.insertVouchers(tx, rows, {
      tier,
      days,
      redeemBefore: new Date(redeemBefore),
      now: new Date(now),
    });
    const detail = { tier, days, count, redeemBefore: new Date(redeemBefore).toISOString() };
    await deps.audit.record(tx, [
      { actor: `operator:${asked.operator}`, action: 'vouchers.made', subject: `vouchers:${batch}`, detail },
    ]);
    await once.remember(tx, batch, new Date(now));
    return { result, afterCommit: () => undefined };
  });
}

async function transact<T>(
  { db }: GiftDeps,
  work: (tx: Tx) => Promise<{ result: T; afterCommit: AfterCommit }>,
): Promise<T> {
  try {
    const { result, afterCommit } = await db.transaction(work);
    afterCommit();
    return result;
  } catch (error) {
    // the same key and request after their keeping has ended: the same secrets are made, and are there already
    if (/^(?:claims|vouchers|entitlements)_/.test(uniqueViolation(error) ?? '')) throw keyExpired();
    throw error;
  }
}
