/** HTTP of the fleet: the region list for apps, enrollment for nodes, nodes and join tokens for operators. */
import { createRoute, z } from '@hono/zod-openapi';
import { ADDRESS_PARTS } from '@katafract/shared/addresses';
import { RegionList } from '@katafract/shared/api';
import { EnrollRequest, EnrollResponse, JoinToken } from '@katafract/shared/enroll';
import { SIGNATURE_HEADER } from '@katafract/shared/signed-body';
import { Endpoint, NodeId, RegionId } from '@katafract/shared/units';
import { Heartbeat } from '@katafract/shared/uplink';
import type { MiddlewareHandler } from 'hono';
import {
  type Api,
  type AppEnv,
  IdempotencyKeyHeader,
  json,
  jsonBody,
  operatorOf,
  problems,
  security,
} from '../platform/api.ts';
import type { Bus } from './bus.ts';
import { drainRoutes } from './drain-routes.ts';
import { enroll, mintJoinToken } from './enrollment.ts';
import type { EnrollmentDeps } from './fleet.ts';
import { HEALTH_REASONS, HEALTH_STATES } from './health.ts';
import { type MachineRoutesDeps, machineRoutes } from './machines/routes.ts';
import * as operations from './operations.ts';
import { listSigner } from './signed-list.ts';
import { NODE_STATES } from './tables.ts';
import { type UpkeepRoutesDeps, upkeepRoutes } from './upkeep/routes.ts';

export interface FleetRoutesDeps
  extends EnrollmentDeps,
    Pick<MachineRoutesDeps, 'machines' | 'wakeJob'>,
    Pick<UpkeepRoutesDeps, 'rollouts' | 'reboots'> {
  readonly bus: Pick<Bus, 'evict'>;
  readonly requireSigil: MiddlewareHandler<AppEnv>;
  readonly requireOperator: MiddlewareHandler<AppEnv>;
}

/** Control characters and lone surrogates: JSON may carry them, Postgres takes neither. */
const UNPRINTABLE = /[\p{Cc}\p{Cs}]/u;
const Printable = z.string().refine((text) => !UNPRINTABLE.test(text), 'must be printable text');
const NodeView = z.object({
  id: NodeId,
  region: RegionId,
  /** In a word: its life, or `suspect` or `down` where it should be serving and is not well. */
  state: z.enum([...NODE_STATES, 'suspect', 'down']),
  /** What operators made of it. */
  lifecycle: z.enum(NODE_STATES),
  /** How it was last judged; null before the first time. */
  condition: z
    .object({ state: z.enum(HEALTH_STATES), reason: z.enum(HEALTH_REASONS), since: z.iso.datetime() })
    .nullable(),
  provider: z.string().nullable(),
  bandwidthMbit: z.number().int().nullable(),
  /** Of its first tunnel interface; the others answer on the ports after it. */
  endpoint: Endpoint,
  tunnels: z.number().int(),
  publicKey: z.string(),
  capacity: z.number().int(),
  peers: z.number().int(),
  connected: z.boolean(),
  lineage: z.number().int(),
  generation: z.number().int(),
  /** What its kernel is known to have. */
  applied: z.number().int(),
  agentVersion: z.string().nullable(),
  lastSeenAt: z.iso.datetime().nullable(),
  health: Heartbeat.nullable(),
});
const NodeChange = z.strictObject({
  state: z.enum(['active', 'cordoned']).optional(),
  capacity: z.number().int().min(1).max(1_000_000).optional(),
  /** What its line carries. */
  bandwidthMbit: z.number().int().min(1).max(10_000_000).optional(),
  /** Whose machine it is: a peer's exits are spread over several. */
  provider: Printable.min(1).max(64).optional(),
  endpoint: Endpoint.optional(),
  listenPort: z.number().int().min(1).max(65535).optional(),
  mtu: z.number().int().min(1280).max(9000).optional(),
  /** Consent to the next snapshot removing more than half of the node's table. */
  allowShrink: z.boolean().optional(),
});
const JoinTokenInput = z.strictObject({
  region: RegionId,
  node: NodeId,
  endpoint: Endpoint.optional(),
  capacity: z.number().int().min(1).max(1_000_000).default(20_000),
  /** WireGuard interfaces that its clients are spread over, on as many ports from the endpoint's on; never changes. */
  tunnels: z.number().int().min(1).max(ADDRESS_PARTS).default(1),
  expiresInSeconds: z.number().int().min(60).max(604_800).default(3600),
});

const byNode = z.object({ id: NodeId });

