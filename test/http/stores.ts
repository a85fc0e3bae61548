/**
 * The stores' stand-ins beside a whole controller: configured by its environment as real ones would be, their messages
 * posted to it over HTTP; and an app that pays and claims.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { IssuedSigil } from '@katafract/shared/api';
import { type ClaimHash, type ClaimSecret, claimHash, makeClaimSecret } from '@katafract/shared/claim';
import { type DeviceKey, generateDeviceKey, makeProof } from '@katafract/shared/dpop';
import { type AppleStandIn, appleStandIn } from '../stores/apple.ts';
import { type GoogleStandIn, googleStandIn } from '../stores/google.ts';
import type { Payer, StandIn, Step, Webhook } from '../stores/stand-in.ts';
import { type StripeStandIn, stripeStandIn } from '../stores/stripe.ts';
import type { Answer, Api } from './controller.ts';

export interface Stores {
  readonly stripe: StripeStandIn;
  readonly apple: AppleStandIn;
  readonly google: GoogleStandIn;
  readonly all: readonly StandIn[];
  /** What makes a controller use them. */
  readonly env: Readonly<Record<string, string>>;
  close(): Promise<void>;
}

/** @param now ms since the epoch */
export async function startStores(now: () => number = Date.now): Promise<Stores> {
  const folder = await mkdtemp(join(tmpdir(), 'katafract-stores-'));
  const [stripe, apple, google] = [
    await stripeStandIn(now),
    await appleStandIn(now),
    await googleStandIn(now),
  ];
  const file = async (name: string, content: string | Uint8Array) => {
    await writeFile(join(folder, name), content, { mode: 0o600 });
    return join(folder, name);
  };
  const tiers = (of: Readonly<Record<string, string>>) =>
    Object.entries(of)
      .map((pair) => pair.join('='))
      .join(',');
  const env = {
    KATAFRACT_STRIPE_SECRET_KEY_FILE: await file('stripe-key', stripe.config.secretKey),
    KATAFRACT_STRIPE_WEBHOOK_SECRET_FILE: await file('whsec', stripe.config.webhookSecrets.join('\n')),
    KATAFRACT_STRIPE_PRICES: tiers(stripe.config.prices),
    KATAFRACT_STRIPE_SUCCESS_URL: stripe.config.successUrl,
    KATAFRACT_STRIPE_CANCEL_URL: stripe.config.cancelUrl,
    KATAFRACT_STRIPE_MODE: stripe.config.liveMode ? 'live' : 'test',
    KATAFRACT_STRIPE_URL: stripe.config.apiBase,
    KATAFRACT_APPLE_KEY_FILE: await file('apple.p8', apple.config.privateKey),
    KATAFRACT_APPLE_KEY_ID: apple.config.keyId,
    KATAFRACT_APPLE_ISSUER_ID: apple.config.issuerId,
    KATAFRACT_APPLE_BUNDLE_ID: apple.config.bundleId,
    KATAFRACT_APPLE_APP_ID: String(apple.config.appAppleId),
    KATAFRACT_APPLE_ENVIRONMENT: apple.config.environment,
    KATAFRACT_APPLE_ROOTS: await file('root.cer', apple.config.rootCertificates[0] ?? ''),
    KATAFRACT_APPLE_PRODUCTS: tiers(apple.config.products),
    KATAFRACT_APPLE_ONLINE_CHECKS: String(apple.config.onlineChecks),
    KATAFRACT_APPLE_URL: apple.config.apiBase,
    KATAFRACT_GOOGLE_KEY_FILE: await file('google.json', JSON.stringify(google.config.serviceAccount)),
    KATAFRACT_GOOGLE_PACKAGE: google.config.packageName,
    KATAFRACT_GOOGLE_PRODUCTS: tiers(google.config.products),
    KATAFRACT_GOOGLE_PUSH_AUDIENCE: google.config.pubsub.audience,
    KATAFRACT_GOOGLE_PUSH_ACCOUNT: google.config.pubsub.serviceAccountEmail,
    KATAFRACT_GOOGLE_PUSH_ISSUER: google.config.pubsub.issuer,
    KATAFRACT_GOOGLE_PUSH_JWKS_URL: google.config.pubsub.jwksUrl,
    KATAFRACT_GOOGLE_URL: google.config.apiBase,
    KATAFRACT_GOOGLE_TOKEN_URL: google.config.tokenUrl,
  };
  const all = [stripe, apple, google];
  const close = async () => {
    for (const one of all) await one.close();
    await rm(folder, { recursive: true });
  };
  return { stripe, apple, google, all, env, close };
}

/** Whom no store may tell us of. */
export const PAYER: Payer = {
  name: 'Jane Canary',
  email: 'jane.canary@example.org',
  cardLast4: '4271',
  deviceId: 'CANARY-7F3A-DEVICE',
};

/** Posts a message as the store would. */
export function post(api: Api, store: string, { body, headers }: Webhook): Promise<Answer> {
  const { 'content-type': type = 'application/json', ...rest } = headers;
  return api.call('POST', `/v1/webhooks/${store}`, {
    body: new TextDecoder().decode(body),
    headers: { ...rest, 'content-type': type },
  });
}

/** One that pays, and claims on its devices. */
export class App {
  readonly secret: ClaimSecret;
  readonly hash: ClaimHash;

  constructor(secret: ClaimSecret, hash: ClaimHash) {
    this.secret = secret;
    this.hash = hash;
  }

  static async make(secret: ClaimSecret = makeClaimSecret()): Promise<App> {
    return new App(secret, await claimHash(secret));
  }

  /** Buys, and has the store tell nobody yet. */
  buy(store: StandIn, tier: 'plus' | 'pro' = 'plus', more: { pending?: boolean } = {}): Promise<Step> {
    return store.create({ claim: this.hash, tier, payer: PAYER, ...more });
  }

  /** @param proofOf what is shown besides the secret */
  async claim(
    api: Api,
    device?: DeviceKey,
    proofOf: { apple?: string; google?: string; voucher?: string } = {},
    now = Date.now(),
  ): Promise<Answer<IssuedSigil>> {
    const key = device ?? (await generateDeviceKey());
    const proof = await makeProof(key, { method: 'POST', url: `${PUBLIC_URL}/v1/sigils`, now });
    return api.call('POST', '/v1/sigils', {
      body: { secret: this.secret, ...proofOf },
      headers: { dpop: proof },
    });
  }
}

/** As test/http/controller.ts configures it. */
export const PUBLIC_URL = 'http://artemis.test';

/** A request by a device with the Sigil that is bound to it. */
export async function callBound<T>(
  api: Api,
  { key, sigil }: { key: DeviceKey; sigil: string },
  request: { method: string; path: string; body?: unknown; now?: number },
): Promise<Answer<T>> {
  const { method, path, body, now = Date.now() } = request;
  const proof = await makeProof(key, { method, url: `${PUBLIC_URL}${path}`, now, token: sigil });
  return api.call(method, path, { body, headers: { authorization: `DPoP ${sigil}`, dpop: proof } });
}
