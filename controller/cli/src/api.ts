/** One request to the controller: sent with the operator's token, read, checked. Failures are KatafractErrors. */
import { randomUUID } from 'node:crypto';
import { sleep } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { Problem } from '@katafract/shared/problem';
import type { z } from 'zod';
import type { Io } from './io.ts';

export type Method = 'GET' | 'POST' | 'PATCH' | 'DELETE';

export interface Answer<T> {
  readonly body: T;
  /** As it came, with what this version does not know of. */
  readonly raw: unknown;
}

export interface Asked<T> {
  readonly schema: z.ZodType<T>;
  readonly body?: unknown;
  /** It makes something: sent with an Idempotency-Key, so that it can be sent again. */
  readonly makes?: boolean;
}

const TIMEOUT_MS = 20_000;
const TRIES = 3;
const AGAIN_MS = 500;

export class Api {
  readonly #io: Io;
  readonly #base: string;
  readonly #token: string;

  constructor(io: Io, base: string, token: string) {
    this.#io = io;
    this.#base = base.replace(/\/+$/, '');
    this.#token = token;
  }

  /**
   * @param path under /v1/, its parts encoded
   * @throws KatafractError the problem's own code; `unreachable` (503) without an answer; `bad_response` for one that
   * is not of the API
   */
  async call<T>(method: Method, path: string, { schema, body, makes = false }: Asked<T>): Promise<Answer<T>> {
    const key = makes ? { 'idempotency-key': randomUUID() } : {};
    const { text, type } = await this.#again(method !== 'POST' || makes, () =>
      this.#send(method, path, body, key),
    );
    const raw = type.includes('json') ? parse(text) : text === '' ? null : text;
    const parsed = schema.safeParse(raw);
    if (parsed.success) return { body: parsed.data, raw };
    throw new KatafractError('bad_response', 'the answer is not one of this API', { cause: parsed.error });
  }

  async #again<T>(repeatable: boolean, send: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await send();
      } catch (error) {
        if (!repeatable || attempt === TRIES || !isTransient(error)) throw error;
        await sleep(this.#io.clock, AGAIN_MS * attempt);
      }
    }
  }

  async #send(
    method: Method,
    path: string,
    body: unknown,
    headers: Record<string, string>,
  ): Promise<{ text: string; type: string }> {
    let response: Response;
    let text: string;
    try {
      response = await fetch(`${this.#base}/v1/${path}`, {
        method,
        headers: {
          authorization: `Bearer ${this.#token}`,
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          ...headers,
        },
        // the API never redirects: a redirect could only carry the token to where it does not belong
        redirect: 'error',
        signal: AbortSignal.timeout(TIMEOUT_MS),
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      text = await response.text();
    } catch (cause) {
      throw new KatafractError('unreachable', `no answer from ${this.#base}`, { status: 503, cause });
    }
    if (response.ok) return { text, type: response.headers.get('content-type') ?? '' };
    throw problemOf(response.status, text);
  }
}

/** Whether it may be otherwise in a moment. */
export function isTransient(error: unknown): boolean {
  return error instanceof KatafractError && error.status === 503;
}

function problemOf(status: number, text: string): KatafractError {
  const problem = Problem.safeParse(parse(text)).data;
  if (!problem) {
    return new KatafractError('bad_response', `status ${status} without a problem document`, { status });
  }
  const { code, title, detail, errors } = problem;
  return new KatafractError(code, detail ?? title, { status, ...(errors ? { detail: { errors } } : {}) });
}

/** Undefined for what is not JSON: no schema of the API takes that. */
function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
