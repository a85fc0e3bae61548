/** The fence around everything that operators alone may do. */
import type { MiddlewareHandler } from 'hono';
import type { AppEnv } from '../platform/api.ts';
import type { Operators } from './operators.ts';

export function requireOperator(operators: Operators): MiddlewareHandler<AppEnv> {
  return async (c, next) => {
    c.set('operator', operators.authenticate(c.req.header('authorization')));
    await next();
  };
}
