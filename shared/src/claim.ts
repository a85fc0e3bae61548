/**
 * The claim secret: 256 random bits that an app keeps. Only its hash travels to a store and to us, so whoever reads our
 * tables, or a store's, cannot claim what was paid for.
 */
import { z } from 'zod';

/** 32 bytes, base64url without padding. */
export const ClaimSecret = z
  .string()
  .regex(/^[A-Za-z0-9_-]{43}$/, 'a claim secret is 32 bytes in base64url')
  .brand<'ClaimSecret'>();
export type ClaimSecret = z.infer<typeof ClaimSecret>;

/** Lower-case hex SHA-256 of the secret's text: Stripe's `client_reference_id`, Play's `obfuscatedExternalAccountId`. */
export const ClaimHash = z
  .string()
  .regex(/^[0-9a-f]{64}$/, 'a claim hash is a SHA-256 in lower-case hex')
  .brand<'ClaimHash'>();
export type ClaimHash = z.infer<typeof ClaimHash>;

export function makeClaimSecret(): ClaimSecret {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  const text = btoa(String.fromCharCode(...bytes));
  return text.replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '') as ClaimSecret;
}

export async function claimHash(secret: ClaimSecret): Promise<ClaimHash> {
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(secret));
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, '0')).join('') as ClaimHash;
}

/** The hash as Apple's `appAccountToken` takes it: its first 122 bits in a UUID of version 8 (RFC 9562, 5.8). */
export function claimUuid(hash: ClaimHash): string {
  const variant = ((Number.parseInt(hash.slice(16, 17), 16) & 0x3) | 0x8).toString(16);
  return `${hash.slice(0, 8)}-${hash.slice(8, 12)}-8${hash.slice(13, 16)}-${variant}${hash.slice(17, 20)}-${hash.slice(20, 32)}`;
}
