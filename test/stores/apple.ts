/**
 * The App Store Server API and its Server Notifications V2 as far as billing uses them, after
 * developer.apple.com/documentation/appstoreserverapi and /appstoreservernotifications. Everything is signed by a
 * chain of the test's own, which only the configuration of the test trusts.
 */
import { generateKeyPairSync, type KeyObject, randomUUID } from 'node:crypto';
import { type AppleConfig, appleStore } from '@katafract/controller/billing/stores/apple';
import { ClaimHash, claimUuid } from '@katafract/shared/claim';
import { CompactSign } from 'jose';
import { appleApi, fault, type Holdings, lastTransaction } from './apple-api.ts';
import {
  BUNDLE,
  expectedOf,
  GRACE_MS,
  nextPeriod,
  PRODUCTS,
  possible,
  type Subscription,
  transactionOf,
} from './apple-life.ts';
import { appleChain, type Chain } from './pki.ts';
import {
  type Action,
  bytes,
  found,
  type Payer,
  PERIOD_MS,
  payersOf,
  type StandIn,
  type Step,
  serve,
  type Webhook,
} from './stand-in.ts';

type Sign = (payload: object, by?: Chain, header?: object) => Promise<string>;
type Payload = Record<string, unknown>;
type Notification = (reference: string, type: string, subtype?: string) => Promise<Payload>;

export interface AppleStandIn extends StandIn {
  readonly config: AppleConfig;
  /** The signed transaction that StoreKit hands to the app. */
  readonly signedTransaction: (reference: string) => Promise<string>;
  /** Signs any payload as Apple does; by another chain, with another header, where a test says so. */
  readonly sign: Sign;
  /** The payload of a notification about it. */
  readonly notification: Notification;
}

/**
 * Not paid-for purchases (`pending`) are unknown to the App Store's server: it tells of a purchase once it is paid.
 * @param now ms since the epoch; not before the chain is made, which is now
 */
