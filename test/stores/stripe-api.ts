/** The routes of Stripe's API that billing uses, over what a stand-in holds. */
import { type Asked, page, type Reply } from './stand-in.ts';
import {
  disputeOf,
  id,
  invoicePaymentOf,
  PRICES,
  refundOf,
  type StripeEvent,
  type Subscription,
  subscriptionObject,
} from './stripe-life.ts';

export interface Holdings {
  readonly now: () => number;
  readonly url: () => string;
  readonly pageSize: () => number;
  readonly subscriptions: Map<string, Subscription>;
  readonly sessions: Map<string, Session>;
  /** Newest first, as the API lists them. */
  readonly events: StripeEvent[];
}
export type Session = Record<string, unknown> & { id: string; metadata: { price: string; claim: string } };

export const error = (status: number, type: string, code: string | undefined, message: string): Reply => ({
  status,
  json: { error: { type, code, message } },
});
const missing = (what: string) => error(404, 'invalid_request_error', 'resource_missing', `No such ${what}`);

/** Answers what bears the secret key. */
export function stripeApi(held: Holdings, secretKey: string): (asked: Asked) => Reply {
  /** Answers by idempotency key, with what was asked. */
  const repeated = new Map<string, { body: string; reply: Reply }>();
  return (asked) => {
    if (asked.headers.authorization !== `Bearer ${secretKey}`) {
      return error(401, 'invalid_request_error', undefined, 'Invalid API Key provided');
    }
    if (asked.method === 'GET') return shown(held, asked);
    if (`${asked.method} ${asked.path}` !== 'POST /v1/checkout/sessions') return unrecognized;
    return once(repeated, asked, () => newSession(held, new URLSearchParams(asked.body)));
  };
}

const unrecognized = error(404, 'invalid_request_error', undefined, 'Unrecognized request URL');

function shown(held: Holdings, { path, query }: Asked): Reply {
  const one = /^\/v1\/subscriptions\/([^/]+)$/.exec(path)?.[1];
  if (one !== undefined) {
    const it = held.subscriptions.get(decodeURIComponent(one));
    return it === undefined
      ? missing('subscription')
      : { status: 200, json: subscriptionObject(it, held.now()) };
  }
  const intent = query.get('payment_intent') ?? query.get('payment[payment_intent]');
  const paid = [...held.subscriptions.values()].filter(
    ({ payment, invoice }) => payment !== null && (payment === intent || invoice === query.get('invoice')),
  );
  const list = (rows: readonly { id: string }[]) => listed(rows, query, held.pageSize());
  switch (path) {
    case '/v1/invoice_payments':
      return list(paid.map((each) => invoicePaymentOf(each, query.get('expand[0]') === 'data.invoice')));
    case '/v1/refunds':
      return list(paid.flatMap((each) => each.refunds.map((refund) => refundOf(each, refund))));
    case '/v1/disputes':
      return list(paid.flatMap((each) => each.disputes.map((dispute) => disputeOf(each, dispute))));
    case '/v1/events':
      return eventsReply(held.events, query, list);
    case '/v1/checkout/sessions':
      return list(
        [...held.sessions.values()].filter((each) => each.subscription === query.get('subscription')),
      );
    default:
      return unrecognized;
  }
}

function eventsReply(
  events: readonly StripeEvent[],
  query: URLSearchParams,
  list: (rows: readonly StripeEvent[]) => Reply,
): Reply {
  const types = [...query].filter(([name]) => /^types\[\d*\]$/.test(name)).map(([, value]) => value);
  if (types.length > 20) return error(400, 'invalid_request_error', undefined, 'Too many types');
  const since = Number(query.get('created[gte]') ?? 0);
  return list(
    events.filter(({ created, type }) => created >= since && (types.length === 0 || types.includes(type))),
  );
}

/** The same key gives the same answer; with other parameters it is refused. */
function once(
  repeated: Map<string, { body: string; reply: Reply }>,
  { headers, body }: Asked,
  make: () => Reply,
): Reply {
  const key = headers['idempotency-key'];
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

function newSession(held: Holdings, form: URLSearchParams): Reply {
  const price = form.get('line_items[0][price]') ?? '';
  if (!Object.hasOwn(PRICES, price)) return missing('price');
  if (form.get('mode') !== 'subscription') return error(400, 'invalid_request_error', undefined, 'mode');
  const sessionId = id('cs_test');
  const session: Session = {
    id: sessionId,
    object: 'checkout.session',
    mode: 'subscription',
    url: `${held.url()}/pay/${sessionId}`,
    client_reference_id: form.get('client_reference_id'),
    subscription: null,
    metadata: { price, claim: form.get('subscription_data[metadata][katafract_claim]') ?? '' },
  };
  held.sessions.set(sessionId, session);
  return { status: 200, json: session };
}

function listed(rows: readonly { id: string }[], query: URLSearchParams, pageSize: number): Reply {
  const after = query.get('starting_after');
  const at = after === null ? 0 : rows.findIndex((row) => row.id === after) + 1;
  if (after !== null && at === 0) return missing('starting_after');
  const limit = Math.min(Number(query.get('limit') ?? 10), pageSize);
  const { rows: data, more } = page(rows, at, limit);
  return { status: 200, json: { object: 'list', data, has_more: more, url: '' } };
}
