/**
 * Google Play as a store: Pub/Sub pushes in, `subscriptionsv2.get` out. A refund or a chargeback shows on the order
 * rather than on the subscription, so the order that paid for the running period is asked for too. Of every answer
 * only the fields that are used are asked for (`fields`), so that the payer's do not even come.
 */
import { ClaimHash } from '@katafract/shared/claim';
import type { Tier } from '@katafract/shared/sigil';
import { z } from 'zod';
import { purchaseInvalid, type StoreDeps, storeUnavailable } from './call.ts';
import { type GoogleApi, googleApi, type ServiceAccount } from './google-api.ts';
import { PurchaseToken, type PushConfig, pushVerifier } from './google-push.ts';
import { type Standing, type StorePort, type StoreView, tierOf } from './port.ts';

export interface GoogleConfig extends PushConfig {
  /** `https://androidpublisher.googleapis.com`, or what stands in for it; no path. */
  readonly apiBase: string;
  /** Where access tokens come from: `https://oauth2.googleapis.com/token`; also the audience of the grant. */
  readonly tokenUrl: string;
  /** It needs the permission to view financial data, for orders and voided purchases. */
  readonly serviceAccount: ServiceAccount;
  /** Product id to tier. */
  readonly products: Readonly<Record<string, Tier>>;
  /** Whether purchases of licence testers, which nobody pays for, grant anything. Default false. */
  readonly testPurchases?: boolean;
}

/** Voided purchases are listed for 30 days; an hour less, so that the start does not fall out on the way. */
const VOIDED_KEPT_MS = 30 * 86_400_000 - 3_600_000;

const account = z.object({ obfuscatedExternalAccountId: z.string().optional() }).optional();
const Purchase = z.object({
  subscriptionState: z.string(),
  lineItems: z
    .array(
      z.object({
        productId: z.string(),
        expiryTime: z.iso.datetime({ offset: true }).optional(),
        latestSuccessfulOrderId: z.string().optional(),
        autoRenewingPlan: z.object({ autoRenewEnabled: z.boolean().optional() }).optional(),
      }),
    )
    .default([]),
  linkedPurchaseToken: z.string().optional(),
  acknowledgementState: z.string().optional(),
  externalAccountIdentifiers: account,
  outOfAppPurchaseContext: z.object({ expiredExternalAccountIdentifiers: account }).optional(),
  testPurchase: z.unknown().optional(),
});
type Purchase = z.infer<typeof Purchase>;
const PURCHASE_FIELDS = [
  'subscriptionState',
  'lineItems(productId,expiryTime,latestSuccessfulOrderId,autoRenewingPlan/autoRenewEnabled)',
  'linkedPurchaseToken',
  'acknowledgementState',
  'externalAccountIdentifiers/obfuscatedExternalAccountId',
  'outOfAppPurchaseContext/expiredExternalAccountIdentifiers/obfuscatedExternalAccountId',
  'testPurchase',
].join(',');
const Order = z.object({ state: z.string() });
const Voided = z.object({
  tokenPagination: z.object({ nextPageToken: z.string().optional() }).optional(),
  voidedPurchases: z.array(z.object({ purchaseToken: z.string() })).default([]),
});

const STANDINGS: Readonly<Record<string, Standing>> = {
  SUBSCRIPTION_STATE_PENDING: 'pending',
  SUBSCRIPTION_STATE_ACTIVE: 'active',
  SUBSCRIPTION_STATE_CANCELED: 'active',
  SUBSCRIPTION_STATE_IN_GRACE_PERIOD: 'grace',
  SUBSCRIPTION_STATE_ON_HOLD: 'hold',
  SUBSCRIPTION_STATE_PAUSED: 'hold',
  SUBSCRIPTION_STATE_EXPIRED: 'expired',
  SUBSCRIPTION_STATE_PENDING_PURCHASE_CANCELED: 'expired',
};

/** @throws KatafractError `config_invalid` */
export function googleStore(config: GoogleConfig, deps: StoreDeps): StorePort {
  const api = googleApi(config, deps);
  return {
    name: 'google',
    verify: pushVerifier(config, deps),
    async read(reference) {
      const purchase = await purchaseOf(api, reference);
      return purchase === null ? null : viewOf(api, config, reference, purchase, deps.clock.now());
    },
    changedSince: (since, known) => changedSince(api, deps, since, known),
    async acknowledge({ reference }) {
      const purchase = await purchaseOf(api, reference);
      const product = purchase?.lineItems[0]?.productId;
      if (purchase === null || product === undefined || !mustAcknowledge(purchase)) return;
      const path = `purchases/subscriptions/${encodeURIComponent(product)}/tokens/${encodeURIComponent(reference)}:acknowledge`;
      if (!(await api.post(path))) throw storeUnavailable('google', 'the acknowledgement was not taken');
    },
    async referenceOf(purchase) {
      const token = PurchaseToken.safeParse(purchase);
      if (!token.success) throw purchaseInvalid('google', 'not a purchase token');
      return token.data;
    },
  };
}

