/** What a subscription of Stripe is worth. A StoreView is built field by field, so that nothing else comes along. */
import { ClaimHash } from '@katafract/shared/claim';
import type { Tier } from '@katafract/shared/sigil';
import type Stripe from 'stripe';
import { type Standing, type StoreView, tierOf } from './port.ts';
import { asked } from './stripe-api.ts';

/** Where a subscription's metadata holds the claim hash. */
export const STRIPE_CLAIM = 'katafract_claim';

/** Disputes that hold the money, or have lost it. An inquiry (`warning_…`) does not, nor does one that was won. */
const DISPUTED = new Set([
  'needs_response',
  'under_review',
  'lost',
  'appeal_needs_response',
  'appeal_under_review',
]);
const REFUND_FAILED = new Set(['failed', 'canceled']);

export async function viewOf(
  stripe: Stripe,
  config: { readonly prices: Readonly<Record<string, Tier>>; readonly graceDays?: number },
  subscription: Stripe.Subscription,
): Promise<StoreView> {
  const { items, status, cancel_at: cancelAt } = subscription;
  const seconds = (pick: (item: Stripe.SubscriptionItem) => number) => items.data.map(pick);
  const periodStart = Math.max(0, ...seconds((item) => item.current_period_start));
  const periodEnd = Math.max(0, ...seconds((item) => item.current_period_end));
  let standing = STANDINGS[status] ?? 'hold';
  let end = cancelAt === null ? periodEnd : Math.min(cancelAt, periodEnd);
  // the period rolls on when its renewal fails, so what was paid for ended where it starts
  if (standing === 'grace') end = Math.min(end, periodStart + (config.graceDays ?? 14) * 86_400);
  if (standing === 'expired') end = subscription.ended_at ?? subscription.canceled_at ?? periodEnd;
  const open = () => standing === 'active' || standing === 'grace';
  if (open() && (await paidBack(stripe, subscription))) standing = 'revoked';
  return {
    store: 'stripe',
    reference: subscription.id,
    claim: await claimOf(stripe, subscription),
    tier:
      items.data.map((item) => tierOf(config.prices, item.price.id)).find((tier) => tier !== null) ?? null,
    standing,
    renews: open() && !subscription.cancel_at_period_end && cancelAt === null,
    expiresAt: end * 1000,
    acknowledge: false,
  };
}

const STANDINGS: Readonly<Record<string, Standing>> = {
  trialing: 'active',
  active: 'active',
  past_due: 'grace',
  unpaid: 'hold',
  paused: 'hold',
  incomplete: 'pending',
  incomplete_expired: 'expired',
  canceled: 'expired',
};

/** Whether what was paid for the running period was refunded in full, or is disputed. */
async function paidBack(stripe: Stripe, subscription: Stripe.Subscription): Promise<boolean> {
  const latest = subscription.latest_invoice;
  if (latest === null) return false;
  const invoice = typeof latest === 'string' ? latest : latest.id;
  // by the payments rather than by the invoice, which is full of payer fields
  const payments = await asked('list', stripe.invoicePayments.list({ invoice, status: 'paid', limit: 100 }));
  let paid = 0;
  let refunded = 0;
  for (const { amount_paid: amount, payment } of payments?.data ?? []) {
    const by = byPayment(payment);
    if (by === null) continue;
    paid += amount ?? 0;
    const [refunds, disputes] = await Promise.all([
      asked('list', stripe.refunds.list({ ...by, limit: 100 })),
      asked('list', stripe.disputes.list({ ...by, limit: 100 })),
    ]);
    if (disputes?.data.some((dispute) => DISPUTED.has(dispute.status))) return true;
    for (const refund of refunds?.data ?? []) {
      if (!REFUND_FAILED.has(refund.status ?? '')) refunded += refund.amount;
    }
  }
  return paid > 0 && refunded >= paid;
}

/** Null for payments outside Stripe. */
function byPayment(
  payment: Stripe.InvoicePayment.Payment,
): { payment_intent: string } | { charge: string } | null {
  const { payment_intent: intent, charge } = payment;
  if (intent) return { payment_intent: typeof intent === 'string' ? intent : intent.id };
  if (charge) return { charge: typeof charge === 'string' ? charge : charge.id };
  return null;
}

/** From the metadata; for what was bought through a payment link, from the checkout session. */
async function claimOf(stripe: Stripe, subscription: Stripe.Subscription): Promise<string | null> {
  const own = ClaimHash.safeParse(subscription.metadata[STRIPE_CLAIM]);
  if (own.success) return own.data;
  const sessions = await asked(
    'list',
    stripe.checkout.sessions.list({ subscription: subscription.id, limit: 1 }),
  );
  const linked = ClaimHash.safeParse(sessions?.data[0]?.client_reference_id);
  return linked.success ? linked.data : null;
}
