/** The one edge where failures become HTTP: every error leaves as a problem document (RFC 9457) with a stable code. */
import { PROOF_ALGS } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { PROBLEM_TYPE, type Problem } from '@katafract/shared/problem';
import { HTTPException } from 'hono/http-exception';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import type { ApiContext } from './api.ts';
import { databaseError } from './db.ts';
import type { Logger } from './log.ts';
import type { Metrics } from './metrics.ts';

const TITLES: Readonly<Record<number, string>> = {
  400: 'Bad request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not found',
  405: 'Method not allowed',
  408: 'Request timeout',
  409: 'Conflict',
  410: 'Gone',
  413: 'Content too large',
  415: 'Unsupported media type',
  417: 'Expectation failed',
  422: 'Unprocessable content',
  429: 'Too many requests',
  431: 'Header fields too large',
  500: 'Internal error',
  503: 'Service unavailable',
};

/** What Hono and its validator throw by themselves. */
const EXCEPTIONS: Readonly<Record<number, [string, string]>> = {
  400: ['bad_json', 'the body is not valid JSON'],
  413: ['body_too_large', 'the body is too large'],
  415: ['unsupported_media_type', 'the body must be application/json'],
};

/** Any failure as the error that the caller may see. Whatever is not of a known kind becomes `internal`, unexplained. */
export function publicError(error: unknown): KatafractError {
  if (error instanceof KatafractError) return error;
  const database = databaseError(error);
  if (database) return database;
  if (error instanceof HTTPException && error.status < 500) {
    const [code, message] = EXCEPTIONS[error.status] ?? ['bad_request', 'the request was refused'];
    return new KatafractError(code, message, { status: error.status, cause: error });
  }
  return new KatafractError('internal', 'something went wrong here; the request id finds it in our log', {
    cause: error,
  });
}

export function problemOf(error: KatafractError): Problem {
  return {
    // public facts first, so that none can pass for a standard member
    ...error.detail,
    type: `urn:katafract:problem:${error.code}`,
    title: TITLES[error.status] ?? 'Failed',
    status: error.status,
    code: error.code,
    // the message of a fault of ours may quote internals
    detail: error.status === 500 && error.code !== 'internal' ? 'something went wrong here' : error.message,
    ...(error.retryAfter === undefined ? {} : { retryAfter: error.retryAfter }),
  };
}

/** How to authenticate (RFC 9110 11.6.1): by a bearer token (RFC 6750 3), or by one with a proof (RFC 9449 7.1). */
function challenge(path: string, code: string): string {
  const wrong = code.startsWith('dpop_') ? 'invalid_dpop_proof' : 'invalid_token';
  const error = code === 'unauthorized' || code === 'dpop_required' ? '' : `, error="${wrong}"`;
  const bearer = 'Bearer realm="katafract"';
  if (/^\/v1\/(?:admin|nodes)\//.test(path)) return bearer;
  return `${bearer}, DPoP realm="katafract", algs="${PROOF_ALGS.join(' ')}"${error}`;
}

export interface ProblemDeps {
  readonly log: Logger;
  readonly metrics: Metrics;
}

/** Answers with the problem document of a failure, having counted it, and logged it where it is our fault. */
export function problemResponse(c: ApiContext, failure: unknown, deps: ProblemDeps): Response {
  const error = publicError(failure);
  deps.metrics.problems.inc({ code: error.code });
  if (error.status >= 500) {
    const fields = { requestId: c.get('requestId'), method: c.req.method, code: error.code, err: failure };
    // a lost database is logged by its own watch; each request that met it is not news
    if (error.status === 500) deps.log.error(fields, 'a request failed');
    else deps.log.debug(fields, 'a request could not be served');
  }
  if (error.status === 401) c.header('WWW-Authenticate', challenge(c.req.path, error.code));
  if (error.retryAfter !== undefined) c.header('Retry-After', String(Math.ceil(error.retryAfter)));
  c.header('Cache-Control', 'no-store');
  c.header('Content-Type', PROBLEM_TYPE);
  const body = JSON.stringify(problemOf(error));
  return c.body(body, error.status as ContentfulStatusCode);
}
