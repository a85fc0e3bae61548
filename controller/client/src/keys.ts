/**
 * WireGuard key pairs made on the device, by WebCrypto alone: the private half never has to leave it. X25519 is in
 * Node 20, Chrome 133, Firefox 130, Safari 17.
 */
import { KatafractError } from '@katafract/shared/errors';
import { PublicKey } from '@katafract/shared/units';

/** Both halves in base64, as `wg genkey` and `wg pubkey` print them. */
export interface KeyPair {
  readonly privateKey: string;
  readonly publicKey: PublicKey;
}

/** @throws KatafractError `x25519_unsupported` where this runtime's WebCrypto has no X25519. */
export async function generateKeyPair(): Promise<KeyPair> {
  const { privateKey, publicKey } = await generate();
  const { d = '' } = await crypto.subtle.exportKey('jwk', privateKey);
  const raw = new Uint8Array(await crypto.subtle.exportKey('raw', publicKey));
  return { privateKey: toBase64(clamp(fromBase64(d))), publicKey: PublicKey.parse(toBase64(raw)) };
}

async function generate(): Promise<CryptoKeyPair> {
  try {
    const pair = await crypto.subtle.generateKey({ name: 'X25519' }, true, ['deriveBits']);
    return pair as CryptoKeyPair;
  } catch (cause) {
    throw new KatafractError('x25519_unsupported', 'this runtime cannot make X25519 keys', { cause });
  }
}

/** RFC 7748, section 5. The scalar means the same before and after; `wg genkey` writes it clamped. */
function clamp(scalar: Uint8Array): Uint8Array {
  const clamped = Uint8Array.from(scalar);
  clamped[0] = (clamped[0] ?? 0) & 248;
  clamped[31] = ((clamped[31] ?? 0) & 127) | 64;
  return clamped;
}

function toBase64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes));
}

/** Reads base64url too, which is what a JWK holds. */
function fromBase64(text: string): Uint8Array {
  const binary = atob(text.replaceAll('-', '+').replaceAll('_', '/'));
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}
