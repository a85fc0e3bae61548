/**
 * DPoP (RFC 9449): a device proves with each request that it holds the key its Sigil is bound to, so that a stolen
 * Sigil alone opens nothing. Both halves are here: making a proof, and judging one. Runs in Node and in browsers.
 *
 * Judging is pure, the time being passed in. What it cannot see is whether a proof was shown before: for that the
 * verifier remembers each `proofId` until `proofExpiry`.
 */
import {
  type CryptoKey,
  calculateJwkThumbprint,
  decodeProtectedHeader,
  exportJWK,
  generateKeyPair,
  importJWK,
  jwtVerify,
  SignJWT,
} from 'jose';
import { z } from 'zod';
import { KatafractError } from './errors.ts';

export const PROOF_TYP = 'dpop+jwt';
/** What a device may sign with: P-256 is in every browser and every secure element, Ed25519 in the newer ones. */
export const PROOF_ALGS = ['ES256', 'EdDSA'] as const;
export type ProofAlg = (typeof PROOF_ALGS)[number];
/** How far the `iat` of a proof may be from the verifier's clock, in seconds, either way. */
export const PROOF_WINDOW = 60;
const LONGEST_PROOF = 4096;

/** SHA-256 thumbprint of a public JWK (RFC 7638) in base64url: all that anyone learns of a device. */
export const Jkt = z
  .string()
  .regex(/^[A-Za-z0-9_-]{43}$/, 'a thumbprint is 32 bytes in base64url')
  .brand<'Jkt'>();
export type Jkt = z.infer<typeof Jkt>;

const coordinate = z.string().regex(/^[A-Za-z0-9_-]{43}$/);
const EcJwk = z.object({ kty: z.literal('EC'), crv: z.literal('P-256'), x: coordinate, y: coordinate });
const OkpJwk = z.object({ kty: z.literal('OKP'), crv: z.literal('Ed25519'), x: coordinate });
/** Public half of a device's key; whatever else a JWK may say is dropped. */
export const DeviceJwk = z.discriminatedUnion('kty', [EcJwk, OkpJwk]);
export type DeviceJwk = z.infer<typeof DeviceJwk>;
/** Members that only a private or a symmetric key has (RFC 7518, 6.2.2, 6.3.2, 6.4.1). */
const PRIVATE = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k'];

const algOf = (jwk: DeviceJwk): ProofAlg => (jwk.kty === 'EC' ? 'ES256' : 'EdDSA');

/** A device's key. May be kept in IndexedDB as it is, where its private half cannot be read even by the page. */
export interface DeviceKey {
  readonly alg: ProofAlg;
  readonly privateKey: CryptoKey;
  readonly publicJwk: DeviceJwk;
  readonly jkt: Jkt;
}

/** @param options.extractable only for who must write the key to a file; elsewhere the runtime keeps it to itself */
export async function generateDeviceKey(
  options: { alg?: ProofAlg; extractable?: boolean } = {},
): Promise<DeviceKey> {
  const { alg = 'ES256', extractable = false } = options;
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable });
  return deviceKeyOf(privateKey, DeviceJwk.parse(await exportJWK(publicKey)));
}

async function deviceKeyOf(privateKey: CryptoKey, publicJwk: DeviceJwk): Promise<DeviceKey> {
  const jkt = Jkt.parse(await calculateJwkThumbprint(publicJwk));
  return { alg: algOf(publicJwk), privateKey, publicJwk, jkt };
}

const PrivateDeviceJwk = z.discriminatedUnion('kty', [
  EcJwk.extend({ d: coordinate }),
  OkpJwk.extend({ d: coordinate }),
]);

/** The private JWK of an extractable key, to be kept as the secret it is. @throws TypeError where it is not extractable */
export async function exportDeviceKey({ privateKey }: DeviceKey): Promise<Record<string, string>> {
  return PrivateDeviceJwk.parse(await exportJWK(privateKey));
}

/** @throws KatafractError `device_key_invalid`, which never shows the key */
export async function importDeviceKey(jwk: unknown): Promise<DeviceKey> {
  const parsed = PrivateDeviceJwk.safeParse(jwk);
  if (!parsed.success) throw new KatafractError('device_key_invalid', 'not a private key of a device');
  const publicJwk = DeviceJwk.parse(parsed.data);
  try {
    const key = await importJWK(parsed.data, algOf(publicJwk), { extractable: false });
    return await deviceKeyOf(key as CryptoKey, publicJwk);
  } catch {
    throw new KatafractError('device_key_invalid', 'not a private key of a device');
  }
}

export interface ProofRequest {
  readonly method: string;
  /** As the API is known to the public; query and fragment do not count. */
  readonly url: string;
  /** Milliseconds since the epoch. */
  readonly now: number;
}

/** @param request.token the Sigil that the request bears; absent where a device has none yet */
export async function makeProof(
  key: DeviceKey,
  request: ProofRequest & { readonly token?: string | undefined },
): Promise<string> {
  const ath = request.token === undefined ? {} : { ath: await tokenHash(request.token) };
  const htu = comparable(request.url);
  if (htu === null) throw new TypeError('not a URL');
  return new SignJWT({ htm: request.method, htu, jti: crypto.randomUUID(), ...ath })
    .setProtectedHeader({ typ: PROOF_TYP, alg: key.alg, jwk: key.publicJwk })
    .setIssuedAt(Math.floor(request.now / 1000))
    .sign(key.privateKey);
}

