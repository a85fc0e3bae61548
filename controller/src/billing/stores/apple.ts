/**
 * The App Store as a store: Server Notifications V2 in, Get All Subscription Statuses and Get Notification History
 * out. Everything signed is verified by Apple's own library against the roots, the app and the environment of the
 * configuration; nothing that arrives chooses any of them.
 */
import { createPrivateKey } from 'node:crypto';
import { AutoRenewStatus, Status } from '@apple/app-store-server-library';
import { KatafractError } from '@katafract/shared/errors';
import type { Tier } from '@katafract/shared/sigil';
import type { z } from 'zod';
import { AppleClient, askedApple, History, Statuses, type StatusItem } from './apple-api.ts';
import { environmentOf, type SignedData, signedData, subscriptionId, verified } from './apple-signed.ts';
import { purchaseInvalid, type StoreDeps, storeUnavailable } from './call.ts';
import { type Standing, type StorePort, type StoreView, tierOf } from './port.ts';

export interface AppleConfig {
  /** `https://api.storekit.apple.com` (sandbox: `https://api.storekit-sandbox.apple.com`), or what stands in for it. */
  readonly apiBase: string;
  /** Of the In-App Purchase key, from App Store Connect. */
  readonly issuerId: string;
  readonly keyId: string;
  /** PEM (PKCS #8) of that key. */
  readonly privateKey: string;
  readonly bundleId: string;
  /** Required in Production. */
  readonly appAppleId?: number;
  /** Pinned here; nothing that arrives chooses it. */
  readonly environment: 'Production' | 'Sandbox';
  /** DER (or PEM) of the roots that Apple's chains may end in. */
  readonly rootCertificates: readonly Uint8Array[];
  /** Product id to tier. */
  readonly products: Readonly<Record<string, Tier>>;
  /** Whether what arrives from outside is also held against OCSP and today's date; needs a way to Apple's OCSP. */
  readonly onlineChecks: boolean;
}

/** How far back Get Notification History reaches, less a day. */
const HISTORY_MS = { Production: 179 * 86_400_000, Sandbox: 29 * 86_400_000 } as const;

const STANDINGS: Readonly<Record<number, Standing>> = {
  [Status.ACTIVE]: 'active',
  [Status.EXPIRED]: 'expired',
  [Status.BILLING_RETRY]: 'hold',
  [Status.BILLING_GRACE_PERIOD]: 'grace',
  [Status.REVOKED]: 'revoked',
};

/** @throws KatafractError `config_invalid` */
export function appleStore(config: AppleConfig, deps: StoreDeps): StorePort {
  check(config);
  const api = new AppleClient(config, environmentOf(config.environment), deps);
  const signed = signedData(config, deps);
  return {
    name: 'apple',
    verify: ({ body }) => signed.notification(body),
    async read(reference) {
      // it becomes part of a path
      if (!/^\d{1,32}$/.test(reference)) return null;
      const answer = await askedApple(Statuses, api.getAllSubscriptionStatuses(reference));
      const items = (answer?.data ?? []).flatMap((group) => group.lastTransactions ?? []);
      const item = items.find((each) => each.originalTransactionId === reference);
      return item === undefined ? null : viewOf(signed, config, reference, item);
    },
    changedSince: (since, known) => changedSince(api, signed, config, deps, since, known),
    async referenceOf(purchase) {
      const transaction = await verified(purchaseInvalid, () =>
        signed.verifier('outside').verifyAndDecodeTransaction(purchase),
      );
      const reference = subscriptionId(transaction);
      if (reference === null) throw purchaseInvalid('apple', 'no subscription');
      return reference;
    },
  };
}

function check(config: AppleConfig): void {
  const wrong = (what: string) => new KatafractError('config_invalid', `the App Store needs ${what}`);
  if (config.rootCertificates.length === 0) throw wrong('at least one root certificate');
  if (config.environment === 'Production' && config.appAppleId === undefined)
    throw wrong('the id of the app');
  let kind: string | undefined;
  try {
    kind = createPrivateKey(config.privateKey).asymmetricKeyType;
  } catch {
    // the reason might quote the key
    throw wrong('a private key in PEM');
  }
  if (kind !== 'ec') throw wrong('an elliptic-curve private key');
}

async function viewOf(
  signed: SignedData,
  config: AppleConfig,
  reference: string,
  item: StatusItem,
): Promise<StoreView> {
  const refuse = (_: 'apple', why: string) =>
    storeUnavailable('apple', `an answer that does not verify: ${why}`);
  const verifier = signed.verifier('api');
  const { signedTransactionInfo = '', signedRenewalInfo } = item;
  const transaction = await verified(refuse, () =>
    verifier.verifyAndDecodeTransaction(signedTransactionInfo),
  );
  const renewal =
    signedRenewalInfo === undefined
      ? null
      : await verified(refuse, () => verifier.verifyAndDecodeRenewalInfo(signedRenewalInfo));
  // what is not signed must agree with what is
  if (subscriptionId(transaction) !== reference) throw refuse('apple', 'another transaction');
  if (renewal !== null && renewal.originalTransactionId !== reference)
    throw refuse('apple', 'another renewal');

  const { revocationDate, expiresDate = 0, productId = '' } = transaction;
  // a refund may be known by its date before the status says so; where it was reversed, the date is gone
  const standing = revocationDate === undefined ? (STANDINGS[item.status ?? 0] ?? 'hold') : 'revoked';
  const open = standing === 'active' || standing === 'grace';
  const end = standing === 'grace' ? (renewal?.gracePeriodExpiresDate ?? expiresDate) : expiresDate;
  return {
    store: 'apple',
    reference,
    // a member of the family has a transaction without it: nobody but who paid can claim
    claim: transaction.appAccountToken?.toLowerCase() ?? null,
    tier: tierOf(config.products, productId),
    standing,
    renews: open && renewal?.autoRenewStatus === AutoRenewStatus.ON,
    expiresAt: revocationDate ?? end,
    acknowledge: false,
  };
}

async function* changedSince(
  api: AppleClient,
  signed: SignedData,
  config: AppleConfig,
  deps: StoreDeps,
  since: number,
  known: () => AsyncIterable<string>,
): AsyncGenerator<string> {
  const seen = new Set<string>();
  const endDate = deps.clock.now();
  const earliest = endDate - HISTORY_MS[config.environment];
  if (since < earliest) {
    for await (const reference of known()) {
      seen.add(reference);
      yield reference;
    }
  }
  const startDate = Math.min(Math.max(since, earliest), endDate - 1);
  let token: string | null = null;
  for (;;) {
    const page: z.infer<typeof History> | null = await askedApple(
      History,
      api.getNotificationHistory(token, { startDate, endDate }),
    );
    for (const { signedPayload } of page?.notificationHistory ?? []) {
      const reference = signedPayload === undefined ? null : await signed.past(signedPayload);
      if (reference === null || seen.has(reference)) continue;
      seen.add(reference);
      yield reference;
    }
    if (page?.hasMore !== true || page.paginationToken === undefined) return;
    token = page.paginationToken;
  }
}
