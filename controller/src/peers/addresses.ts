/**
 * The address pool in SQL. Never-used indexes come first, by advancing one counter of draws; then those whose rest is
 * over, the longest rested first. Both are O(1) at any fill, and neither is visible unless the transaction commits.
 */
import { type AddressPlan, indexOfDraw, poolSize } from '@katafract/shared/addresses';
import { KatafractError } from '@katafract/shared/errors';
import type { Sql } from '../platform/db.ts';

/**
 * Makes the pool's row on the first start.
 * @throws KatafractError `address_pool_resized`: draws of a pool of another size give indexes that are taken
 */
export async function initPool(sql: Sql, plan: AddressPlan): Promise<void> {
  const [pool] = await sql<{ prefix: number }[]>`
    insert into address_pool (id, drawn, sequential_until, prefix4) values (1, 0, ${plan.first}, ${plan.prefix4})
    on conflict (id) do update set prefix4 = coalesce(address_pool.prefix4, excluded.prefix4)
    returning prefix4 as prefix`;
  if (pool?.prefix === plan.prefix4) return;
  throw new KatafractError(
    'address_pool_resized',
    `KATAFRACT_TUNNEL_IPV4 was a /${pool?.prefix} when this database was made, and has to stay one`,
  );
}

export interface Pool {
  /** Draws so far: the next one is of this number. */
  readonly drawn: number;
  /** Indexes below were given out one after the other, before draws spread them. */
  readonly sequentialUntil: number;
}

/** Locks the pool for the rest of the transaction. */
export async function lockPool(sql: Sql): Promise<Pool> {
  const [pool] = await sql<Pool[]>`
    select drawn, sequential_until as "sequentialUntil" from address_pool where id = 1 for update`;
  if (!pool) throw new KatafractError('address_pool_missing', 'the address pool was never initialised');
  return pool;
}

export interface Taken {
  readonly indexes: readonly number[];
  /** From now on: the caller writes it down in its transaction (`address_pool`). */
  readonly drawn: number;
}

/**
 * Takes up to `count` indexes of the locked pool; fewer where it has no more to give. Costs no statement while there
 * are never-used ones.
 * @param restedBefore a freed index may be reused if it was freed before this
 */
export async function takeIndexes(
  sql: Sql,
  plan: AddressPlan,
  pool: Pool,
  count: number,
  restedBefore: Date,
): Promise<Taken> {
  const { indexes, drawn } = draw(plan, pool, count);
  if (indexes.length === count) return { indexes, drawn };
  const rested = await sql<{ index: number }[]>`
    delete from resting_addresses where address_index in (
      select address_index from resting_addresses where released_at < ${restedBefore}
      order by released_at limit ${count - indexes.length} for update skip locked)
    returning address_index as index`;
  return { indexes: [...indexes, ...rested.map((row) => row.index)], drawn };
}

/** Up to `count` never-used indexes. Draws that give none are passed over, each once in the pool's life. */
export function draw(plan: AddressPlan, pool: Pool, count: number): Taken {
  const indexes: number[] = [];
  const first = Math.max(plan.first, pool.sequentialUntil);
  let { drawn } = pool;
  for (; indexes.length < count && drawn < poolSize(plan); drawn++) {
    const index = indexOfDraw(plan, drawn);
    if (index >= first && index <= plan.last) indexes.push(index);
  }
  return { indexes, drawn };
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
