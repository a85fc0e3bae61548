/**
 * The Sigil: the subscription token that every app reads alike. A compact JWS (EdDSA, RFC 8037) with its own type, so
 * that no other token of ours can pass for one. Verifiable offline, in Node and in the browser, by the JWKS alone.
 */
import { createLocalJWKSet, decodeJwt, type JSONWebKeySet, jwtVerify } from 'jose';
import { z } from 'zod';
import { Jkt, type Proof, type ProofKeys, proofExpiry, proofId, tokenHash, verifyProof } from './dpop.ts';
import { KatafractError } from './errors.ts';

export const SIGIL_TYP = 'kf-sigil+jwt';

const GB = 1_000_000_000;
/** What each tier grants. Devices: how many at once; standbys: exits placed ahead besides the primary. */
export const TIERS = {
  free: { devices: 1, standbys: 0, storageBytes: 0 },
  plus: { devices: 5, standbys: 1, storageBytes: 100 * GB },
  pro: { devices: 10, standbys: 2, storageBytes: 1000 * GB },
  ops: { devices: 10_000, standbys: 1, storageBytes: 0 },
} as const;
export const Tier = z.enum(['free', 'plus', 'pro', 'ops']);
export type Tier = z.infer<typeof Tier>;

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
/** What the tier stood for when the Sigil was issued, so that an app need not know the tiers. */
export const Entitlements = z.object({ devices: count, standbys: count, storageBytes: count });
export type Entitlements = z.infer<typeof Entitlements>;

/** Devices that a Sigil names at most: a tier may allow thousands, but a token travels in a header. */
export const BINDINGS_NAMED = 20;

export const SigilClaims = z.object({
  iss: z.string().min(1).max(256),
  /** Pseudonym of the subscription: random, bound to no person. */
  sub: z.uuid(),
  jti: z.uuid(),
  tier: Tier,
  /** Absent from Sigils of the first days. */
  entitlements: Entitlements.optional(),
  /** The device it was issued to (RFC 7800, RFC 9449 6.1), which alone can use it; absent: whoever bears it. */
  cnf: z.object({ jkt: Jkt }).optional(),
  /** Every device of the subscription when it was issued, its own first. */
  bindings: z.array(Jkt).max(BINDINGS_NAMED).optional(),
  iat: z.number().int(),
  exp: z.number().int(),
});
export type SigilClaims = z.infer<typeof SigilClaims>;

export interface SigilExpectation {
  readonly issuer: string;
  /** Milliseconds since the epoch. */
  readonly now: number;
  /** `allow`: only for an exchange against a fresh one. */
  readonly expired?: 'allow';
}

/**
 * Verifies a Sigil offline. Revocation is not visible offline: only the controller knows that.
 * @throws KatafractError `sigil_invalid` or `sigil_expired` (401)
 */
export async function verifySigil(
  token: string,
  jwks: JSONWebKeySet,
  expected: SigilExpectation,
): Promise<SigilClaims> {
  try {
    const { payload } = await jwtVerify(token, createLocalJWKSet(jwks), {
      algorithms: ['EdDSA'],
      typ: SIGIL_TYP,
      issuer: expected.issuer,
      requiredClaims: ['exp', 'iat', 'sub', 'jti'],
      currentDate: new Date(expected.expired === 'allow' ? 0 : expected.now),
    });
    return SigilClaims.parse(payload);
  } catch (cause) {
    const expired = (cause as { code?: string }).code === 'ERR_JWT_EXPIRED';
    throw new KatafractError(
      expired ? 'sigil_expired' : 'sigil_invalid',
      expired ? 'the Sigil has expired' : 'the Sigil is not valid',
      { status: 401, cause },
    );
  }
}

/** What a request bears: its two headers, and what they were sent for. */
export interface SigilRequest {
  readonly authorization: string | undefined;
  /** The header `DPoP`. */
  readonly dpop: string | undefined;
  readonly method: string;
  /** As the service is known to the public, whatever the Host header says. */
  readonly url: string;
}

export interface RequestVerifier {
  /** By `verifySigil`, perhaps remembered. */
  readonly verify: (token: string) => Promise<SigilClaims>;
  /** Remembers a name for so long; false where it did already. Shared by all instances of the service. */
  readonly once: (name: string, ttlMs: number) => Promise<boolean>;
  /** Milliseconds since the epoch. */
  readonly now: number;
  readonly keys?: ProofKeys;
  /** `tokenHash`, for a verifier that has a faster one or knows it already. */
  readonly hash?: (token: string) => string | Promise<string>;
}

/**
 * Whether a request may act for the subscription of its Sigil: for any service of ours that has the JWKS.
 * A Sigil that is bound to a device comes as `Authorization: DPoP`, with a proof of that device, and in no other way;
 * one that is not comes as `Authorization: Bearer`.
 * @throws KatafractError (401) `unauthorized`, `sigil_invalid`, `sigil_expired`, `sigil_unbound`, `dpop_required`,
 * `dpop_invalid`, `dpop_stale`, `dpop_replayed`
 */
export async function verifySigilRequest(
  request: SigilRequest,
  by: RequestVerifier,
): Promise<{ token: string; claims: SigilClaims }> {
  const [, scheme = '', token = ''] = AUTHORIZATION.exec(request.authorization ?? '') ?? [];
  if (token === '') throw refused('unauthorized', 'a Sigil is required');
  const claims = await by.verify(token);
  const proves = scheme.toLowerCase() === 'dpop';
  if (claims.cnf === undefined) {
    if (proves) throw refused('sigil_unbound', 'the Sigil is bound to no device: send it as Bearer');
    return { token, claims };
  }
  if (!proves || request.dpop === undefined) {
    throw refused('dpop_required', 'the Sigil is bound to a device, which must prove itself by DPoP');
  }
  const { method, url } = request;
  const ath = await (by.hash ?? tokenHash)(token);
  const proof = await verifyProof(request.dpop, { method, url, now: by.now, ath, keys: by.keys });
  if (proof.jkt !== claims.cnf.jkt) throw refused('dpop_invalid', 'the DPoP proof is of another device');
  await spendProof(proof, by);
  return { token, claims };
}

/**
 * Takes a proof that is good once. Last of all checks: what is refused before it fills no memory.
 * @throws KatafractError `dpop_replayed` (401)
 */
export async function spendProof(proof: Proof, by: Pick<RequestVerifier, 'once' | 'now'>): Promise<void> {
  if (await by.once(proofId(proof), proofExpiry(proof) - by.now)) return;
  throw refused('dpop_replayed', 'the DPoP proof was used before');
}

const AUTHORIZATION = /^(Bearer|DPoP) +([A-Za-z0-9._~+/=-]{1,4096})$/i;
const refused = (code: string, message: string) => new KatafractError(code, message, { status: 401 });

/**
 * What a Sigil says of itself, unverified: for who holds it, to know when to refresh it and how to send it. Null for
 * what is no Sigil. Times in milliseconds since the epoch.
 */
export function readSigil(
  token: string,
): { subscription: string; issuedAt: number; expiresAt: number; device: Jkt | null } | null {
  try {
    const { sub, iat, exp, cnf } = SigilClaims.parse(decodeJwt(token));
    return { subscription: sub, issuedAt: iat * 1000, expiresAt: exp * 1000, device: cnf?.jkt ?? null };
  } catch {
    return null;
  }
}
