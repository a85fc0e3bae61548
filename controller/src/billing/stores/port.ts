/**
 * What billing needs of a store, whichever it is. An adapter verifies what the store sends, reads what the store has,
 * and translates both: nothing of a store's own vocabulary, and no field about the payer, passes this port.
 *
 *   webhook ─ verify ─► Signal (which subscription to look at again) ─ read ─► StoreView (what the store says it is)
 */
import type { Tier } from '@katafract/shared/sigil';

export const STORES = ['stripe', 'apple', 'google'] as const;
export type StoreName = (typeof STORES)[number];

/**
 * What a store subscription is worth (FACTS, billing table). `active` and `grace` give access; `hold`, `expired`,
 * `revoked` and `pending` give none.
 */
export type Standing = 'active' | 'grace' | 'hold' | 'expired' | 'revoked' | 'pending';

/** A verified message of a store. It says only that something may have changed, never what. */
export interface Signal {
  readonly store: StoreName;
  /** The store's own id of the message: `evt_…`, notificationUUID, messageId. */
  readonly eventId: string;
  /** The store's name of what happened, from its documented vocabulary; `unknown` where it is none we know. */
  readonly type: string;
  /** Which subscription to read again; null where the message is about none (a test message, an unknown type). */
  readonly reference: string | null;
}

/** One subscription as a store has it now. */
export interface StoreView {
  readonly store: StoreName;
  /** The store's own id of it: `sub_…`, originalTransactionId, purchase token. */
  readonly reference: string;
  /** Lower-case hex SHA-256 of the claim secret, or for Apple the UUID made of it (see shared/claim.ts); null: unclaimable. */
  readonly claim: string | null;
  /** Null where the product is none of ours: it grants nothing. */
  readonly tier: Tier | null;
  readonly standing: Standing;
  /** Whether the store will charge again by itself; false where it gives no access. */
  readonly renews: boolean;
  /** End of what is paid for (in grace: of the grace), ms since the epoch. */
  readonly expiresAt: number;
  /** The purchase must still be acknowledged (Play: within three days, or it is refunded). */
  readonly acknowledge: boolean;
  /** The reference that this one took the place of (Play: an upgrade is a new purchase): it should be read again too. */
  readonly replaces?: string;
}

export interface Checkout {
  readonly tier: Tier;
  /** Hex hash of the claim secret. */
  readonly claim: string;
}

export interface StorePort {
  readonly name: StoreName;
  /**
   * Verifies a webhook as it came.
   * @param body the raw bytes
   * @throws KatafractError `webhook_invalid` (401) for whatever does not verify, `webhook_malformed` (400),
   *   `store_unavailable` (503) where the store must be asked (its keys, what a payment was for) and does not answer:
   *   it sends the message again
   */
  verify(request: { body: Uint8Array; headers: Headers }): Promise<Signal>;
  /**
   * What the store says of a subscription now; null where it knows none.
   * @throws KatafractError `store_unavailable` (503) when it does not answer, is overloaded, or its circuit is open
   */
  read(reference: string): Promise<StoreView | null>;
  /**
   * References that may have changed since `since`, for what notifications missed; pages and rate limits are handled.
   * Each store has its own way (Stripe's event list, Apple's notification history, Play's voided purchases); `known`
   * are the references that are live here, for a store that can only be asked one by one.
   * @throws KatafractError `store_unavailable` (503)
   */
  changedSince(since: number, known: () => AsyncIterable<string>): AsyncIterable<string>;
  /** Tells the store that the purchase was delivered; repeating it is harmless. */
  acknowledge?(view: Pick<StoreView, 'reference' | 'tier'>): Promise<void>;
  /**
   * Where the payer goes to pay.
   * @throws KatafractError `tier_not_sold` (422), `store_unavailable` (503)
   */
  checkout?(wish: Checkout, idempotencyKey: string | undefined): Promise<{ url: string }>;
  /**
   * The subscription that an app's own proof of purchase is about (Apple: signed transaction, Google: purchase token).
   * @throws KatafractError `purchase_invalid` (422)
   */
  referenceOf?(purchase: string): Promise<string>;
}

/** What a product is worth by the configured table; null where it is none of ours. */
export function tierOf(table: Readonly<Record<string, Tier>>, product: string): Tier | null {
  return Object.hasOwn(table, product) ? (table[product] ?? null) : null;
}
