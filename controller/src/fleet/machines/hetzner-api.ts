/**
 * The part of Hetzner's Cloud API that machines need (https://docs.hetzner.cloud): servers, their actions and their
 * addresses (primary IPs), found by label. Of an answer only what is named here is looked at: creating a server may
 * answer with a root password.
 */
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import { type CallSettings, type Outcome, outgoing, retryAfterMs } from '../../platform/outgoing.ts';

export interface HetznerDeps {
  readonly clock: Clock;
  readonly call?: Partial<CallSettings>;
  /** In [0, 1); for the jitter. */
  readonly random?: () => number;
  /** Told of every try, for metrics. */
  readonly observe?: (outcome: Outcome, seconds: number) => void;
}

const Labels = z.record(z.string(), z.string());
const Address = z.object({ id: z.number().int(), ip: z.string() });
const Server = z.object({
  id: z.number().int(),
  name: z.string(),
  status: z.string(),
  labels: Labels,
  public_net: z.object({ ipv4: Address.nullish(), ipv6: Address.nullish() }),
});
export type Server = z.infer<typeof Server>;

const Action = z.object({
  id: z.number().int(),
  command: z.string(),
  status: z.enum(['running', 'success', 'error']),
});
export type Action = z.infer<typeof Action>;

const PrimaryIp = z.object({
  id: z.number().int(),
  ip: z.string(),
  labels: Labels,
  assignee_id: z.number().int().nullable(),
});
export type PrimaryIp = z.infer<typeof PrimaryIp>;

const Page = z.object({
  meta: z.object({ pagination: z.object({ next_page: z.number().int().nullable() }) }),
});
const Failure = z.object({
  error: z.object({
    code: z.string().regex(/^[a-z_0-9]{1,64}$/),
    details: z
      .object({ fields: z.array(z.object({ name: z.string() })) })
      .nullish()
      .catch(null),
  }),
});

/** The most that a page may hold. */
const PER_PAGE = 50;

/** Codes after which trying again helps only when somebody did something. */
const REFUSED = new Set([
  'deprecated_api_endpoint',
  'invalid_input',
  'invalid_server_type',
  'json_error',
  'not_found',
  'protected',
  'resource_limit_exceeded',
  'resource_locked',
  'unsupported_error',
]);
const UNAUTHORIZED = new Set(['unauthorized', 'forbidden', 'token_readonly']);
/** Seconds. There is no such machine to be had there now, and there will hardly be one in a moment. */
const SOLD_OUT_S = 300;
const RETRY_AFTER_S: Readonly<Record<string, number>> = {
  conflict: 5,
  locked: 5,
  placement_error: SOLD_OUT_S,
  resource_unavailable: SOLD_OUT_S,
};

/** @param why our words, or a word of Hetzner's fixed vocabulary */
export function unavailable(why: string, retryAfter = 30): KatafractError {
  return new KatafractError('provider_unavailable', `hetzner: ${why}`, { status: 503, retryAfter });
}

export function refused(why: string): KatafractError {
  return new KatafractError('provider_refused', `hetzner refuses: ${why}`, { status: 422 });
}

export interface HetznerApi {
  servers(selector: string): Promise<Server[]>;
  /** Null: `uniqueness_error`, another one has its name. */
  createServer(request: Readonly<Record<string, unknown>>): Promise<Server | null>;
  /** Null: it is gone. */
  deleteServer(id: number): Promise<Action | null>;
  /** Null: the server is gone. */
  actionsOf(server: number): Promise<Action[] | null>;
  /** Null: it is forgotten. */
  action(id: number): Promise<Action | null>;
  addresses(selector: string): Promise<PrimaryIp[]>;
  /** Labels it, and has it go with its server. Null: it is gone. */
  labelAddress(id: number, labels: Readonly<Record<string, string>>): Promise<void>;
  deleteAddress(id: number): Promise<void>;
}

/**
 * Every call throws KatafractError `provider_unavailable`, `provider_refused` or `provider_unauthorized`.
 * @param apiBase such as https://api.hetzner.cloud/v1
 */
