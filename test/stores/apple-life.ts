/** Subscriptions of the App Store: what may happen to them, what they are worth, and what is signed about them. */
import { type Action, type Expected, type Payer, PERIOD_MS } from './stand-in.ts';

/** `status` of Get All Subscription Statuses. */
export const STATUS = { active: 1, expired: 2, hold: 3, grace: 4, revoked: 5 } as const;

export interface Subscription {
  originalTransactionId: string;
  transactionId: string;
  appAccountToken: string;
  productId: string;
  payer: Payer;
  standing: keyof typeof STATUS;
  autoRenew: boolean;
  expiresDate: number;
  gracePeriodExpiresDate: number | null;
  revocationDate: number | null;
  /** What it was before a refund. */
  before: keyof typeof STATUS;
}

export const PRODUCTS = { 'com.example.vpn.plus': 'plus', 'com.example.vpn.pro': 'pro' } as const;
export const BUNDLE = 'com.example.vpn';
export const GRACE_MS = 16 * 86_400_000;
export function nextPeriod(it: Subscription, transactionId: string, from: number): void {
  it.transactionId = transactionId;
  it.standing = 'active';
  it.expiresDate = from + PERIOD_MS;
  it.gracePeriodExpiresDate = null;
}

export function possible(it: Subscription): Action[] {
  switch (it.standing) {
    case 'active':
      return it.autoRenew
        ? ['renew', 'cancel', 'failPayment', 'expire', 'refund', 'revoke']
        : ['resume', 'expire', 'refund', 'revoke'];
    case 'grace':
      return ['recover', 'hold', 'expire'];
    case 'hold':
      return ['recover', 'expire'];
    case 'revoked':
      return it.autoRenew ? ['reverseRefund'] : [];
    default:
      return [];
  }
}

export function expectedOf(it: Subscription): Expected {
  const open = it.standing === 'active' || it.standing === 'grace';
  return {
    standing: it.standing,
    renews: open && it.autoRenew,
    tier: PRODUCTS[it.productId as keyof typeof PRODUCTS],
  };
}

export function transactionOf(it: Subscription, now: number): Record<string, unknown> {
  return {
    originalTransactionId: it.originalTransactionId,
    transactionId: it.transactionId,
    bundleId: BUNDLE,
    productId: it.productId,
    subscriptionGroupIdentifier: '21',
    purchaseDate: it.expiresDate - PERIOD_MS,
    expiresDate: it.expiresDate,
    quantity: 1,
    type: 'Auto-Renewable Subscription',
    appAccountToken: it.appAccountToken,
    inAppOwnershipType: 'PURCHASED',
    signedDate: now,
    ...(it.revocationDate === null ? {} : { revocationDate: it.revocationDate, revocationReason: 0 }),
    environment: 'Production',
    storefront: 'USA',
    // no such fields are documented; if they ever come, they must not stay
    offerIdentifier: `${it.payer.name} <${it.payer.email}> ${it.payer.cardLast4}`,
    deviceVerificationNonce: it.payer.deviceId,
  };
}

export function renewalOf(it: Subscription, now: number): Record<string, unknown> {
  return {
    originalTransactionId: it.originalTransactionId,
    autoRenewProductId: it.productId,
    productId: it.productId,
    autoRenewStatus: it.autoRenew ? 1 : 0,
    ...(it.gracePeriodExpiresDate === null ? {} : { gracePeriodExpiresDate: it.gracePeriodExpiresDate }),
    isInBillingRetryPeriod: it.standing === 'hold',
    signedDate: now,
    environment: 'Production',
  };
}
