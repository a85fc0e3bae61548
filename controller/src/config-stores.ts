/**
 * Configuration of the stores. Each is off until the file with its key is named; from then on whatever it cannot do
 * without is required. Addresses of the stores can be overridden: that is how a proxy or a stand-in is reached.
 */
import { Tier } from '@katafract/shared/sigil';
import { z } from 'zod';
import { list, path, variable, webUrl, whole } from './platform/variables.ts';

const tiers = list.transform((parts, context): Record<string, Tier> => {
  const pairs = parts.map((part) => /^([\w.:-]{1,255})=(\w+)$/.exec(part));
  const wrong = pairs.some((pair) => !pair || !Tier.safeParse(pair[2]).success);
  if (wrong) context.addIssue(`id=tier by comma, a tier being one of ${Tier.options.join(', ')}`);
  return Object.fromEntries(pairs.map((pair) => [pair?.[1], pair?.[2] as Tier]));
});
const flag = z.enum(['true', 'false']).transform((text) => text === 'true');
const word = z.string().regex(/^\S{1,255}$/, 'one word');

const STRIPE = {
  KATAFRACT_STRIPE_SECRET_KEY_FILE: variable(
    path,
    'File with a secret or restricted key of Stripe. Turns Stripe on',
  ),
  KATAFRACT_STRIPE_WEBHOOK_SECRET_FILE: variable(
    path,
    'File with the signing secret of the webhook endpoint; several, a line each, while one is being rolled',
  ),
  KATAFRACT_STRIPE_PRICES: variable(
    tiers,
    'What each price grants: price_…=plus,price_…=pro. Checkout sells a tier at the first price listed for it',
  ),
  KATAFRACT_STRIPE_SUCCESS_URL: variable(webUrl, 'Where a payer comes back to'),
  KATAFRACT_STRIPE_CANCEL_URL: variable(webUrl, 'Where one comes back to who did not pay'),
  KATAFRACT_STRIPE_MODE: variable(
    z.enum(['live', 'test']),
    'live, or test where no real money moves; messages of the other mode are refused',
    'live',
  ),
  KATAFRACT_STRIPE_GRACE_DAYS: variable(
    whole(0, 60),
    'How long a subscription whose renewal failed keeps its access, while Stripe tries again',
    '14',
  ),
  KATAFRACT_STRIPE_URL: variable(webUrl, "Where Stripe's API answers", 'https://api.stripe.com'),
} as const;

const APPLE = {
  KATAFRACT_APPLE_KEY_FILE: variable(
    path,
    'PEM of the In-App Purchase key from App Store Connect. Turns the App Store on',
  ),
  KATAFRACT_APPLE_KEY_ID: variable(word, 'Key id of that key'),
  KATAFRACT_APPLE_ISSUER_ID: variable(word, 'Issuer id of that key'),
  KATAFRACT_APPLE_BUNDLE_ID: variable(word, 'Bundle id of the app; messages of another are refused'),
  KATAFRACT_APPLE_APP_ID: variable(
    whole(1, Number.MAX_SAFE_INTEGER),
    "The app's Apple id; required in Production",
  ),
  KATAFRACT_APPLE_ENVIRONMENT: variable(
    z.enum(['Production', 'Sandbox']),
    'Production or Sandbox; messages of the other are refused',
    'Production',
  ),
  KATAFRACT_APPLE_ROOTS: variable(
    list,
    "Files (DER or PEM, by comma) of the root certificates that Apple's signatures must end in: " +
      'https://www.apple.com/certificateauthority/',
  ),
  KATAFRACT_APPLE_PRODUCTS: variable(tiers, 'What each product grants: product=plus,product=pro'),
  KATAFRACT_APPLE_ONLINE_CHECKS: variable(
    flag,
    "Whether Apple's certificates are also held against its OCSP responder",
    'true',
  ),
  KATAFRACT_APPLE_URL: variable(
    webUrl,
    'App Store Server API',
    undefined,
    'https://api.storekit.apple.com, or api.storekit-sandbox.apple.com in Sandbox',
  ),
} as const;

const GOOGLE = {
  KATAFRACT_GOOGLE_KEY_FILE: variable(
    path,
    'JSON key of a service account that may see orders and subscriptions. Turns Google Play on',
  ),
  KATAFRACT_GOOGLE_PACKAGE: variable(word, 'Package name of the app; messages of another are refused'),
  KATAFRACT_GOOGLE_PRODUCTS: variable(tiers, 'What each product grants: product=plus,product=pro'),
  KATAFRACT_GOOGLE_PUSH_AUDIENCE: variable(word, "Audience of the Pub/Sub push's token"),
  KATAFRACT_GOOGLE_PUSH_ACCOUNT: variable(word, 'Service account that the push is authenticated as'),
  KATAFRACT_GOOGLE_TEST_PURCHASES: variable(
    flag,
    'Whether purchases of licence testers grant anything',
    'false',
  ),
  KATAFRACT_GOOGLE_URL: variable(webUrl, 'Play Developer API', 'https://androidpublisher.googleapis.com'),
  KATAFRACT_GOOGLE_TOKEN_URL: variable(
    webUrl,
    'Where access tokens come from',
    'https://oauth2.googleapis.com/token',
  ),
  KATAFRACT_GOOGLE_PUSH_ISSUER: variable(webUrl, "Issuer of the push's token", 'https://accounts.google.com'),
  KATAFRACT_GOOGLE_PUSH_JWKS_URL: variable(
    webUrl,
    "Where that issuer's keys are",
    'https://www.googleapis.com/oauth2/v3/certs',
  ),
} as const;

