/**
 * The HTTP edge: mounts every domain's routes behind the same fences. In the order a request meets them:
 *
 *   id, headers, duration → which listener → CORS, body limit → who (Sigil, operator) → rate limit → ETag → route
 *
 * and whatever is thrown on the way becomes a problem document in one place.
 */
import { createHash, randomUUID } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import { SIGNATURE_HEADER } from '@katafract/shared/signed-body';
import type { MiddlewareHandler } from 'hono';
import { cors } from 'hono/cors';
import { etag, RETAINED_304_HEADERS } from 'hono/etag';
import { routePath } from 'hono/route';
import { auditRoutes } from './audit/routes.ts';
import { billingRoutes } from './billing/routes.ts';
import type { Context } from './context.ts';
import { fleetRoutes } from './fleet/routes.ts';
import { operatorRoutes } from './operators/routes.ts';
import { peerRoutes } from './peers/routes.ts';
import {
  type Api,
  type ApiContext,
  type AppEnv,
  bodyLimit,
  createApi,
  sigilRequest,
} from './platform/api.ts';
import { mountDocs } from './platform/docs.ts';
import { createLimits, type Limits } from './platform/limits.ts';
import { problemCodesTable } from './platform/problem-codes.ts';
import { problemResponse } from './platform/problems.ts';
import { sigilRoutes } from './sigil/routes.ts';

/** Served on the mesh listener alone, where there is one. */
const MESH_ONLY = ['/v1/admin/*', '/metrics', '/v1/nodes/session', '/v1/operators/session'];
/** For apps alone. */
const SIGIL_ONLY = ['/v1/regions', '/v1/peers', '/v1/peers/*', '/v1/sigil', '/v1/sigil/*'];
/** With a Sigil that may have expired. */
const EXCHANGE = '/v1/sigils/refresh';
/** For apps, which may be pages of any origin: there are no cookies to abuse, only tokens. */
const CROSS_ORIGIN = [...SIGIL_ONLY, '/v1/sigils', EXCHANGE, '/v1/billing/*', '/.well-known/jwks.json'];
/** Lists that clients poll. */
const POLLED = ['/v1/regions', '/v1/peers'];
/** Without any token, and so limited by address. */
const ANONYMOUS = [
  '/v1/nodes/enroll',
  '/v1/nodes/session',
  '/v1/operators/session',
  '/v1/sigils',
  '/v1/billing/*',
  '/openapi.json',
  '/docs',
  '/docs/*',
];

/** What a page may read of an answer; Date tells a device how wrong its clock is. */
const EXPOSED = [
  'Date',
  'ETag',
  'Retry-After',
  'RateLimit',
  'RateLimit-Policy',
  'WWW-Authenticate',
  'X-Request-Id',
  SIGNATURE_HEADER,
];

type Middleware = MiddlewareHandler<AppEnv>;

export function createHttp(ctx: Context): Api {
  const { config, log, metrics, clock } = ctx;
  const api = createApi();
  const limits = createLimits({
    ...config.limits,
    trustedProxies: config.trustedProxies,
    store: ctx.store,
    metrics,
    now: clock.now,
    secret: ctx.limitSecret,
  });
  api.onError((error, c) => problemResponse(c, error, { log, metrics }));
  api.notFound((c) => problemResponse(c, noRoute(api, c), { log, metrics }));
  api.use(edge(ctx));
  if (config.meshListen) for (const path of MESH_ONLY) api.use(path, meshOnly);
  for (const path of CROSS_ORIGIN)
    api.use(path, cors({ origin: '*', exposeHeaders: EXPOSED, maxAge: 86_400 }));
  api.use('/v1/*', bodyLimit());
  for (const path of ANONYMOUS) api.use(path, (c, next) => limits.address(c).then(next));
  const requireSigil = guard(limits, 'sigil', (c) =>
    ctx.sigils.authenticate(sigilRequest(c, config.publicUrl)),
  );
  const requireOperator = guard(limits, 'operator', async (c) =>
    ctx.operators.authenticate(c.req.header('authorization')),
  );
  // by prefix, whatever a route itself asks for: a forgotten guard must not open anything
  api.use('/v1/admin/*', requireOperator);
  for (const path of SIGIL_ONLY) api.use(path, requireSigil);
  api.use(
    EXCHANGE,
    guard(limits, 'sigil', (c) => ctx.sigils.presented(sigilRequest(c, config.publicUrl))),
  );
  const poll = etag({ retainedHeaders: [...RETAINED_304_HEADERS, ...EXPOSED], generateDigest });
  for (const path of POLLED) api.use(path, revalidate, poll);
  sigilRoutes(api, ctx);
  billingRoutes(api, { ...ctx, publicUrl: config.publicUrl, refused: limits.address });
  auditRoutes(api, ctx);
  fleetRoutes(api, {
    ...ctx.enrollment,
    requireSigil,
    requireOperator,
    bus: ctx.bus,
    machines: ctx.machines,
    rollouts: ctx.rollouts,
    reboots: ctx.reboots,
    wakeJob: (name) => ctx.jobs.wake(name),
  });
  operatorRoutes(api, { ...ctx.operatorKeys, requireOperator });
  peerRoutes(api, { ...ctx, requireSigil, requireOperator });
  machineRoutes(api, ctx);
  describe(api, config.publicUrl);
  mountDocs(api);
  return api;
}

