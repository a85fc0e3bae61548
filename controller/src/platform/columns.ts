/** Column types that drizzle lacks, or that are meant everywhere. */
import type { Digest } from '@katafract/shared/units';
import { customType, timestamp } from 'drizzle-orm/pg-core';

/** A moment, whatever the session's time zone. */
export const when = (name: string) => timestamp(name, { withTimezone: true });

/** bit(128) as 32 hex digits: XOR (`#`) works on it in SQL, which is what keeps a set digest O(1). */
export const digest128 = customType<{ data: Digest; driverData: string }>({
  dataType: () => 'bit(128)',
  toDriver: (hex) => digestToBits(hex),
  fromDriver: (bits) => bitsToDigest(bits),
});

export function digestToBits(hex: Digest): string {
  return BigInt(`0x${hex}`).toString(2).padStart(128, '0');
}

export function bitsToDigest(bits: string): Digest {
  return BigInt(`0b${bits}`).toString(16).padStart(32, '0') as Digest;
}
