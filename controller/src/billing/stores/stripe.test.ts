import { claimHash, makeClaimSecret } from '@katafract/shared/claim';
import { type Clock, systemClock } from '@katafract/shared/clock';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { serve, type Webhook } from '../../../../test/stores/stand-in.ts';
import { type StripeStandIn, stripeStandIn } from '../../../../test/stores/stripe.ts';
import type { StoreDeps } from './call.ts';
import type { StorePort } from './port.ts';
import { stripeStore } from './stripe.ts';

const PAYER = { name: 'Ada', email: 'ada@example.com', cardLast4: '4929', deviceId: 'device' };
const DAY_MS = 86_400_000;
const DEPS: StoreDeps = { clock: systemClock, call: { tries: 1 } };

let standIn: StripeStandIn;
let store: StorePort;
let claim: string;
beforeAll(async () => {
  standIn = await stripeStandIn();
});
afterAll(() => standIn.close());
beforeEach(async () => {
  standIn.faults.outage = false;
  store = stripeStore(standIn.config, DEPS);
  claim = await claimHash(makeClaimSecret());
});
const bought = () => standIn.create({ claim, tier: 'plus', payer: PAYER });
const verify = ({ body, headers }: Webhook, by = store) => by.verify({ body, headers: new Headers(headers) });
const event = (type: string, object: object, over: object = {}) => ({
  id: `evt_${Math.random().toString(36).slice(2)}`,
  object: 'event',
  type,
  livemode: false,
  data: { object },
  ...over,
});

describe('messages of Stripe', () => {
  it('verify by either secret while one is rolled, and by none that is gone', async () => {
    const rolling = stripeStore(
      { ...standIn.config, webhookSecrets: ['whsec_new', ...standIn.config.webhookSecrets] },
      DEPS,
    );
    const rolled = stripeStore({ ...standIn.config, webhookSecrets: ['whsec_new'] }, DEPS);
    const [old, fresh] = [
      standIn.sign(event('invoice.paid', {})),
      standIn.sign(event('invoice.paid', {}), { secret: 'whsec_new' }),
    ];
    for (const webhook of [old, fresh])
      expect((await verify(webhook, rolling)).eventId).toBe(webhook.eventId);
    expect((await verify(fresh, rolled)).eventId).toBe(fresh.eventId);
    await expect(verify(old, rolled)).rejects.toMatchObject({ code: 'webhook_invalid' });
  });

  it('may be off by 300 seconds in either direction, and no more', async () => {
    const now = Date.UTC(2026, 10, 22, 8);
    const clock: Clock = { now: () => now, after: systemClock.after };
    const still = stripeStore(standIn.config, { ...DEPS, clock });
    const off = (ms: number) => verify(standIn.sign(event('invoice.paid', {}), { at: now + ms }), still);
    for (const ms of [-300_000, 0, 300_000]) expect((await off(ms)).type).toBe('invoice.paid');
    for (const ms of [-301_000, 301_000])
      await expect(off(ms)).rejects.toMatchObject({ code: 'webhook_invalid' });
  });

  it('that are signed and still cannot be read are malformed', async () => {
    const broken = [
      [],
      { id: 'evt_1' },
      event('invoice.paid', { parent: 'none' }),
      event('x', {}, { id: 'ev t' }),
    ];
    for (const object of broken) {
      await expect(verify(standIn.sign(object))).rejects.toMatchObject({
        code: 'webhook_malformed',
        status: 400,
      });
    }
  });

  it('lead to the subscription, whichever object they bear', async () => {
    const { reference } = await bought();
    const details = (subscription: unknown) => ({ parent: { subscription_details: { subscription } } });
    const about = async (type: string, object: object) =>
      (await verify(standIn.sign(event(type, object)))).reference;
    expect(await about('customer.subscription.paused', { id: reference })).toBe(reference);
    expect(await about('invoice.paid', details(reference))).toBe(reference);
    expect(await about('invoice.voided', details({ id: reference, object: 'subscription' }))).toBe(reference);
    // as endpoints of an older API version send it
    expect(await about('invoice.payment_failed', { subscription: reference })).toBe(reference);
    expect(await about('checkout.session.completed', { subscription: reference })).toBe(reference);
    // what is no subscription's: a single payment, an invoice by hand
    expect(await about('charge.refunded', { payment_intent: 'pi_of_something_else' })).toBeNull();
    expect(await about('refund.created', { payment_intent: null })).toBeNull();
    expect(await about('invoice.paid', { parent: null })).toBeNull();
  });

  it('are refused for now, not for good, where Stripe must be asked and does not answer', async () => {
    const { reference, webhooks } = await bought();
    const refund = await standIn.act(reference, 'refund');
    standIn.faults.outage = true;
    for (const webhook of refund.webhooks) {
      await expect(verify(webhook)).rejects.toMatchObject({ code: 'store_unavailable', status: 503 });
    }
    for (const webhook of webhooks) expect((await verify(webhook)).reference).toBe(reference);
  });
});