function appRoutes(api: Api, deps: FleetRoutesDeps): void {
  const route = createRoute({
    method: 'get',
    path: '/v1/regions',
    tags: ['Regions'],
    summary: 'List regions with their exits',
    description:
      'The header `X-Katafract-Signature` is a detached JWS (EdDSA, typ `kf-regions+jws`) over the exact body, ' +
      'by a key of the JWKS: a client may keep both and trust them later.',
    security: security.sigil,
    middleware: [deps.requireSigil] as const,
    responses: { 200: json(RegionList, 'Every region'), ...problems(401) },
  });
  const sign = listSigner(deps);
  api.openapi(route, async (c) => {
    const list = { items: operations.regionList(deps.fleet) };
    c.header(SIGNATURE_HEADER, await sign(JSON.stringify(list)));
    return c.json(list, 200);
  });
}

function nodeRoutes(api: Api, deps: FleetRoutesDeps): void {
  const enrollRoute = createRoute({
    method: 'post',
    path: '/v1/nodes/enroll',
    tags: ['Nodes'],
    summary: 'Enroll a node with a one-time join token',
    request: { body: jsonBody(EnrollRequest) },
    responses: {
      201: json(EnrollResponse, 'Who the node is, and whom it may trust'),
      ...problems(400, 401, 409, 413, 422),
    },
  });
  api.openapi(enrollRoute, async (c) => c.json(await enroll(deps, c.req.valid('json')), 201));
  const sessionRoute = createRoute({
    method: 'post',
    path: '/v1/nodes/session',
    tags: ['Nodes'],
    summary: 'Show a node token, so that a foreign broker lets the node in',
    request: { body: jsonBody(z.strictObject({ node: NodeId, token: z.string().max(2048) })) },
    responses: { 204: { description: 'The broker knows the token' }, ...problems(400, 401, 413) },
  });
  api.openapi(sessionRoute, async (c) => {
    const { node, token } = c.req.valid('json');
    await deps.fleet.admit(node, token);
    return c.body(null, 204);
  });
}

function operatorRoutes(api: Api, deps: FleetRoutesDeps): void {
  const tags = ['Operators'];
  const middleware = [deps.requireOperator];
  const mint = createRoute({
    tags,
    security: security.operator,
    middleware,
    method: 'post',
    path: '/v1/admin/join-tokens',
    summary: 'Make a one-time join token for a node',
    description:
      'The token is shown once. Give it to the machine by a file or its environment, not its command line.',
    request: { headers: IdempotencyKeyHeader, body: jsonBody(JoinTokenInput) },
    responses: {
      201: json(z.object({ id: z.uuid(), token: JoinToken, expiresAt: z.iso.datetime() }), 'The token'),
      ...problems(400, 401, 409, 413, 422),
    },
  });
  api.openapi(mint, async (c) => {
    const idempotencyKey = c.req.valid('header')['idempotency-key'];
    const asked = { operator: operatorOf(c).name, idempotencyKey };
    const { expiresAt, ...token } = await mintJoinToken(deps, c.req.valid('json'), asked);
    return c.json({ ...token, expiresAt: expiresAt.toISOString() }, 201);
  });
  const list = createRoute({
    tags,
    security: security.operator,
    middleware,
    method: 'get',
    path: '/v1/admin/nodes',
    summary: 'List nodes with their health',
    responses: { 200: json(z.object({ items: z.array(NodeView) }), 'Every node'), ...problems(401) },
  });
  api.openapi(list, async (c) => c.json({ items: await operations.nodeList(deps) }, 200));
  const change = createRoute({
    tags,
    security: security.operator,
    middleware,
    method: 'patch',
    path: '/v1/admin/nodes/{id}',
    summary: 'Cordon a node, or change its capacity, provider, endpoint or configuration',
    request: { params: byNode, body: jsonBody(NodeChange) },
    responses: { 200: json(NodeView, 'The node'), ...problems(400, 401, 404, 409, 413, 422) },
  });
  api.openapi(change, async (c) => {
    const node = c.req.valid('param').id;
    return c.json(await operations.changeNode(deps, node, c.req.valid('json'), operatorOf(c).name), 200);
  });
  const retire = createRoute({
    tags,
    security: security.operator,
    middleware,
    method: 'post',
    path: '/v1/admin/nodes/{id}/retire',
    summary: 'Take an empty node out of the fleet for good',
    request: { params: byNode },
    responses: { 204: { description: 'It may not connect any more' }, ...problems(400, 401, 404, 409) },
  });
  api.openapi(retire, async (c) => {
    await operations.retireNode(deps, c.req.valid('param').id, operatorOf(c).name);
    return c.body(null, 204);
  });
}

export function fleetRoutes(api: Api, deps: FleetRoutesDeps): void {
  appRoutes(api, deps);
  nodeRoutes(api, deps);
  operatorRoutes(api, deps);
  drainRoutes(api, deps);
  upkeepRoutes(api, deps);
  machineRoutes(api, deps);
}
