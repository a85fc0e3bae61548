/**
 * The one way out to a service of somebody else's (a store, a provider of machines): a `fetch` with a time limit for
 * each try, further tries with jitter where the service is overloaded, failing or out of reach, and a circuit breaker
 * of its own for each service, so that one which is down costs the others nothing. What a service answers may name a
 * payer or hold a secret: it is never put into an error or a log.
 */
import type { Clock } from '@katafract/shared/clock';
import type { KatafractError } from '@katafract/shared/errors';
import { admit, type Circuit, type CircuitSettings, CLOSED, circuitState, settled } from './circuit.ts';

export type Outcome = FailedTry | 'answered';
type FailedTry = 'rate_limited' | 'failed' | 'timed_out' | 'unreachable' | 'circuit_open';

export interface CallSettings {
  /** Limit of one try, from the request to the last byte of the answer, ms. */
  readonly timeoutMs: number;
  /** Tries in all. */
  readonly tries: number;
  /** Wait before the second try, ms; doubles with every further one. */
  readonly backoffMs: number;
  /** A Retry-After longer than this is passed on rather than waited for, ms. */
  readonly patienceMs: number;
  readonly circuit: CircuitSettings;
}

export const CALL_SETTINGS: CallSettings = {
  timeoutMs: 10_000,
  tries: 4,
  backoffMs: 250,
  patienceMs: 10_000,
  circuit: { threshold: 8, openMs: 5_000, maxOpenMs: 300_000 },
};

export interface OutgoingDeps {
  readonly clock: Clock;
  readonly call?: Partial<CallSettings> | undefined;
  /** In [0, 1); for the jitter. */
  readonly random?: (() => number) | undefined;
  /** Told of every try, for metrics. */
  readonly observe?: (outcome: Outcome, seconds: number) => void;
  /**
   * The error that is thrown in the end.
   * @param why our words or a number, never a text that the service sent
   * @param retryAfter seconds
   */
  readonly unavailable: (why: string, retryAfter: number) => KatafractError;
  /** How long a refusal says to wait, ms; `Retry-After` where it is not given. */
  readonly waitOf?: (headers: Headers, now: number) => number | null;
}

export interface Outgoing {
  /**
   * Like the global fetch; the body of the answer has been read whole.
   * @returns any answer but 429 and 5xx
   * @throws KatafractError of `unavailable`
   */
  readonly fetch: (input: string | URL | Request, init?: RequestInit) => Promise<Response>;
}

/** @throws never by itself; see Outgoing */
export function outgoing(deps: OutgoingDeps): Outgoing {
  const { clock, random = Math.random, observe } = deps;
  const settings: CallSettings = { ...CALL_SETTINGS, ...deps.call };
  let circuit: Circuit = CLOSED;

  const attempt = async (url: string | URL | Request, init: RequestInit | undefined): Promise<Attempt> => {
    const admission = admit(circuit, clock.now());
    if (!admission.admitted) {
      observe?.('circuit_open', 0);
      return { outcome: 'circuit_open', waitMs: admission.retryAfterMs };
    }
    circuit = admission.circuit;
    const startedAt = clock.now();
    const result = await once(url, init, settings.timeoutMs, deps);
    const now = clock.now();
    // a service that says "too much" is alive
    const alive = result.outcome === 'answered' || result.outcome === 'rate_limited';
    circuit = settled(circuit, alive ? 'success' : 'failure', now, settings.circuit);
    observe?.(result.outcome, (now - startedAt) / 1000);
    return result;
  };

  return {
    async fetch(url, init) {
      for (let tried = 1; ; tried++) {
        const result = await attempt(url, init);
        if (result.outcome === 'answered') return result.response;
        const backoff = settings.backoffMs * 2 ** (tried - 1) * (0.5 + random() / 2);
        // after what the service asked for, a little jitter on top: its other clients wait for the same moment
        const wait = result.waitMs === undefined ? backoff : result.waitMs + random() * settings.backoffMs;
        const last = tried >= settings.tries || circuitState(circuit, clock.now()) === 'open';
        if (last || wait > settings.patienceMs || init?.signal?.aborted === true) {
          throw unavailable(deps, result, wait);
        }
        await new Promise<void>((resolve) => clock.after(wait, resolve));
      }
    },
  };
}

type Attempt =
  | { outcome: 'answered'; response: Response }
  | {
      outcome: FailedTry;
      waitMs?: number;
      status?: number;
      reason?: string;
    };

async function once(
  url: string | URL | Request,
  init: RequestInit | undefined,
  timeoutMs: number,
  { clock, waitOf }: OutgoingDeps,
): Promise<Attempt> {
  const abort = new AbortController();
  let timedOut = false;
  const disarm = clock.after(timeoutMs, () => {
    timedOut = true;
    abort.abort();
  });
  const signal = init?.signal ? AbortSignal.any([init.signal, abort.signal]) : abort.signal;
  try {
    // a redirect would carry our credentials wherever it points
    const response = await fetch(url, { ...init, signal, redirect: 'error' });
    const body = await response.arrayBuffer();
    if (response.status === 429 || response.status >= 500) {
      const waitMs = waitOf
        ? waitOf(response.headers, clock.now())
        : retryAfterMs(response.headers.get('retry-after'), clock.now());
      const outcome = response.status === 429 ? 'rate_limited' : 'failed';
      return { outcome, status: response.status, ...(waitMs === null ? {} : { waitMs }) };
    }
    const bodyless = response.status === 204 || response.status === 205 || response.status === 304;
    const { status, headers } = response;
    return { outcome: 'answered', response: new Response(bodyless ? null : body, { status, headers }) };
  } catch (error) {
    if (timedOut) return { outcome: 'timed_out' };
    return { outcome: 'unreachable', reason: networkCode(error) };
  } finally {
    disarm();
  }
}

/** The system's code of a network failure: a word of a fixed vocabulary, so that no text of a service's passes. */
function networkCode(error: unknown): string {
  for (let at: unknown = error, depth = 0; at instanceof Error && depth < 4; at = at.cause, depth++) {
    const code = (at as NodeJS.ErrnoException).code;
    if (typeof code === 'string' && /^[A-Z][A-Z0-9_]{2,40}$/.test(code)) return code;
  }
  return 'network error';
}

/**
 * `Retry-After` in ms from now: seconds or a date (RFC 9110, 10.2.3), or as the App Store Server API gives it, the
 * time in ms since the epoch. Null where there is none that can be read.
 */
export function retryAfterMs(header: string | null, now: number): number | null {
  if (header === null) return null;
  const text = header.trim();
  if (/^\d{1,15}$/.test(text)) {
    const value = Number(text);
    return value > 1e11 ? Math.max(0, value - now) : value * 1000;
  }
  const date = Date.parse(text);
  return Number.isNaN(date) ? null : Math.max(0, date - now);
}

function unavailable(deps: OutgoingDeps, result: Exclude<Attempt, { outcome: 'answered' }>, waitMs: number) {
  const why = result.status ?? result.reason ?? result.outcome.replaceAll('_', ' ');
  return deps.unavailable(String(why), Math.max(1, Math.ceil((result.waitMs ?? waitMs) / 1000)));
}