export const STORE_VARIABLES = { ...STRIPE, ...APPLE, ...GOOGLE } as const;

type Name = keyof typeof STORE_VARIABLES;
export type StoreValues = { [N in Name]?: z.output<(typeof STORE_VARIABLES)[N]['schema']> };

/** The variable that turns a store on, and what it then cannot do without. */
const REQUIRED: readonly (readonly [Name, readonly Name[]])[] = [
  [
    'KATAFRACT_STRIPE_SECRET_KEY_FILE',
    [
      'KATAFRACT_STRIPE_WEBHOOK_SECRET_FILE',
      'KATAFRACT_STRIPE_PRICES',
      'KATAFRACT_STRIPE_SUCCESS_URL',
      'KATAFRACT_STRIPE_CANCEL_URL',
    ],
  ],
  [
    'KATAFRACT_APPLE_KEY_FILE',
    [
      'KATAFRACT_APPLE_KEY_ID',
      'KATAFRACT_APPLE_ISSUER_ID',
      'KATAFRACT_APPLE_BUNDLE_ID',
      'KATAFRACT_APPLE_ROOTS',
      'KATAFRACT_APPLE_PRODUCTS',
    ],
  ],
  [
    'KATAFRACT_GOOGLE_KEY_FILE',
    [
      'KATAFRACT_GOOGLE_PACKAGE',
      'KATAFRACT_GOOGLE_PRODUCTS',
      'KATAFRACT_GOOGLE_PUSH_AUDIENCE',
      'KATAFRACT_GOOGLE_PUSH_ACCOUNT',
    ],
  ],
];

/** @param wrong names that are set, but to something invalid: those are told already */
export function storeContradictions(at: StoreValues, wrong: ReadonlySet<string>): string[] {
  const absent = (name: Name) => at[name] === undefined && !wrong.has(name);
  const errors = REQUIRED.flatMap(([key, needed]) =>
    absent(key)
      ? needed.filter((name) => at[name] !== undefined).map((name) => `${name}: means nothing without ${key}`)
      : needed.filter(absent).map((name) => `${name}: required with ${key}`),
  );
  const production = at.KATAFRACT_APPLE_ENVIRONMENT === 'Production';
  if (!absent('KATAFRACT_APPLE_KEY_FILE') && production && absent('KATAFRACT_APPLE_APP_ID'))
    errors.push('KATAFRACT_APPLE_APP_ID: required in Production');
  return errors;
}

/** The stores as configured, each null where it is off. Secrets are named by their files. */
export function storesConfig(at: Required<StoreValues>, maybe: StoreValues) {
  const sandbox = at.KATAFRACT_APPLE_ENVIRONMENT === 'Sandbox' ? '-sandbox' : '';
  return {
    stripe:
      maybe.KATAFRACT_STRIPE_SECRET_KEY_FILE === undefined
        ? null
        : {
            secretKeyFile: at.KATAFRACT_STRIPE_SECRET_KEY_FILE,
            webhookSecretFile: at.KATAFRACT_STRIPE_WEBHOOK_SECRET_FILE,
            prices: at.KATAFRACT_STRIPE_PRICES,
            successUrl: at.KATAFRACT_STRIPE_SUCCESS_URL,
            cancelUrl: at.KATAFRACT_STRIPE_CANCEL_URL,
            liveMode: at.KATAFRACT_STRIPE_MODE === 'live',
            graceDays: at.KATAFRACT_STRIPE_GRACE_DAYS,
            apiBase: at.KATAFRACT_STRIPE_URL,
          },
    apple:
      maybe.KATAFRACT_APPLE_KEY_FILE === undefined
        ? null
        : {
            keyFile: at.KATAFRACT_APPLE_KEY_FILE,
            keyId: at.KATAFRACT_APPLE_KEY_ID,
            issuerId: at.KATAFRACT_APPLE_ISSUER_ID,
            bundleId: at.KATAFRACT_APPLE_BUNDLE_ID,
            appAppleId: maybe.KATAFRACT_APPLE_APP_ID ?? null,
            environment: at.KATAFRACT_APPLE_ENVIRONMENT,
            rootFiles: at.KATAFRACT_APPLE_ROOTS,
            products: at.KATAFRACT_APPLE_PRODUCTS,
            onlineChecks: at.KATAFRACT_APPLE_ONLINE_CHECKS,
            apiBase: maybe.KATAFRACT_APPLE_URL ?? `https://api.storekit${sandbox}.apple.com`,
          },
    google:
      maybe.KATAFRACT_GOOGLE_KEY_FILE === undefined
        ? null
        : {
            keyFile: at.KATAFRACT_GOOGLE_KEY_FILE,
            packageName: at.KATAFRACT_GOOGLE_PACKAGE,
            products: at.KATAFRACT_GOOGLE_PRODUCTS,
            pubsub: {
              audience: at.KATAFRACT_GOOGLE_PUSH_AUDIENCE,
              serviceAccountEmail: at.KATAFRACT_GOOGLE_PUSH_ACCOUNT,
              issuer: at.KATAFRACT_GOOGLE_PUSH_ISSUER,
              jwksUrl: at.KATAFRACT_GOOGLE_PUSH_JWKS_URL,
            },
            testPurchases: at.KATAFRACT_GOOGLE_TEST_PURCHASES,
            apiBase: at.KATAFRACT_GOOGLE_URL,
            tokenUrl: at.KATAFRACT_GOOGLE_TOKEN_URL,
          },
  };
}

export type StoresConfig = ReturnType<typeof storesConfig>;