async function purchaseOf(api: GoogleApi, reference: string): Promise<Purchase | null> {
  if (!PurchaseToken.safeParse(reference).success) return null;
  const path = `purchases/subscriptionsv2/tokens/${encodeURIComponent(reference)}`;
  return api.get(Purchase, path, { fields: PURCHASE_FIELDS });
}

function mustAcknowledge(purchase: Purchase): boolean {
  const paid = purchase.subscriptionState !== 'SUBSCRIPTION_STATE_PENDING';
  return paid && purchase.acknowledgementState === 'ACKNOWLEDGEMENT_STATE_PENDING';
}

async function viewOf(
  api: GoogleApi,
  config: GoogleConfig,
  reference: string,
  purchase: Purchase,
  now: number,
): Promise<StoreView> {
  // an upgrade that waits for the end of the period shows both products: the one that runs longest counts
  const items = purchase.lineItems
    .map((item) => ({ ...item, end: item.expiryTime === undefined ? 0 : Date.parse(item.expiryTime) }))
    .sort((left, right) => right.end - left.end);
  const expiresAt = items[0]?.end ?? 0;
  let standing = STANDINGS[purchase.subscriptionState] ?? 'hold';
  if (purchase.subscriptionState === 'SUBSCRIPTION_STATE_CANCELED' && expiresAt <= now) standing = 'expired';
  if (standing !== 'pending' && (await paidBack(api, items[0]?.latestSuccessfulOrderId)))
    standing = 'revoked';
  const open = standing === 'active' || standing === 'grace';
  const free = purchase.testPurchase !== undefined && config.testPurchases !== true;
  const tier = items.map((item) => tierOf(config.products, item.productId)).find((each) => each !== null);
  return {
    store: 'google',
    reference,
    claim: await claimOf(api, purchase),
    tier: free ? null : (tier ?? null),
    standing,
    renews: open && items.some((item) => item.autoRenewingPlan?.autoRenewEnabled === true),
    expiresAt,
    acknowledge: mustAcknowledge(purchase),
    ...(purchase.linkedPurchaseToken === undefined ? {} : { replaces: purchase.linkedPurchaseToken }),
  };
}

/** Whether the last order that was paid for was refunded or charged back. */
async function paidBack(api: GoogleApi, order: string | undefined): Promise<boolean> {
  if (order === undefined) return false;
  const answer = await api.get(Order, `orders/${encodeURIComponent(order)}`, { fields: 'state' });
  return answer?.state === 'REFUNDED';
}

/**
 * The claim the app gave; of what was bought outside the app, that of the purchase before it. An upgrade made there
 * only links to the purchase it replaced.
 */
async function claimOf(api: GoogleApi, purchase: Purchase): Promise<string | null> {
  let at: Purchase | null = purchase;
  for (let hops = 0; at !== null && hops < 4; hops++) {
    const own = ClaimHash.safeParse(at.externalAccountIdentifiers?.obfuscatedExternalAccountId);
    if (own.success) return own.data;
    const expired = at.outOfAppPurchaseContext?.expiredExternalAccountIdentifiers;
    const before = ClaimHash.safeParse(expired?.obfuscatedExternalAccountId);
    if (before.success) return before.data;
    const linked: string | undefined = at.linkedPurchaseToken;
    at = linked === undefined ? null : await purchaseOf(api, linked);
  }
  return null;
}

/** Play lists only what was voided: everything else that lives here is named one by one. */
async function* changedSince(
  api: GoogleApi,
  deps: StoreDeps,
  since: number,
  known: () => AsyncIterable<string>,
): AsyncGenerator<string> {
  const seen = new Set<string>();
  const startTime = String(Math.max(since, deps.clock.now() - VOIDED_KEPT_MS));
  let token: string | undefined;
  do {
    const query = { startTime, type: '1', maxResults: '1000', ...(token === undefined ? {} : { token }) };
    const page: z.infer<typeof Voided> | null = await api.get(Voided, 'purchases/voidedpurchases', query);
    if (page === null) throw storeUnavailable('google', 'the voided purchases cannot be listed');
    for (const { purchaseToken } of page.voidedPurchases) {
      if (seen.has(purchaseToken)) continue;
      seen.add(purchaseToken);
      yield purchaseToken;
    }
    token = page.tokenPagination?.nextPageToken;
  } while (token !== undefined);
  for await (const reference of known()) {
    if (!seen.has(reference)) yield reference;
  }
}