export function hetznerApi(
  { apiBase, token }: { apiBase: string; token: string },
  deps: HetznerDeps,
): HetznerApi {
  const out = outgoing({ ...deps, unavailable, waitOf });

  /** The answer, or null where Hetzner says one of the `expected` codes. */
  const ask = async <T>(
    method: string,
    path: string,
    shape: z.ZodType<T>,
    { body, expected = [] }: { body?: unknown; expected?: readonly string[] } = {},
  ): Promise<T | null> => {
    const response = await out.fetch(`${apiBase}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${token}`,
        'content-type': 'application/json',
        accept: 'application/json',
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const json: unknown = await response.json().catch(() => undefined);
    if (!response.ok) return failed(response.status, json, expected);
    const answer = shape.safeParse(json);
    // without the reasons: they may quote what is not ours to tell
    if (!answer.success) throw unavailable('an answer that cannot be read');
    return answer.data;
  };

  const all = async <T>(
    path: string,
    field: string,
    row: z.ZodType<T>,
    selector: string,
    expected: string[] = [],
  ) => {
    const shape = Page.and(z.object({ [field]: z.array(row) }));
    const rows: T[] = [];
    for (let page: number | null = 1; page !== null; ) {
      const query: URLSearchParams = new URLSearchParams({ page: String(page), per_page: String(PER_PAGE) });
      if (selector !== '') query.set('label_selector', selector);
      const answer: z.infer<typeof shape> | null = await ask('GET', `${path}?${query}`, shape, { expected });
      if (answer === null) return null;
      rows.push(...((answer as Record<string, unknown>)[field] as T[]));
      page = answer.meta.pagination.next_page;
    }
    return rows;
  };

  const gone = { expected: ['not_found'] };
  const nothing = z.unknown();
  return {
    servers: async (selector) => (await all('/servers', 'servers', Server, selector)) ?? [],
    async createServer(body) {
      const shape = z.object({ server: Server });
      return (await ask('POST', '/servers', shape, { body, expected: ['uniqueness_error'] }))?.server ?? null;
    },
    async deleteServer(id) {
      return (await ask('DELETE', `/servers/${id}`, z.object({ action: Action }), gone))?.action ?? null;
    },
    actionsOf: (server) => all(`/servers/${server}/actions`, 'actions', Action, '', ['not_found']),
    action: async (id) =>
      (await ask('GET', `/actions/${id}`, z.object({ action: Action }), gone))?.action ?? null,
    addresses: async (selector) => (await all('/primary_ips', 'primary_ips', PrimaryIp, selector)) ?? [],
    async labelAddress(id, labels) {
      await ask('PUT', `/primary_ips/${id}`, nothing, { body: { labels, auto_delete: true }, ...gone });
    },
    async deleteAddress(id) {
      await ask('DELETE', `/primary_ips/${id}`, nothing, gone);
    },
  };
}

/** By its code; nothing of its message, which may quote what we sent. */
function failed(status: number, json: unknown, expected: readonly string[]): null {
  const failure = Failure.safeParse(json).data?.error;
  const code = failure?.code ?? `status ${status}`;
  if (expected.includes(code)) return null;
  if (UNAUTHORIZED.has(code) || status === 401) {
    throw new KatafractError('provider_unauthorized', `hetzner does not take our token: ${code}`, {
      status: 502,
    });
  }
  const fields = (failure?.details?.fields ?? [])
    .map(({ name }) => name)
    .filter((name) => /^[a-z_.]{1,40}$/.test(name));
  if (REFUSED.has(code)) throw refused([code, ...fields].join(' '));
  throw unavailable(code, RETRY_AFTER_S[code]);
}

/**
 * `Retry-After`, else by `RateLimit-Reset`: when the limit is whole again (Unix seconds), up to an hour away. It refills
 * all the while, a request a second, so that a minute is long enough.
 */
function waitOf(headers: Headers, now: number): number | null {
  const reset = Number(headers.get('ratelimit-reset') ?? Number.NaN);
  const refilled = Number.isFinite(reset) ? Math.min(Math.max(0, reset * 1000 - now), 60_000) : null;
  return retryAfterMs(headers.get('retry-after'), now) ?? refilled;
}
