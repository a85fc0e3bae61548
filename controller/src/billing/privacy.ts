/** What may be told of a failure that met a store's answer or message: either may quote a payer. */
import { KatafractError } from '@katafract/shared/errors';
import { databaseError } from '../platform/db.ts';

/**
 * A failure as it may be logged: ours and the database's as they are, any other by its kind and where it arose. A
 * parser's message, say, quotes what it could not parse.
 */
export function withoutText(error: unknown): unknown {
  if (!(error instanceof Error) || databaseError(error)) return error;
  if (error instanceof KatafractError) {
    const { code, message, status } = error;
    return new KatafractError(code, message, { status, cause: withoutText(error.cause) });
  }
  const bare = new Error(error.name);
  bare.stack = `${error.name}\n${(error.stack ?? '')
    .split('\n')
    .filter((line) => /^\s+at /.test(line))
    .join('\n')}`;
  return bare;
}
