/**
 * Stripe as a store. Messages are verified, and the API is spoken, by Stripe's own library. A subscription shows its
 * claim hash in its metadata, where checkout put it; payer fields are never asked for where that can be helped, and
 * what comes along anyway is dropped.
 */
import { createHash } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import type { Tier } from '@katafract/shared/sigil';
import type Stripe from 'stripe';
import { type StoreDeps, storeUnavailable } from './call.ts';
import type { StorePort } from './port.ts';
import { asked, stripeClient } from './stripe-api.ts';
import { KNOWN, SWEPT, stripeVerifier, subscriptionOf } from './stripe-events.ts';
import { STRIPE_CLAIM, viewOf } from './stripe-view.ts';

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

/** Stripe keeps events for 30 days; a day less, so that none falls out between question and answer. */
const EVENTS_KEPT_MS = 29 * 86_400_000;

/** @throws KatafractError `config_invalid` where nothing, or anything, would verify, or the modes do not agree */
export function stripeStore(config: StripeConfig, deps: StoreDeps): StorePort {
  check(config);
  const stripe = stripeClient(config, deps);
  const verify = stripeVerifier(config, deps, stripe);
  return {
    name: 'stripe',
    async verify(request) {
      const event = verify(request);
      const known = KNOWN.has(event.type);
      const reference = known ? await subscriptionOf(stripe, event) : null;
      return {
        store: 'stripe',
        eventId: event.id,
        type: known ? event.type : 'unknown',
        reference,
      };
    },
    async read(reference) {
      if (!/^sub_\w{1,200}$/.test(reference)) return null;
      const subscription = await asked('subscription', stripe.subscriptions.retrieve(reference));
      // a key that serves both modes must not bring test purchases to life
      if (subscription === null || subscription.livemode !== config.liveMode) return null;
      return viewOf(stripe, config, subscription);
    },
    changedSince: (since, known) => changedSince(stripe, deps, since, known),
    async checkout(wish, idempotencyKey) {
      const price = Object.entries(config.prices).find(([, tier]) => tier === wish.tier)?.[0];
      if (price === undefined) {
        throw new KatafractError('tier_not_sold', `Stripe sells no tier ${wish.tier}`, { status: 422 });
      }
      const session = await asked(
        'checkout.session',
        stripe.checkout.sessions.create(
          {
            mode: 'subscription',
            line_items: [{ price, quantity: 1 }],
            client_reference_id: wish.claim,
            subscription_data: { metadata: { [STRIPE_CLAIM]: wish.claim } },
            success_url: config.successUrl,
            cancel_url: config.cancelUrl,
          },
          idempotencyKey === undefined
            ? {}
            : { idempotencyKey: scopedKey(idempotencyKey, wish.claim, price) },
        ),
      );
      if (!session?.url) throw storeUnavailable('stripe', 'no checkout came back');
      return { url: session.url };
    },
  };
}

function check({ webhookSecrets, secretKey, liveMode }: StripeConfig): void {
  if (webhookSecrets.length === 0 || webhookSecrets.some((secret) => secret.trim() === '')) {
    throw new KatafractError(
      'config_invalid',
      'Stripe needs at least one webhook secret, none of them empty',
    );
  }
  const mode = /^(?:sk|rk)_(live|test)_/.exec(secretKey)?.[1];
  if (mode !== undefined && (mode === 'live') !== liveMode) {
    throw new KatafractError('config_invalid', `the secret key of Stripe is one of its ${mode} mode`);
  }
}

/** The caller's key within its claim's own name space: another claim with the same key is another request. */
function scopedKey(key: string, claim: string, price: string): string {
  return createHash('sha256').update(`${claim}\n${price}\n${key}`).digest('hex');
}

async function* changedSince(
  stripe: Stripe,
  deps: StoreDeps,
  since: number,
  known: () => AsyncIterable<string>,
): AsyncGenerator<string> {
  const seen = new Set<string>();
  const earliest = deps.clock.now() - EVENTS_KEPT_MS;
  if (since < earliest) {
    for await (const reference of known()) {
      seen.add(reference);
      yield reference;
    }
  }
  const created = { gte: Math.floor(Math.max(since, earliest) / 1000) };
  let after: string | undefined;
  for (;;) {
    const page = await asked(
      'list',
      stripe.events.list({
        types: SWEPT,
        created,
        limit: 100,
        ...(after === undefined ? {} : { starting_after: after }),
      }),
    );
    for (const raw of page?.data ?? []) {
      const reference = await subscriptionOf(stripe, raw);
      if (reference === null || seen.has(reference)) continue;
      seen.add(reference);
      yield reference;
    }
    after = page?.data.at(-1)?.id;
    if (page?.has_more !== true || after === undefined) return;
  }
}
