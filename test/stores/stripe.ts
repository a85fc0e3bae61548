/**
 * Stripe's API as far as billing uses it, after docs.stripe.com/api (version 2026-10-28): subscriptions, invoice
 * payments, refunds, disputes, events, checkout sessions. Messages are signed by Stripe's own header generator.
 */
import { randomBytes } from 'node:crypto';
import { type StripeConfig, stripeStore } from '@katafract/controller/billing/stores/stripe';
import Stripe from 'stripe';
import {
  type Action,
  bytes,
  found,
  type Payer,
  payersOf,
  type StandIn,
  type Step,
  serve,
  type Webhook,
} from './stand-in.ts';
import { error, type Holdings, stripeApi } from './stripe-api.ts';
import {
  AMOUNT,
  chargeObject,
  type Dispute,
  disputeOf,
  expectedOf,
  id,
  invoiceOf,
  newEvent,
  nextPeriod,
  PRICES,
  possible,
  type Refund,
  refundOf,
  type Subscription,
  seconds,
  subscriptionObject,
} from './stripe-life.ts';

type Sign = (event: object, options?: { secret?: string; at?: number }) => Webhook;
type Emit = (type: string, object: Record<string, unknown>) => Webhook;

export interface StripeStandIn extends StandIn {
  readonly config: StripeConfig;
  /** Somebody pays at the URL that checkout gave: the session becomes a subscription. */
  readonly pay: (url: string, payer: Payer) => Promise<Step>;
  /** Gives a third of what was paid back. */
  readonly refundPart: (reference: string) => Promise<Step>;
  /** Signs any event. @param at ms since the epoch */
  readonly sign: Sign;
}

/** @param now ms since the epoch */
export async function stripeStandIn(
  now: () => number = Date.now,
  secretKey = `sk_test_${randomBytes(12).toString('hex')}`,
): Promise<StripeStandIn> {
  const subscriptions: Holdings['subscriptions'] = new Map();
  const held: Holdings = {
    now,
    url: () => served.url,
    pageSize: () => served.faults.pageSize,
    subscriptions,
    sessions: new Map(),
    events: [],
  };
  const served = await serve(
    {
      // an error of Stripe may quote what it is about
      failing: (status) =>
        error(status, 'api_error', undefined, `Something failed for ${payersOf(subscriptions)}`),
      rateLimited: (retryAfter) => ({
        ...error(
          429,
          'invalid_request_error',
          'rate_limit',
          `Too many requests for ${payersOf(subscriptions)}`,
        ),
        headers: { 'retry-after': String(retryAfter) },
      }),
    },
    stripeApi(held, secretKey),
  );
  const config: StripeConfig = {
    apiBase: served.url,
    secretKey,
    webhookSecrets: [`whsec_${randomBytes(24).toString('base64url')}`],
    prices: PRICES,
    successUrl: 'https://app.example/paid',
    cancelUrl: 'https://app.example/',
    liveMode: false,
  };
  const sign = signer(config, now);
  const emit: Emit = (type, object) => {
    const event = newEvent(type, object, now());
    held.events.unshift(event);
    return sign(event);
  };
  const of = (reference: string) => found(subscriptions.get(reference), 'subscription');
  return {
    name: 'stripe',
    ...served,
    ...lives(held, emit),
    config,
    sign,
    store: (deps) => stripeStore(config, deps),
    expected: (reference) => expectedOf(of(reference)),
    actions: (reference) => possible(of(reference)),
    forgeries: async (reference) => forgeries(subscriptionObject(of(reference), now()), sign, now()),
    async unknown() {
      const object = { id: 'sub_x', subscription: { nested: 1 } };
      return sign(newEvent('customer.subscription.reincarnated', object, now()));
    },
  };
}

function signer(config: StripeConfig, now: () => number): Sign {
  const stripe = new Stripe(config.secretKey);
  return (event, options = {}) => {
    const { secret = found(config.webhookSecrets[0], 'secret'), at = now() } = options;
    const payload = JSON.stringify(event);
    const header = stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp: seconds(at) });
    return {
      eventId: String((event as { id?: unknown }).id),
      body: bytes(payload),
      headers: { 'content-type': 'application/json', 'stripe-signature': header },
    };
  };
}

function lives(held: Holdings, emit: Emit): Pick<StripeStandIn, 'create' | 'pay' | 'act' | 'refundPart'> {
  const { now, subscriptions, sessions } = held;
  const steps = actions(emit, now);
  const of = (reference: string) => found(subscriptions.get(reference), 'subscription');
  const step = (it: Subscription, webhooks: Webhook[]): Step => ({
    reference: it.id,
    webhooks,
    expected: expectedOf(it),
  });
  const start = (claim: string, price: string, payer: Payer, pending: boolean): Subscription => {
    const it = newSubscription(claim, price, payer, pending, now());
    subscriptions.set(it.id, it);
    return it;
  };
  const created = (it: Subscription) => emit('customer.subscription.created', subscriptionObject(it, now()));
  return {
    async create({ claim, tier, payer, pending = false }) {
      const price = found(Object.entries(PRICES).find(([, sold]) => sold === tier)?.[0], 'price');
      const it = start(claim, price, payer, pending);
      return step(it, pending ? [created(it)] : [created(it), paid(it, emit)]);
    },
    async pay(url, payer) {
      const session = found(sessions.get(url.split('/').at(-1) ?? ''), 'session');
      const it = start(session.metadata.claim, session.metadata.price, payer, false);
      session.subscription = it.id;
      const completed = { ...session, customer_details: { email: payer.email, name: payer.name } };
      return step(it, [created(it), paid(it, emit), emit('checkout.session.completed', completed)]);
    },
    async refundPart(reference) {
      const it = of(reference);
      const refund = addRefund(it, AMOUNT / 3);
      return step(it, [emit('refund.created', refundOf(it, refund))]);
    },
    async act(reference, action) {
      const it = of(reference);
      const act = possible(it).includes(action) ? steps[action] : undefined;
      return step(it, found(act, `action now: ${action}`)(it));
    },
  };
}

