/**
 * One request to the API: sent, read, checked against its schema, repeated where that is safe. Everything that can go
 * wrong comes out as a KatafractError.
 */
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { Problem } from '@katafract/shared/problem';
import { SIGNATURE_HEADER } from '@katafract/shared/signed-body';
import type { z } from 'zod';
import { type RetryPolicy, retryAfterSeconds, retryDelay } from './retry.ts';
import type { Bears, Session } from './session.ts';

export interface HttpOptions {
  /** Ends with a slash. */
  readonly base: URL;
  readonly session: Session;
  readonly fetch: typeof fetch;
  readonly clock: Clock;
  readonly random: () => number;
  readonly retry: RetryPolicy;
}

export interface ApiRequest<T> {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** Relative to the base, e.g. `v1/peers`. */
  readonly path: string;
  readonly schema: z.ZodType<T>;
  readonly body?: unknown;
  /** A Sigil, where nothing else is said. */
  readonly bears?: Bears;
  readonly idempotencyKey?: string;
  /** For a POST that names an end state: it may arrive twice. */
  readonly repeatable?: true;
  /** Of a copy already at hand: the answer may then be "not modified". */
  readonly etag?: string;
  /** What to answer when a repeated request finds its target gone: an earlier sending removed it. */
  readonly gone?: T;
  /** Another patience than usual. */
  readonly attempts?: number;
  readonly signal?: AbortSignal | undefined;
}

/** `body` is null where the copy at hand is still the current one (304). */
export interface ApiReply<T> {
  readonly body: T | null;
  readonly etag: string | null;
  /** The body as it came, and what was signed over it; empty and null where there is no body. */
  readonly text: string;
  readonly signature: string | null;
}

/**
 * Sends a request, again where that is safe (see retryDelay).
 * @throws KatafractError the problem's own code with its status and retryAfter; `unreachable` (503) without an answer;
 * `bad_response` for one that is not of the API; `aborted` (499) by the signal.
 */
export async function send<T>(options: HttpOptions, request: ApiRequest<T>): Promise<ApiReply<T>> {
  const { method, idempotencyKey, repeatable = method !== 'POST' || idempotencyKey !== undefined } = request;
  const retry = { ...options.retry, attempts: request.attempts ?? options.retry.attempts };
  let recovered = false;
  for (let attempt = 1; ; attempt++) {
    try {
      return await sendOnce(options, request);
    } catch (error) {
      if (!(error instanceof KatafractError)) throw error;
      // refused before it was looked at, so it may always be sent again; but once, or it could go on for ever
      if (!recovered && (await options.session.recover(error, request.bears ?? 'sigil'))) {
        recovered = true;
        continue;
      }
      if (attempt > 1 && error.status === 404 && request.gone !== undefined) {
        return { body: request.gone, etag: null, text: '', signature: null };
      }
      const delay = retryDelay(retry, error, repeatable, attempt, options.random());
      if (delay === null) throw error;
      await pause(options.clock, delay, request.signal);
    }
  }
}

async function sendOnce<T>(options: HttpOptions, request: ApiRequest<T>): Promise<ApiReply<T>> {
  const { method, path, bears = 'sigil' } = request;
  const headers = headersOf(request, await options.session.headers(method, path, bears));
  const timeout = new AbortController();
  const cancel = options.clock.after(options.retry.timeoutMs, () => timeout.abort());
  let response: Response;
  let text: string;
  try {
    request.signal?.throwIfAborted();
    response = await options.fetch(new URL(request.path, options.base), {
      method: request.method,
      headers,
      // The API never redirects: a redirect could only carry the Sigil to where it does not belong.
      redirect: 'error',
      signal: request.signal ? AbortSignal.any([request.signal, timeout.signal]) : timeout.signal,
      ...(request.body === undefined ? {} : { body: JSON.stringify(request.body) }),
    });
    text = await response.text();
  } catch (cause) {
    throw request.signal?.aborted ? aborted(request.signal) : unreachable(options, cause);
  } finally {
    cancel();
  }
  options.session.noteDate(response.headers.get('date'));
  const etag = response.headers.get('etag');
  const signature = response.headers.get(SIGNATURE_HEADER);
  if (response.status === 304 && request.etag !== undefined) return { body: null, etag, text: '', signature };
  if (!response.ok) throw problemOf(response, text, options.clock.now());
  const parsed = request.schema.safeParse(parseJson(text));
  if (parsed.success) return { body: parsed.data, etag, text, signature };
  throw new KatafractError('bad_response', 'the answer is not one of this API', {
    status: 502,
    cause: parsed.error,
  });
}

function headersOf(request: ApiRequest<unknown>, proof: Record<string, string>): Record<string, string> {
  return {
    accept: 'application/json, application/problem+json',
    ...proof,
    ...(request.body === undefined ? {} : { 'content-type': 'application/json' }),
    ...(request.idempotencyKey === undefined ? {} : { 'idempotency-key': request.idempotencyKey }),
    ...(request.etag === undefined ? {} : { 'if-none-match': request.etag }),
  };
}

function problemOf(response: Response, text: string, now: number): KatafractError {
  const problem = Problem.safeParse(parseJson(text)).data;
  const header = retryAfterSeconds(response.headers.get('retry-after'), now);
  const retryAfter = header ?? problem?.retryAfter;
  const common = { status: response.status, ...(retryAfter === undefined ? {} : { retryAfter }) };
  if (problem === undefined) {
    return new KatafractError('bad_response', `status ${response.status} without a problem document`, common);
  }
  const { code, title, detail, errors } = problem;
  return new KatafractError(code, detail ?? title, { ...common, ...(errors ? { detail: { errors } } : {}) });
}

/** Undefined for what is not JSON: no schema of the API takes that. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function unreachable(options: HttpOptions, cause: unknown): KatafractError {
  return new KatafractError('unreachable', `no answer from ${options.base.origin}`, { status: 503, cause });
}

function aborted(signal: AbortSignal): KatafractError {
  return new KatafractError('aborted', 'the request was aborted', { status: 499, cause: signal.reason });
}

/** Waits, but not past an abort. */
export function pause(clock: Clock, ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      cancel();
      if (signal) reject(aborted(signal));
    };
    const cancel = clock.after(ms, () => {
      signal?.removeEventListener('abort', stop);
      resolve();
    });
    if (signal?.aborted) stop();
    else signal?.addEventListener('abort', stop, { once: true });
  });
}
