/**
 * Secrets that we make: claim secrets of grants, and voucher codes. They follow from a seed (see platform/once.ts).
 */
import { createHash } from 'node:crypto';
import type { ClaimSecret } from '@katafract/shared/claim';
import { derive, type Seed } from '../platform/once.ts';

/** Crockford's base 32: no I, L, O or U, so that nothing can be misread. */
const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
/** Of 5 bits each: 100 bits, beyond all guessing. */
const CODE_LENGTH = 20;

export function claimSecretOf(seed: Seed): ClaimSecret {
  return derive(seed, 'claim secret').toString('base64url') as ClaimSecret;
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
