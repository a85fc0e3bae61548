/** Sigils over HTTP: what an app sees of its own, and the operators' part. */
import { createRoute, z } from '@hono/zod-openapi';
import { IssuedSigil, SigilInfo, UnboundDevice } from '@katafract/shared/api';
import { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
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
import type { DeviceRow, SigilRow, Sigils } from './sigil.ts';

const ownRoute = createRoute({
  method: 'get',
  path: '/v1/sigil',
  tags: ['Sigils'],
  summary: 'The Sigil that the request bears',
  security: security.sigil,
  responses: { 200: json(SigilInfo, 'What it grants'), ...problems(401) },
});

const refreshRoute = createRoute({
  method: 'post',
  path: '/v1/sigils/refresh',
  tags: ['Sigils'],
  summary: 'Exchange a Sigil for a fresh one of the same device',
  description:
    'It may have expired, up to 30 days ago. The old one stays good until its own end, so a lost answer costs nothing.',
  security: security.sigil,
  responses: { 200: json(IssuedSigil, 'The fresh one'), ...problems(401, 403, 404, 409) },
});

const DeviceParam = z.object({ jkt: Jkt });

const unbindRoute = createRoute({
  method: 'delete',
  path: '/v1/sigil/devices/{jkt}',
  tags: ['Sigils'],
  summary: 'Let go of a device of the subscription',
  description: 'Its Sigils and its peers end with it. The device that asks gets its own Sigil anew.',
  security: security.sigil,
  request: { params: DeviceParam },
  responses: { 200: json(UnboundDevice, 'It is gone'), ...problems(400, 401, 403, 404, 409) },
});

const MintBody = z
  .strictObject({
    tier: Tier,
    expiresAt: z.iso.datetime({ offset: true }),
    /** A subscription that exists; a new one is made where absent. */
    subscription: z.uuid().optional(),
    /** Thumbprint (RFC 7638) of the device to bind it to; without, it is for whoever bears it. */
    device: Jkt.optional(),
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
  responses: { 201: json(Minted, 'The Sigil'), ...problems(400, 401, 403, 404, 409, 413, 422) },
});

const SigilEntry = z
  .object({
    id: z.uuid(),
    subscription: z.uuid(),
    tier: Tier,
    /** What it is bound to. */
    device: Jkt.nullable(),
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
  summary: 'Revoke a Sigil; with the last one of a subscription, or of a device, its peers go too',
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

const DeviceEntry = z
  .object({ jkt: Jkt, boundAt: z.iso.datetime(), revokedAt: z.iso.datetime().nullable() })
  .openapi('Device');

const devicesRoute = createRoute({
  method: 'get',
  path: '/v1/admin/subscriptions/{id}/devices',
  tags: ['Operators'],
  summary: 'Devices of a subscription, also those shut out, by thumbprint',
  security: security.operator,
  request: { params: IdParam, query: PageQuery },
  responses: {
    200: json(z.object({ items: z.array(DeviceEntry), next: z.string().nullable() }), 'A page of them'),
    ...problems(400, 401),
  },
});

const RevokedDevice = z
  .object({ subscription: z.uuid(), jkt: Jkt, revoked: z.literal(true) })
  .openapi('RevokedDevice');

const revokeDeviceRoute = createRoute({
  method: 'post',
  path: '/v1/admin/subscriptions/{id}/devices/{jkt}/revoke',
  tags: ['Operators'],
  summary: 'Shut a device out of a subscription, with its Sigils and peers; its key cannot be bound again',
  security: security.operator,
  request: { params: IdParam.extend(DeviceParam.shape) },
  responses: { 200: json(RevokedDevice, 'It is shut out'), ...problems(400, 401, 404) },
});

function view(row: SigilRow): z.infer<typeof SigilEntry> {
  return {
    id: row.id,
    subscription: row.subscriptionId,
    tier: row.tier,
    device: row.device,
    issuedAt: row.issuedAt.toISOString(),
    expiresAt: row.expiresAt.toISOString(),
    revokedAt: row.revokedAt?.toISOString() ?? null,
  };
}

const deviceView = ({ jkt, boundAt, revokedAt }: DeviceRow): z.infer<typeof DeviceEntry> => ({
  jkt,
  boundAt: boundAt.toISOString(),
  revokedAt: revokedAt?.toISOString() ?? null,
});

export function sigilRoutes(api: Api, { sigils }: { sigils: Sigils }): void {
  api.openapi(ownRoute, async (c) => {
    const { subscriptionId, tier, expiresAt, device } = sigilOf(c);
    const devices = { used: await sigils.devicesUsed(subscriptionId), limit: TIERS[tier].devices };
    const until = new Date(expiresAt).toISOString();
    const bindings = await sigils.bindings(subscriptionId, device);
    return c.json({ subscription: subscriptionId, tier, expiresAt: until, devices, bindings }, 200);
  });

  api.openapi(refreshRoute, async (c) => {
    const { device, ...bearer } = sigilOf(c);
    // guarded by `presented`, which lets none through that is bound to nothing
    if (device === null) throw new KatafractError('sigil_unbound', 'not bound', { status: 401 });
    return c.json(await sigils.refresh({ ...bearer, device }), 200);
  });

  api.openapi(unbindRoute, async (c) =>
    c.json(await sigils.unbind(sigilOf(c), c.req.valid('param').jkt), 200),
  );

  api.openapi(mintRoute, async (c) => {
    const { expiresAt, ...rest } = c.req.valid('json');
    const wish = { ...rest, expiresAt: Date.parse(expiresAt) };
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

  api.openapi(devicesRoute, async (c) => {
    const { cursor, limit } = c.req.valid('query');
    const after = decodeCursor(cursor, Jkt);
    const rows = await sigils.devices(c.req.valid('param').id, { after, limit });
    const { items, next } = page(rows, limit, (last) => last.jkt);
    return c.json({ items: items.map(deviceView), next }, 200);
  });

  api.openapi(revokeDeviceRoute, async (c) => {
    const { id, jkt } = c.req.valid('param');
    await sigils.revokeDevice({ subscriptionId: id, jkt }, `operator:${operatorOf(c).name}`);
    return c.json({ subscription: id, jkt, revoked: true as const }, 200);
  });
}
