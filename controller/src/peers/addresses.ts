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

/**
 * Takes up to `count` indexes; fewer where the pool has no more to give.
 * @param restedBefore a freed index may be reused if it was freed before this
 */
export async function takeIndexes(
  sql: Sql,
  plan: AddressPlan,
  count: number,
  restedBefore: Date,
): Promise<number[]> {
  if (count === 0) return [];
  const [fresh] = await sql<{ start: number; end: number }[]>`
    update address_pool pool set next_index = least(before.next_index + ${count}, ${plan.last + 1})
    from (select id, next_index from address_pool where id = 1 for update) before
    where pool.id = before.id returning before.next_index as start, pool.next_index as end`;
  if (!fresh) throw new KatafractError('address_pool_missing', 'the address pool was never initialised');
  const indexes = Array.from({ length: fresh.end - fresh.start }, (_, offset) => fresh.start + offset);
  if (indexes.length === count) return indexes;
  const rested = await sql<{ index: number }[]>`
    delete from resting_addresses where address_index in (
      select address_index from resting_addresses where released_at < ${restedBefore}
      order by released_at limit ${count - indexes.length} for update skip locked)
    returning address_index as index`;
  return [...indexes, ...rested.map((row) => row.index)];
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
