/**
 * Stripe's API as far as billing uses it, after docs.stripe.com/api (version 2026-10-28): subscriptions, invoice
 * payments, refunds, disputes, events, checkout sessions. Messages are signed by Stripe's own header generator.
 */
import { randomBytes } from 'node:crypto';
import { type StripeConfig, stripeStore } from '@katafract/controller/billing/stores/stripe';
import Stripe from 'stripe';
import {
  type Action,
  type Asked,
  bytes,
  type Expected,
  found,
  type Payer,
  PERIOD_MS,
  type Purchase,
  page,
  type Reply,
  type StandIn,
  type Step,
  serve,
  type Webhook,
} from './stand-in.ts';

type Status = 'incomplete' | 'incomplete_expired' | 'active' | 'past_due' | 'unpaid' | 'paused' | 'canceled';
interface Refund {
  id: string;
  amount: number;
  status: 'succeeded' | 'failed';
}
interface Dispute {
  id: string;
  status: 'needs_response' | 'won' | 'lost';
}
interface Subscription {
  id: string;
  claim: string;
  price: string;
  payer: Payer;
  status: Status;
  cancelAtPeriodEnd: boolean;
  periodStart: number;
  endedAt: number | null;
  /** The latest one; a payment is there once it is paid. */
  invoice: string;
  payment: string | null;
  refunds: Refund[];
  disputes: Dispute[];
}
interface StripeEvent {
  id: string;
  object: 'event';
  created: number;
  type: string;
  livemode: boolean;
  api_version: string;
  data: { object: Record<string, unknown> };
}

export interface StripeStandIn extends StandIn {
  readonly config: StripeConfig;
  /** Somebody pays at the URL that checkout gave: the session becomes a subscription. */
  readonly pay: (url: string, payer: Payer) => Promise<Step>;
  /** Gives a third of what was paid back. */
  readonly refundPart: (reference: string) => Promise<Step>;
  /** Signs any event. @param at ms since the epoch */
  readonly sign: (event: object, options?: { secret?: string; at?: number }) => Webhook;
}

const PRICES = { price_plus: 'plus', price_pro: 'pro' } as const;
const AMOUNT = 900;
const id = (prefix: string) => `${prefix}_${randomBytes(9).toString('hex')}`;
const seconds = (ms: number) => Math.floor(ms / 1000);

const error = (status: number, type: string, code: string | undefined, message: string): Reply => ({
  status,
  json: { error: { type, code, message } },
});
const missing = (what: string) => error(404, 'invalid_request_error', 'resource_missing', `No such ${what}`);

