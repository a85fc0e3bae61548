/**
 * A signature beside a body: a detached JWS (RFC 7515, appendix F; EdDSA) over its exact bytes, by a key of the JWKS.
 * So a list can be kept on a disk, or come by way of a cache, and still be known for the controller's own.
 */
import {
  base64url,
  CompactSign,
  type CryptoKey,
  compactVerify,
  createLocalJWKSet,
  type JSONWebKeySet,
} from 'jose';
import { z } from 'zod';
import { KatafractError } from './errors.ts';

export type { JSONWebKeySet } from 'jose';

/** The header that carries it. */
export const SIGNATURE_HEADER = 'X-Katafract-Signature';
/** Of the region list. Each kind of body has its own type, so that none passes for another. */
export const REGIONS_TYP = 'kf-regions+jws';

const encoder = new TextEncoder();
const Protected = z.object({ iat: z.number().int().min(0) });

/** @param now milliseconds since the epoch */
export async function signBody(
  body: string,
  by: { readonly key: CryptoKey; readonly kid: string; readonly typ: string; readonly now: number },
): Promise<string> {
  const { key, kid, typ, now } = by;
  const jws = await new CompactSign(encoder.encode(body))
    .setProtectedHeader({ alg: 'EdDSA', typ, kid, iat: Math.floor(now / 1000) })
    .sign(key);
  const [header = '', , signature = ''] = jws.split('.');
  return `${header}..${signature}`;
}

/**
 * @returns when it was signed, in milliseconds since the epoch
 * @throws KatafractError `signature_invalid`: none, of another body, type or key, or malformed
 */
export async function verifyBody(
  body: string,
  detached: string | null,
  expected: { readonly jwks: JSONWebKeySet; readonly typ: string },
): Promise<{ signedAt: number }> {
  try {
    const [header = '', middle, signature = '', ...more] = (detached ?? '').split('.');
    if (middle !== '' || more.length > 0) throw new Error('not a detached JWS');
    const jws = `${header}.${base64url.encode(encoder.encode(body))}.${signature}`;
    const options = { algorithms: ['EdDSA'] };
    const { protectedHeader } = await compactVerify(jws, createLocalJWKSet(expected.jwks), options);
    if (protectedHeader.typ !== expected.typ) throw new Error('wrong typ');
    return { signedAt: Protected.parse(protectedHeader).iat * 1000 };
  } catch (cause) {
    throw new KatafractError('signature_invalid', 'the answer is not signed by the controller', {
      status: 502,
      cause,
    });
  }
}
