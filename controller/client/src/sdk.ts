/**
 * The SDK for apps: the app-facing API as typed calls. Runs in Node 20 and in browsers; needs only fetch and WebCrypto.
 *
 *   const deviceKey = await generateDeviceKey(); // kept in IndexedDB, say; its private half cannot be read
 *   const client = createClient({ baseUrl: 'https://api.example', deviceKey, onSigil: keepIt });
 *   await client.claim({ secret }); // later: createClient({ …, sigil }) with what was kept
 *   const { publicKey, privateKey } = await generateKeyPair();
 *   const peer = await client.provision({ publicKey, region: 'eu-de' });
 *   const file = fillPrivateKey(peer.config, privateKey);
 *
 * Every call takes an AbortSignal and throws a KatafractError: the codes of the API's problem documents, or
 * `unreachable`, `bad_response`, `aborted`; `bad_request` for arguments that the API would refuse anyway.
 */
import {
  CheckoutSession,
  ClaimSigilRequest,
  IssuedSigil,
  MoveRequest,
  Peer,
  PeerList,
  PendingClaim,
  ProvisionRequest,
  type Region,
  RegionList,
  RemovedPeer,
  RotateRequest,
  SigilInfo,
  UnboundDevice,
} from '@katafract/shared/api';
import { ClaimSecret, claimHash } from '@katafract/shared/claim';
import type { Clock } from '@katafract/shared/clock';
import { type DeviceKey, Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import type { Tier } from '@katafract/shared/sigil';
import type { JSONWebKeySet } from '@katafract/shared/signed-body';
import { PeerId } from '@katafract/shared/units';
import { z } from 'zod';
import { timerClock } from './clock.ts';
import { type ApiRequest, type HttpOptions, pause, send } from './http.ts';
import { RETRY, type RetryPolicy } from './retry.ts';
import { Session } from './session.ts';

export type {
  BoundDevice,
  Exit,
  IssuedSigil,
  Peer,
  Region,
  RemovedPeer,
  SigilInfo,
} from '@katafract/shared/api';
export { type ClaimSecret, makeClaimSecret } from '@katafract/shared/claim';
export { type DeviceKey, exportDeviceKey, generateDeviceKey, importDeviceKey } from '@katafract/shared/dpop';
export { KatafractError } from '@katafract/shared/errors';
export { type SigilClaims, verifySigil, verifySigilRequest } from '@katafract/shared/sigil';
export { configFor, fillPrivateKey, parseConfig, type WgQuickConfig } from './config.ts';
export { generateKeyPair, type KeyPair } from './keys.ts';
export { qrSvg, qrText } from './qr.ts';

export interface ClientOptions {
  /** Of the API, e.g. `https://api.example`; a path is kept as prefix. */
  readonly baseUrl: string | URL;
  /**
   * The subscription token, if there is one yet; or where to get it, for an app that refreshes it by itself. One that
   * is bound to a device is refreshed here, as it goes.
   */
  readonly sigil?: string | (() => string | Promise<string>);
  /** Of this device; for a Sigil that is bound to it, and to claim one. */
  readonly deviceKey?: DeviceKey;
  /** A new Sigil came; keep it for the next start. */
  readonly onSigil?: (sigil: string) => void | Promise<void>;
  /** The API's public URL, where it is reached by another one here, as behind a tunnel or in tests. */
  readonly publicUrl?: string | URL;
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

export interface ClaimInput {
  /** What was paid for with its hash. Keep it: it claims again, on this device or the next. */
  readonly secret: string;
  /** The App Store's signed transaction, Play's purchase token, or a gift code. */
  readonly apple?: string;
  readonly google?: string;
  readonly voucher?: string;
  /** How long to ask again while nothing is known of the secret, in milliseconds; 0: once. */
  readonly waitMs?: number;
}

export interface SignedRegions {
  readonly body: string;
  readonly signature: string | null;
  readonly etag: string | null;
}

export interface Client {
  /**
   * A Sigil for this device, which the client uses from then on; the device is bound to the subscription.
   * @throws KatafractError of the API; `claim_pending` (404) where nothing was paid for the secret in time
   */
  claim(input: ClaimInput, call?: CallOptions): Promise<IssuedSigil>;
  /** Where to pay for a tier, which the secret then claims; only the secret's hash is sent. */
  checkout(input: { tier: Tier; secret: string }, call?: CallOptions): Promise<string>;
  /** Exchanges the Sigil for a fresh one; the client does so by itself in time. */
  refresh(call?: CallOptions): Promise<IssuedSigil>;
  /** Lets go of a device of the subscription, by its thumbprint: its Sigils and peers end. */
  unbind(jkt: string, call?: CallOptions): Promise<void>;
  /** Regions and their exits; asks only whether its last copy is still current (ETag). */
  regions(call?: CallOptions): Promise<Region[]>;
  /**
   * The region list as it was signed, for whoever keeps it; null where the copy with this ETag still holds. It is
   * checked by its reader (failover/regions.ts), who knows what to hold it against.
   */
  signedRegions(etag?: string, call?: CallOptions): Promise<SignedRegions | null>;
  /** Public keys that Sigils and lists are signed with. */
  jwks(call?: CallOptions): Promise<JSONWebKeySet>;
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
  const { session, clock } = http;
  const get = async <T>(request: ApiRequest<T>): Promise<T> => {
    const { body } = await send(http, request);
    if (body === null) throw new KatafractError('bad_response', 'not modified since never', { status: 502 });
    return body;
  };
  return {
    async claim({ waitMs = 120_000, ...input }, call = {}) {
      const body = checked(ClaimSigilRequest, input);
      const deadline = clock.now() + waitMs;
      const request = { method: 'POST', path: 'v1/sigils', schema: Claimed, body, ...call } as const;
      for (;;) {
        const answer = await get({ ...request, bears: 'device', repeatable: true });
        if (!('status' in answer)) {
          await session.keep(answer.sigil);
          return answer;
        }
        if (clock.now() >= deadline) {
          throw new KatafractError('claim_pending', 'nothing was paid for this secret yet', { status: 404 });
        }
        await pause(clock, ASK_AGAIN_MS, call.signal);
      }
    },
    async checkout({ tier, secret }, call = {}) {
      const claim = await claimHash(checked(ClaimSecret, secret));
      const path = 'v1/billing/stripe/checkout';
      const rest = { idempotencyKey: crypto.randomUUID(), bears: 'nothing', ...call } as const;
      return (await get({ method: 'POST', path, schema: CheckoutSession, body: { tier, claim }, ...rest }))
        .url;
    },
    async refresh(call = {}) {
      const issued = await exchange(http, call);
      await session.keep(issued.sigil);
      return issued;
    },
    async unbind(jkt, call = {}) {
      const gone = { jkt: checked(Jkt, jkt), reissued: null };
      const path = `v1/sigil/devices/${gone.jkt}`;
      const { reissued } = await get({ method: 'DELETE', path, schema: UnboundDevice, gone, ...call });
      if (reissued) await session.keep(reissued.sigil);
    },
    regions: conditionalRegions(http),
    async signedRegions(etag, call = {}) {
      const held = etag === undefined ? {} : { etag };
      const request = { method: 'GET', path: 'v1/regions', schema: RegionList, ...held, ...call } as const;
      const { body, text, signature, etag: fresh } = await send(http, request);
      return body === null ? null : { body: text, signature, etag: fresh };
    },
    async jwks(call = {}) {
      const path = '.well-known/jwks.json';
      return (await get({ method: 'GET', path, schema: Jwks, bears: 'nothing', ...call })) as JSONWebKeySet;
    },
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

const Jwks = z.object({ keys: z.array(z.looseObject({ kty: z.string() })) });
const Claimed = z.union([IssuedSigil, PendingClaim]);
const ASK_AGAIN_MS = 2_000;

async function exchange(
  http: HttpOptions,
  call: CallOptions & { readonly attempts?: number },
): Promise<IssuedSigil> {
  const path = 'v1/sigils/refresh';
  const request = { method: 'POST', path, schema: IssuedSigil, repeatable: true, ...call } as const;
  const { body } = await send(http, { ...request, bears: 'expired sigil' });
  if (body === null) throw new KatafractError('bad_response', 'not modified since never', { status: 502 });
  return body;
}

const withSlash = (url: string | URL) => new URL(`${String(url).replace(/\/+$/, '')}/`);

function httpOptions(options: ClientOptions): HttpOptions {
  const {
    baseUrl,
    publicUrl = baseUrl,
    sigil,
    deviceKey,
    clock = timerClock,
    random = Math.random,
  } = options;
  const session = new Session({
    sigil,
    deviceKey,
    clock,
    publicBase: withSlash(publicUrl),
    onSigil: options.onSigil ?? (() => undefined),
    exchange: (hasten) => exchange(http, hasten ? { attempts: 1 } : {}),
  });
  const http: HttpOptions = {
    base: withSlash(baseUrl),
    session,
    // Browsers refuse a fetch that was torn off the global object.
    fetch: options.fetch ?? ((input, init) => globalThis.fetch(input, init)),
    clock,
    random,
    retry: { ...RETRY, ...options.retry },
  };
  return http;
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
