/**
 * The Play Developer API and its notifications as far as billing uses them, after
 * developers.google.com/android-publisher and developer.android.com/google/play/billing/rtdn-reference: subscriptionsv2,
 * orders, voided purchases, acknowledgement, the token endpoint, and Pub/Sub pushes signed by an issuer of the test's own.
 */
import { randomBytes } from 'node:crypto';
import { type GoogleConfig, googleStore } from '@katafract/controller/billing/stores/google';
import { exportJWK } from 'jose';
import { fault, googleApi, type Holdings, PACKAGE } from './google-api.ts';
import { expectedOf, GRACE_MS, PRODUCTS, paidPeriod, possible, type Subscription } from './google-life.ts';
import { forgeries, notificationOf, PUSH_KEY_ID, type Push, pusher, rsa } from './google-push.ts';
import {
  type Action,
  found,
  type Payer,
  payersOf,
  type StandIn,
  type Step,
  serve,
  type Webhook,
} from './stand-in.ts';

export interface GoogleStandIn extends StandIn {
  readonly config: GoogleConfig;
  /** The payer changes the product: a new purchase takes the place of this one. */
  readonly upgrade: (reference: string, tier: 'plus' | 'pro', inApp: boolean) => Promise<Step>;
  readonly acknowledged: (reference: string) => boolean;
  /** Makes it the purchase of a licence tester. */
  readonly asTester: (reference: string) => void;
  /** Ends every access token before its time. */
  readonly revokeTokens: () => void;
  /** A push of any notification. */
  readonly push: Push;
}

/** @param now ms since the epoch */
export async function googleStandIn(now: () => number = Date.now): Promise<GoogleStandIn> {
  const [account, issuer] = [rsa(), rsa()];
  const publicJwk = await exportJWK(issuer.publicKey);
  const keySet = { keys: [{ ...publicJwk, kid: PUSH_KEY_ID, alg: 'RS256', use: 'sig' }] };
  const held: Holdings = {
    now,
    pageSize: () => served.faults.pageSize,
    subscriptions: new Map(),
    voided: [],
    accessTokens: new Set(),
  };
  const served = await serve(
    {
      failing: (status) => fault(status, 'backendError', `Backend error for ${payersOf(held.subscriptions)}`),
      rateLimited: (retryAfter) => ({
        ...fault(429, 'RESOURCE_EXHAUSTED', 'Quota exceeded.'),
        headers: { 'retry-after': new Date(Date.now() + retryAfter * 1000).toUTCString() },
      }),
    },
    googleApi(held, () => config, account.publicKey, keySet),
  );
  const config = configOf(served.url, account.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString());
  const push = pusher(config, issuer.privateKey, now);
  const of = (reference: string) => found(held.subscriptions.get(reference), 'subscription');
  return {
    name: 'google',
    ...served,
    ...lives(held, push),
    config,
    push,
    store: (deps) => googleStore(config, deps),
    expected: (reference) => expectedOf(of(reference)),
    actions: (reference) => possible(of(reference)),
    acknowledged: (reference) => of(reference).acknowledged,
    asTester(reference) {
      of(reference).test = true;
    },
    revokeTokens: () => held.accessTokens.clear(),
    forgeries: (reference) =>
      forgeries(about(of(reference), 12, now()), push, config, issuer.publicKey, now()),
    unknown() {
      const subscriptionNotification = {
        version: '1.0',
        notificationType: 99,
        purchaseToken: 'unknown.token',
      };
      return push(notificationOf({ subscriptionNotification }, now()));
    },
  };
}

function configOf(url: string, privateKey: string): GoogleConfig {
  return {
    apiBase: url,
    tokenUrl: `${url}/token`,
    serviceAccount: {
      client_email: 'billing@project.iam.gserviceaccount.com',
      private_key: privateKey,
      private_key_id: 'account-1',
    },
    packageName: PACKAGE,
    products: PRODUCTS,
    pubsub: {
      audience: 'https://api.example/v1/webhooks/google',
      serviceAccountEmail: 'push@project.iam.gserviceaccount.com',
      issuer: 'https://accounts.google.com',
      jwksUrl: `${url}/certs`,
    },
  };
}