/** Around everything: the request's id, the headers every answer has, and how long it took. */
function edge({ config, metrics, log, state }: Context): Middleware {
  const https = config.publicUrl.startsWith('https:');
  return async (c, next) => {
    const started = performance.now();
    const requestId = randomUUID();
    c.set('requestId', requestId);
    c.header('X-Request-Id', requestId);
    c.header('X-Content-Type-Options', 'nosniff');
    c.header('Referrer-Policy', 'no-referrer');
    c.header('Content-Security-Policy', "default-src 'none'; frame-ancestors 'none'");
    c.header('Cache-Control', 'no-store');
    if (https) c.header('Strict-Transport-Security', 'max-age=31536000');
    if (state.draining) c.header('Connection', 'close');
    await next();
    const path = routePath(c, -1);
    // the pattern, never the path: paths carry ids, and a label must have few values
    const route = path.endsWith('*') ? 'unmatched' : path;
    const { method } = c.req;
    const { status } = c.res;
    const ms = performance.now() - started;
    metrics.httpSeconds.observe({ method, route, status: String(status) }, ms / 1000);
    log.debug({ requestId, method, route, status, ms }, 'request');
  };
}

const meshOnly: Middleware = async (c, next) => {
  if (c.env?.mesh === false) throw new KatafractError('not_found', 'no such route', { status: 404 });
  await next();
};

/** A client may keep the answer, if it asks each time whether it still holds. */
const revalidate: Middleware = async (c, next) => {
  c.header('Cache-Control', 'private, no-cache');
  await next();
};

/**
 * Lets a request pass whose token is good, within its subscription's limit. One whose token is no good counts against
 * its address. Prefix and route both ask for it; the second time it has nothing to do.
 */
function guard<Name extends 'sigil' | 'operator'>(
  limits: Limits,
  name: Name,
  authenticate: (c: ApiContext) => Promise<AppEnv['Variables'][Name]>,
): Middleware {
  return async (c, next) => {
    if (c.get(name) === undefined) {
      try {
        c.set(name, await authenticate(c));
      } catch (error) {
        if (error instanceof KatafractError && error.status === 401) await limits.address(c);
        throw error;
      }
      const subscription = c.get('sigil')?.subscriptionId;
      if (subscription !== undefined) await limits.subscription(c, subscription);
    }
    await next();
  };
}

/** Of a body in memory already: hashing it here takes less than handing it to the thread pool. */
function generateDigest(body: Uint8Array): ArrayBuffer {
  return new Uint8Array(createHash('sha256').update(body).digest()).buffer;
}

/** Why nothing answered: another method would have (405, RFC 9110 15.5.6), or nothing is there (404). */
function noRoute(api: Api, c: ApiContext): KatafractError {
  const { path } = c.req;
  const methods = api.routes
    .filter(({ method, path: pattern }) => method !== 'ALL' && matches(pattern, path))
    .map(({ method }) => method);
  if (methods.length === 0) return new KatafractError('not_found', 'no such route', { status: 404 });
  const allow = [...new Set(methods.flatMap((method) => (method === 'GET' ? ['GET', 'HEAD'] : [method])))];
  c.header('Allow', allow.join(', '));
  return new KatafractError('method_not_allowed', `only ${allow.join(', ')}`, { status: 405 });
}

function matches(pattern: string, path: string): boolean {
  const parts = path.split('/');
  const wanted = pattern.split('/');
  return (
    wanted.length === parts.length && wanted.every((part, at) => part.startsWith(':') || part === parts[at])
  );
}

/** What machines ask for. */
function machineRoutes(api: Api, ctx: Context): void {
  api.get('/healthz', (c) => c.json({ status: 'ok' }));
  api.get('/readyz', async (c) => {
    const checks = await ctx.readiness();
    if (Object.values(checks).every(Boolean)) return c.json({ status: 'ready', checks });
    throw new KatafractError('not_ready', 'not ready to serve', {
      status: 503,
      retryAfter: 2,
      detail: { checks },
    });
  });
  api.get('/metrics', async (c) => {
    c.header('Content-Type', ctx.metrics.registry.contentType);
    return c.body(await ctx.metrics.registry.metrics());
  });
  api.get('/.well-known/jwks.json', etag(), (c) => {
    // far less than the hour for which a key is published before it signs
    c.header('Cache-Control', 'public, max-age=300');
    return c.json(ctx.keyring.jwks());
  });
}

/** OpenAPI 3.1, made from the very schemas that check the requests. */
function describe(api: Api, publicUrl: string): void {
  const bearer = (description: string) => ({ type: 'http' as const, scheme: 'bearer', description });
  const schemes = {
    Sigil: bearer(
      'A Sigil: the subscription token of an app. One that is bound to a device (it has `cnf`) comes as ' +
        '`Authorization: DPoP <sigil>` with a proof in the header `DPoP` (RFC 9449), and in no other way',
    ),
    Operator: bearer('An operator token'),
    NodeToken: bearer('A short-lived JWT signed with the key of a node'),
  };
  for (const [name, scheme] of Object.entries(schemes))
    api.openAPIRegistry.registerComponent('securitySchemes', name, scheme);
  let text: string | undefined;
  api.get('/openapi.json', (c) => {
    text ??= JSON.stringify(
      api.getOpenAPI31Document({
        openapi: '3.1.0',
        info: {
          title: 'Katafract',
          version: '1',
          description: `Errors are problem documents (RFC 9457): switch on \`code\`.\n\n${problemCodesTable()}`,
        },
        servers: [{ url: publicUrl }],
      }),
    );
    c.header('Content-Type', 'application/json');
    c.header('Cache-Control', 'public, max-age=300');
    return c.body(text);
  });
}
