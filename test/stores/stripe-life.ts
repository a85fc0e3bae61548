/** Subscriptions of Stripe: what may happen to them, what they are worth, and the objects that the API shows of them. */
import { randomBytes } from 'node:crypto';
import { type Action, type Expected, type Payer, PERIOD_MS } from './stand-in.ts';

type Status = 'incomplete' | 'incomplete_expired' | 'active' | 'past_due' | 'unpaid' | 'paused' | 'canceled';
export interface Refund {
  id: string;
  amount: number;
  status: 'succeeded' | 'failed';
}
export interface Dispute {
  id: string;
  status: 'needs_response' | 'won' | 'lost';
}
export interface Subscription {
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
export interface StripeEvent {
  id: string;
  object: 'event';
  created: number;
  type: string;
  livemode: boolean;
  api_version: string;
  data: { object: Record<string, unknown> };
}

export const PRICES = { price_plus: 'plus', price_pro: 'pro' } as const;
export const AMOUNT = 900;
export const id = (prefix: string) => `${prefix}_${randomBytes(9).toString('hex')}`;
export const seconds = (ms: number) => Math.floor(ms / 1000);

export const invoiceOf = (subscription: Subscription) => ({
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
export const invoicePaymentOf = (subscription: Subscription, expanded: boolean) => ({
  id: `inpay_${subscription.invoice}`,
  object: 'invoice_payment',
  amount_paid: AMOUNT,
  invoice: expanded ? invoiceOf(subscription) : subscription.invoice,
  payment: { type: 'payment_intent', payment_intent: subscription.payment },
  status: 'paid',
});
export const refundOf = (subscription: Subscription, refund: Refund) => ({
  id: refund.id,
  object: 'refund',
  amount: refund.amount,
  payment_intent: subscription.payment,
  status: refund.status,
  destination_details: { card: { reference: subscription.payer.cardLast4 } },
  instructions_email: subscription.payer.email,
});
export const disputeOf = (subscription: Subscription, dispute: Dispute) => ({
  id: dispute.id,
  object: 'dispute',
  amount: AMOUNT,
  payment_intent: subscription.payment,
  status: dispute.status,
  evidence: { customer_name: subscription.payer.name, customer_email_address: subscription.payer.email },
});

export function nextPeriod(it: Subscription): void {
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

export function possible(it: Subscription): Action[] {
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

export function expectedOf(it: Subscription): Expected {
  const standing = it.status === 'active' && paidBack(it) !== null ? 'revoked' : STANDINGS[it.status];
  const tier = PRICES[it.price as keyof typeof PRICES];
  return { standing, tier, renews: (standing === 'active' || standing === 'grace') && !it.cancelAtPeriodEnd };
}

export function subscriptionObject(it: Subscription, now: number): Record<string, unknown> {
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

export function chargeObject(it: Subscription): Record<string, unknown> {
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

export function newEvent(type: string, object: Record<string, unknown>, at: number): StripeEvent {
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