function newSubscription(
  claim: string,
  price: string,
  payer: Payer,
  pending: boolean,
  now: number,
): Subscription {
  return {
    id: id('sub'),
    claim,
    price,
    payer,
    status: pending ? 'incomplete' : 'active',
    cancelAtPeriodEnd: false,
    periodStart: now,
    endedAt: null,
    invoice: id('in'),
    payment: null,
    refunds: [],
    disputes: [],
  };
}

function paid(it: Subscription, emit: Emit): Webhook {
  it.payment = id('pi');
  return emit('invoice.paid', invoiceOf(it));
}

function addRefund(it: Subscription, amount: number): Refund {
  const refund: Refund = { id: id('re'), amount, status: 'succeeded' };
  it.refunds.push(refund);
  return refund;
}

type Steps = Readonly<Partial<Record<Action, (it: Subscription) => Webhook[]>>>;

/** What each action does, and the messages it sends. */
function actions(emit: Emit, now: () => number): Steps {
  const changed = (it: Subscription, what = 'updated') =>
    emit(`customer.subscription.${what}`, subscriptionObject(it, now()));
  const ended = (it: Subscription, status: Subscription['status'], what: string) => {
    it.status = status;
    it.endedAt = now();
    return [changed(it, what)];
  };
  const plan = (it: Subscription, change: Partial<Subscription>, what?: string) => {
    Object.assign(it, change);
    return [changed(it, what)];
  };
  return {
    complete: (it) => {
      it.status = 'active';
      return [paid(it, emit), changed(it)];
    },
    abandon: (it) => ended(it, 'incomplete_expired', 'updated'),
    renew: (it) => {
      nextPeriod(it);
      return [changed(it), paid(it, emit)];
    },
    cancel: (it) => plan(it, { cancelAtPeriodEnd: true }),
    resume: (it) => plan(it, { cancelAtPeriodEnd: false }),
    failPayment: (it) => {
      nextPeriod(it);
      it.status = 'past_due';
      return [emit('invoice.payment_failed', invoiceOf(it)), changed(it)];
    },
    hold: (it) => plan(it, { status: 'unpaid' }),
    pause: (it) => plan(it, { status: 'paused' }, 'paused'),
    recover: (it) => {
      const paused = it.status === 'paused';
      it.status = 'active';
      return paused ? [changed(it, 'resumed')] : [paid(it, emit), changed(it)];
    },
    expire: (it) => ended(it, 'canceled', 'deleted'),
    ...moneyBack(emit),
  };
}

function moneyBack(emit: Emit): Steps {
  const disputed = (it: Subscription, dispute: Dispute, ...what: string[]) =>
    what.map((name) => emit(`charge.dispute.${name}`, disputeOf(it, dispute)));
  const last = <T>(rows: readonly T[]) => found(rows.at(-1), 'refund or dispute');
  return {
    refund: (it) => {
      const refund = addRefund(it, AMOUNT);
      return [emit('charge.refunded', chargeObject(it)), emit('refund.created', refundOf(it, refund))];
    },
    reverseRefund: (it) => {
      const refund = last(it.refunds);
      refund.status = 'failed';
      return [emit('refund.failed', refundOf(it, refund))];
    },
    dispute: (it) => {
      const dispute: Dispute = { id: id('du'), status: 'needs_response' };
      it.disputes.push(dispute);
      return disputed(it, dispute, 'created', 'funds_withdrawn');
    },
    winDispute: (it) => {
      const dispute = last(it.disputes);
      dispute.status = 'won';
      return disputed(it, dispute, 'closed', 'funds_reinstated');
    },
    loseDispute: (it) => {
      const dispute = last(it.disputes);
      dispute.status = 'lost';
      return disputed(it, dispute, 'closed');
    },
  };
}

function forgeries(object: Record<string, unknown>, sign: Sign, now: number): Record<string, Webhook> {
  const event = () => newEvent('customer.subscription.deleted', object, now);
  const genuine = sign(event());
  const signature = found(genuine.headers['stripe-signature'], 'signature');
  const withHeader = (value: string): Webhook => ({ ...genuine, headers: { 'stripe-signature': value } });
  const text = new TextDecoder().decode(genuine.body);
  return {
    'another secret': sign(event(), { secret: 'whsec_of_somebody_else' }),
    'tampered body': { ...genuine, body: bytes(text.replace('"id":"evt_', '"id":"evt_x')) },
    'no signature': { ...genuine, headers: {} },
    'stale time': sign(event(), { at: now - 301_000 }),
    'future time': sign(event(), { at: now + 900_000 }),
    'two times': withHeader(`t=${seconds(now)},${signature}`),
    'unknown scheme only': withHeader(signature.replace('v1=', 'v0=')),
    'another time than was signed': withHeader(signature.replace(/t=\d+/, `t=${seconds(now) + 1}`)),
    'live mode in test': sign({ ...event(), livemode: true }),
  };
}