/** @param now ms since the epoch */
export async function stripeStandIn(
  now: () => number = Date.now,
  secretKey = `sk_test_${randomBytes(12).toString('hex')}`,
): Promise<StripeStandIn> {
  const webhookSecret = `whsec_${randomBytes(24).toString('base64url')}`;
  const stripe = new Stripe(secretKey);
  const subscriptions = new Map<string, Subscription>();
  const sessions = new Map<string, Record<string, unknown> & { id: string }>();
  /** Answers by idempotency key, with what was asked. */
  const repeated = new Map<string, { body: string; reply: Reply }>();
  /** Newest first, as the API lists them. */
  const events: StripeEvent[] = [];

  const served = await serve(
    {
      // an error of Stripe may quote what it is about
      failing: (status) =>
        error(status, 'api_error', undefined, `Something failed for ${canary(subscriptions)}`),
      rateLimited: (retryAfter) => ({
        ...error(
          429,
          'invalid_request_error',
          'rate_limit',
          `Too many requests for ${canary(subscriptions)}`,
        ),
        headers: { 'retry-after': String(retryAfter) },
      }),
    },
    (asked) => {
      if (asked.headers.authorization !== `Bearer ${secretKey}`) {
        return error(401, 'invalid_request_error', undefined, 'Invalid API Key provided');
      }
      return route(asked);
    },
  );

  const invoiceOf = (subscription: Subscription) => ({
    id: subscription.invoice,
    object: 'invoice',
    amount_paid: subscription.payment === null ? 0 : AMOUNT,
    customer_email: subscription.payer.email,
    customer_name: subscription.payer.name,
    status: subscription.payment === null ? 'open' : 'paid',
    parent: {
      type: 'subscription_details',
      subscription_details: { subscription: subscription.id, metadata: {} },
    },
  });
  const invoicePaymentOf = (subscription: Subscription, expanded: boolean) => ({
    id: `inpay_${subscription.invoice}`,
    object: 'invoice_payment',
    amount_paid: AMOUNT,
    invoice: expanded ? invoiceOf(subscription) : subscription.invoice,
    payment: { type: 'payment_intent', payment_intent: subscription.payment },
    status: 'paid',
  });
  const refundOf = (subscription: Subscription, refund: Refund) => ({
    id: refund.id,
    object: 'refund',
    amount: refund.amount,
    payment_intent: subscription.payment,
    status: refund.status,
    destination_details: { card: { reference: subscription.payer.cardLast4 } },
    instructions_email: subscription.payer.email,
  });
  const disputeOf = (subscription: Subscription, dispute: Dispute) => ({
    id: dispute.id,
    object: 'dispute',
    amount: AMOUNT,
    payment_intent: subscription.payment,
    status: dispute.status,
    evidence: { customer_name: subscription.payer.name, customer_email_address: subscription.payer.email },
  });

  function route({ method, path, query, body, headers }: Asked): Reply {
    const one = /^\/v1\/subscriptions\/([^/]+)$/.exec(path)?.[1];
    if (method === 'GET' && one !== undefined) {
      const subscription = subscriptions.get(decodeURIComponent(one));
      return subscription === undefined
        ? missing('subscription')
        : { status: 200, json: subscriptionObject(subscription, now()) };
    }
    const all = [...subscriptions.values()];
    const intent = query.get('payment_intent') ?? query.get('payment[payment_intent]');
    const paid = all.filter(
      (each) => each.payment !== null && (each.payment === intent || each.invoice === query.get('invoice')),
    );
    const list = (rows: readonly { id: string }[]) => listed(rows, query, served.faults.pageSize);
    switch (`${method} ${path}`) {
      case 'GET /v1/invoice_payments': {
        const expanded = query.get('expand[0]') === 'data.invoice';
        return list(paid.map((each) => invoicePaymentOf(each, expanded)));
      }
      case 'GET /v1/refunds':
        return list(paid.flatMap((each) => each.refunds.map((refund) => refundOf(each, refund))));
      case 'GET /v1/disputes':
        return list(paid.flatMap((each) => each.disputes.map((dispute) => disputeOf(each, dispute))));
      case 'GET /v1/events': {
        const types = [...query].filter(([name]) => /^types\[\d*\]$/.test(name)).map(([, value]) => value);
        if (types.length > 20) return error(400, 'invalid_request_error', undefined, 'Too many types');
        const since = Number(query.get('created[gte]') ?? 0);
        return list(
          events.filter(
            (event) => event.created >= since && (types.length === 0 || types.includes(event.type)),
          ),
        );
      }
      case 'GET /v1/checkout/sessions':
        return list(
          [...sessions.values()].filter((session) => session.subscription === query.get('subscription')),
        );
      case 'POST /v1/checkout/sessions':
        return once(headers['idempotency-key'], body, () => newSession(new URLSearchParams(body)));
      default:
        return error(404, 'invalid_request_error', undefined, 'Unrecognized request URL');
    }
  }

  /** The same key gives the same answer; with other parameters it is refused. */
  function once(key: string | string[] | undefined, body: string, make: () => Reply): Reply {
    if (typeof key !== 'string') return make();
    const before = repeated.get(key);
    if (before === undefined) {
      const reply = make();
      repeated.set(key, { body, reply });
      return reply;
    }
    return before.body === body
      ? before.reply
      : error(400, 'idempotency_error', undefined, 'Keys can only be used with the same parameters');
  }

  function newSession(form: URLSearchParams): Reply {
    const price = form.get('line_items[0][price]') ?? '';
    if (!Object.hasOwn(PRICES, price)) return missing('price');
    if (form.get('mode') !== 'subscription') return error(400, 'invalid_request_error', undefined, 'mode');
    const sessionId = id('cs_test');
    const session = {
      id: sessionId,
      object: 'checkout.session',
      mode: 'subscription',
      url: `${served.url}/pay/${sessionId}`,
      client_reference_id: form.get('client_reference_id'),
      subscription: null,
      metadata: { price, claim: form.get('subscription_data[metadata][katafract_claim]') ?? '' },
    };
    sessions.set(sessionId, session);
    return { status: 200, json: session };
  }

  const emit = (type: string, object: Record<string, unknown>): Webhook => {
    const event = newEvent(type, object, now());
    events.unshift(event);
    return sign(event);
  };
  const sign: StripeStandIn['sign'] = (event, { secret = webhookSecret, at = now() } = {}) => {
    const payload = JSON.stringify(event);
    const header = stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp: seconds(at) });
    return {
      eventId: String((event as { id?: unknown }).id),
      body: bytes(payload),
      headers: { 'content-type': 'application/json', 'stripe-signature': header },
    };
  };
  const of = (reference: string) => found(subscriptions.get(reference), 'subscription');
  const step = (subscription: Subscription, webhooks: Webhook[]): Step => ({
    reference: subscription.id,
    webhooks,
    expected: expectedOf(subscription),
  });
  const changed = (subscription: Subscription, what = 'updated') =>
    emit(`customer.subscription.${what}`, subscriptionObject(subscription, now()));
  const paid = (subscription: Subscription) => {
    subscription.payment = id('pi');
    return emit('invoice.paid', invoiceOf(subscription));
  };

  const start = (claim: string, price: string, payer: Payer, pending: boolean): Subscription => {
    const subscription: Subscription = {
      id: id('sub'),
      claim,
      price,
      payer,
      status: pending ? 'incomplete' : 'active',
      cancelAtPeriodEnd: false,
      periodStart: now(),
      endedAt: null,
      invoice: id('in'),
      payment: null,
      refunds: [],
      disputes: [],
    };
    subscriptions.set(subscription.id, subscription);
    return subscription;
  };

  /** What each action does, and the messages it sends. */
  const apply: Readonly<Partial<Record<Action, (subscription: Subscription) => Webhook[]>>> = {
    complete: (it) => {
      it.status = 'active';
      return [paid(it), changed(it)];
    },
    abandon: (it) => {
      it.status = 'incomplete_expired';
      it.endedAt = now();
      return [changed(it)];
    },
    renew: (it) => {
      nextPeriod(it);
      return [changed(it), paid(it)];
    },
    cancel: (it) => {
      it.cancelAtPeriodEnd = true;
      return [changed(it)];
    },
    resume: (it) => {
      it.cancelAtPeriodEnd = false;
      return [changed(it)];
    },
    failPayment: (it) => {
      nextPeriod(it);
      it.status = 'past_due';
      return [emit('invoice.payment_failed', invoiceOf(it)), changed(it)];
    },
    hold: (it) => {
      it.status = 'unpaid';
      return [changed(it)];
    },
    pause: (it) => {
      it.status = 'paused';
      return [changed(it, 'paused')];
    },
    recover: (it) => {
      const paused = it.status === 'paused';
      it.status = 'active';
      return paused ? [changed(it, 'resumed')] : [paid(it), changed(it)];
    },
    expire: (it) => {
      it.status = 'canceled';
      it.endedAt = now();
      return [changed(it, 'deleted')];
    },
    refund: (it) => {
      const refund: Refund = { id: id('re'), amount: AMOUNT, status: 'succeeded' };
      it.refunds.push(refund);
      return [emit('charge.refunded', chargeObject(it)), emit('refund.created', refundOf(it, refund))];
    },
    reverseRefund: (it) => {
      const refund = found(it.refunds.at(-1), 'refund');
      refund.status = 'failed';
      return [emit('refund.failed', refundOf(it, refund))];
    },
    dispute: (it) => {
      const dispute: Dispute = { id: id('du'), status: 'needs_response' };
      it.disputes.push(dispute);
      return ['created', 'funds_withdrawn'].map((what) =>
        emit(`charge.dispute.${what}`, disputeOf(it, dispute)),
      );
    },
    winDispute: (it) => {
      const dispute = found(it.disputes.at(-1), 'dispute');
      dispute.status = 'won';
      return ['closed', 'funds_reinstated'].map((what) =>
        emit(`charge.dispute.${what}`, disputeOf(it, dispute)),
      );
    },
    loseDispute: (it) => {
      const dispute = found(it.disputes.at(-1), 'dispute');
      dispute.status = 'lost';
      return [emit('charge.dispute.closed', disputeOf(it, dispute))];
    },
  };

  const config: StripeConfig = {
    apiBase: served.url,
    secretKey,
    webhookSecrets: [webhookSecret],
    prices: PRICES,
    successUrl: 'https://app.example/paid',
    cancelUrl: 'https://app.example/',
    liveMode: false,
  };
  return {
    name: 'stripe',
    ...served,
    config,
    sign,
    store: (deps) => stripeStore(config, deps),
    expected: (reference) => expectedOf(of(reference)),
    actions: (reference) => possible(of(reference)),
    async create({ claim, tier, payer, pending = false }: Purchase) {
      const price = found(Object.entries(PRICES).find(([, sold]) => sold === tier)?.[0], 'price');
      const it = start(claim, price, payer, pending);
      const first = changed(it, 'created');
      return step(it, pending ? [first] : [first, paid(it)]);
    },
    async pay(url, payer) {
      const session = found(sessions.get(url.split('/').at(-1) ?? ''), 'session');
      const { price, claim } = session.metadata as { price: string; claim: string };
      const it = start(claim, price, payer, false);
      session.subscription = it.id;
      const completed = { ...session, customer_details: { email: payer.email, name: payer.name } };
      return step(it, [changed(it, 'created'), paid(it), emit('checkout.session.completed', completed)]);
    },
    async refundPart(reference) {
      const it = of(reference);
      const refund: Refund = { id: id('re'), amount: AMOUNT / 3, status: 'succeeded' };
      it.refunds.push(refund);
      return step(it, [emit('refund.created', refundOf(it, refund))]);
    },
    async act(reference, action) {
      const it = of(reference);
      const act = possible(it).includes(action) ? apply[action] : undefined;
      return step(it, found(act, `action now: ${action}`)(it));
    },
    async forgeries(reference) {
      const it = of(reference);
      const event = () => newEvent('customer.subscription.deleted', subscriptionObject(it, now()), now());
      const genuine = sign(event());
      const signature = found(genuine.headers['stripe-signature'], 'signature');
      const withHeader = (value: string): Webhook => ({ ...genuine, headers: { 'stripe-signature': value } });
      const tampered = bytes(
        new TextDecoder().decode(genuine.body).replace('"canceled"', '"active"').replace('evt_', 'evt_x'),
      );
      return {
        'another secret': sign(event(), { secret: 'whsec_of_somebody_else' }),
        'tampered body': { ...genuine, body: tampered },
        'no signature': { ...genuine, headers: {} },
        'stale time': sign(event(), { at: now() - 301_000 }),
        'future time': sign(event(), { at: now() + 302_000 }),
        'two times': withHeader(`t=${seconds(now())},${signature}`),
        'unknown scheme only': withHeader(signature.replace('v1=', 'v0=')),
        'another time than was signed': withHeader(signature.replace(/t=\d+/, `t=${seconds(now()) + 1}`)),
        'live mode in test': sign({ ...event(), livemode: true }),
      };
    },
    async unknown() {
      return sign(
        newEvent('customer.subscription.reincarnated', { id: 'sub_x', subscription: { nested: 1 } }, now()),
      );
    },
  };
}

