/** Messages of Stripe: which of them tell of a subscription, whether they are genuine, and which one they are about. */
import Stripe from 'stripe';
import { z } from 'zod';
import { type StoreDeps, webhookInvalid, webhookMalformed } from './call.ts';
import { asked } from './stripe-api.ts';

/** Seconds that the time of a signature may be off, in either direction. */
const TOLERANCE = 300;
/** What tells of a subscription's state; in the order of the fields that lead to the subscription. */
const ABOUT_SUBSCRIPTION = ['created', 'updated', 'deleted', 'paused', 'resumed'].map(
  (what) => `customer.subscription.${what}`,
);
const ABOUT_INVOICE = [
  'invoice.paid',
  'invoice.payment_failed',
  'invoice.payment_action_required',
  'invoice.marked_uncollectible',
  'invoice.voided',
];
const ABOUT_PAYMENT = [
  'charge.refunded',
  'refund.created',
  'refund.updated',
  'refund.failed',
  'charge.dispute.created',
  'charge.dispute.updated',
  'charge.dispute.closed',
  'charge.dispute.funds_withdrawn',
  'charge.dispute.funds_reinstated',
];
const ABOUT_CHECKOUT = ['checkout.session.completed', 'checkout.session.async_payment_succeeded'];
/** What a sweep asks for (at most 20 types may be named); whatever a checkout changes, the others tell too. */
export const SWEPT = [...ABOUT_SUBSCRIPTION, ...ABOUT_INVOICE, ...ABOUT_PAYMENT];
export const KNOWN = new Set([...SWEPT, ...ABOUT_CHECKOUT]);

const id = z.string().max(255);
const expandable = z.union([id, z.object({ id }).transform((object) => object.id)]);
const Envelope = z.object({
  id: z.string().regex(/^evt_\w{1,200}$/),
  type: z.string().max(200),
  livemode: z.boolean(),
  data: z.unknown(),
});
export type StripeEvent = z.infer<typeof Envelope>;
/** Read only of the types we know: of others, fields of these names may be anything. */
const About = z.object({
  object: z.object({
    id: id.optional(),
    payment_intent: expandable.nullish(),
    subscription: expandable.nullish(),
    parent: z.object({ subscription_details: z.object({ subscription: expandable }).nullish() }).nullish(),
  }),
});

/** Verifies signature, time in both directions, and mode. */
export function stripeVerifier(
  config: { webhookSecrets: readonly string[]; liveMode: boolean },
  deps: StoreDeps,
  stripe: Stripe,
) {
  return ({ body, headers }: { body: Uint8Array; headers: Headers }): StripeEvent => {
    const signature = headers.get('stripe-signature') ?? '';
    const now = deps.clock.now();
    let event: unknown = null;
    for (const secret of config.webhookSecrets) {
      try {
        event = stripe.webhooks.constructEvent(body, signature, secret, TOLERANCE, undefined, now);
        break;
      } catch (error) {
        // the library's error holds the whole body and goes no further
        if (error instanceof Stripe.errors.StripeSignatureVerificationError) continue;
        throw webhookMalformed('stripe', 'not JSON');
      }
    }
    if (event === null) throw webhookInvalid('stripe', 'signature or time');
    // the library only refuses what is too old. It takes the last `t` of several: only one is let pass
    const times = signature.split(',').filter((item) => item.trim().startsWith('t='));
    const time = Number(times[0]?.trim().slice(2));
    if (times.length !== 1 || !(time <= now / 1000 + TOLERANCE)) throw webhookInvalid('stripe', 'time');
    const parsed = Envelope.safeParse(event);
    if (!parsed.success) throw webhookMalformed('stripe', 'not an event');
    if (parsed.data.livemode !== config.liveMode) throw webhookInvalid('stripe', 'mode');
    return parsed.data;
  };
}

/**
 * Which subscription an event of a known type is about; null where it is about none.
 * @throws KatafractError `webhook_malformed`, or `store_unavailable` where Stripe must be asked what a payment was for
 */
export async function subscriptionOf(
  stripe: Stripe,
  event: { type: string; data: unknown },
): Promise<string | null> {
  const about = About.safeParse(event.data);
  if (!about.success) throw webhookMalformed('stripe', 'not what its type says');
  const { object } = about.data;
  if (event.type.startsWith('customer.subscription.')) return object.id ?? null;
  if (!ABOUT_PAYMENT.includes(event.type)) {
    // endpoints that were made with an API version before 2025-03-31 still send the second field
    return object.parent?.subscription_details?.subscription ?? object.subscription ?? null;
  }
  if (!object.payment_intent) return null;
  const payments = await asked(
    'list',
    stripe.invoicePayments.list({
      payment: { type: 'payment_intent', payment_intent: object.payment_intent },
      expand: ['data.invoice'],
      limit: 1,
    }),
  );
  const invoice = payments?.data[0]?.invoice;
  if (invoice === undefined || typeof invoice === 'string' || invoice.deleted === true) return null;
  const subscription = invoice.parent?.subscription_details?.subscription;
  return typeof subscription === 'object' ? subscription.id : (subscription ?? null);
}
