/**
 * The address pool in SQL. Never-used indexes come first, by advancing one counter; then those whose rest is over, the
 * longest rested first. Both are O(1) at any fill, and neither is visible unless the transaction commits.
 */
import type { AddressPlan } from '@katafract/shared/addresses';
import { KatafractError } from '@katafract/shared/errors';
import type { Sql } from '../platform/db.ts';

/** Makes the pool's row on the first start. */
export async function initPool(sql: Sql, plan: AddressPlan): Promise<void> {
  await sql`insert into address_pool (id, next_index) values (1, ${plan.first}) on conflict do nothing`;
}

/** Locks the pool for the rest of the transaction. @returns the first index that was never given out */
export async function lockPool(sql: Sql): Promise<number> {
  const [pool] = await sql<{ next: number }[]>`
    select next_index as next from address_pool where id = 1 for update`;
  if (!pool) throw new KatafractError('address_pool_missing', 'the address pool was never initialised');
  return pool.next;
}

export interface Taken {
  readonly indexes: readonly number[];
  /** The first never-used index from now on: the caller writes it down in its transaction (`address_pool`). */
  readonly next: number;
}

/**
 * Takes up to `count` indexes of the locked pool; fewer where it has no more to give. Costs no statement while there
 * are never-used ones.
 * @param next of lockPool
 * @param restedBefore a freed index may be reused if it was freed before this
 */
export async function takeIndexes(
  sql: Sql,
  plan: AddressPlan,
  next: number,
  count: number,
  restedBefore: Date,
): Promise<Taken> {
  const fresh = Math.max(0, Math.min(count, plan.last + 1 - next));
  const indexes = Array.from({ length: fresh }, (_, offset) => next + offset);
  if (fresh === count) return { indexes, next: next + fresh };
  const rested = await sql<{ index: number }[]>`
    delete from resting_addresses where address_index in (
      select address_index from resting_addresses where released_at < ${restedBefore}
      order by released_at limit ${count - fresh} for update skip locked)
    returning address_index as index`;
  return { indexes: [...indexes, ...rested.map((row) => row.index)], next: next + fresh };
}

/** Puts freed indexes to rest. */
export async function restIndexes(sql: Sql, indexes: readonly number[], now: Date): Promise<void> {
  if (indexes.length === 0) return;
  await sql`
    insert into resting_addresses (address_index, released_at)
    select unnest(${indexes as number[]}::int[]), ${now}`;
}

/** Takes one certain index back from its rest; false where it has gone to somebody else. */
export async function reclaimIndex(sql: Sql, index: number): Promise<boolean> {
  const rows = await sql`delete from resting_addresses where address_index = ${index} returning 1`;
  return rows.length > 0;
}

export function addressesExhausted(): KatafractError {
  return new KatafractError('addresses_exhausted', 'every address of the pool is in use or resting', {
    status: 503,
    retryAfter: 60,
  });
}