function nextPeriod(it: Subscription): void {
  it.periodStart += PERIOD_MS;
  it.invoice = id('in');
  it.payment = null;
  it.refunds = [];
  it.disputes = [];
}

function paidBack(it: Subscription): 'refund' | 'dispute' | 'lost' | null {
  if (it.disputes.some((dispute) => dispute.status === 'needs_response')) return 'dispute';
  if (it.disputes.some((dispute) => dispute.status === 'lost')) return 'lost';
  const refunded = it.refunds.filter((refund) => refund.status === 'succeeded');
  return refunded.reduce((sum, refund) => sum + refund.amount, 0) >= AMOUNT ? 'refund' : null;
}

function possible(it: Subscription): Action[] {
  switch (it.status) {
    case 'incomplete':
      return ['complete', 'abandon'];
    case 'past_due':
      return ['recover', 'hold', 'expire'];
    case 'unpaid':
    case 'paused':
      return ['recover', 'expire'];
    case 'active': {
      const back = paidBack(it);
      if (back === 'dispute') return ['winDispute', 'loseDispute', 'expire'];
      if (back === 'refund') return ['reverseRefund', 'expire'];
      if (back === 'lost') return ['expire'];
      const plans: Action[] = it.cancelAtPeriodEnd ? ['resume'] : ['cancel', 'renew', 'failPayment', 'pause'];
      return [...plans, 'expire', ...(it.payment === null ? [] : (['refund', 'dispute'] as const))];
    }
    default:
      return [];
  }
}