/** What `ath` must be for a token (RFC 9449, 4.2). */
export async function tokenHash(token: string): Promise<string> {
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(token));
  const text = btoa(String.fromCharCode(...new Uint8Array(digest)));
  return text.replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '');
}

export interface Proof {
  readonly jkt: Jkt;
  readonly jti: string;
  /** Seconds since the epoch. */
  readonly iat: number;
}

/** Names a proof among all proofs of all devices. */
export const proofId = ({ jkt, jti }: Proof): string => `${jkt} ${jti}`;
/** Until when a proof would pass `verifyProof` and so has to be remembered, ms since the epoch. */
export const proofExpiry = ({ iat }: Proof): number => (iat + PROOF_WINDOW + 1) * 1000;

const Claims = z.object({
  htm: z.string().max(32),
  htu: z.string().max(2048),
  jti: z.string().min(1).max(128),
  iat: z.number(),
  ath: z.string().max(64).optional(),
});

export interface ProofExpectation extends ProofRequest {
  /** `tokenHash` of the token beside the proof; absent where none is. */
  readonly ath?: string | undefined;
  /** Where public keys come from; one of `rememberProofKeys` spares the importing of hot ones. */
  readonly keys?: ProofKeys | undefined;
}

/**
 * Judges a proof by the list of RFC 9449, 4.3; that it was not shown before is the caller's part (see proofId).
 * @throws KatafractError `dpop_stale` (401): made too long ago or ahead of the clock, else `dpop_invalid` (401);
 * the cause says why
 */
export async function verifyProof(proof: string, expected: ProofExpectation): Promise<Proof> {
  const { claims, jkt } = await opened(proof, expected).catch((cause: unknown) => {
    throw refused('dpop_invalid', 'the DPoP proof is not valid', cause);
  });
  const now = expected.now / 1000;
  // whole seconds, as the prover cannot say it any better
  if (Math.abs(Math.floor(now) - Math.floor(claims.iat)) > PROOF_WINDOW) {
    throw refused('dpop_stale', 'the DPoP proof was not made just now', undefined);
  }
  return { jkt, jti: claims.jti, iat: claims.iat };
}

async function opened(proof: string, expected: ProofExpectation) {
  if (proof.length > LONGEST_PROOF) throw new Error('too long');
  const { jwk } = decodeProtectedHeader(proof);
  if (PRIVATE.some((member) => Object.hasOwn(jwk ?? {}, member))) throw new Error('a private key');
  const open = DeviceJwk.parse(jwk);
  const { key, jkt } = await (expected.keys ?? readProofKey)(open);
  // its own expiry, should it have one, counts as well
  const { payload } = await jwtVerify(proof, key, {
    typ: PROOF_TYP,
    algorithms: [algOf(open)],
    currentDate: new Date(expected.now),
  });
  const claims = Claims.parse(payload);
  if (claims.htm !== expected.method) throw new Error('of another method');
  const htu = comparable(claims.htu);
  if (htu === null || htu !== comparable(expected.url)) throw new Error('of another URL');
  if (claims.ath !== expected.ath) throw new Error('of another token');
  return { claims, jkt };
}

const refused = (code: string, message: string, cause: unknown) =>
  new KatafractError(code, message, { status: 401, ...(cause === undefined ? {} : { cause }) });

/**
 * A URL without query and fragment, in the normal form of RFC 3986, 6.2.2 and 6.2.3, as RFC 9449 asks for where two
 * are compared; null for what is no URL of ours.
 */
function comparable(text: string): string | null {
  if (!URL.canParse(text)) return null;
  const { protocol, username, password, origin, pathname } = new URL(text);
  if ((protocol !== 'https:' && protocol !== 'http:') || username !== '' || password !== '') return null;
  const path = pathname.replace(/%[0-9a-f]{2}/gi, (octet) => {
    const character = String.fromCharCode(Number.parseInt(octet.slice(1), 16));
    return /[A-Za-z0-9._~-]/.test(character) ? character : octet.toUpperCase();
  });
  return `${origin}${path}`;
}

export type ProofKeys = (jwk: DeviceJwk) => Promise<{ key: CryptoKey; jkt: Jkt }>;

const readProofKey: ProofKeys = async (jwk) => {
  const [key, jkt] = await Promise.all([importJWK(jwk, algOf(jwk)), calculateJwkThumbprint(jwk)]);
  return { key: key as CryptoKey, jkt: Jkt.parse(jkt) };
};

/** Imports each key once, and keeps those used last. */
export function rememberProofKeys(capacity: number): ProofKeys {
  const known = new Map<string, ReturnType<ProofKeys>>();
  return (jwk) => {
    const name = jwk.kty === 'EC' ? `${jwk.x} ${jwk.y}` : jwk.x;
    const found = known.get(name) ?? readProofKey(jwk);
    known.delete(name);
    known.set(name, found);
    for (const oldest of known.keys()) {
      if (known.size <= capacity) break;
      known.delete(oldest);
    }
    return found;
  };
}
