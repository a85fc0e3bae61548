/** The way out to each store (platform/outgoing.ts), and the errors that every adapter has in common. */
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { type CallSettings, type Outcome, type Outgoing, outgoing } from '../../platform/outgoing.ts';
import type { StoreName } from './port.ts';

/** `unverified`: a part of an answer that a sweep passed over, because its signature does not hold. */
export type CallOutcome = Outcome | 'unverified';

/** What every adapter is given besides its own configuration. */
export interface StoreDeps {
  readonly clock: Clock;
  readonly call?: Partial<CallSettings>;
  /** In [0, 1); for the jitter. */
  readonly random?: () => number;
  /** Told of every try, for metrics. */
  readonly observe?: (store: StoreName, outcome: CallOutcome, seconds: number) => void;
}

/** Its `fetch` throws KatafractError `store_unavailable` (503). */
export type StoreCall = Outgoing;

/** @throws never by itself; see StoreCall */
export function storeCall(store: StoreName, deps: StoreDeps): StoreCall {
  return outgoing({
    clock: deps.clock,
    call: deps.call,
    random: deps.random,
    observe: (outcome, seconds) => deps.observe?.(store, outcome, seconds),
    unavailable: (why, retryAfter) => storeUnavailable(store, why, retryAfter),
  });
}

/**
 * @param why our words or a number, never a text that the store sent
 * @param retryAfter seconds
 */
export function storeUnavailable(store: StoreName, why: string, retryAfter = 30): KatafractError {
  return new KatafractError('store_unavailable', `${store} does not serve: ${why}`, {
    status: 503,
    retryAfter,
  });
}

/** @param why our words, never a text of the message */
export function webhookInvalid(store: StoreName, why: string): KatafractError {
  return new KatafractError('webhook_invalid', `a message of ${store} does not verify: ${why}`, {
    status: 401,
  });
}

export function webhookMalformed(store: StoreName, why: string): KatafractError {
  return new KatafractError('webhook_malformed', `a message of ${store} is malformed: ${why}`, {
    status: 400,
  });
}

export function purchaseInvalid(store: StoreName, why: string): KatafractError {
  return new KatafractError('purchase_invalid', `not a purchase of ${store}: ${why}`, { status: 422 });
}
