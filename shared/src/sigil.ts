/**
 * The Sigil: the subscription token that every app reads alike. A compact JWS (EdDSA, RFC 8037) with its own type, so
 * that no other token of ours can pass for one. Verifiable offline, in Node and in the browser, by the JWKS alone.
 */
import { createLocalJWKSet, type JSONWebKeySet, jwtVerify } from 'jose';
import { z } from 'zod';
import { KatafractError } from './errors.ts';

export const SIGIL_TYP = 'kf-sigil+jwt';

/** What each tier grants. Devices: how many peers at once; standbys: exits placed ahead besides the primary. */
export const TIERS = {
  free: { devices: 1, standbys: 0 },
  plus: { devices: 5, standbys: 1 },
  pro: { devices: 10, standbys: 2 },
  ops: { devices: 10_000, standbys: 1 },
} as const;
export const Tier = z.enum(['free', 'plus', 'pro', 'ops']);
export type Tier = z.infer<typeof Tier>;

export const SigilClaims = z.object({
  iss: z.string().min(1).max(256),
  /** Pseudonym of the subscription: random, bound to no person. */
  sub: z.uuid(),
  jti: z.uuid(),
  tier: Tier,
  iat: z.number().int(),
  exp: z.number().int(),
});
export type SigilClaims = z.infer<typeof SigilClaims>;

/**
 * Verifies a Sigil offline. Revocation is not visible offline: only the controller knows that.
 * @param now milliseconds since the epoch
 * @throws KatafractError `sigil_invalid` or `sigil_expired` (401)
 */
export async function verifySigil(
  token: string,
  jwks: JSONWebKeySet,
  expected: { issuer: string; now: number },
): Promise<SigilClaims> {
  try {
    const { payload } = await jwtVerify(token, createLocalJWKSet(jwks), {
      algorithms: ['EdDSA'],
      typ: SIGIL_TYP,
      issuer: expected.issuer,
      requiredClaims: ['exp', 'iat', 'sub', 'jti'],
      currentDate: new Date(expected.now),
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
