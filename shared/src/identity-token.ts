/**
 * The short-lived JWT by which whoever holds an Ed25519 key proves who they are: RFC 7519, with the checks of RFC 8725:
 * one algorithm, an explicit type, issuer, subject and audience all pinned, a lifetime that cannot be stretched. Nodes
 * (node-token.ts) and operators (operator-command.ts) each have a type and names of their own, so that neither's token
 * ever passes for the other's, whatever key signed it.
 */
import { type CryptoKey, jwtVerify, SignJWT } from 'jose';
import { KatafractError } from './errors.ts';

/** The longest such a token may live, in seconds. */
export const IDENTITY_TOKEN_SECONDS = 900;
/** Clocks of a fleet drift; this much is forgiven in either direction, in seconds. */
export const LEEWAY_SECONDS = 60;

export interface IdentityTokenKind {
  /** The header's `typ`. */
  readonly typ: string;
  /** Issuer and subject. */
  readonly name: string;
  readonly audience: string;
}

/** @param now milliseconds since the epoch */
export function mintIdentityToken(key: CryptoKey, kind: IdentityTokenKind, now: number): Promise<string> {
  const issuedAt = Math.floor(now / 1000);
  return new SignJWT()
    .setProtectedHeader({ alg: 'EdDSA', typ: kind.typ })
    .setIssuer(kind.name)
    .setSubject(kind.name)
    .setAudience(kind.audience)
    .setIssuedAt(issuedAt)
    .setNotBefore(issuedAt - LEEWAY_SECONDS)
    .setExpirationTime(issuedAt + IDENTITY_TOKEN_SECONDS)
    .setJti(crypto.randomUUID())
    .sign(key);
}

/**
 * @param now milliseconds since the epoch
 * @param refusal code and message of the error
 * @returns when it ends, in milliseconds since the epoch
 * @throws KatafractError of that code (401), whatever the reason; the cause says which.
 */
export async function verifyIdentityToken(
  token: string,
  key: CryptoKey,
  kind: IdentityTokenKind,
  now: number,
  refusal: readonly [code: string, message: string],
): Promise<{ expiresAt: number }> {
  try {
    const { payload } = await jwtVerify(token, key, {
      algorithms: ['EdDSA'],
      typ: kind.typ,
      issuer: kind.name,
      subject: kind.name,
      audience: kind.audience,
      requiredClaims: ['exp', 'iat', 'nbf', 'jti'],
      clockTolerance: LEEWAY_SECONDS,
      currentDate: new Date(now),
    });
    const { exp = 0, iat = 0 } = payload;
    if (exp - iat > IDENTITY_TOKEN_SECONDS) throw new Error('lifetime too long');
    if (iat * 1000 > now + LEEWAY_SECONDS * 1000) throw new Error('issued in the future');
    return { expiresAt: exp * 1000 };
  } catch (cause) {
    const [code, message] = refusal;
    throw new KatafractError(code, message, { status: 401, cause });
  }
}
