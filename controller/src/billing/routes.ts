/** HTTP of billing: the stores' webhooks, the checkout and the claim of an app, and what operators give. */
import { createHash } from 'node:crypto';
import { createRoute, z } from '@hono/zod-openapi';
import {
  CheckoutRequest,
  CheckoutSession,
  ClaimSigilRequest,
  IssuedSigil,
  PendingClaim,
} from '@katafract/shared/api';
import { ClaimSecret } from '@katafract/shared/claim';
import { KatafractError } from '@katafract/shared/errors';
import { Tier } from '@katafract/shared/sigil';
import {
  type Api,
  type ApiContext,
  badRequest,
  IdempotencyKeyHeader,
  json,
  jsonBody,
  operatorOf,
  problems,
  security,
  sigilRequest,
} from '../platform/api.ts';
import type { Sigils } from '../sigil/sigil.ts';
import { type Billing, type ClaimRequest, STORES, type StoreName } from './billing.ts';

export interface BillingRoutesDeps {
  readonly billing: Billing;
  readonly sigils: Sigils;
  readonly publicUrl: string;
  /** Counts a message that does not verify against its address. */
  readonly refused: (c: ApiContext) => Promise<void>;
}

/** Seconds until a claim that is pending is worth another try. */
const ASK_AGAIN = 2;

const webhookRoute = (store: StoreName) =>
  createRoute({
    method: 'post',
    path: `/v1/webhooks/${store}`,
    tags: ['Stores'],
    summary: `What ${store} has to say`,
    description:
      'Signed by the store. 200 once it is safe here; types that are unknown are answered 200 as well.',
    request: { body: { required: true, content: { '*/*': { schema: z.string() } } } },
    responses: {
      200: json(z.object({ received: z.literal(true) }), 'It is safe here'),
      ...problems(400, 401, 404, 413),
    },
  });

const checkoutRoute = createRoute({
  method: 'post',
  path: '/v1/billing/stripe/checkout',
  tags: ['Sigils'],
  summary: 'Begin to pay for a tier',
  description:
    'The app makes a secret and sends its hash alone; the secret then claims what was paid for (`POST /v1/sigils`).',
  request: { headers: IdempotencyKeyHeader, body: jsonBody(CheckoutRequest) },
  responses: { 201: json(CheckoutSession, 'Where the payer goes'), ...problems(400, 404, 413, 422) },
});

const claimRoute = createRoute({
  method: 'post',
  path: '/v1/sigils',
  tags: ['Sigils'],
  summary: 'Claim a Sigil for a device',
  description:
    'With a DPoP proof of the device, which is bound to the subscription; the same device may claim again at any time.',
  request: {
    headers: z.object({ dpop: z.string().max(4096).optional() }),
    body: jsonBody(ClaimSigilRequest),
  },
  responses: {
    201: json(IssuedSigil, 'The Sigil'),
    202: json(PendingClaim, 'Nothing is known of this secret; see Retry-After'),
    ...problems(400, 401, 403, 404, 409, 413, 422),
  },
});

const until = z.iso.datetime({ offset: true });

const GrantBody = z
  .strictObject({
    tier: Tier,
    expiresAt: until,
    reason: z.enum(['complimentary', 'support']),
    /** A subscription that is there; a new one, with a secret to claim it, where absent. */
    subscription: z.uuid().optional(),
  })
  .openapi('GrantRequest');

const grantRoute = createRoute({
  method: 'post',
  path: '/v1/admin/grants',
  tags: ['Operators'],
  summary: 'Grant a subscription that nobody pays for',
  security: security.operator,
  request: { headers: IdempotencyKeyHeader, body: jsonBody(GrantBody) },
  responses: {
    201: json(
      z
        .object({
          subscription: z.uuid(),
          /** Claims it; shown here only. Null for a subscription that was there. */
          secret: ClaimSecret.nullable(),
        })
        .openapi('Grant'),
      'The subscription',
    ),
    ...problems(400, 401, 404, 409, 413, 422),
  },
});

