/**
 * The App Store Server API and its Server Notifications V2 as far as billing uses them, after
 * developer.apple.com/documentation/appstoreserverapi and /appstoreservernotifications. Everything is signed by a
 * chain of the test's own, which only the configuration of the test trusts.
 */
import { generateKeyPairSync, type KeyObject, randomUUID } from 'node:crypto';
import { type AppleConfig, appleStore } from '@katafract/controller/billing/stores/apple';
import { ClaimHash, claimUuid } from '@katafract/shared/claim';
import { CompactSign, errors, jwtVerify } from 'jose';
import { appleChain, type Chain } from './pki.ts';
import {
  type Action,
  type Asked,
  bytes,
  type Expected,
  found,
  type Payer,
  PERIOD_MS,
  page,
  type Reply,
  type StandIn,
  type Step,
  serve,
  type Webhook,
} from './stand-in.ts';

/** `status` of Get All Subscription Statuses. */
const STATUS = { active: 1, expired: 2, hold: 3, grace: 4, revoked: 5 } as const;

interface Subscription {
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

export interface AppleStandIn extends StandIn {
  readonly config: AppleConfig;
  /** The signed transaction that StoreKit hands to the app. */
  readonly signedTransaction: (reference: string) => Promise<string>;
  /** Signs any payload as Apple does; by another chain, with another header, where a test says so. */
  readonly sign: (payload: object, by?: Chain, header?: object) => Promise<string>;
  /** The payload of a notification about it. */
  readonly notification: (
    reference: string,
    type: string,
    subtype?: string,
  ) => Promise<Record<string, unknown>>;
}

const PRODUCTS = { 'com.example.vpn.plus': 'plus', 'com.example.vpn.pro': 'pro' } as const;
const BUNDLE = 'com.example.vpn';
const GRACE_MS = 16 * 86_400_000;
const RATE_LIMITED = 4290000;

const fault = (status: number, errorCode: number, errorMessage: string): Reply => ({
  status,
  json: { errorCode, errorMessage },
});

/** @param now ms since the epoch; not before the chain is made, which is now */
export async function appleStandIn(now: () => number = Date.now): Promise<AppleStandIn> {
  const chain = await appleChain();
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const subscriptions = new Map<string, Subscription>();
  /** Oldest first. */
  const history: { at: number; signedPayload: string }[] = [];
  let lastId = 2_000_000_000_000_000;

  const served = await serve(
    {
      failing: (status) => fault(status, 5000000, `An unknown error occurred for ${canary(subscriptions)}`),
      rateLimited: (retryAfter) => ({
        ...fault(429, RATE_LIMITED, 'Rate limit exceeded.'),
        // Apple gives the time, in ms since the epoch
        headers: { 'retry-after': String(now() + retryAfter * 1000) },
      }),
    },
    async (asked) => ((await authorized(asked)) ? route(asked) : { status: 401 }),
  );
  const config: AppleConfig = {
    apiBase: served.url,
    issuerId: '57246542-96fe-1a63-e053-0824d011072a',
    keyId: '2X9R4HXF34',
    privateKey: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    bundleId: BUNDLE,
    appAppleId: 41234,
    environment: 'Production',
    rootCertificates: [chain.root],
    products: PRODUCTS,
    onlineChecks: false,
  };

  async function authorized({ headers }: Asked): Promise<boolean> {
    const token = /^Bearer (.+)$/.exec(headers.authorization ?? '')?.[1] ?? '';
    try {
      const { payload, protectedHeader } = await jwtVerify(token, publicKey, {
        algorithms: ['ES256'],
        audience: 'appstoreconnect-v1',
        issuer: config.issuerId,
        maxTokenAge: 3600,
      });
      return protectedHeader.kid === config.keyId && payload.bid === BUNDLE;
    } catch (error) {
      if (error instanceof errors.JOSEError) return false;
      throw error;
    }
  }

  async function route({ method, path, query, body }: Asked): Promise<Reply> {
    const id = /^\/inApps\/v1\/subscriptions\/([^/]+)$/.exec(path)?.[1];
    if (method === 'GET' && id !== undefined) return statuses(id);
    if (method === 'POST' && path === '/inApps/v1/notifications/history')
      return past(query, JSON.parse(body));
    return { status: 404 };
  }

  async function statuses(id: string): Promise<Reply> {
    if (!/^\d+$/.test(id)) return fault(400, 4000006, 'Invalid transaction id.');
    const it = [...subscriptions.values()].find(
      (each) => each.originalTransactionId === id || each.transactionId === id,
    );
    if (it === undefined) return fault(404, 4040010, 'Transaction id not found.');
    // the other subscription of the group is somebody's older one
    const older = { ...it, originalTransactionId: '1', transactionId: '1', standing: 'expired' as const };
    const lastTransactions = await Promise.all([older, it].map(lastTransaction));
    const data = [{ subscriptionGroupIdentifier: '21', lastTransactions }];
    return { status: 200, json: { environment: 'Production', bundleId: BUNDLE, appAppleId: 41234, data } };
  }

  const lastTransaction = async (it: Subscription) => ({
    originalTransactionId: it.originalTransactionId,
    status: STATUS[it.standing],
    signedTransactionInfo: await sign(transactionOf(it, now())),
    signedRenewalInfo: await sign(renewalOf(it, now())),
  });

  function past(query: URLSearchParams, wish: { startDate: number; endDate: number }): Reply {
    if (wish.startDate >= wish.endDate)
      return fault(400, 4000013, 'Invalid request. The end date precedes the start date.');
    if (wish.startDate < now() - 180 * 86_400_000)
      return fault(400, 4000012, 'Invalid request. The start date is too early.');
    const token = query.get('paginationToken');
    const from = token === null ? 0 : Number(/^page_(\d+)$/.exec(token)?.[1] ?? Number.NaN);
    if (Number.isNaN(from)) return fault(400, 4000014, 'Invalid request. The pagination token is invalid.');
    const inside = history.filter(({ at }) => at >= wish.startDate && at <= wish.endDate);
    const { rows, more } = page(inside, from, Math.min(20, served.faults.pageSize));
    return {
      status: 200,
      json: {
        hasMore: more,
        ...(more ? { paginationToken: `page_${from + rows.length}` } : {}),
        notificationHistory: rows.map(({ signedPayload, at }) => ({
          signedPayload,
          sendAttempts: [{ attemptDate: at, sendAttemptResult: 'TIMED_OUT' }],
        })),
      },
    };
  }

  const sign: AppleStandIn['sign'] = (payload, by = chain, header = {}) =>
    new CompactSign(bytes(JSON.stringify(payload)))
      .setProtectedHeader({ alg: 'ES256', x5c: [...by.x5c], ...header })
      .sign(by.leafKey);
  const posted = (eventId: string, signedPayload: string): Webhook => ({
    eventId,
    body: bytes(JSON.stringify({ signedPayload })),
    headers: { 'content-type': 'application/json' },
  });
  const signed = async (payload: Record<string, unknown>, by?: Chain, header?: object) =>
    posted(String(payload.notificationUUID), await sign(payload, by, header));
  const of = (reference: string) => found(subscriptions.get(reference), 'subscription');

  const notification: AppleStandIn['notification'] = async (reference, notificationType, subtype) => {
    const it = of(reference);
    const { signedTransactionInfo, signedRenewalInfo, status } = await lastTransaction(it);
    return {
      notificationType,
      ...(subtype === undefined ? {} : { subtype }),
      notificationUUID: randomUUID(),
      version: '2.0',
      signedDate: now(),
      data: {
        appAppleId: 41234,
        bundleId: BUNDLE,
        bundleVersion: '1.0',
        environment: 'Production',
        status,
        signedTransactionInfo,
        signedRenewalInfo,
        payer: it.payer,
      },
    };
  };
  const emit = async (it: Subscription, type: string, subtype?: string): Promise<Webhook> => {
    const webhook = await signed(await notification(it.originalTransactionId, type, subtype));
    const { signedPayload } = JSON.parse(new TextDecoder().decode(webhook.body)) as { signedPayload: string };
    history.push({ at: now(), signedPayload });
    return webhook;
  };
  const step = (it: Subscription, webhooks: Webhook[]): Step => ({
    reference: it.originalTransactionId,
    webhooks,
    expected: expectedOf(it),
  });

  const apply: Readonly<Partial<Record<Action, (it: Subscription) => [string, string?]>>> = {
    renew: (it) => {
      nextPeriod(it, String(++lastId), it.expiresDate);
      return ['DID_RENEW'];
    },
    cancel: (it) => {
      it.autoRenew = false;
      return ['DID_CHANGE_RENEWAL_STATUS', 'AUTO_RENEW_DISABLED'];
    },
    resume: (it) => {
      it.autoRenew = true;
      return ['DID_CHANGE_RENEWAL_STATUS', 'AUTO_RENEW_ENABLED'];
    },
    failPayment: (it) => {
      it.standing = 'grace';
      it.expiresDate = now();
      it.gracePeriodExpiresDate = now() + GRACE_MS;
      return ['DID_FAIL_TO_RENEW', 'GRACE_PERIOD'];
    },
    hold: (it) => {
      it.standing = 'hold';
      it.gracePeriodExpiresDate = now();
      return ['GRACE_PERIOD_EXPIRED'];
    },
    recover: (it) => {
      nextPeriod(it, String(++lastId), now());
      return ['DID_RENEW', 'BILLING_RECOVERY'];
    },
    expire: (it) => {
      const why = it.standing === 'hold' ? 'BILLING_RETRY' : 'VOLUNTARY';
      it.standing = 'expired';
      it.expiresDate = now();
      return ['EXPIRED', why];
    },
    refund: (it) => {
      it.before = it.standing;
      it.standing = 'revoked';
      it.revocationDate = now();
      return ['REFUND'];
    },
    reverseRefund: (it) => {
      it.standing = it.before;
      it.revocationDate = null;
      return ['REFUND_REVERSED'];
    },
    // whoever shared it with the family no longer does
    revoke: (it) => {
      it.standing = 'revoked';
      it.revocationDate = now();
      it.autoRenew = false;
      return ['REVOKE'];
    },
  };

  return {
    name: 'apple',
    ...served,
    config,
    sign,
    notification,
    signedTransaction: (reference) => sign(transactionOf(of(reference), now())),
    store: (deps) => appleStore(config, deps),
    expected: (reference) => expectedOf(of(reference)),
    actions: (reference) => possible(of(reference)),
    async create({ claim, tier, payer }) {
      const transactionId = String(++lastId);
      const it: Subscription = {
        originalTransactionId: transactionId,
        transactionId,
        appAccountToken: claimUuid(ClaimHash.parse(claim)),
        productId: found(Object.entries(PRODUCTS).find(([, sold]) => sold === tier)?.[0], 'product'),
        payer,
        standing: 'active',
        autoRenew: true,
        expiresDate: now() + PERIOD_MS,
        gracePeriodExpiresDate: null,
        revocationDate: null,
        before: 'active',
      };
      subscriptions.set(transactionId, it);
      return step(it, [await emit(it, 'SUBSCRIBED', 'INITIAL_BUY')]);
    },
    async act(reference, action) {
      const it = of(reference);
      const act = possible(it).includes(action) ? apply[action] : undefined;
      const [type, subtype] = found(act, `action now: ${action}`)(it);
      return step(it, [await emit(it, type, subtype)]);
    },
    async forgeries(reference) {
      const make = () => notification(reference, 'REFUND');
      const data = (payload: Record<string, unknown>, over: object) => ({
        ...payload,
        data: { ...(payload.data as object), ...over },
      });
      const genuine = await signed(await make());
      const inner = await sign({ ...transactionOf(of(reference), now()), bundleId: 'com.example.other' });
      return {
        'another key, the genuine chain': await signed(await make(), { ...chain, leafKey: otherKey() }),
        'a self-made chain with the marker extensions': await signed(await make(), await appleChain()),
        'a chain of the genuine root without the markers': await signed(
          await make(),
          await appleChain({ under: chain, markers: false }),
        ),
        'the genuine root under a self-made leaf': await signed(await make(), await mixed(chain)),
        'tampered payload': tampered(genuine),
        'alg none': posted(genuine.eventId, unsigned(await make(), chain)),
        'another bundle': await signed(data(await make(), { bundleId: 'com.example.other' })),
        'another app': await signed(data(await make(), { appAppleId: 999 })),
        'sandbox in production': await signed(data(await make(), { environment: 'Sandbox' })),
        'Xcode in production': await signed(data(await make(), { environment: 'Xcode' })),
        'LocalTesting, unsigned': posted(
          genuine.eventId,
          unsigned(data(await make(), { environment: 'LocalTesting' }), chain),
        ),
        'transaction of another bundle inside': await signed(
          data(await make(), { signedTransactionInfo: inner }),
        ),
        'stale time': await signed({ ...(await make()), signedDate: now() - 9 * 86_400_000 }),
        'future time': await signed({ ...(await make()), signedDate: now() + 301_000 }),
      };
    },
    async unknown() {
      const [reference] = subscriptions.keys();
      return signed(await notification(found(reference, 'subscription'), 'REINCARNATED', 'TWICE'));
    },
  };
}

function nextPeriod(it: Subscription, transactionId: string, from: number): void {
  it.transactionId = transactionId;
  it.standing = 'active';
  it.expiresDate = from + PERIOD_MS;
  it.gracePeriodExpiresDate = null;
}

function possible(it: Subscription): Action[] {
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

function expectedOf(it: Subscription): Expected {
  const open = it.standing === 'active' || it.standing === 'grace';
  return {
    standing: it.standing,
    renews: open && it.autoRenew,
    tier: PRODUCTS[it.productId as keyof typeof PRODUCTS],
  };
}

function transactionOf(it: Subscription, now: number): Record<string, unknown> {
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

function renewalOf(it: Subscription, now: number): Record<string, unknown> {
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

function otherKey(): KeyObject {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
}

/** A chain of somebody else that shows the genuine root at its end. */
async function mixed(genuine: Chain): Promise<Chain> {
  const other = await appleChain();
  return { ...other, x5c: [...other.x5c.slice(0, 2), ...genuine.x5c.slice(2)] };
}

const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');

function unsigned(payload: object, chain: Chain): string {
  return `${part({ alg: 'none', x5c: chain.x5c })}.${part(payload)}.`;
}

function tampered(webhook: Webhook): Webhook {
  const { signedPayload } = JSON.parse(new TextDecoder().decode(webhook.body)) as { signedPayload: string };
  const [header = '', payload = '', signature = ''] = signedPayload.split('.');
  const decoded = JSON.parse(Buffer.from(payload, 'base64url').toString('utf8')) as object;
  const changed = part({ ...decoded, notificationUUID: randomUUID() });
  return {
    ...webhook,
    body: bytes(JSON.stringify({ signedPayload: [header, changed, signature].join('.') })),
  };
}

function canary(subscriptions: ReadonlyMap<string, Subscription>): string {
  return [...subscriptions.values()]
    .map(({ payer }) => `${payer.name} <${payer.email}> ${payer.cardLast4}`)
    .join();
}
