/**
 * The Play Developer API and its notifications as far as billing uses them, after
 * developers.google.com/android-publisher and developer.android.com/google/play/billing/rtdn-reference: subscriptionsv2,
 * orders, voided purchases, acknowledgement, the token endpoint, and Pub/Sub pushes signed by an issuer of the test's own.
 */
import { generateKeyPairSync, type KeyObject, randomBytes } from 'node:crypto';
import { type GoogleConfig, googleStore } from '@katafract/controller/billing/stores/google';
import { errors, exportJWK, jwtVerify, SignJWT, UnsecuredJWT } from 'jose';
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

type State =
  | 'PENDING'
  | 'ACTIVE'
  | 'CANCELED'
  | 'IN_GRACE_PERIOD'
  | 'ON_HOLD'
  | 'PAUSED'
  | 'EXPIRED'
  | 'PENDING_PURCHASE_CANCELED';
interface Subscription {
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

export interface GoogleStandIn extends StandIn {
  readonly config: GoogleConfig;
  /** The payer changes the product: a new purchase takes the place of this one. */
  readonly upgrade: (reference: string, tier: 'plus' | 'pro', inApp: boolean) => Promise<Step>;
  readonly acknowledged: (reference: string) => boolean;
  /** Makes it the purchase of a licence tester. */
  readonly asTester: (reference: string) => void;
  /** Ends every access token before its time. */
  readonly revokeTokens: () => void;
  /** A push of any notification; `claims` replace those of the token. */
  readonly push: (
    notification: object,
    options?: { claims?: object; key?: KeyObject; kid?: string; at?: number },
  ) => Promise<Webhook>;
}

const PACKAGE = 'com.example.vpn';
const PRODUCTS = { plus_monthly: 'plus', pro_monthly: 'pro' } as const;
const GRACE_MS = 7 * 86_400_000;
const SCOPE = 'https://www.googleapis.com/auth/androidpublisher';
const GRANT = 'urn:ietf:params:oauth:grant-type:jwt-bearer';

const fault = (code: number, status: string, message: string): Reply => ({
  status: code,
  json: {
    error: { code, message, status, errors: [{ message, domain: 'androidpublisher', reason: status }] },
  },
});
const rsa = () => generateKeyPairSync('rsa', { modulusLength: 2048 });
const rfc3339 = (ms: number) => new Date(ms).toISOString();

/** @param now ms since the epoch */
export async function googleStandIn(now: () => number = Date.now): Promise<GoogleStandIn> {
  const account = rsa();
  const issuer = rsa();
  const keySet = {
    keys: [{ ...(await exportJWK(issuer.publicKey)), kid: 'push-1', alg: 'RS256', use: 'sig' }],
  };
  const subscriptions = new Map<string, Subscription>();
  /** In the order in which they were voided. */
  const voided: { at: number; token: string; order: string }[] = [];
  let accessTokens = new Set<string>();

  const served = await serve(
    {
      failing: (status) => fault(status, 'backendError', `Backend error for ${canary(subscriptions)}`),
      rateLimited: (retryAfter) => ({
        ...fault(429, 'RESOURCE_EXHAUSTED', 'Quota exceeded.'),
        headers: { 'retry-after': new Date(Date.now() + retryAfter * 1000).toUTCString() },
      }),
    },
    (asked) => {
      if (asked.path === '/certs') return { status: 200, json: keySet };
      if (asked.path === '/token') return token(asked);
      const bearer = /^Bearer (.+)$/.exec(asked.headers.authorization ?? '')?.[1] ?? '';
      if (!accessTokens.has(bearer)) return fault(401, 'UNAUTHENTICATED', 'Invalid credentials.');
      return route(asked);
    },
  );
  const config: GoogleConfig = {
    apiBase: served.url,
    tokenUrl: `${served.url}/token`,
    serviceAccount: {
      client_email: 'billing@project.iam.gserviceaccount.com',
      private_key: account.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
      private_key_id: 'account-1',
    },
    packageName: PACKAGE,
    products: PRODUCTS,
    pubsub: {
      audience: 'https://api.example/v1/webhooks/google',
      serviceAccountEmail: 'push@project.iam.gserviceaccount.com',
      issuer: 'https://accounts.google.com',
      jwksUrl: `${served.url}/certs`,
    },
  };

  async function token({ body }: Asked): Promise<Reply> {
    const form = new URLSearchParams(body);
    try {
      if (form.get('grant_type') !== GRANT) return { status: 400, json: { error: 'unsupported_grant_type' } };
      const { payload } = await jwtVerify(form.get('assertion') ?? '', account.publicKey, {
        algorithms: ['RS256'],
        issuer: config.serviceAccount.client_email,
        audience: config.tokenUrl,
        currentDate: new Date(now()),
      });
      if (payload.scope !== SCOPE) return { status: 400, json: { error: 'invalid_scope' } };
    } catch (error) {
      if (error instanceof errors.JOSEError) return { status: 400, json: { error: 'invalid_grant' } };
      throw error;
    }
    const accessToken = `ya29.${randomBytes(24).toString('base64url')}`;
    accessTokens.add(accessToken);
    return { status: 200, json: { access_token: accessToken, expires_in: 3599, token_type: 'Bearer' } };
  }

  function route({ method, path, query }: Asked): Reply {
    const rest = new RegExp(`^/androidpublisher/v3/applications/${PACKAGE}/(.+)$`).exec(path)?.[1];
    if (rest === undefined)
      return fault(404, 'NOT_FOUND', 'No application was found for the given package name.');
    const [, purchase] = /^purchases\/subscriptionsv2\/tokens\/([^/]+)$/.exec(rest) ?? [];
    if (method === 'GET' && purchase !== undefined) return purchaseReply(decodeURIComponent(purchase));
    const [, order] = /^orders\/([^/]+)$/.exec(rest) ?? [];
    if (method === 'GET' && order !== undefined) return orderReply(decodeURIComponent(order));
    if (method === 'GET' && rest === 'purchases/voidedpurchases') return voidedReply(query);
    const [, product, acknowledged] =
      /^purchases\/subscriptions\/([^/]+)\/tokens\/([^/]+):acknowledge$/.exec(rest) ?? [];
    if (method === 'POST' && acknowledged !== undefined)
      return acknowledge(product, decodeURIComponent(acknowledged));
    return fault(404, 'NOT_FOUND', 'Not found.');
  }

  function purchaseReply(id: string): Reply {
    const it = subscriptions.get(id);
    if (it === undefined) return fault(400, 'INVALID_ARGUMENT', 'The purchase token is not valid.');
    if (it.state === 'EXPIRED' && it.expiryTime < now() - 60 * 86_400_000) {
      return fault(
        410,
        'GONE',
        'The subscription purchase is no longer available for query because it has been expired for too long.',
      );
    }
    // `fields` is ignored: what was not asked for must not stay either
    return { status: 200, json: purchaseObject(it) };
  }

  function orderReply(id: string): Reply {
    const it = [...subscriptions.values()].find((each) => each.order === id);
    if (it === undefined) return fault(404, 'NOT_FOUND', 'Order not found.');
    const { name, email, cardLast4 } = it.payer;
    const buyerAddress = { buyerState: name, buyerPostcode: cardLast4, buyerCountry: email };
    const state = it.voided ? 'REFUNDED' : 'PROCESSED';
    return { status: 200, json: { orderId: id, purchaseToken: it.token, state, buyerAddress } };
  }

  function voidedReply(query: URLSearchParams): Reply {
    const next = query.get('token');
    const startTime = Number(query.get('startTime') ?? now() - 30 * 86_400_000);
    if (next === null && startTime < now() - 30 * 86_400_000) {
      return fault(400, 'INVALID_ARGUMENT', 'The start time is older than 30 days.');
    }
    // only with type 1 are subscriptions listed
    const inside = query.get('type') === '1' ? voided : [];
    const [from, since] = next === null ? [0, startTime] : next.split(':').map(Number);
    const rowsSince = inside.filter(({ at }) => at >= (since ?? 0));
    const size = Math.min(Number(query.get('maxResults') ?? 1000), served.faults.pageSize);
    const { rows, more } = page(rowsSince, from ?? 0, size);
    const tokenPagination = { nextPageToken: `${(from ?? 0) + rows.length}:${since}` };
    const voidedPurchases = rows.map((row) => ({
      kind: 'androidpublisher#voidedPurchase',
      purchaseToken: row.token,
      orderId: row.order,
      voidedTimeMillis: String(row.at),
      voidedSource: 0,
      voidedReason: 1,
    }));
    return { status: 200, json: { ...(more ? { tokenPagination } : {}), voidedPurchases } };
  }

  function acknowledge(product: string | undefined, id: string): Reply {
    const it = subscriptions.get(id);
    if (it === undefined || it.product !== product)
      return fault(400, 'INVALID_ARGUMENT', 'The purchase token is not valid.');
    if (it.state === 'PENDING') return fault(400, 'FAILED_PRECONDITION', 'The purchase is pending.');
    it.acknowledged = true;
    return { status: 204 };
  }

  const push: GoogleStandIn['push'] = async (notification, options = {}) => {
    const { claims = {}, key = issuer.privateKey, kid = 'push-1', at = now() } = options;
    const iat = Math.floor(at / 1000);
    const { audience, serviceAccountEmail, issuer: iss } = config.pubsub;
    const base = { iss, aud: audience, sub: '1136', email: serviceAccountEmail, email_verified: true };
    const bearer = await new SignJWT({ ...base, azp: '1136', iat, exp: iat + 3600, ...claims })
      .setProtectedHeader({ alg: 'RS256', kid, typ: 'JWT' })
      .sign(key);
    return pushed(notification, bearer);
  };
  const pushed = (notification: object, bearer: string): Webhook => {
    const messageId = String(randomBytes(6).readUIntBE(0, 6));
    const data = Buffer.from(JSON.stringify(notification)).toString('base64');
    const message = { data, messageId, message_id: messageId, publishTime: rfc3339(now()) };
    return {
      eventId: messageId,
      body: bytes(JSON.stringify({ message, subscription: 'projects/project/subscriptions/rtdn' })),
      headers: { 'content-type': 'application/json', authorization: `Bearer ${bearer}` },
    };
  };
  const notification = (over: object) => ({
    version: '1.0',
    packageName: PACKAGE,
    eventTimeMillis: String(now()),
    ...over,
  });
  const about = (it: Subscription, notificationType: number) =>
    notification({
      subscriptionNotification: {
        version: '1.0',
        notificationType,
        purchaseToken: it.token,
        payer: it.payer,
      },
    });
  const of = (reference: string) => found(subscriptions.get(reference), 'subscription');
  const step = (it: Subscription, webhooks: Webhook[]): Step => ({
    reference: it.token,
    webhooks,
    expected: expectedOf(it),
  });
  const voidIt = (it: Subscription) => {
    it.voided = true;
    const order = found(it.order, 'order');
    voided.push({ at: now(), token: it.token, order });
    return notification({
      voidedPurchaseNotification: { purchaseToken: it.token, orderId: order, productType: 1, refundType: 1 },
    });
  };

  /** What each action does; the notifications it sends, by number or whole. */
  const apply: Readonly<Partial<Record<Action, (it: Subscription) => (number | object)[]>>> = {
    complete: (it) => {
      Object.assign(it, paidPeriod(now()));
      return [4];
    },
    abandon: (it) => {
      it.state = 'PENDING_PURCHASE_CANCELED';
      return [20];
    },
    renew: (it) => {
      Object.assign(it, paidPeriod(it.expiryTime));
      return [2];
    },
    cancel: (it) => {
      it.state = 'CANCELED';
      return [3];
    },
    resume: (it) => {
      it.state = 'ACTIVE';
      return [7];
    },
    failPayment: (it) => {
      it.state = 'IN_GRACE_PERIOD';
      it.expiryTime = now() + GRACE_MS;
      return [6];
    },
    hold: (it) => {
      it.state = 'ON_HOLD';
      it.expiryTime = now();
      return [5];
    },
    pause: (it) => {
      it.state = 'PAUSED';
      it.expiryTime = now();
      return [11, 10];
    },
    recover: (it) => {
      Object.assign(it, paidPeriod(now()));
      return [1];
    },
    expire: (it) => {
      it.state = 'EXPIRED';
      it.expiryTime = now();
      return [13];
    },
    // the money goes back, the subscription itself runs on
    refund: (it) => [voidIt(it)],
    revoke: (it) => {
      const message = voidIt(it);
      it.state = 'EXPIRED';
      it.expiryTime = now();
      return [12, message];
    },
  };

  const start = (purchase: {
    claim: string | null;
    tier: string;
    payer: Payer;
    pending?: boolean;
    linked?: string;
  }): Subscription => {
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
    if (purchase.pending !== true) Object.assign(it, paidPeriod(now()));
    subscriptions.set(it.token, it);
    return it;
  };

  return {
    name: 'google',
    ...served,
    config,
    push,
    store: (deps) => googleStore(config, deps),
    expected: (reference) => expectedOf(of(reference)),
    actions: (reference) => possible(of(reference)),
    acknowledged: (reference) => of(reference).acknowledged,
    asTester(reference) {
      of(reference).test = true;
    },
    revokeTokens() {
      accessTokens = new Set();
    },
    async create(purchase) {
      const it = start(purchase);
      return step(it, purchase.pending === true ? [] : [await push(about(it, 4))]);
    },
    async upgrade(reference, tier, inApp) {
      const old = of(reference);
      const it = start({ claim: inApp ? old.claim : null, tier, payer: old.payer, linked: old.token });
      Object.assign(old, { state: 'EXPIRED', expiryTime: now() });
      return step(it, [await push(about(it, 4)), await push(about(old, 13))]);
    },
    async act(reference, action) {
      const it = of(reference);
      const act = possible(it).includes(action) ? apply[action] : undefined;
      const messages = found(act, `action now: ${action}`)(it);
      const webhooks = messages.map((message) =>
        push(typeof message === 'number' ? about(it, message) : message),
      );
      return step(it, await Promise.all(webhooks));
    },
    async forgeries(reference) {
      const it = of(reference);
      const message = about(it, 12);
      const claims = (over: object) => push(message, { claims: over });
      const unsecured = new UnsecuredJWT({ email: config.pubsub.serviceAccountEmail, email_verified: true })
        .setIssuer(config.pubsub.issuer)
        .setAudience(config.pubsub.audience)
        .setIssuedAt(Math.floor(now() / 1000))
        .setExpirationTime(Math.floor(now() / 1000) + 3600)
        .encode();
      const genuine = await push(message);
      const authorization = found(genuine.headers.authorization, 'authorization');
      return {
        'another key under the same id': await push(message, { key: rsa().privateKey }),
        'another key under another id': await push(message, { key: rsa().privateKey, kid: 'push-2' }),
        'alg none': pushed(message, unsecured),
        'HS256 with the public key': pushed(message, await symmetric(issuer.publicKey, config)),
        'tampered token': { ...genuine, headers: { authorization: tampered(authorization) } },
        'no token': { ...genuine, headers: {} },
        'another audience': await claims({ aud: 'https://other.example/' }),
        'another issuer': await claims({ iss: 'https://accounts.example' }),
        'another sender': await claims({ email: 'somebody@project.iam.gserviceaccount.com' }),
        'e-mail not verified': await claims({ email_verified: false }),
        'e-mail verified in words': await claims({ email_verified: 'true' }),
        'stale token': await push(message, { at: now() - 3_700_000 }),
        'token of the future': await push(message, { at: now() + 120_000 }),
        'token without end': await claims({ exp: undefined }),
        'another package': await push({ ...message, packageName: 'com.example.other' }),
      };
    },
    unknown: () =>
      push(
        notification({
          subscriptionNotification: { version: '1.0', notificationType: 99, purchaseToken: 'unknown.token' },
        }),
      ),
  };
}

function paidPeriod(from: number): Partial<Subscription> {
  const order = `GPA.3345-${randomBytes(6).readUIntBE(0, 6)}`;
  return { state: 'ACTIVE', expiryTime: from + PERIOD_MS, order, voided: false };
}

function possible(it: Subscription): Action[] {
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

function expectedOf(it: Subscription): Expected {
  const standing = it.voided ? 'revoked' : STANDINGS[it.state];
  return {
    standing,
    renews: !it.voided && (it.state === 'ACTIVE' || it.state === 'IN_GRACE_PERIOD'),
    tier: it.test ? null : PRODUCTS[it.product as keyof typeof PRODUCTS],
  };
}

function purchaseObject(it: Subscription): Record<string, unknown> {
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

/** The old trick: the public key as the secret of an HMAC. */
function symmetric(publicKey: KeyObject, config: GoogleConfig): Promise<string> {
  const { issuer, audience, serviceAccountEmail: email } = config.pubsub;
  return new SignJWT({ email, email_verified: true })
    .setProtectedHeader({ alg: 'HS256', kid: 'push-1' })
    .setIssuer(issuer)
    .setAudience(audience)
    .setIssuedAt()
    .setExpirationTime('1h')
    .sign(bytes(publicKey.export({ type: 'spki', format: 'pem' }).toString()));
}

/** The same signature under a token that ends later. */
function tampered(authorization: string): string {
  const [header = '', payload = '', signature = ''] = authorization.split('.');
  const claims = JSON.parse(Buffer.from(payload, 'base64url').toString('utf8')) as { exp: number };
  const changed = Buffer.from(JSON.stringify({ ...claims, exp: claims.exp + 1 })).toString('base64url');
  return [header, changed, signature].join('.');
}

function canary(subscriptions: ReadonlyMap<string, Subscription>): string {
  return [...subscriptions.values()]
    .map(({ payer }) => `${payer.name} <${payer.email}> ${payer.cardLast4}`)
    .join();
}
