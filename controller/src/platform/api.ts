/**
 * What every route file is built from: the typed Hono app, the response and request helpers for `createRoute`, the
 * opaque page cursor and the idempotency header. Failures are thrown as KatafractError; http.ts is the one edge that
 * turns them into problem documents, so no route formats an error itself.
 */
import type { IncomingMessage } from 'node:http';
import { OpenAPIHono, z } from '@hono/zod-openapi';
import type { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { PROBLEM_TYPE, Problem } from '@katafract/shared/problem';
import type { SigilRequest, Tier } from '@katafract/shared/sigil';
import type { Context, MiddlewareHandler } from 'hono';
import { bodyLimit as honoBodyLimit } from 'hono/body-limit';

/** Who an app request acts for, as proved by its Sigil and confirmed by the database. */
export interface SigilIdentity {
  readonly sigilId: string;
  readonly subscriptionId: string;
  readonly tier: Tier;
  /** Milliseconds since the epoch. */
  readonly expiresAt: number;
  /** Thumbprint of the device that proved itself; null for a Sigil that is bound to none. */
  readonly device: Jkt | null;
}

export interface OperatorIdentity {
  readonly name: string;
}

export interface AppEnv {
  /** Of the HTTP server; absent where a test calls the app directly. */
  Bindings: {
    incoming?: IncomingMessage;
    /** Whether the request came in by the mesh listener. */
    mesh?: boolean;
  };
  Variables: {
    requestId: string;
    sigil?: SigilIdentity;
    operator?: OperatorIdentity;
  };
}

export type Api = OpenAPIHono<AppEnv>;
export type ApiContext = Context<AppEnv>;

/**
 * An app whose schema violations become KatafractError `bad_request` (400).
 * Deliberately without a `basePath`: a route file shows whole paths, as the API's users see them.
 */
export function createApi(): Api {
  return new OpenAPIHono<AppEnv>({
    defaultHook: (result) => {
      if (!result.success) throw badRequest(result.error.issues, result.target);
    },
  });
}

/** @returns KatafractError `bad_request` (400) that names every wrong field, but never repeats a value. */
export function badRequest(
  issues: readonly { path: readonly PropertyKey[]; message: string }[],
  target?: string,
): KatafractError {
  const errors = issues.map((issue) => ({
    path: [...(target === undefined ? [] : [target]), ...issue.path.map(String)].join('.'),
    message: issue.message,
  }));
  return new KatafractError('bad_request', 'the request does not fit the schema', {
    status: 400,
    detail: { errors },
  });
}

/** The Sigil's identity; @throws KatafractError `unauthorized` (401) on a route mounted without `requireSigil`. */
export function sigilOf(c: ApiContext): SigilIdentity {
  const identity = c.get('sigil');
  if (!identity) throw new KatafractError('unauthorized', 'a Sigil is required', { status: 401 });
  return identity;
}

/** What a request bears to prove whom it acts for. Its URL is the public one, which the Host header has no say in. */
export function sigilRequest(c: ApiContext, publicUrl: string): SigilRequest {
  const { method, path } = c.req;
  const authorization = c.req.header('authorization');
  return { authorization, dpop: c.req.header('dpop'), method, url: `${publicUrl}${path}` };
}

/** The operator; @throws KatafractError `unauthorized` (401) on a route mounted without `requireOperator`. */
export function operatorOf(c: ApiContext): OperatorIdentity {
  const operator = c.get('operator');
  if (!operator) throw new KatafractError('unauthorized', 'an operator is required', { status: 401 });
  return operator;
}

/** `security` entries of a route; the schemes are registered in http.ts. */
export const security = {
  sigil: [{ Sigil: [] }] as Record<string, string[]>[],
  operator: [{ Operator: [] }] as Record<string, string[]>[],
  node: [{ NodeToken: [] }] as Record<string, string[]>[],
};

/** A JSON response of a route. */
export function json<S extends z.ZodType>(schema: S, description: string) {
  return { description, content: { 'application/json': { schema } } };
}

/** A JSON request body. `required` matters: without it the validator skips bodies of another content type. */
export function jsonBody<S extends z.ZodType>(schema: S) {
  return { required: true, content: { 'application/json': { schema } } };
}

const REASONS: Readonly<Record<number, string>> = {
  400: 'The request does not fit the schema',
  401: 'No valid token',
  403: 'Not allowed',
  404: 'No such resource',
  409: 'In conflict with the present state',
  410: 'Gone',
  413: 'Too large',
  415: 'Not JSON',
  422: 'Understood, but not possible',
  429: 'Too many requests; see Retry-After',
  500: 'A fault of ours',
  503: 'Not possible at the moment; see Retry-After',
};

interface ProblemResponse {
  description: string;
  content: { [PROBLEM_TYPE]: { schema: typeof Problem } };
}

/** The problem documents that a route may answer with. 429, 500 and 503 may come from any route and are added. */
export function problems<S extends number>(...statuses: S[]): Record<S | 429 | 500 | 503, ProblemResponse> {
  const all: number[] = [...statuses, 429, 500, 503];
  // whatever reads a body may also find that it is of another type
  if (all.includes(413)) all.push(415);
  const entries = all.map((status) => [
    status,
    { description: REASONS[status] ?? 'Failed', content: { [PROBLEM_TYPE]: { schema: Problem } } },
  ]);
  return Object.fromEntries(entries) as Record<S | 429 | 500 | 503, ProblemResponse>;
}

/** Optional on every POST that creates: repeating it with the same request returns what was made the first time. */
export const IdempotencyKeyHeader = z.object({
  'idempotency-key': z
    .string()
    .regex(/^[\x21-\x7e]{1,128}$/, '1 to 128 visible ASCII characters')
    .optional(),
});

export const PageQuery = z.object({
  /** `next` of the page before. */
  cursor: z.string().max(512).optional(),
  limit: z.coerce.number().int().min(1).max(100).default(50),
});
export type PageQuery = z.infer<typeof PageQuery>;

/** Opaque position in a list: what the caller sends back to get the next page. */
export function encodeCursor(position: unknown): string {
  return Buffer.from(JSON.stringify(position)).toString('base64url');
}

/**
 * Reads a cursor of ours.
 * @throws KatafractError `bad_cursor` (400): not base64url of JSON, or not a position of this list.
 */
export function decodeCursor<T>(cursor: string | undefined, schema: z.ZodType<T>): T | undefined {
  if (cursor === undefined) return undefined;
  try {
    return schema.parse(JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8')));
  } catch (cause) {
    throw new KatafractError('bad_cursor', 'the cursor is not one of this list', { status: 400, cause });
  }
}

/**
 * Cuts a result of `limit + 1` rows into a page: the extra row only says that there is more.
 * @param position what the cursor after a row must hold
 */
export function page<T>(rows: readonly T[], limit: number, position: (last: T) => unknown) {
  const items = rows.slice(0, limit);
  const last = items.at(-1);
  const next = rows.length > limit && last !== undefined ? encodeCursor(position(last)) : null;
  return { items, next };
}

/** The largest body any route reads, in bytes. */
const BODY_LIMIT = 64 * 1024;

const tooLarge = () =>
  new KatafractError('body_too_large', `a body is at most ${BODY_LIMIT} bytes`, { status: 413 });

/** @throws KatafractError `body_too_large` (413), also for a chunked body that never said its length. */
export function bodyLimit(): MiddlewareHandler<AppEnv> {
  const counting = honoBodyLimit({
    maxSize: BODY_LIMIT,
    onError: () => {
      throw tooLarge();
    },
  });
  return (c, next) => {
    // Where the length is declared the HTTP parser holds the sender to it; only chunks must be counted.
    if (c.req.header('transfer-encoding') !== undefined) return counting(c, next);
    if (Number(c.req.header('content-length') ?? 0) > BODY_LIMIT) throw tooLarge();
    return next();
  };
}
