/** Stripe as a store. */
import type { Tier } from '@katafract/shared/sigil';
import { type StoreDeps, storeUnavailable } from './call.ts';
import type { StorePort } from './port.ts';

export interface StripeConfig {
  /** `https://api.stripe.com`, or what stands in for it; no path. */
  readonly apiBase: string;
  /** A secret or restricted key (`sk_…`, `rk_…`). */
  readonly secretKey: string;
  /** Signing secrets of the endpoint (`whsec_…`); several while one is being rolled. */
  readonly webhookSecrets: readonly string[];
  /** Price id to tier. Checkout sells a tier at the first price listed for it. */
  readonly prices: Readonly<Record<string, Tier>>;
  readonly successUrl: string;
  readonly cancelUrl: string;
  /** Whether real money moves; messages of the other mode are refused. */
  readonly liveMode: boolean;
  /** How long a subscription whose renewal failed keeps its access, while Stripe retries, days. Default 14. */
  readonly graceDays?: number;
}

export function stripeStore(_config: StripeConfig, _deps: StoreDeps): StorePort {
  throw storeUnavailable('stripe', 'under construction');
}
