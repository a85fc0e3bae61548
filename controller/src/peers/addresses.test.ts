/** The address pool: each index once, spread over its parts, and none that was given out before draws spread them. */
import { addressPlan, poolSize } from '@katafract/shared/addresses';
import { Cidr4, Cidr6 } from '@katafract/shared/units';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../../../test/database.ts';
import { connect, type Sql } from '../platform/db.ts';
import { createLogger } from '../platform/log.ts';
import { migrate } from '../platform/migrate.ts';
import { draw, initPool, lockPool } from './addresses.ts';

const of = (prefix: number) => addressPlan(Cidr4.parse(`10.0.0.0/${prefix}`), Cidr6.parse('fd00::/64'));

describe('draws', () => {
  it('give every index that is left exactly once, in whatever batches', () => {
    const sizes = fc.infiniteStream(fc.integer({ min: 0, max: 300 }));
    fc.assert(
      fc.property(
        fc.integer({ min: 22, max: 29 }),
        fc.integer({ min: 2, max: 1100 }),
        sizes,
        (prefix, used, counts) => {
          const plan = of(prefix);
          const sequentialUntil = Math.min(used, plan.last + 1);
          const given: number[] = [];
          let drawn = 0;
          for (const count of counts) {
            const taken = draw(plan, { drawn, sequentialUntil }, count);
            expect(taken.indexes.length).toBeLessThanOrEqual(count);
            given.push(...taken.indexes);
            drawn = taken.drawn;
            if (drawn === poolSize(plan)) break;
          }
          const all = Array.from(
            { length: plan.last + 1 - sequentialUntil },
            (_, at) => sequentialUntil + at,
          );
          expect(given.sort((a, b) => a - b)).toEqual(all);
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe('the pool in the database', () => {
  const database = useDatabase();
  let sql: Sql;
  beforeAll(async () => {
    await migrate(database.url, createLogger('silent'));
    sql = connect(database.url, { max: 1, onnotice: () => undefined });
  });
  afterAll(() => sql.end());

  it('is made once, goes on where it was, and has one size for ever', async () => {
    await sql`delete from address_pool`;
    await initPool(sql, of(22));
    await sql`update address_pool set drawn = 77`;
    await initPool(sql, of(22));
    expect(await lockPool(sql)).toEqual({ drawn: 77, sequentialUntil: 2 });
    await expect(initPool(sql, of(21))).rejects.toMatchObject({ code: 'address_pool_resized' });
    expect(await lockPool(sql)).toEqual({ drawn: 77, sequentialUntil: 2 });
  });

  it('of a controller from before draws gives none of the indexes that it gave', async () => {
    // as the migration leaves one that had given out a thousand
    await sql`update address_pool set drawn = 0, sequential_until = 1002, prefix4 = null`;
    await initPool(sql, of(20));
    const { indexes } = draw(of(20), await lockPool(sql), 3000);
    expect(Math.min(...indexes)).toBe(1002);
    expect(new Set(indexes).size).toBe(3000);
  });
});
