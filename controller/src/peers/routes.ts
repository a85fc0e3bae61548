/** HTTP of the peers domain: apps by Sigil, and the operator's rollback. */
import { createHash } from 'node:crypto';
import { createRoute, z } from '@hono/zod-openapi';
import {
  MoveRequest,
  Peer,
  PeerList,
  ProvisionRequest,
  RemovedPeer,
  RotateRequest,
} from '@katafract/shared/api';
import { PeerId } from '@katafract/shared/units';
import type { MiddlewareHandler } from 'hono';
import {
  type Api,
  type AppEnv,
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
import type { Actor, Peers } from './peers.ts';
import { type RollbackDeps, rollback } from './rollback.ts';

export interface PeerRoutesDeps extends RollbackDeps {
  readonly peers: Peers;
  readonly requireSigil: MiddlewareHandler<AppEnv>;
  readonly requireOperator: MiddlewareHandler<AppEnv>;
}

const byId = z.object({ id: PeerId });
const tags = ['Peers'];

const provisionRoute = (deps: PeerRoutesDeps) =>
  createRoute({
    method: 'post',
    path: '/v1/peers',
    tags,
    summary: 'Provision a peer in a region',
    description:
      "Answers once the primary exit's kernel has the peer (`active`), or after a few seconds without that (`pending`).",
    security: security.sigil,
    middleware: [deps.requireSigil] as const,
    request: { headers: IdempotencyKeyHeader, body: jsonBody(ProvisionRequest) },
    responses: {
      201: json(Peer, 'The peer, its exits in the order to try them'),
      ...problems(400, 401, 409, 413, 422),
    },
  });

const listRoute = (deps: PeerRoutesDeps) =>
  createRoute({
    method: 'get',
    path: '/v1/peers',
    tags,
    summary: 'List the peers of the subscription',
    security: security.sigil,
    middleware: [deps.requireSigil] as const,
    request: { query: PageQuery },
    responses: { 200: json(PeerList, 'A page of peers'), ...problems(400, 401) },
  });

const getRoute = (deps: PeerRoutesDeps) =>
  createRoute({
    method: 'get',
    path: '/v1/peers/{id}',
    tags,
    summary: 'Read one peer',
    security: security.sigil,
    middleware: [deps.requireSigil] as const,
    request: { params: byId },
    responses: { 200: json(Peer, 'The peer'), ...problems(400, 401, 404) },
  });

const removeRoute = (deps: PeerRoutesDeps) =>
  createRoute({
    method: 'delete',
    path: '/v1/peers/{id}',
    tags,
    summary: 'Remove a peer from every exit',
    security: security.sigil,
    middleware: [deps.requireSigil] as const,
    request: { params: byId },
    responses: {
      200: json(RemovedPeer, 'Removed; `pending` where some exit has not answered yet'),
      ...problems(400, 401, 404),
    },
  });

const rotateRoute = (deps: PeerRoutesDeps) =>
  createRoute({
    method: 'put',
    path: '/v1/peers/{id}/key',
    tags,
    summary: 'Replace the public key of a peer; its addresses stay',
    security: security.sigil,
    middleware: [deps.requireSigil] as const,
    request: { params: byId, body: jsonBody(RotateRequest) },
    responses: { 200: json(Peer, 'The peer with its new key'), ...problems(400, 401, 404, 409, 413) },
  });

const moveRoute = (deps: PeerRoutesDeps) =>
  createRoute({
    method: 'post',
    path: '/v1/peers/{id}/move',
    tags,
    summary: 'Move a peer to another region',
    description:
      'Make before break: the exits it leaves answer for a while longer, and are listed as `leaving`.',
    security: security.sigil,
    middleware: [deps.requireSigil] as const,
    request: { params: byId, body: jsonBody(MoveRequest) },
    responses: { 200: json(Peer, 'The peer with its new exits'), ...problems(400, 401, 404, 413, 422) },
  });

const rollbackRoute = (deps: PeerRoutesDeps) =>
  createRoute({
    method: 'post',
    path: '/v1/admin/audit/{entry}/rollback',
    tags: ['Operators'],
    summary: 'Undo one provisioning action',
    description: 'A provision is removed, a removal restored, a rotation or a move reversed. Once per entry.',
    security: security.operator,
    middleware: [deps.requireOperator] as const,
    request: { params: z.object({ entry: z.coerce.number().int().min(1).max(Number.MAX_SAFE_INTEGER) }) },
    responses: {
      200: json(z.object({ entry: z.number().int(), undone: z.string() }), 'What was undone'),
      ...problems(400, 401, 404, 409, 422),
    },
  });

export function peerRoutes(api: Api, deps: PeerRoutesDeps): void {
  const { peers } = deps;
  api.openapi(provisionRoute(deps), async (c) => {
    const { subscriptionId, sigilId, device, tier } = sigilOf(c);
    const wish = c.req.valid('json');
    const key = c.req.valid('header')['idempotency-key'];
    const requestHash = createHash('sha256').update(`${wish.publicKey} ${wish.region}`).digest('hex');
    const idempotency = key === undefined ? undefined : { key, requestHash };
    const { peer } = await peers.provision({ subscriptionId, sigilId, device, tier, ...wish, idempotency });
    return c.json(peer, 201, { Location: `/v1/peers/${peer.id}` });
  });
  api.openapi(listRoute(deps), async (c) => {
    const { cursor, limit } = c.req.valid('query');
    const rows = await peers.list(sigilOf(c).subscriptionId, { after: decodeCursor(cursor, PeerId), limit });
    return c.json(
      page(rows, limit, (last) => last.id),
      200,
    );
  });
  api.openapi(getRoute(deps), async (c) =>
    c.json(await peers.get(sigilOf(c).subscriptionId, c.req.valid('param').id), 200),
  );
  const actorOf = (c: Parameters<typeof sigilOf>[0]): Actor => {
    const { subscriptionId } = sigilOf(c);
    return { name: `subscription:${subscriptionId}`, subscriptionId };
  };
  api.openapi(removeRoute(deps), async (c) =>
    c.json(await peers.remove(actorOf(c), c.req.valid('param').id), 200),
  );
  api.openapi(rotateRoute(deps), async (c) =>
    c.json(await peers.rotate(actorOf(c), c.req.valid('param').id, c.req.valid('json').publicKey), 200),
  );
  api.openapi(moveRoute(deps), async (c) =>
    c.json(await peers.move(actorOf(c), c.req.valid('param').id, c.req.valid('json').region), 200),
  );
  api.openapi(rollbackRoute(deps), async (c) => {
    const { entry } = c.req.valid('param');
    return c.json({ entry, undone: await rollback(deps, entry, operatorOf(c).name) }, 200);
  });
}