function about(it: Subscription, notificationType: number, now: number): object {
  const { token: purchaseToken, payer } = it;
  return notificationOf(
    { subscriptionNotification: { version: '1.0', notificationType, purchaseToken, payer } },
    now,
  );
}

function lives(held: Holdings, push: Push): Pick<GoogleStandIn, 'create' | 'upgrade' | 'act'> {
  const { now, subscriptions } = held;
  const steps = actions(held);
  const of = (reference: string) => found(subscriptions.get(reference), 'subscription');
  const step = (it: Subscription, webhooks: Webhook[]): Step => ({
    reference: it.token,
    webhooks,
    expected: expectedOf(it),
  });
  return {
    async create(purchase) {
      const it = newSubscription(purchase, now());
      subscriptions.set(it.token, it);
      return step(it, purchase.pending === true ? [] : [await push(about(it, 4, now()))]);
    },
    async upgrade(reference, tier, inApp) {
      const old = of(reference);
      const claim = inApp ? old.claim : null;
      const it = newSubscription({ claim, tier, payer: old.payer, linked: old.token }, now());
      subscriptions.set(it.token, it);
      Object.assign(old, { state: 'EXPIRED', expiryTime: now() });
      return step(it, [await push(about(it, 4, now())), await push(about(old, 13, now()))]);
    },
    async act(reference, action) {
      const it = of(reference);
      const act = possible(it).includes(action) ? steps[action] : undefined;
      const messages = found(act, `action now: ${action}`)(it);
      const whole = messages.map((message) =>
        typeof message === 'number' ? about(it, message, now()) : message,
      );
      return step(it, await Promise.all(whole.map((message) => push(message))));
    },
  };
}

function newSubscription(
  purchase: { claim: string | null; tier: string; payer: Payer; pending?: boolean; linked?: string },
  now: number,
): Subscription {
  const it: Subscription = {
    token: `${randomBytes(18).toString('hex')}.AO-J1O${randomBytes(24).toString('base64url')}`,
    claim: purchase.claim,
    product: found(Object.entries(PRODUCTS).find(([, sold]) => sold === purchase.tier)?.[0], 'product'),
    payer: purchase.payer,
    state: 'PENDING',
    expiryTime: 0,
    order: null,
    voided: false,
    acknowledged: false,
    linked: purchase.linked ?? null,
    test: false,
  };
  return purchase.pending === true ? it : { ...it, ...paidPeriod(now) };
}

type Steps = Readonly<Partial<Record<Action, (it: Subscription) => (number | object)[]>>>;

/** What each action does; the notifications it sends, by `notificationType` or whole. */
function actions(held: Holdings): Steps {
  const { now } = held;
  const becomes = (it: Subscription, what: Partial<Subscription>, ...messages: (number | object)[]) => {
    Object.assign(it, what);
    return messages;
  };
  const voidIt = (it: Subscription): object => {
    const order = found(it.order, 'order');
    it.voided = true;
    held.voided.push({ at: now(), token: it.token, order });
    const voided = { purchaseToken: it.token, orderId: order, productType: 1, refundType: 1 };
    return notificationOf({ voidedPurchaseNotification: voided }, now());
  };
  return {
    complete: (it) => becomes(it, paidPeriod(now()), 4),
    abandon: (it) => becomes(it, { state: 'PENDING_PURCHASE_CANCELED' }, 20),
    renew: (it) => becomes(it, paidPeriod(it.expiryTime), 2),
    cancel: (it) => becomes(it, { state: 'CANCELED' }, 3),
    resume: (it) => becomes(it, { state: 'ACTIVE' }, 7),
    failPayment: (it) => becomes(it, { state: 'IN_GRACE_PERIOD', expiryTime: now() + GRACE_MS }, 6),
    hold: (it) => becomes(it, { state: 'ON_HOLD', expiryTime: now() }, 5),
    pause: (it) => becomes(it, { state: 'PAUSED', expiryTime: now() }, 11, 10),
    recover: (it) => becomes(it, paidPeriod(now()), 1),
    expire: (it) => becomes(it, { state: 'EXPIRED', expiryTime: now() }, 13),
    // the money goes back, the subscription itself runs on
    refund: (it) => [voidIt(it)],
    revoke: (it) => becomes(it, { state: 'EXPIRED', expiryTime: now() }, 12, voidIt(it)),
  };
}
