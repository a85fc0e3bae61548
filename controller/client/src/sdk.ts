/**
 * The SDK for apps: the app-facing API as typed calls. Runs in Node 20 and in browsers; needs only fetch and WebCrypto.
 *
 *   const { publicKey, privateKey } = await generateKeyPair();
 *   const client = createClient({ baseUrl: 'https://api.example', sigil });
 *   const peer = await client.provision({ publicKey, region: 'eu-de' });
 *   const file = fillPrivateKey(peer.config, privateKey);
 *
 * Every call takes an AbortSignal and throws a KatafractError: the codes of the API's problem documents, or
 * `unreachable`, `bad_response`, `aborted`; `bad_request` for arguments that the API would refuse anyway.
 */
import {
  MoveRequest,
  Peer,
  PeerList,
  ProvisionRequest,
  type Region,
  RegionList,
  RemovedPeer,
  RotateRequest,
  SigilInfo,
} from '@katafract/shared/api';
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { PeerId } from '@katafract/shared/units';
import type { z } from 'zod';
import { timerClock } from './clock.ts';
import { type ApiRequest, type HttpOptions, send } from './http.ts';
import { RETRY, type RetryPolicy } from './retry.ts';

export type { Exit, Peer, Region, RemovedPeer, SigilInfo } from '@katafract/shared/api';
export { KatafractError } from '@katafract/shared/errors';
export { configFor, fillPrivateKey, parseConfig, type WgQuickConfig } from './config.ts';
export { generateKeyPair, type KeyPair } from './keys.ts';
export { qrSvg, qrText } from './qr.ts';

export interface ClientOptions {
  /** Of the API, e.g. `https://api.example`; a path is kept as prefix. */
  readonly baseUrl: string | URL;
  /** The subscription token, or where to get it: an app that refreshes its Sigil passes a function. */
  readonly sigil: string | (() => string | Promise<string>);
  readonly fetch?: typeof fetch;
  readonly clock?: Clock;
  /** In [0, 1); spreads the retries. */
  readonly random?: () => number;
  readonly retry?: Partial<RetryPolicy>;
}

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

export interface ProvisionInput {
  readonly publicKey: string;
  readonly region: string;
  /** Made here where absent. Keep one of your own to repeat a call after a restart without making a second peer. */
  readonly idempotencyKey?: string;
}

export interface Client {
  /** Regions and their exits; asks only whether its last copy is still current (ETag). */
  regions(call?: CallOptions): Promise<Region[]>;
  /** Makes a peer; returns once its primary exit has it (`active`), or has not answered in time (`pending`). */
  provision(input: ProvisionInput, call?: CallOptions): Promise<Peer>;
  /** Every peer of the subscription, fetched page by page as the loop goes on. */
  peers(call?: CallOptions): AsyncGenerator<Peer, void, undefined>;
  peer(id: string, call?: CallOptions): Promise<Peer>;
  remove(id: string, call?: CallOptions): Promise<RemovedPeer>;
  /** Replaces the peer's key; its addresses stay. */
  rotate(id: string, publicKey: string, call?: CallOptions): Promise<Peer>;
  /** Moves the peer to another region (nothing happens where it is there already); key and addresses stay. */
  move(id: string, region: string, call?: CallOptions): Promise<Peer>;
  /** Tier, expiry and devices of the Sigil in use. */
  sigil(call?: CallOptions): Promise<SigilInfo>;
}

export function createClient(options: ClientOptions): Client {
  const http = httpOptions(options);
  const get = async <T>(request: ApiRequest<T>): Promise<T> => {
    const { body } = await send(http, request);
    if (body === null) throw new KatafractError('bad_response', 'not modified since never', { status: 502 });
    return body;
  };
  return {
    regions: conditionalRegions(http),
    async provision({ idempotencyKey = crypto.randomUUID(), publicKey, region }, call = {}) {
      const body = checked(ProvisionRequest, { publicKey, region });
      return get({ method: 'POST', path: 'v1/peers', schema: Peer, body, idempotencyKey, ...call });
    },
    async *peers(call = {}) {
      let path: string | null = 'v1/peers';
      while (path !== null) {
        const page: z.infer<typeof PeerList> = await get({ method: 'GET', path, schema: PeerList, ...call });
        yield* page.items;
        path = page.next === null ? null : `v1/peers?cursor=${encodeURIComponent(page.next)}`;
      }
    },
    peer: async (id, call = {}) => get({ method: 'GET', path: peerPath(id), schema: Peer, ...call }),
    async remove(id, call = {}) {
      // A lost answer does not say whether every exit has let go of it.
      const gone: RemovedPeer = { id: checked(PeerId, id), status: 'pending' };
      return get({ method: 'DELETE', path: peerPath(id), schema: RemovedPeer, gone, ...call });
    },
    async rotate(id, publicKey, call = {}) {
      const body = checked(RotateRequest, { publicKey });
      return get({ method: 'PUT', path: `${peerPath(id)}/key`, schema: Peer, body, ...call });
    },
    async move(id, region, call = {}) {
      const body = checked(MoveRequest, { region });
      const path = `${peerPath(id)}/move`;
      return get({ method: 'POST', path, schema: Peer, body, repeatable: true, ...call });
    },
    sigil: (call = {}) => get({ method: 'GET', path: 'v1/sigil', schema: SigilInfo, ...call }),
  };
}

function httpOptions(options: ClientOptions): HttpOptions {
  const { baseUrl, sigil, clock = timerClock, random = Math.random } = options;
  return {
    base: new URL(`${String(baseUrl).replace(/\/+$/, '')}/`),
    sigil: typeof sigil === 'string' ? () => sigil : sigil,
    // Browsers refuse a fetch that was torn off the global object.
    fetch: options.fetch ?? ((input, init) => globalThis.fetch(input, init)),
    clock,
    random,
    retry: { ...RETRY, ...options.retry },
  };
}

function conditionalRegions(http: HttpOptions): Client['regions'] {
  let copy: { readonly etag: string; readonly items: Region[] } | undefined;
  return async (call = {}) => {
    const held = copy;
    const reply = await send(http, {
      method: 'GET',
      path: 'v1/regions',
      schema: RegionList,
      ...(held === undefined ? {} : { etag: held.etag }),
      ...call,
    });
    if (reply.body === null) return held?.items ?? [];
    copy = reply.etag === null ? undefined : { etag: reply.etag, items: reply.body.items };
    return reply.body.items;
  };
}

function peerPath(id: string): string {
  return `v1/peers/${checked(PeerId, id)}`;
}

/** @throws KatafractError `bad_request` (400), as the API itself would answer. */
function checked<S extends z.ZodType>(schema: S, value: unknown): z.output<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const errors = parsed.error.issues.map((issue) => ({ path: issue.path.join('.'), message: issue.message }));
  throw new KatafractError('bad_request', errors.map((error) => error.message).join('; '), {
    status: 400,
    detail: { errors },
  });
}
