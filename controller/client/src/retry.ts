/** When a request is sent again, and after how long. Pure: time and randomness are passed in. */
import type { KatafractError } from '@katafract/shared/errors';

export interface RetryPolicy {
  /** Sendings in all, the first one included. */
  readonly attempts: number;
  /** First back-off in milliseconds; it doubles with every attempt up to `capMs`. */
  readonly baseMs: number;
  readonly capMs: number;
  /** A server that asks for a longer pause than this is not waited for. */
  readonly longestMs: number;
  /** After this long without a whole answer a sending counts as `unreachable`. */
  readonly timeoutMs: number;
}

export const RETRY: RetryPolicy = {
  attempts: 4,
  baseMs: 250,
  capMs: 8_000,
  longestMs: 30_000,
  timeoutMs: 20_000,
};

/**
 * Seconds of a Retry-After header (RFC 9110, 10.2.3: a number or a date); undefined where there is none.
 * @param now milliseconds since the epoch
 */
export function retryAfterSeconds(header: string | null, now: number): number | undefined {
  if (header === null) return undefined;
  if (/^\d+$/.test(header.trim())) return Number(header);
  const date = Date.parse(header);
  return Number.isNaN(date) ? undefined : Math.max(0, Math.ceil((date - now) / 1000));
}

/**
 * Milliseconds to wait before sending again; null: give up and report `error`. 429 says the request was not looked
 * at, so it may always be repeated; after 503 and after a broken connection it may have taken effect.
 * @param repeatable the request has the same effect however often it arrives
 * @param attempt how many sendings there were
 * @param random in [0, 1)
 */
export function retryDelay(
  policy: RetryPolicy,
  error: KatafractError,
  repeatable: boolean,
  attempt: number,
  random: number,
): number | null {
  const worthwhile = error.status === 429 || (error.status === 503 && repeatable);
  if (!worthwhile || attempt >= policy.attempts) return null;
  const asked = (error.retryAfter ?? 0) * 1000;
  if (asked > policy.longestMs) return null;
  const backOff = Math.min(policy.capMs, policy.baseMs * 2 ** (attempt - 1));
  // Never earlier than asked; the jitter keeps clients that failed together from coming back together.
  return asked > 0 ? asked + random * policy.baseMs : backOff * (0.5 + random / 2);
}