const STANDINGS = {
  incomplete: 'pending',
  incomplete_expired: 'expired',
  active: 'active',
  past_due: 'grace',
  unpaid: 'hold',
  paused: 'hold',
  canceled: 'expired',
} as const;

function expectedOf(it: Subscription): Expected {
  const standing = it.status === 'active' && paidBack(it) !== null ? 'revoked' : STANDINGS[it.status];
  const tier = PRICES[it.price as keyof typeof PRICES];
  return { standing, tier, renews: (standing === 'active' || standing === 'grace') && !it.cancelAtPeriodEnd };
}

function subscriptionObject(it: Subscription, now: number): Record<string, unknown> {
  return {
    id: it.id,
    object: 'subscription',
    status: it.status,
    cancel_at: it.cancelAtPeriodEnd ? seconds(it.periodStart + PERIOD_MS) : null,
    cancel_at_period_end: it.cancelAtPeriodEnd,
    canceled_at: it.status === 'canceled' ? seconds(now) : null,
    ended_at: it.endedAt === null ? null : seconds(it.endedAt),
    description: `for ${it.payer.name} <${it.payer.email}>`,
    metadata: { katafract_claim: it.claim, contact: it.payer.email, device: it.payer.deviceId },
    items: {
      object: 'list',
      data: [
        {
          id: `si_${it.id}`,
          price: { id: it.price, object: 'price' },
          current_period_start: seconds(it.periodStart),
          current_period_end: seconds(it.periodStart + PERIOD_MS),
        },
      ],
    },
    latest_invoice: it.invoice,
    livemode: false,
  };
}

