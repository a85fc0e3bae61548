/**
 * Real-time developer notifications as Pub/Sub pushes them: the push bears an OIDC token of Google, which jose
 * verifies; the message inside names a purchase token.
 */
import { KatafractError } from '@katafract/shared/errors';
import { createRemoteJWKSet, customFetch, errors, jwtVerify } from 'jose';
import { z } from 'zod';
import { type StoreDeps, storeCall, storeUnavailable, webhookInvalid, webhookMalformed } from './call.ts';
import type { Signal } from './port.ts';

export interface PushConfig {
  readonly packageName: string;
  /** What the token of a Pub/Sub push must say. */
  readonly pubsub: {
    readonly audience: string;
    readonly serviceAccountEmail: string;
    /** `https://accounts.google.com` */
    readonly issuer: string;
    /** `https://www.googleapis.com/oauth2/v3/certs` */
    readonly jwksUrl: string;
  };
}

/** Seconds that the clocks of Google and us may differ. */
const SKEW = 60;
/** Google signs a push for an hour at most. */
const MAX_AGE = 3600;

/** `notificationType` of a subscription (Play Billing, RTDN reference). */
const TYPES: Readonly<Record<number, string>> = {
  1: 'SUBSCRIPTION_RECOVERED',
  2: 'SUBSCRIPTION_RENEWED',
  3: 'SUBSCRIPTION_CANCELED',
  4: 'SUBSCRIPTION_PURCHASED',
  5: 'SUBSCRIPTION_ON_HOLD',
  6: 'SUBSCRIPTION_IN_GRACE_PERIOD',
  7: 'SUBSCRIPTION_RESTARTED',
  8: 'SUBSCRIPTION_PRICE_CHANGE_CONFIRMED',
  9: 'SUBSCRIPTION_DEFERRED',
  10: 'SUBSCRIPTION_PAUSED',
  11: 'SUBSCRIPTION_PAUSE_SCHEDULE_CHANGED',
  12: 'SUBSCRIPTION_REVOKED',
  13: 'SUBSCRIPTION_EXPIRED',
  17: 'SUBSCRIPTION_ITEMS_CHANGED',
  18: 'SUBSCRIPTION_CANCELLATION_SCHEDULED',
  19: 'SUBSCRIPTION_PRICE_CHANGE_UPDATED',
  20: 'SUBSCRIPTION_PENDING_PURCHASE_CANCELED',
  22: 'SUBSCRIPTION_PRICE_STEP_UP_CONSENT_UPDATED',
};
/** `productType` of a voided purchase. */
const VOIDED_SUBSCRIPTION = 1;

/** Opaque to us; it becomes part of a path. */
export const PurchaseToken = z.string().regex(/^[A-Za-z0-9._~-]{8,2000}$/);

const Push = z.object({
  message: z.object({ data: z.string().max(100_000), messageId: z.string().regex(/^[\w.-]{1,128}$/) }),
});
const Notification = z.object({
  packageName: z.string(),
  subscriptionNotification: z
    .object({ notificationType: z.number(), purchaseToken: PurchaseToken })
    .optional(),
  voidedPurchaseNotification: z.object({ purchaseToken: z.string(), productType: z.number() }).optional(),
  testNotification: z.unknown().optional(),
});

/** The returned function throws KatafractError `webhook_invalid`, `webhook_malformed`, `store_unavailable` (no keys). */
export function pushVerifier(
  config: PushConfig,
  deps: StoreDeps,
): (request: { body: Uint8Array; headers: Headers }) => Promise<Signal> {
  // a way out of its own: that the Play API is down says nothing of Google's keys
  const keys = createRemoteJWKSet(new URL(config.pubsub.jwksUrl), {
    [customFetch]: storeCall('google', deps).fetch,
    timeoutDuration: 60_000,
  });
  return async ({ body, headers }) => {
    const token = /^Bearer ([\w.-]{1,8192})$/.exec(headers.get('authorization') ?? '')?.[1];
    if (token === undefined) throw webhookInvalid('google', 'no token');
    await authenticate(token, keys, config, deps.clock.now());
    const { message } = json(Push, new TextDecoder().decode(body));
    const notification = json(Notification, Buffer.from(message.data, 'base64').toString('utf8'));
    if (notification.packageName !== config.packageName) throw webhookInvalid('google', 'package');
    return { store: 'google', eventId: message.messageId, ...about(notification) };
  };
}

async function authenticate(
  token: string,
  keys: ReturnType<typeof createRemoteJWKSet>,
  { pubsub }: PushConfig,
  now: number,
): Promise<void> {
  try {
    const { payload } = await jwtVerify(token, keys, {
      algorithms: ['RS256', 'ES256'],
      issuer: pubsub.issuer,
      audience: pubsub.audience,
      currentDate: new Date(now),
      clockTolerance: SKEW,
      maxTokenAge: MAX_AGE,
      requiredClaims: ['exp', 'iat', 'email'],
    });
    if (payload.email === pubsub.serviceAccountEmail && payload.email_verified === true) return;
  } catch (error) {
    if (error instanceof KatafractError) throw error;
    // that the keys could not be had is no fault of the message, which is sent again
    if (error instanceof errors.JWKSTimeout || error instanceof errors.JWKSInvalid || !isTokenFault(error)) {
      throw storeUnavailable('google', 'its keys cannot be had');
    }
    throw webhookInvalid('google', error.code.toLowerCase().replaceAll('_', ' '));
  }
  throw webhookInvalid('google', 'sender');
}

/** JOSEError itself is what jose throws when a key set's answer is not 200 or no JSON; faults of a token have their own class. */
function isTokenFault(error: unknown): error is errors.JOSEError {
  return error instanceof errors.JOSEError && error.constructor !== errors.JOSEError;
}

function about(notification: z.infer<typeof Notification>): Pick<Signal, 'type' | 'reference'> {
  const { subscriptionNotification: subscription, voidedPurchaseNotification: voided } = notification;
  if (subscription !== undefined) {
    const type = TYPES[subscription.notificationType];
    if (type !== undefined) return { type, reference: subscription.purchaseToken };
  }
  if (voided !== undefined && voided.productType === VOIDED_SUBSCRIPTION) {
    const reference = PurchaseToken.safeParse(voided.purchaseToken);
    if (reference.success) return { type: 'VOIDED_PURCHASE', reference: reference.data };
  }
  const type = notification.testNotification === undefined ? 'unknown' : 'TEST';
  return { type, reference: null };
}

function json<S extends z.ZodType>(schema: S, text: string): z.infer<S> {
  try {
    return schema.parse(JSON.parse(text));
  } catch {
    throw webhookMalformed('google', 'not a notification');
  }
}
