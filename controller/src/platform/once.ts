/**
 * The Idempotency-Key of what operators make (draft-ietf-httpapi-idempotency-key-header): a request repeated with its
 * key is answered as it was the first time, and one with another content is refused. What such a request makes are
 * secrets of which only hashes are kept, so they follow from a seed: key, request and a secret of the controller.
 */
import { createHash, createHmac, hkdfSync, randomBytes } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import type { Tx } from './db.ts';

export type Seed = Uint8Array;

/** Who asks, and whether it may be a repetition. */
export interface Asked {
  readonly operator: string;
  readonly idempotencyKey: string | undefined;
}

export interface Once {
  /** The same for the same key and request; random where there is no key. */
  readonly seed: Seed;
  /**
   * What this key made before; null where nothing. Requests with one key take turns from here to the end of `tx`.
   * @throws KatafractError `idempotency_key_reused` (422)
   */
  seen(tx: Tx): Promise<string | null>;
  /** Writes down what this request has made, in the transaction that made it. @param id a UUID */
  remember(tx: Tx, id: string, now: Date): Promise<void>;
}

/**
 * @param secret a lasting secret of the controller
 * @param what is made: keys of one operator for different things have nothing to do with each other
 */
export function onceOnly(secret: Uint8Array, what: string, request: object, asked: Asked): Once {
  const { operator, idempotencyKey: key } = asked;
  const scope = `operator:${operator} ${what}`;
  const requestHash = createHash('sha256').update(JSON.stringify(request)).digest('hex');
  return {
    seed: key === undefined ? randomBytes(32) : seedOf(secret, [scope, key, requestHash]),
    async seen({ sql }) {
      if (key === undefined) return null;
      await sql`select pg_advisory_xact_lock(hashtextextended(${`${scope} ${key}`}, 7261006))`;
      const [row] = await sql<{ hash: string; id: string }[]>`
        select request_hash as hash, resource_id as id from idempotency_keys where scope = ${scope} and key = ${key}`;
      if (!row) return null;
      if (row.hash === requestHash) return row.id;
      const message = 'this Idempotency-Key came with another request before';
      throw new KatafractError('idempotency_key_reused', message, { status: 422 });
    },
    async remember({ sql }, id, now) {
      if (key === undefined) return;
      await sql`
        insert into idempotency_keys (scope, key, request_hash, resource_id, created_at)
        values (${scope}, ${key}, ${requestHash}, ${id}, ${now})`;
    },
  };
}

/** The keeping of a key has ended, and what it made then is there still: it cannot be made, or shown, again. */
export function keyExpired(): KatafractError {
  const message = 'what this Idempotency-Key made cannot be shown again';
  return new KatafractError('idempotency_expired', message, { status: 409 });
}

function seedOf(secret: Uint8Array, request: readonly string[]): Seed {
  const key = Buffer.from(hkdfSync('sha256', secret, '', 'katafract repeatable requests', 32));
  return createHmac('sha256', key).update(JSON.stringify(request)).digest();
}

/** 32 bytes that follow from the seed; nobody without it can tell them from random ones. */
export function derive(seed: Seed, name: string): Buffer {
  return createHmac('sha256', seed).update(name).digest();
}

/** A UUID of version 8 (RFC 9562, 5.8). */
export function uuidOf(seed: Seed, name: string): string {
  const bytes = derive(seed, name).subarray(0, 16);
  bytes.writeUInt8(0x80 | (bytes.readUInt8(6) & 0x0f), 6);
  bytes.writeUInt8(0x80 | (bytes.readUInt8(8) & 0x3f), 8);
  const hex = bytes.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}
