/**
 * Secrets that we make: claim secrets of grants, and voucher codes. They follow from a seed, so that a request repeated
 * with its Idempotency-Key can be answered again although nothing but hashes is kept.
 */
import { createHash, createHmac, hkdfSync, randomBytes } from 'node:crypto';
import type { ClaimSecret } from '@katafract/shared/claim';

/** Crockford's base 32: no I, L, O or U, so that nothing can be misread. */
const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
/** Of 5 bits each: 100 bits, beyond all guessing. */
const CODE_LENGTH = 20;

export type Seed = Uint8Array;

/**
 * @param secret the controller's master key
 * @param request what is repeated with the same answer; a fresh seed where absent
 */
export function seedOf(secret: Uint8Array, request: readonly string[] | undefined): Seed {
  if (request === undefined) return randomBytes(32);
  const key = Buffer.from(hkdfSync('sha256', secret, '', 'katafract billing seeds', 32));
  return createHmac('sha256', key).update(JSON.stringify(request)).digest();
}

const derive = (seed: Seed, name: string) => createHmac('sha256', seed).update(name).digest();

export function claimSecretOf(seed: Seed): ClaimSecret {
  return derive(seed, 'claim secret').toString('base64url') as ClaimSecret;
}

/** A UUID of version 8 (RFC 9562, 5.8). */
export function uuidOf(seed: Seed, name: string): string {
  const bytes = derive(seed, name).subarray(0, 16);
  bytes.writeUInt8(0x80 | (bytes.readUInt8(6) & 0x0f), 6);
  bytes.writeUInt8(0x80 | (bytes.readUInt8(8) & 0x3f), 8);
  const hex = bytes.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

/** `XXXXX-XXXXX-XXXXX-XXXXX`. */
export function voucherCodeOf(seed: Seed, index: number): string {
  const bytes = derive(seed, `voucher ${index}`);
  const code = [...bytes.subarray(0, CODE_LENGTH)].map((byte) => ALPHABET[byte & 31]).join('');
  return (code.match(/.{5}/g) ?? []).join('-');
}

/** A code as it was typed, in the one form that is hashed; null where it cannot be one. */
export function normalCode(text: string): string | null {
  const code = text.toUpperCase().replace(/[\s-]/g, '').replaceAll('O', '0').replace(/[IL]/g, '1');
  const good = code.length === CODE_LENGTH && [...code].every((symbol) => ALPHABET.includes(symbol));
  return good ? code : null;
}

/** What is kept of a code. @param code of `normalCode` */
export function codeHash(code: string): string {
  return createHash('sha256').update(code).digest('hex');
}
