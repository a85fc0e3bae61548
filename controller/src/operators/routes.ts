/** HTTP of operators' keys: registered and revoked by whoever holds the bootstrap token. */
import { createRoute, z } from '@hono/zod-openapi';
import {
  OperatorKey,
  OperatorKeyRequest,
  OperatorName,
  RegisteredKey,
} from '@katafract/shared/operator-command';
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
import { admitOperator, listKeys, type OperatorKeysDeps, registerKey, revokeKey } from './keys.ts';

export function operatorRoutes(
  api: Api,
  deps: OperatorKeysDeps & { readonly requireOperator: MiddlewareHandler<AppEnv> },
): void {
  const common = { tags: ['Operators'], security: security.operator, middleware: [deps.requireOperator] };
  const register = createRoute({
    ...common,
    method: 'post',
    path: '/v1/admin/operator-keys',
    summary: 'Register the key by which an operator signs commands over the broker',
    description:
      'Only the public half, made by the operator. The answer says what the commands (`kf/1/<node>/drain`) need.',
    request: { headers: IdempotencyKeyHeader, body: jsonBody(OperatorKeyRequest) },
    responses: { 201: json(RegisteredKey, 'It is registered'), ...problems(400, 401, 409, 413, 422) },
  });
  api.openapi(register, async (c) => {
    const asked = {
      operator: operatorOf(c).name,
      idempotencyKey: c.req.valid('header')['idempotency-key'],
    };
    return c.json(await registerKey(deps, c.req.valid('json'), asked), 201);
  });
  const list = createRoute({
    ...common,
    method: 'get',
    path: '/v1/admin/operator-keys',
    summary: 'List operators’ keys, also those that were revoked',
    responses: { 200: json(z.object({ items: z.array(OperatorKey) }), 'Every key'), ...problems(401) },
  });
  api.openapi(list, async (c) => c.json({ items: await listKeys(deps) }, 200));
  const revoke = createRoute({
    ...common,
    method: 'delete',
    path: '/v1/admin/operator-keys/{name}',
    summary: 'Revoke an operator’s key, at once',
    request: { params: z.object({ name: OperatorName }) },
    responses: { 204: { description: 'It is revoked' }, ...problems(400, 401, 404) },
  });
  api.openapi(revoke, async (c) => {
    await revokeKey(deps, c.req.valid('param').name, operatorOf(c).name);
    return c.body(null, 204);
  });
  const session = createRoute({
    method: 'post',
    path: '/v1/operators/session',
    tags: ['Operators'],
    summary: 'Show an operator’s token, so that a foreign broker lets the operator in',
    request: { body: jsonBody(z.strictObject({ operator: OperatorName, token: z.string().max(2048) })) },
    responses: { 204: { description: 'The broker knows the token' }, ...problems(400, 401, 413) },
  });
  api.openapi(session, async (c) => {
    const { operator, token } = c.req.valid('json');
    await admitOperator(deps, operator, token);
    return c.body(null, 204);
  });
}
