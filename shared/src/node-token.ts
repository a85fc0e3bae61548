/**
 * The short-lived JWT by which a node proves who it is to a broker or to the controller: signed with the node's own
 * Ed25519 key, which was made at enrollment and never leaves the node. RFC 7519, with the checks of RFC 8725:
 * one algorithm, an explicit type, issuer, subject and audience all pinned, a lifetime that cannot be stretched.
 */
import { type CryptoKey, type JWK, jwtVerify, SignJWT } from 'jose';
import { z } from 'zod';
import { KatafractError } from './errors.ts';
import type { NodeId } from './units.ts';

export type NodeAudience = 'katafract-broker' | 'katafract-enroll' | 'katafract-session';

/** The longest a node token may live, in seconds. */
export const NODE_TOKEN_SECONDS = 900;
const TYP = 'kf-node+jwt';
/** Clocks of a fleet drift; this much is forgiven in either direction, in seconds. */
const LEEWAY = 60;

/** Public half of a node's Ed25519 key (RFC 8037). */
export const NodePublicJwk = z.object({
  kty: z.literal('OKP'),
  crv: z.literal('Ed25519'),
  x: z.string().regex(/^[A-Za-z0-9_-]{43}$/),
});
export type NodePublicJwk = z.infer<typeof NodePublicJwk>;

/** @param now milliseconds since the epoch */
export function mintNodeToken(
  key: CryptoKey,
  node: NodeId,
  audience: NodeAudience,
  now: number,
): Promise<string> {
  const issuedAt = Math.floor(now / 1000);
  return new SignJWT()
    .setProtectedHeader({ alg: 'EdDSA', typ: TYP })
    .setIssuer(node)
    .setSubject(node)
    .setAudience(audience)
    .setIssuedAt(issuedAt)
    .setNotBefore(issuedAt - LEEWAY)
    .setExpirationTime(issuedAt + NODE_TOKEN_SECONDS)
    .setJti(crypto.randomUUID())
    .sign(key);
}

/**
 * @param key the node's public key as enrolled
 * @param now milliseconds since the epoch
 * @throws KatafractError `node_token_invalid` (401), whatever the reason; the cause says which.
 */
export async function verifyNodeToken(
  token: string,
  key: CryptoKey,
  expected: { node: NodeId; audience: NodeAudience; now: number },
): Promise<{ expiresAt: number }> {
  try {
    const { payload } = await jwtVerify(token, key, {
      algorithms: ['EdDSA'],
      typ: TYP,
      issuer: expected.node,
      subject: expected.node,
      audience: expected.audience,
      requiredClaims: ['exp', 'iat', 'nbf', 'jti'],
      clockTolerance: LEEWAY,
      currentDate: new Date(expected.now),
    });
    const { exp = 0, iat = 0 } = payload;
    if (exp - iat > NODE_TOKEN_SECONDS) throw new Error('lifetime too long');
    if (iat * 1000 > expected.now + LEEWAY * 1000) throw new Error('issued in the future');
    return { expiresAt: exp * 1000 };
  } catch (cause) {
    throw new KatafractError('node_token_invalid', 'the node token is not valid', { status: 401, cause });
  }
}

/** Drops everything of a JWK but the public half. */
export function publicJwk(jwk: JWK): NodePublicJwk {
  return NodePublicJwk.parse({ kty: jwk.kty, crv: jwk.crv, x: jwk.x });
}
