/**
 * The token by which a node proves who it is to a broker or to the controller: signed with the node's own Ed25519 key,
 * which was made at enrollment and never leaves the node. What such a token is: identity-token.ts.
 */
import type { CryptoKey, JWK } from 'jose';
import { z } from 'zod';
import { mintIdentityToken, verifyIdentityToken } from './identity-token.ts';
import type { NodeId } from './units.ts';

export type NodeAudience = 'katafract-broker' | 'katafract-enroll' | 'katafract-session';

const TYP = 'kf-node+jwt';

/** Public half of a node's or an operator's Ed25519 key (RFC 8037). */
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
  return mintIdentityToken(key, { typ: TYP, name: node, audience }, now);
}

/**
 * @param key the node's public key as enrolled
 * @param now milliseconds since the epoch
 * @throws KatafractError `node_token_invalid` (401), whatever the reason; the cause says which.
 */
export function verifyNodeToken(
  token: string,
  key: CryptoKey,
  expected: { node: NodeId; audience: NodeAudience; now: number },
): Promise<{ expiresAt: number }> {
  const { node: name, audience, now } = expected;
  const refusal = ['node_token_invalid', 'the node token is not valid'] as const;
  return verifyIdentityToken(token, key, { typ: TYP, name, audience }, now, refusal);
}

/** Drops everything of a JWK but the public half. */
export function publicJwk(jwk: JWK): NodePublicJwk {
  return NodePublicJwk.parse({ kty: jwk.kty, crv: jwk.crv, x: jwk.x });
}
