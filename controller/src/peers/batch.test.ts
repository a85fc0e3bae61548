import { describe, expect, it } from 'vitest';
import { Batcher, type Outcome } from './batch.ts';

const ok = <T>(value: T): Outcome<T> => ({ ok: true, value });

describe('Batcher', () => {
  it('takes what waits together, and one batch at a time', async () => {
    const batches: number[][] = [];
    let release: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    const batcher = new Batcher<number, number>(async (requests) => {
      batches.push(requests);
      if (batches.length === 1) await gate;
      return requests.map((one) => ok(one * 2));
    }, 3);
    const first = batcher.submit(1);
    await Promise.resolve();
    await Promise.resolve();
    const rest = [2, 3, 4, 5].map((one) => batcher.submit(one));
    release();
    expect(await Promise.all([first, ...rest])).toEqual([2, 4, 6, 8, 10]);
    expect(batches).toEqual([[1], [2, 3, 4], [5]]);
    await batcher.idle();
  });

  it('lets no request fail its neighbours', async () => {
    const batcher = new Batcher<number, number>(async (requests) => {
      if (requests.includes(13)) throw new Error('unlucky');
      return requests.map(ok);
    }, 10);
    const outcomes = await Promise.allSettled([12, 13, 14].map((one) => batcher.submit(one)));
    expect(outcomes.map((one) => one.status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  });

  it('gives each request its own refusal', async () => {
    const refused: Outcome<number> = { ok: false, error: new Error('no') };
    const batcher = new Batcher<number, number>(
      async (requests) => requests.map((one) => (one < 2 ? ok(one) : refused)),
      10,
    );
    await expect(batcher.submit(1)).resolves.toBe(1);
    await expect(batcher.submit(2)).rejects.toThrow('no');
  });
});