function chargeObject(it: Subscription): Record<string, unknown> {
  return {
    id: `ch_${it.payment}`,
    object: 'charge',
    amount: AMOUNT,
    amount_refunded: AMOUNT,
    refunded: true,
    payment_intent: it.payment,
    billing_details: { name: it.payer.name, email: it.payer.email },
    payment_method_details: { type: 'card', card: { last4: it.payer.cardLast4 } },
    metadata: { device: it.payer.deviceId },
  };
}

function newEvent(type: string, object: Record<string, unknown>, at: number): StripeEvent {
  return {
    id: id('evt'),
    object: 'event',
    api_version: '2026-10-28.endive',
    created: seconds(at),
    type,
    livemode: false,
    data: { object },
  };
}

function listed(rows: readonly { id: string }[], query: URLSearchParams, pageSize: number): Reply {
  const after = query.get('starting_after');
  const at = after === null ? 0 : rows.findIndex((row) => row.id === after) + 1;
  if (after !== null && at === 0) return missing('starting_after');
  const limit = Math.min(Number(query.get('limit') ?? 10), pageSize);
  const { rows: data, more } = page(rows, at, limit);
  return { status: 200, json: { object: 'list', data, has_more: more, url: '' } };
}

/** Payer fields, for errors that quote what they are about. */
function canary(subscriptions: ReadonlyMap<string, Subscription>): string {
  return [...subscriptions.values()]
    .map(({ payer }) => `${payer.name} <${payer.email}> ${payer.cardLast4}`)
    .join();
}
