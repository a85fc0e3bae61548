/**
 * Lets a request in by four checks in this order: the signature of its Sigil (remembered per token, so that a hot one
 * costs a hash), its expiry by the clock, the proof of the device it is bound to, and the database, which alone knows
 * of revocation and of the present tier. So a revocation takes effect on the next request, on every controller.
 */
import type { Clock } from '@katafract/shared/clock';
import { type Jkt, rememberProofKeys, verifyProof } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import {
  type SigilClaims,
  type SigilRequest,
  spendProof,
  verifySigil,
  verifySigilRequest,
} from '@katafract/shared/sigil';
import { decodeProtectedHeader } from 'jose';
import type { SigilIdentity } from '../platform/api.ts';
import type { Database } from '../platform/db.ts';
import type { Keyring } from '../platform/keyring.ts';
import { sha256 } from '../platform/secrets.ts';
import type { Store } from '../platform/store.ts';
import { admit, exchangeable, type SigilState } from './rules.ts';
import { sigilLookup } from './store.ts';

export interface AdmissionDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly keyring: Keyring;
  /** The `iss` of every Sigil: the controller's public URL. */
  readonly issuer: string;
  /** Remembers proofs that were used. */
  readonly replays: Pick<Store, 'once'>;
}

/** Tokens whose signature was checked lately, and keys of devices: enough for the hot ones, about 5 MB each. */
const REMEMBERED = 10_000;
const LONGEST_TOKEN = 4096;

interface Verified {
  readonly claims: SigilClaims;
  readonly kid: string;
}

export class Admission {
  readonly #deps: AdmissionDeps;
  readonly #lookUp: ReturnType<typeof sigilLookup>;
  readonly #keys = rememberProofKeys(REMEMBERED);
  /** By token hash, in order of last use. */
  readonly #verified = new Map<string, Verified>();

  constructor(deps: AdmissionDeps) {
    this.#deps = deps;
    this.#lookUp = sigilLookup(deps.db);
  }

  /**
   * Whom a request acts for.
   * @throws KatafractError (401) of `verifySigilRequest`, and `sigil_revoked`
   */
  async authenticate(request: SigilRequest): Promise<SigilIdentity> {
    const { state, now } = await this.#check(request, (token, hash) => this.#verify(token, hash));
    return admit(state, now);
  }

  /**
   * Whose Sigil is to be exchanged for a fresh one: it may have expired, but must be bound and not revoked. What became
   * of its subscription is for the issuer to see.
   * @throws KatafractError as `authenticate`
   */
  async presented(request: SigilRequest): Promise<SigilIdentity & { device: Jkt }> {
    const { issuer, keyring } = this.#deps;
    const { state, now } = await this.#check(request, (token) =>
      verifySigil(token, keyring.jwks(), { issuer, now: this.#deps.clock.now(), expired: 'allow' }),
    );
    return exchangeable(state, now);
  }

  /**
   * Checks the proof of a device that has no Sigil yet, and spends it.
   * @throws KatafractError (401) `dpop_required`, `dpop_invalid`, `dpop_stale`, `dpop_replayed`
   */
  async proof(request: ProofCheck): Promise<{ jkt: Jkt }> {
    const { method, url, proof: text } = request;
    if (text === undefined) throw refused('dpop_required', 'a DPoP proof of the device is required');
    const now = this.#deps.clock.now();
    const proof = await verifyProof(text, { method, url, now, keys: this.#keys });
    await spendProof(proof, { now, once: this.#once });
    return { jkt: proof.jkt };
  }

  /** By a hash: of one length however long a `jti` is, and the store learns of no device. */
  readonly #once = (name: string, ttlMs: number) =>
    this.#deps.replays.once(`dpop:${sha256(name).toString('base64url')}`, ttlMs);

  async #check(
    request: SigilRequest,
    verify: (token: string, hash: string) => Promise<SigilClaims>,
  ): Promise<{ state: SigilState | null; now: number }> {
    const now = this.#deps.clock.now();
    let digest: Buffer | undefined;
    const digestOf = (token: string) => (digest ??= sha256(token));
    await verifySigilRequest(request, {
      now,
      keys: this.#keys,
      once: this.#once,
      verify: (token) => {
        if (token.length > LONGEST_TOKEN) throw refused('sigil_invalid', 'the Sigil is not valid');
        return verify(token, digestOf(token).toString('hex'));
      },
      hash: (token) => digestOf(token).toString('base64url'),
    });
    // no request passes without a token
    const hash = digest?.toString('hex') ?? '';
    return { state: await this.#lookUp(hash), now: this.#deps.clock.now() };
  }

  async #verify(token: string, hash: string): Promise<SigilClaims> {
    const { issuer, keyring, clock } = this.#deps;
    const now = clock.now();
    const known = this.#verified.get(hash);
    this.#verified.delete(hash);
    // remembered, but for no longer than its key is: one that has left the ring signs nothing any more
    const trusted = known && keyring.sigilByKid(known.kid) ? known : undefined;
    if (trusted && trusted.claims.exp * 1000 <= now) throw refused('sigil_expired', 'the Sigil has expired');
    const verified = trusted ?? {
      claims: await verifySigil(token, keyring.jwks(), { issuer, now }),
      kid: decodeProtectedHeader(token).kid ?? '',
    };
    this.#verified.set(hash, verified);
    for (const oldest of this.#verified.keys()) {
      if (this.#verified.size <= REMEMBERED) break;
      this.#verified.delete(oldest);
    }
    return verified.claims;
  }
}

export interface ProofCheck {
  readonly method: string;
  /** The public one. */
  readonly url: string;
  /** The header `DPoP`. */
  readonly proof: string | undefined;
}

const refused = (code: string, message: string) => new KatafractError(code, message, { status: 401 });