const VouchersBody = z
  .strictObject({
    tier: Tier,
    days: z.number().int().min(1).max(3650),
    count: z.number().int().min(1).max(1000),
    redeemBefore: until,
  })
  .openapi('VouchersRequest');

const vouchersRoute = createRoute({
  method: 'post',
  path: '/v1/admin/vouchers',
  tags: ['Operators'],
  summary: 'Make gift codes',
  security: security.operator,
  request: { headers: IdempotencyKeyHeader, body: jsonBody(VouchersBody) },
  responses: {
    201: json(
      z
        .object({
          /** Names them in the audit log. */
          batch: z.uuid(),
          /** Shown here only. */
          codes: z.array(z.string()),
        })
        .openapi('Vouchers'),
      'The codes',
    ),
    ...problems(400, 401, 409, 413, 422),
  },
});

export function billingRoutes(api: Api, deps: BillingRoutesDeps): void {
  const { billing } = deps;
  for (const store of STORES) {
    api.openapi(webhookRoute(store), async (c) => {
      await receive(deps, store, c);
      return c.json({ received: true as const }, 200);
    });
  }
  api.openapi(checkoutRoute, async (c) => {
    const wish = c.req.valid('json');
    const key = c.req.valid('header')['idempotency-key'];
    // keys of different apps must not meet at the store
    const own = key && createHash('sha256').update(`${wish.claim} ${wish.tier} ${key}`).digest('hex');
    const { url } = await billing.checkout('stripe', wish, own);
    return c.json({ url }, 201);
  });
  api.openapi(claimRoute, async (c) => {
    const request = claimOf(c.req.valid('json'));
    const { method, url, dpop } = sigilRequest(c, deps.publicUrl);
    const { jkt } = await deps.sigils.checkProof({ method, url, proof: dpop });
    const issued = await billing.claim({ ...request, jkt });
    if (issued) return c.json(issued, 201);
    return c.json({ status: 'pending' as const }, 202, { 'Retry-After': String(ASK_AGAIN) });
  });
  api.openapi(grantRoute, async (c) => {
    const { expiresAt, ...wish } = c.req.valid('json');
    const key = c.req.valid('header')['idempotency-key'];
    const request = { ...wish, expiresAt: Date.parse(expiresAt) };
    return c.json(await billing.grant(request, operatorOf(c).name, key), 201);
  });
  api.openapi(vouchersRoute, async (c) => {
    const { redeemBefore, ...wish } = c.req.valid('json');
    const key = c.req.valid('header')['idempotency-key'];
    const request = { ...wish, redeemBefore: Date.parse(redeemBefore) };
    const { batch, codes } = await billing.makeVouchers(request, operatorOf(c).name, key);
    return c.json({ batch, codes: [...codes] }, 201);
  });
}

/** Hands over the very bytes that were signed. */
async function receive(deps: BillingRoutesDeps, store: StoreName, c: ApiContext): Promise<void> {
  const body = deps.billing.stores.includes(store)
    ? new Uint8Array(await c.req.arrayBuffer())
    : new Uint8Array();
  try {
    await deps.billing.receive(store, { body, headers: c.req.raw.headers });
  } catch (error) {
    if (error instanceof KatafractError && (error.status === 401 || error.status === 400))
      await deps.refused(c);
    throw error;
  }
}

/** @throws KatafractError `bad_request` (400) where more than one purchase or code is shown */
function claimOf({ secret, apple, google, voucher }: ClaimSigilRequest): Omit<ClaimRequest, 'jkt'> {
  if ([apple, google, voucher].filter((shown) => shown !== undefined).length > 1)
    throw badRequest([{ path: [], message: 'one of apple, google and voucher' }], 'json');
  if (apple !== undefined) return { secret, purchase: { store: 'apple', proof: apple } };
  if (google !== undefined) return { secret, purchase: { store: 'google', proof: google } };
  return { secret, voucher };
}
