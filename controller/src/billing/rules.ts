/**
 * Decisions of billing: values in, values out. Times are milliseconds since the epoch.
 *
 * A store's message is never read for what it says. It makes us read the store again, and `apply` takes what the store
 * says now; so the order of messages, their repetition and their loss cannot matter, only which reading was the last.
 */
import { type ClaimHash, claimUuid } from '@katafract/shared/claim';
import { Tier } from '@katafract/shared/sigil';
import type { Standing, StoreName, StoreView } from './stores/port.ts';

/** Where an entitlement comes from: a store, a redeemed code, or an operator. */
export type Source = StoreName | 'voucher' | 'grant';

/** What somebody is entitled to by one purchase, code or grant. */
export interface Entitlement {
  /** Key of the claim secret it was bought for (see `claimKey`); null: nobody can claim it. */
  readonly claim: string | null;
  /** Null where the product is none of ours. */
  readonly tier: Tier | null;
  readonly standing: Standing;
  readonly renews: boolean;
  /** End of what is paid for, or of the store's own grace. */
  readonly expiresAt: number;
  /** The store names another claim than the one seen first. */
  readonly contested: boolean;
}

/** What a code or a grant entitles to: nobody renews it, and nothing but its time ends it. */
export function given(claim: string | null, tier: Tier, expiresAt: number): Entitlement {
  return { claim, tier, standing: 'active', renews: false, expiresAt, contested: false };
}

export interface Change {
  readonly next: Entitlement;
  readonly changed: boolean;
}

const DAY_MS = 86_400_000;

/**
 * What an account field of a store and a claim secret are compared by: the UUID that is made of the secret's hash,
 * which is all that Apple's field can hold. Null where the field holds something that is none of ours.
 */
export function claimKey(claim: string | null): string | null {
  if (claim === null) return null;
  if (/^[0-9a-f]{64}$/.test(claim)) return claimUuid(claim as ClaimHash);
  const uuid = claim.toLowerCase();
  return /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(uuid) ? uuid : null;
}

/**
 * The entitlement after a reading of its store. All of it follows from the newest reading but the claim: the first one
 * wins. A purchase that appears under another claim (bought again by the same store account for another secret, or a
 * forged account field) stays with the subscription it opened, for otherwise whoever gets hold of a store account
 * could take a running subscription away unseen; it is marked `contested`, and support decides.
 *
 * A store that knows nothing of it (null) takes nothing away: a wrong key or project in our configuration must not cut
 * every customer off. Nothing renews it any more, so it ends with what was paid for.
 */
export function apply(present: Entitlement | null, view: StoreView | null): Change | null {
  if (!view) {
    if (!present) return null;
    const next = { ...present, renews: false };
    return { next, changed: present.renews };
  }
  const claim = claimKey(view.claim);
  const next: Entitlement = {
    claim: present?.claim ?? claim,
    tier: view.tier,
    standing: view.standing,
    renews: view.renews,
    expiresAt: view.expiresAt,
    contested: present !== null && present.claim !== null && claim !== null && claim !== present.claim,
  };
  return { next, changed: !present || !same(present, next) };
}

function same(left: Entitlement, right: Entitlement): boolean {
  return (Object.keys(right) as (keyof Entitlement)[]).every((field) => left[field] === right[field]);
}

/** Whether the store's word gives access at all, whatever the clock says. */
function granted({ tier, standing }: Entitlement): boolean {
  return tier !== null && (standing === 'active' || standing === 'grace');
}

/** Whether it gives access now. */
export function isLive(entitlement: Entitlement, now: number): boolean {
  return granted(entitlement) && entitlement.expiresAt > now;
}

export type SubscriptionStanding =
  | { readonly over: false; readonly tier: Tier; readonly expiresAt: number }
  /**
   * `since`: when the last of it ran out by the clock, which a late renewal may still mend; null where nothing of it
   * is valid by the stores' own word, which ends it at once.
   */
  | { readonly over: true; readonly since: number | null };

/** What a subscription is worth by all its entitlements: the best tier of those that are live, until the last of them ends. */
export function standingOfSubscription(
  entitlements: readonly Entitlement[],
  now: number,
): SubscriptionStanding {
  const latest = (of: readonly Entitlement[]) => Math.max(...of.map(({ expiresAt }) => expiresAt));
  const live = entitlements.filter((one) => isLive(one, now));
  if (live.length > 0) {
    const tiers = live.map(({ tier }) => Tier.options.indexOf(tier ?? 'free'));
    return { over: false, tier: Tier.options[Math.max(...tiers)] ?? 'free', expiresAt: latest(live) };
  }
  const ranOut = entitlements.filter(granted);
  return { over: true, since: ranOut.length === 0 ? null : latest(ranOut) };
}

/**
 * Until when a code redeemed now entitles. Codes of one tier follow one another, so that two of a month are two months;
 * beside a paid subscription they run at the same time.
 */
export function voucherExpiry(
  others: readonly (Entitlement & { readonly source: Source })[],
  code: { readonly tier: Tier; readonly days: number },
  now: number,
): number {
  const before = others.filter(
    (one) => one.source === 'voucher' && one.tier === code.tier && isLive(one, now),
  );
  return Math.max(now, ...before.map(({ expiresAt }) => expiresAt)) + code.days * DAY_MS;
}

const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 300_000;

/**
 * How long to wait before the next attempt, in ms: doubling up to five minutes, and spread so that those which failed
 * together do not come back together.
 * @param attempts that failed so far, 1 or more
 * @param random from 0 to 1
 */
export function retryDelay(attempts: number, random: number): number {
  const most = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(attempts - 1, 30));
  return Math.round(most * (0.5 + random / 2));
}
