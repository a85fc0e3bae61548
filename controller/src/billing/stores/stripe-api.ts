/** Stripe's API by Stripe's own library, through our one way out; and what its failures become. */
import { KatafractError } from '@katafract/shared/errors';
import Stripe from 'stripe';
import { CALL_SETTINGS } from '../../platform/outgoing.ts';
import { type StoreDeps, storeCall, storeUnavailable } from './call.ts';

/** @param apiBase protocol, host and port; no path */
export function stripeClient(
  { apiBase, secretKey }: { apiBase: string; secretKey: string },
  deps: StoreDeps,
): Stripe {
  const { protocol, hostname, port } = new URL(apiBase);
  const settings = { ...CALL_SETTINGS, ...deps.call };
  return new Stripe(secretKey, {
    protocol: protocol === 'http:' ? 'http' : 'https',
    host: hostname,
    port: port === '' ? (protocol === 'http:' ? 80 : 443) : port,
    // the library never retries a 429 and does not read Retry-After: our way out does both. POSTs carry a key of the
    // library's own making, so that trying again is safe
    httpClient: Stripe.createFetchHttpClient(storeCall('stripe', deps).fetch),
    maxNetworkRetries: 0,
    timeout: settings.tries * (settings.timeoutMs + settings.patienceMs),
    telemetry: false,
  });
}

/**
 * What Stripe answers, or null where it knows no such thing. The library takes any JSON for what was asked: a proxy's
 * must not pass for a subscription that is gone, or for an empty list.
 * @throws KatafractError `store_unavailable`: without the library's error, which holds what Stripe sent
 */
export async function asked<T extends { object: string }>(
  kind: T['object'],
  answer: Promise<T>,
): Promise<T | null> {
  const value = await settled(answer);
  if (value === null) return null;
  const whole = value.object === kind && (kind !== 'list' || ('data' in value && Array.isArray(value.data)));
  if (!whole) throw storeUnavailable('stripe', UNREADABLE);
  return value;
}

const UNREADABLE = 'an answer that cannot be read';

async function settled<T>(answer: Promise<T>): Promise<T | null> {
  try {
    return await answer;
  } catch (error) {
    if (!(error instanceof Stripe.errors.StripeError)) throw error;
    if (error.detail instanceof KatafractError) throw error.detail;
    if (error.code === 'resource_missing') return null;
    const why = error.statusCode === undefined ? UNREADABLE : `status ${error.statusCode}`;
    throw storeUnavailable('stripe', why);
  }
}
