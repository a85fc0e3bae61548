/**
 * From a claim secret to a Sigil. The secret is all that an app shows: it opens what was bought for its hash, in
 * whatever store; a code is redeemed for it, and a purchase that an app holds in its hands is looked up at once.
 */
import type { IssuedSigil } from '@katafract/shared/api';
import { type ClaimSecret, claimHash } from '@katafract/shared/claim';
import type { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import type { AfterCommit, Tx } from '../platform/db.ts';
import { uuidv7 } from '../platform/ids.ts';
import { codeHash, normalCode } from './codes.ts';
import type { BillingMetrics } from './metrics.ts';
import type { ReaderDeps, StoreReader } from './reader.ts';
import { claimKey, given, isLive, voucherExpiry } from './rules.ts';
import { openFor, settle } from './settle.ts';
import * as store from './store.ts';
import type { StoreName, StorePort } from './stores/port.ts';

export interface ClaimRequest {
  readonly secret: ClaimSecret;
  /** What an app may show of a purchase: Apple's signed transaction, Google's purchase token. */
  readonly purchase?: { readonly store: StoreName; readonly proof: string } | undefined;
  readonly voucher?: string | undefined;
  /** The device that claims, as it has proved. */
  readonly jkt: Jkt;
}

export interface ClaimDeps extends ReaderDeps {
  readonly metrics: BillingMetrics;
  readonly stores: ReadonlyMap<StoreName, StorePort>;
  readonly readers: ReadonlyMap<StoreName, StoreReader>;
}

const refuse = (status: number, code: string, message: string) =>
  new KatafractError(code, message, { status });

export const storeOff = () => refuse(404, 'store_off', 'this store is not configured');

/**
 * @returns null where nothing is known of the secret: not paid for yet, or never seen
 * @throws KatafractError `store_off` (404), `purchase_invalid` (422), `purchase_claimed`, `purchase_unclaimable` (409),
 * `voucher_unknown` (404), `voucher_expired`, `voucher_redeemed` (409), `store_unavailable` (503), and what
 * Sigils.issue throws
 */
export async function claim(deps: ClaimDeps, request: ClaimRequest): Promise<IssuedSigil | null> {
  const { db, sigils, metrics } = deps;
  const key = claimKey(await claimHash(request.secret)) ?? '';
  if (request.purchase) await lookUp(deps, key, request.purchase);
  if (request.voucher !== undefined) await redeem(deps, key, request.voucher);
  const subscriptionId = await store.findClaim(db.sql, key);
  if (subscriptionId === null) {
    metrics.claims.inc({ outcome: 'pending' });
    return null;
  }
  const issued = await sigils.issue({ subscriptionId, jkt: request.jkt }, `subscription:${subscriptionId}`);
  metrics.claims.inc({ outcome: 'issued' });
  return issued;
}

/**
 * Reads a purchase at its store, unless it is known and valid. It must have been made for this very secret: what a
 * purchase was made for cannot be chosen later, so that a proof that leaked opens nothing.
 */
async function lookUp(
  deps: ClaimDeps,
  key: string,
  { store: name, proof }: NonNullable<ClaimRequest['purchase']>,
): Promise<void> {
  const port = deps.stores.get(name);
  const reader = deps.readers.get(name);
  if (!port?.referenceOf || !reader) throw storeOff();
  const reference = await port.referenceOf(proof);
  const known = await store.findEntitlement(deps.db.sql, name, reference);
  const fresh = known !== null && isLive(known, deps.clock.now()) && known.claim === key;
  // where somebody else reads it just now, the caller asks again in a moment
  if (!fresh && !(await reader.readNow(reference))) return;
  const entitlement = await store.findEntitlement(deps.db.sql, name, reference);
  if (!entitlement) throw refuse(422, 'purchase_invalid', 'the store knows of no such purchase');
  if (entitlement.claim === null)
    throw refuse(409, 'purchase_unclaimable', 'the purchase names no secret it was made for');
  if (entitlement.claim !== key)
    throw refuse(409, 'purchase_claimed', 'the purchase was made for another secret');
}

/** Redeems a code for a claim, once; repeated for the same claim it changes nothing. */
async function redeem(deps: ClaimDeps, claim: string, typed: string): Promise<void> {
  const unknown = refuse(404, 'voucher_unknown', 'no such code');
  const code = normalCode(typed);
  if (code === null) throw unknown;
  const afterCommit = await deps.db.transaction(async (tx): Promise<AfterCommit> => {
    const voucher = await store.lockVoucher(tx, codeHash(code));
    if (!voucher) throw unknown;
    if (voucher.claim === claim) return () => undefined;
    if (voucher.claim !== null) throw refuse(409, 'voucher_redeemed', 'the code was redeemed before');
    const now = deps.clock.now();
    if (voucher.redeemBefore <= now) throw refuse(409, 'voucher_expired', 'the time of the code is over');
    return redeemIn(deps, tx, claim, voucher, now);
  });
  afterCommit();
}

async function redeemIn(
  deps: ClaimDeps,
  tx: Tx,
  claim: string,
  voucher: store.VoucherRow,
  now: number,
): Promise<AfterCommit> {
  const { tier, days } = voucher;
  await store.lockClaim(tx, claim);
  const known = await store.findClaim(tx.sql, claim);
  const first = { tier, expiresAt: voucherExpiry([], voucher, now) };
  const subscriptionId = known ?? (await openFor(deps, tx, claim, first, now));
  const subscription = await store.lockSubscription(tx, subscriptionId);
  // the code is not spent on what can give nothing
  if (subscription?.revoked) throw refuse(409, 'subscription_revoked', 'the subscription was revoked');
  const expiresAt = voucherExpiry(await store.entitlementsOf(tx.sql, subscriptionId), voucher, now);
  const row = {
    ...given(claim, tier, expiresAt),
    id: uuidv7(now),
    source: 'voucher',
    reference: voucher.id,
  } as const;
  await store.writeEntitlement(tx, { ...row, subscriptionId, live: true }, new Date(now));
  await store.markRedeemed(tx, voucher.id, claim, new Date(now));
  await deps.audit.record(tx, [
    {
      actor: `subscription:${subscriptionId}`,
      action: 'voucher.redeemed',
      subject: `subscription:${subscriptionId}`,
      detail: { voucher: voucher.id, tier, days, expiresAt: new Date(expiresAt).toISOString() },
    },
  ]);
  return settle(deps, tx, subscriptionId, now);
}