export async function appleStandIn(now: () => number = Date.now): Promise<AppleStandIn> {
  const chain = await appleChain();
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const sign = signer(chain);
  const held: Holdings = {
    now,
    pageSize: () => served.faults.pageSize,
    sign,
    subscriptions: new Map(),
    history: [],
  };
  const served = await serve(
    {
      failing: (status) =>
        fault(status, 5000000, `An unknown error occurred for ${payersOf(held.subscriptions)}`),
      rateLimited: (retryAfter) => ({
        ...fault(429, 4290000, 'Rate limit exceeded.'),
        // Apple gives the time, in ms since the epoch
        headers: { 'retry-after': String(now() + retryAfter * 1000) },
      }),
    },
    appleApi(held, () => config, publicKey),
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
  const of = (reference: string) => found(held.subscriptions.get(reference), 'subscription');
  const notification = notifier(held);
  return {
    name: 'apple',
    ...served,
    ...lives(held, notification),
    config,
    sign,
    notification,
    signedTransaction: (reference) => sign(transactionOf(of(reference), now())),
    store: (deps) => appleStore(config, deps),
    expected: (reference) => expectedOf(of(reference)),
    actions: (reference) => possible(of(reference)),
    forgeries: (reference) =>
      forgeries(() => notification(reference, 'REFUND'), of(reference), sign, chain, now()),
    async unknown() {
      const [reference] = held.subscriptions.keys();
      return posted(sign, await notification(found(reference, 'subscription'), 'REINCARNATED', 'TWICE'));
    },
  };
}

function signer(chain: Chain): Sign {
  return (payload, by = chain, header = {}) =>
    new CompactSign(bytes(JSON.stringify(payload)))
      .setProtectedHeader({ alg: 'ES256', x5c: [...by.x5c], ...header })
      .sign(by.leafKey);
}

function asPosted(eventId: string, signedPayload: string): Webhook {
  const body = bytes(JSON.stringify({ signedPayload }));
  return { eventId, body, headers: { 'content-type': 'application/json' } };
}

async function posted(sign: Sign, payload: Payload, by?: Chain): Promise<Webhook> {
  return asPosted(String(payload.notificationUUID), await sign(payload, by));
}

function notifier(held: Holdings): Notification {
  return async (reference, notificationType, subtype) => {
    const it = found(held.subscriptions.get(reference), 'subscription');
    const { signedTransactionInfo, signedRenewalInfo, status } = await lastTransaction(held, it);
    const app = { appAppleId: 41234, bundleId: BUNDLE, bundleVersion: '1.0', environment: 'Production' };
    return {
      notificationType,
      ...(subtype === undefined ? {} : { subtype }),
      notificationUUID: randomUUID(),
      version: '2.0',
      signedDate: held.now(),
      data: { ...app, status, signedTransactionInfo, signedRenewalInfo, payer: it.payer },
    };
  };
}

function lives(held: Holdings, notification: Notification): Pick<StandIn, 'create' | 'act'> {
  const steps = actions(held.now);
  const emit = async (it: Subscription, type: string, subtype?: string): Promise<Step> => {
    const payload = await notification(it.originalTransactionId, type, subtype);
    const signedPayload = await held.sign(payload);
    held.history.push({ at: held.now(), signedPayload });
    const webhook = asPosted(String(payload.notificationUUID), signedPayload);
    return { reference: it.originalTransactionId, webhooks: [webhook], expected: expectedOf(it) };
  };
  return {
    async create({ claim, tier, payer }) {
      const it = newSubscription(claim, tier, payer, held.now());
      held.subscriptions.set(it.originalTransactionId, it);
      return emit(it, 'SUBSCRIBED', 'INITIAL_BUY');
    },
    async act(reference, action) {
      const it = found(held.subscriptions.get(reference), 'subscription');
      const act = possible(it).includes(action) ? steps[action] : undefined;
      const [type, subtype] = found(act, `action now: ${action}`)(it);
      return emit(it, type, subtype);
    },
  };
}

/** Sixteen digits, as Apple's are. */
function transactionId(): string {
  return `2${Array.from({ length: 15 }, () => Math.floor(Math.random() * 10)).join('')}`;
}

function newSubscription(claim: string, tier: string, payer: Payer, now: number): Subscription {
  const id = transactionId();
  return {
    originalTransactionId: id,
    transactionId: id,
    appAccountToken: claimUuid(ClaimHash.parse(claim)),
    productId: found(Object.entries(PRODUCTS).find(([, sold]) => sold === tier)?.[0], 'product'),
    payer,
    standing: 'active',
    autoRenew: true,
    expiresDate: now + PERIOD_MS,
    gracePeriodExpiresDate: null,
    revocationDate: null,
    before: 'active',
  };
}

type Steps = Readonly<Partial<Record<Action, (it: Subscription) => [type: string, subtype?: string]>>>;

/** What each action does, and the notification it sends. */
function actions(now: () => number): Steps {
  const change = (it: Subscription, what: Partial<Subscription>) => Object.assign(it, what);
  return {
    renew: (it) => {
      nextPeriod(it, transactionId(), it.expiresDate);
      return ['DID_RENEW'];
    },
    cancel: (it) => {
      change(it, { autoRenew: false });
      return ['DID_CHANGE_RENEWAL_STATUS', 'AUTO_RENEW_DISABLED'];
    },
    resume: (it) => {
      change(it, { autoRenew: true });
      return ['DID_CHANGE_RENEWAL_STATUS', 'AUTO_RENEW_ENABLED'];
    },
    failPayment: (it) => {
      change(it, { standing: 'grace', expiresDate: now(), gracePeriodExpiresDate: now() + GRACE_MS });
      return ['DID_FAIL_TO_RENEW', 'GRACE_PERIOD'];
    },
    hold: (it) => {
      change(it, { standing: 'hold', gracePeriodExpiresDate: now() });
      return ['GRACE_PERIOD_EXPIRED'];
    },
    recover: (it) => {
      nextPeriod(it, transactionId(), now());
      return ['DID_RENEW', 'BILLING_RECOVERY'];
    },
    expire: (it) => {
      const why = it.standing === 'hold' ? 'BILLING_RETRY' : 'VOLUNTARY';
      change(it, { standing: 'expired', expiresDate: now() });
      return ['EXPIRED', why];
    },
    refund: (it) => {
      change(it, { before: it.standing, standing: 'revoked', revocationDate: now() });
      return ['REFUND'];
    },
    reverseRefund: (it) => {
      change(it, { standing: it.before, revocationDate: null });
      return ['REFUND_REVERSED'];
    },
    // whoever shared it with the family no longer does
    revoke: (it) => {
      change(it, { standing: 'revoked', revocationDate: now(), autoRenew: false });
      return ['REVOKE'];
    },
  };
}

async function forgeries(
  make: () => Promise<Payload>,
  it: Subscription,
  sign: Sign,
  chain: Chain,
  now: number,
): Promise<Record<string, Webhook>> {
  const by = async (other: Chain) => posted(sign, await make(), other);
  const says = async (over: object) => posted(sign, { ...(await make()), ...over });
  const saysOf = async (over: object) => says({ data: { ...((await make()).data as object), ...over } });
  const unmarked = await appleChain({ under: chain, markers: false });
  const inner = await sign({ ...transactionOf(it, now), bundleId: 'com.example.other' });
  const local = { ...((await make()).data as object), environment: 'LocalTesting' };
  return {
    'another key, the genuine chain': await by({ ...chain, leafKey: otherKey() }),
    'a self-made chain with the marker extensions': await by(await appleChain()),
    'a chain of the genuine root without the markers': await by(unmarked),
    'the genuine root under a self-made leaf': await by(await mixed(chain)),
    'tampered payload': tampered(await posted(sign, await make())),
    'alg none': asPosted(randomUUID(), unsigned(await make(), chain)),
    'another bundle': await saysOf({ bundleId: 'com.example.other' }),
    'another app': await saysOf({ appAppleId: 999 }),
    'sandbox in production': await saysOf({ environment: 'Sandbox' }),
    'Xcode in production': await saysOf({ environment: 'Xcode' }),
    'LocalTesting, unsigned': asPosted(randomUUID(), unsigned({ ...(await make()), data: local }, chain)),
    'transaction of another bundle inside': await saysOf({ signedTransactionInfo: inner }),
    'stale time': await says({ signedDate: now - 9 * 86_400_000 }),
    'future time': await says({ signedDate: now + 3_600_000 }),
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
  return asPosted(webhook.eventId, [header, changed, signature].join('.'));
}
