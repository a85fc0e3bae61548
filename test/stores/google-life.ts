/** Purchases of Google Play: what may happen to them, what they are worth, and what the API shows of them. */
import { randomBytes } from 'node:crypto';
import { type Action, type Expected, type Payer, PERIOD_MS } from './stand-in.ts';

type State =
  | 'PENDING'
  | 'ACTIVE'
  | 'CANCELED'
  | 'IN_GRACE_PERIOD'
  | 'ON_HOLD'
  | 'PAUSED'
  | 'EXPIRED'
  | 'PENDING_PURCHASE_CANCELED';
export interface Subscription {
  token: string;
  /** Null: bought outside the app. */
  claim: string | null;
  product: string;
  payer: Payer;
  state: State;
  expiryTime: number;
  order: string | null;
  voided: boolean;
  acknowledged: boolean;
  linked: string | null;
  test: boolean;
}

export const PRODUCTS = { plus_monthly: 'plus', pro_monthly: 'pro' } as const;
export const GRACE_MS = 7 * 86_400_000;
export const rfc3339 = (ms: number) => new Date(ms).toISOString();

export function paidPeriod(from: number): Partial<Subscription> {
  const order = `GPA.3345-${randomBytes(6).readUIntBE(0, 6)}`;
  return { state: 'ACTIVE', expiryTime: from + PERIOD_MS, order, voided: false };
}

export function possible(it: Subscription): Action[] {
  switch (it.state) {
    case 'PENDING':
      return ['complete', 'abandon'];
    case 'ACTIVE':
      return it.voided
        ? ['renew', 'expire']
        : ['renew', 'cancel', 'failPayment', 'pause', 'expire', 'refund', 'revoke'];
    case 'CANCELED':
      return it.voided ? ['expire'] : ['resume', 'expire', 'refund', 'revoke'];
    case 'IN_GRACE_PERIOD':
      return ['recover', 'hold', 'expire'];
    case 'ON_HOLD':
    case 'PAUSED':
      return ['recover', 'expire'];
    default:
      return [];
  }
}

const STANDINGS = {
  PENDING: 'pending',
  ACTIVE: 'active',
  CANCELED: 'active',
  IN_GRACE_PERIOD: 'grace',
  ON_HOLD: 'hold',
  PAUSED: 'hold',
  EXPIRED: 'expired',
  PENDING_PURCHASE_CANCELED: 'expired',
} as const;

export function expectedOf(it: Subscription): Expected {
  const standing = it.voided ? 'revoked' : STANDINGS[it.state];
  return {
    standing,
    renews: !it.voided && (it.state === 'ACTIVE' || it.state === 'IN_GRACE_PERIOD'),
    tier: it.test ? null : PRODUCTS[it.product as keyof typeof PRODUCTS],
  };
}

export function purchaseObject(it: Subscription): Record<string, unknown> {
  const { name, email, deviceId } = it.payer;
  return {
    kind: 'androidpublisher#subscriptionPurchaseV2',
    regionCode: 'US',
    subscriptionState: `SUBSCRIPTION_STATE_${it.state}`,
    lineItems: [
      {
        productId: it.product,
        ...(it.expiryTime === 0 ? {} : { expiryTime: rfc3339(it.expiryTime) }),
        ...(it.order === null ? {} : { latestSuccessfulOrderId: it.order }),
        // as in JSON of protocol buffers, false is left out
        autoRenewingPlan: it.state === 'CANCELED' || it.state === 'EXPIRED' ? {} : { autoRenewEnabled: true },
      },
    ],
    ...(it.linked === null ? {} : { linkedPurchaseToken: it.linked }),
    ...(it.test ? { testPurchase: {} } : {}),
    acknowledgementState: `ACKNOWLEDGEMENT_STATE_${it.acknowledged ? 'ACKNOWLEDGED' : 'PENDING'}`,
    externalAccountIdentifiers: {
      externalAccountId: deviceId,
      ...(it.claim === null ? {} : { obfuscatedExternalAccountId: it.claim }),
    },
    subscribeWithGoogleInfo: { emailAddress: email, givenName: name, familyName: name, profileName: name },
  };
}
