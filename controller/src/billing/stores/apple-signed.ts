/** Signed data of the App Store, verified by Apple's own library: certificate chain, signature, app and environment. */
import {
  Environment,
  type JWSTransactionDecodedPayload,
  NotificationTypeV2,
  SignedDataVerifier,
  Subtype,
  Type,
  VerificationException,
  VerificationStatus,
} from '@apple/app-store-server-library';
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import { type StoreDeps, storeUnavailable, webhookInvalid, webhookMalformed } from './call.ts';
import type { Signal } from './port.ts';

/** ms that the clocks of Apple and us may differ. */
const SKEW_MS = 300_000;
/** Apple tries a notification again for 157 hours: one that is older is none of its own sending. */
const MAX_AGE_MS = 8 * 86_400_000;

const Body = z.object({ signedPayload: z.string().max(200_000) });
const TransactionId = z.string().regex(/^\d{1,32}$/);

export interface SignedData {
  /** @throws KatafractError `webhook_invalid`, `webhook_malformed`, `store_unavailable` (OCSP out of reach) */
  readonly notification: (body: Uint8Array) => Promise<Signal>;
  /** One of the notification history, which came from Apple's API: null where it does not verify or is about none. */
  readonly past: (signedPayload: string) => Promise<string | null>;
  /** From a device or from the API; see `from`. */
  readonly verifier: (from: 'outside' | 'api') => SignedDataVerifier;
}

export function signedData(
  config: {
    rootCertificates: readonly Uint8Array[];
    onlineChecks: boolean;
    environment: 'Production' | 'Sandbox';
    bundleId: string;
    appAppleId?: number;
  },
  deps: StoreDeps,
): SignedData {
  const make = (online: boolean) =>
    new SignedDataVerifier(
      config.rootCertificates.map((root) => Buffer.from(root)),
      online,
      environmentOf(config.environment),
      config.bundleId,
      config.appAppleId,
    );
  // what the API answers came by TLS just now, and its history may be older than the certificate that signed it
  const verifiers = { outside: make(config.onlineChecks), api: make(false) };
  return {
    verifier: (from) => verifiers[from],
    async notification(body) {
      const { signedPayload } = parsedBody(body);
      return verified(webhookInvalid, () => signalOf(verifiers.outside, signedPayload, deps.clock.now()));
    },
    async past(signedPayload) {
      try {
        return (await signalOf(verifiers.api, signedPayload, null)).reference;
      } catch (error) {
        // one that cannot be read must not stop the sweep from seeing the rest; whatever it was about is read by itself
        if (!(error instanceof VerificationException || error instanceof KatafractError)) throw error;
        deps.observe?.('apple', 'unverified', 0);
        return null;
      }
    },
  };
}

/** The library knows two more environments, in which it verifies no signature: they cannot be named here. */
export function environmentOf(name: 'Production' | 'Sandbox'): Environment {
  if (name === 'Production') return Environment.PRODUCTION;
  if (name === 'Sandbox') return Environment.SANDBOX;
  throw new KatafractError('config_invalid', 'the environment of the App Store is Production or Sandbox');
}

/**
 * Runs what the library verifies.
 * @throws KatafractError of `refuse` where it does not verify; `store_unavailable` where that cannot be said now
 */
export async function verified<T>(
  refuse: (store: 'apple', why: string) => KatafractError,
  verify: () => Promise<T>,
): Promise<T> {
  try {
    return await verify();
  } catch (error) {
    if (!(error instanceof VerificationException)) throw error;
    if (error.status === VerificationStatus.RETRYABLE_VERIFICATION_FAILURE) {
      throw storeUnavailable('apple', 'its certificate status cannot be had');
    }
    throw refuse('apple', VerificationStatus[error.status].toLowerCase().replaceAll('_', ' '));
  }
}

function parsedBody(body: Uint8Array): z.infer<typeof Body> {
  try {
    return Body.parse(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(body)));
  } catch {
    throw webhookMalformed('apple', 'not a signed payload');
  }
}

const TYPES = new Set<string>(Object.values(NotificationTypeV2));
const SUBTYPES = new Set<string>(Object.values(Subtype));

/** @param now null where the age does not matter */
async function signalOf(verifier: SignedDataVerifier, signed: string, now: number | null): Promise<Signal> {
  const { notificationUUID, notificationType, subtype, signedDate, data } =
    await verifier.verifyAndDecodeNotification(signed);
  if (notificationUUID === undefined || !/^[\w-]{1,64}$/.test(notificationUUID)) {
    throw webhookMalformed('apple', 'no id');
  }
  if (now !== null) {
    if (signedDate === undefined || signedDate > now + SKEW_MS || signedDate < now - MAX_AGE_MS) {
      throw webhookInvalid('apple', 'time');
    }
  }
  const known = notificationType !== undefined && TYPES.has(notificationType);
  const type = known
    ? [notificationType, ...(subtype && SUBTYPES.has(subtype) ? [subtype] : [])].join('/')
    : 'unknown';
  const transaction =
    known && data?.signedTransactionInfo !== undefined
      ? await verifier.verifyAndDecodeTransaction(data.signedTransactionInfo)
      : null;
  const reference = transaction === null ? null : subscriptionId(transaction);
  return { store: 'apple', eventId: notificationUUID, type, reference };
}

/** The id that a subscription keeps through its renewals; null where the transaction is of another kind. */
export function subscriptionId(transaction: JWSTransactionDecodedPayload): string | null {
  if (transaction.type !== Type.AUTO_RENEWABLE_SUBSCRIPTION) return null;
  const id = TransactionId.safeParse(transaction.originalTransactionId);
  return id.success ? id.data : null;
}
