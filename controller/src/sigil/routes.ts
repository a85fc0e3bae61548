/** Sigils over HTTP: what an app sees of its own, and the operators' part. */
import { createRoute, z } from '@hono/zod-openapi';
import { SigilInfo } from '@katafract/shared/api';
import { TIERS, Tier } from '@katafract/shared/sigil';
import {
  type Api,
  decodeCursor,
  IdempotencyKeyHeader,
  json,
  jsonBody,
  operatorOf,
  PageQuery,
  page,
  problems,
  security,
  sigilOf,
} from '../platform/api.ts';
import type { SigilRow, Sigils } from './sigil.ts';

const ownRoute = createRoute({
  method: 'get',
  path: '/v1/sigil',
  tags: ['Sigils'],
  summary: 'The Sigil that the request bears',
  security: security.sigil,
  responses: { 200: json(SigilInfo, 'What it grants'), ...problems(401) },
});

const MintBody = z
  .strictObject({
    tier: Tier,
    expiresAt: z.iso.datetime({ offset: true }),
    /** A subscription that exists; a new one is made where absent. */
    subscription: z.uuid().optional(),
  })
  .openapi('MintSigil');

const Minted = z
  .object({
    id: z.uuid(),
    subscription: z.uuid(),
    /** The token, shown here only. */
    sigil: z.string(),
  })
  .openapi('MintedSigil');

const mintRoute = createRoute({
  method: 'post',
  path: '/v1/admin/sigils',
  tags: ['Operators'],
  summary: 'Mint a Sigil',
  security: security.operator,
  request: { headers: IdempotencyKeyHeader, body: jsonBody(MintBody) },
  responses: { 201: json(Minted, 'The Sigil'), ...problems(400, 401, 404, 409, 413, 422) },
});

const SigilEntry = z
  .object({
    id: z.uuid(),
    subscription: z.uuid(),
    tier: Tier,
    issuedAt: z.iso.datetime(),
    expiresAt: z.iso.datetime(),
    revokedAt: z.iso.datetime().nullable(),
  })
  .openapi('Sigil');

const listRoute = createRoute({
  method: 'get',
  path: '/v1/admin/sigils',
  tags: ['Operators'],
  summary: 'Sigils, newest first',
  security: security.operator,
  request: { query: PageQuery.extend({ subscription: z.uuid().optional() }) },
  responses: {
    200: json(z.object({ items: z.array(SigilEntry), next: z.string().nullable() }), 'A page of them'),
    ...problems(400, 401),
  },
});

const IdParam = z.object({ id: z.uuid() });

const revokeRoute = createRoute({
  method: 'post',
  path: '/v1/admin/sigils/{id}/revoke',
  tags: ['Operators'],
  summary: 'Revoke a Sigil; with the last one of a subscription its peers go too',
  security: security.operator,
  request: { params: IdParam },
  responses: { 200: json(SigilEntry, 'The revoked Sigil'), ...problems(400, 401, 404) },
});

const Revoked = z.object({ id: z.uuid(), revoked: z.literal(true) }).openapi('RevokedSubscription');

const revokeSubscriptionRoute = createRoute({
  method: 'post',
  path: '/v1/admin/subscriptions/{id}/revoke',
  tags: ['Operators'],
  summary: 'Revoke a subscription with all its Sigils and peers',
  security: security.operator,
  request: { params: IdParam },
  responses: { 200: json(Revoked, 'It is revoked'), ...problems(400, 401, 404) },
});

function view(row: SigilRow): z.infer<typeof SigilEntry> {
  return {
    id: row.id,
    subscription: row.subscriptionId,
    tier: row.tier,
    issuedAt: row.issuedAt.toISOString(),
    expiresAt: row.expiresAt.toISOString(),
    revokedAt: row.revokedAt?.toISOString() ?? null,
  };
}

export function sigilRoutes(api: Api, { sigils }: { sigils: Sigils }): void {
  api.openapi(ownRoute, async (c) => {
    const { subscriptionId, tier, expiresAt, device } = sigilOf(c);
    const devices = { used: await sigils.devicesUsed(subscriptionId), limit: TIERS[tier].devices };
    const until = new Date(expiresAt).toISOString();
    const bindings = await sigils.bindings(subscriptionId, device);
    return c.json({ subscription: subscriptionId, tier, expiresAt: until, devices, bindings }, 200);
  });

  api.openapi(mintRoute, async (c) => {
    const { tier, expiresAt, subscription } = c.req.valid('json');
    const wish = { tier, expiresAt: Date.parse(expiresAt), subscription };
    const actor = `operator:${operatorOf(c).name}`;
    return c.json(await sigils.mint(wish, actor, c.req.valid('header')['idempotency-key']), 201);
  });

  api.openapi(listRoute, async (c) => {
    const { cursor, limit, subscription } = c.req.valid('query');
    const before = decodeCursor(cursor, z.uuid());
    const rows = await sigils.list({ subscription, before, limit });
    const { items, next } = page(rows, limit, (last) => last.id);
    return c.json({ items: items.map(view), next }, 200);
  });

  api.openapi(revokeRoute, async (c) => {
    const row = await sigils.revoke(c.req.valid('param').id, `operator:${operatorOf(c).name}`);
    return c.json(view(row), 200);
  });

  api.openapi(revokeSubscriptionRoute, async (c) => {
    const { id } = c.req.valid('param');
    await sigils.revokeSubscription(id, `operator:${operatorOf(c).name}`);
    return c.json({ id, revoked: true as const }, 200);
  });
}