describe('checkout', () => {
  it('carries the claim to the subscription', async () => {
    const { url } = (await store.checkout?.({ tier: 'pro', claim }, undefined)) ?? { url: '' };
    const paid = await standIn.pay(url, PAYER);
    for (const webhook of paid.webhooks) expect((await verify(webhook)).reference).toBe(paid.reference);
    expect(await store.read(paid.reference)).toMatchObject({ claim, tier: 'pro', standing: 'active' });
  });

  it('gives the same session for the same key, and another one for another claim', async () => {
    const other = await claimHash(makeClaimSecret());
    const first = await store.checkout?.({ tier: 'plus', claim }, 'key-1');
    expect(await store.checkout?.({ tier: 'plus', claim }, 'key-1')).toEqual(first);
    expect(await store.checkout?.({ tier: 'plus', claim: other }, 'key-1')).not.toEqual(first);
    expect(await store.checkout?.({ tier: 'pro', claim }, 'key-1')).not.toEqual(first);
  });

  it('sells only what has a price', async () => {
    await expect(store.checkout?.({ tier: 'ops', claim }, undefined)).rejects.toMatchObject({
      code: 'tier_not_sold',
      status: 422,
    });
  });
});

describe('what Stripe says of a subscription', () => {
  it('has its claim from the checkout session where it was bought through a payment link', async () => {
    const response = await fetch(`${standIn.url}/v1/checkout/sessions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${standIn.config.secretKey}` },
      body: new URLSearchParams({
        mode: 'subscription',
        'line_items[0][price]': 'price_plus',
        client_reference_id: claim,
      }),
    });
    const { url } = (await response.json()) as { url: string };
    const { reference } = await standIn.pay(url, PAYER);
    expect(await store.read(reference)).toMatchObject({ claim });
  });

  it('has no claim where there is none, or something else in its place', async () => {
    const { reference } = await standIn.create({ claim: PAYER.email, tier: 'plus', payer: PAYER });
    expect(await store.read(reference)).toMatchObject({ claim: null });
  });

  it('is pending until the first payment, and over if that never comes', async () => {
    for (const [action, standing] of [
      ['complete', 'active'],
      ['abandon', 'expired'],
    ] as const) {
      const { reference } = await standIn.create({ claim, tier: 'plus', payer: PAYER, pending: true });
      expect(await store.read(reference)).toMatchObject({ standing: 'pending', renews: false });
      await standIn.act(reference, action);
      expect(await store.read(reference)).toMatchObject({ standing });
    }
  });

  it('is not revoked by a refund of a part, but by parts that make up the whole', async () => {
    const { reference } = await bought();
    for (const standing of ['active', 'active', 'revoked']) {
      await standIn.refundPart(reference);
      expect((await store.read(reference))?.standing).toBe(standing);
    }
  });

  it('has a grace of so many days from the renewal that failed, however long Stripe tries', async () => {
    const { reference } = await bought();
    const start = (await store.read(reference))?.expiresAt ?? 0;
    await standIn.act(reference, 'failPayment');
    expect((await store.read(reference))?.expiresAt).toBe(start + 14 * DAY_MS);
    const strict = stripeStore({ ...standIn.config, graceDays: 3 }, DEPS);
    expect((await strict.read(reference))?.expiresAt).toBe(start + 3 * DAY_MS);
  });

  it('grants nothing for a price that is none of ours', async () => {
    const { reference } = await bought();
    const other = stripeStore({ ...standIn.config, prices: { price_other: 'pro' } }, DEPS);
    expect(await other.read(reference)).toMatchObject({ tier: null, standing: 'active' });
  });

  it('is nothing of what a proxy may answer in its place', async () => {
    for (const answer of [
      { status: 200 },
      { status: 200, json: {} },
      { status: 200, json: [] },
      { status: 404, json: {} },
    ]) {
      const served = await serve({ failing: () => answer, rateLimited: () => answer }, () => answer);
      const odd = stripeStore({ ...standIn.config, apiBase: served.url }, DEPS);
      await expect(odd.read('sub_1'), JSON.stringify(answer)).rejects.toMatchObject({
        code: 'store_unavailable',
      });
      await served.close();
    }
  });

  it('cannot be had with another key, which the error does not show', async () => {
    const { reference } = await bought();
    const stranger = stripeStore({ ...standIn.config, secretKey: 'sk_test_stranger' }, DEPS);
    const error: unknown = await stranger.read(reference).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'store_unavailable', message: 'stripe does not serve: status 401' });
    expect(String((error as Error).stack)).not.toContain('sk_test');
  });
});

describe('the configuration', () => {
  it('needs webhook secrets: an empty one would verify what anybody signs', () => {
    for (const webhookSecrets of [[], [''], ['whsec_1', ' ']]) {
      expect(() => stripeStore({ ...standIn.config, webhookSecrets }, DEPS)).toThrow('webhook secret');
    }
  });

  it('takes no test key in live mode, and no test purchase by whatever key', async () => {
    const live = { ...standIn.config, liveMode: true };
    expect(() => stripeStore(live, DEPS)).toThrow('test mode');
    const organization = await stripeStandIn(Date.now, 'sk_org_1234');
    try {
      const { reference } = await organization.create({ claim, tier: 'plus', payer: PAYER });
      expect(await organization.store(DEPS).read(reference)).not.toBeNull();
      expect(await stripeStore({ ...organization.config, liveMode: true }, DEPS).read(reference)).toBeNull();
    } finally {
      await organization.close();
    }
  });
});
