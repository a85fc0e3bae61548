import { type Clock, systemClock } from '@katafract/shared/clock';
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
    const batcher = new Batcher<number, number>(
      async (requests) => {
        batches.push(requests);
        if (batches.length === 1) await gate;
        return requests.map((one) => ok(one * 2));
      },
      3,
      systemClock,
    );
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
    const batcher = new Batcher<number, number>(
      async (requests) => {
        if (requests.includes(13)) throw new Error('unlucky');
        return requests.map(ok);
      },
      10,
      systemClock,
    );
    const outcomes = await Promise.allSettled([12, 13, 14].map((one) => batcher.submit(one)));
    expect(outcomes.map((one) => one.status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  });

  it('gives each request its own refusal', async () => {
    const refused: Outcome<number> = { ok: false, error: new Error('no') };
    const batcher = new Batcher<number, number>(
      async (requests) => requests.map((one) => (one < 2 ? ok(one) : refused)),
      10,
      systemClock,
    );
    await expect(batcher.submit(1)).resolves.toBe(1);
    await expect(batcher.submit(2)).rejects.toThrow('no');
  });

  it('gathers those who come back together, for as long as half of what the last batch took', async () => {
    let now = 0;
    const timers: { at: number; task: () => void }[] = [];
    const clock: Clock = {
      now: () => now,
      after(ms, task) {
        const timer = { at: now + ms, task };
        timers.push(timer);
        return () => timers.splice(timers.indexOf(timer), timers.includes(timer) ? 1 : 0);
      },
    };
    const batches: number[][] = [];
    const run = async (requests: number[]) => {
      batches.push(requests);
      now += 10;
      return requests.map(ok);
    };
    const batcher = new Batcher<number, number>(run, 100, clock);
    await Promise.all([1, 2, 3, 4, 5, 6].map((one) => batcher.submit(one)));
    const early = batcher.submit(7);
    await new Promise(setImmediate);
    expect(batches).toHaveLength(1); // it waits for the five others
    expect(timers.map(({ at }) => at - now)).toEqual([5]);
    const late = [8, 9, 10, 11, 12].map((one) => batcher.submit(one));
    await Promise.all([early, ...late]);
    expect(batches).toEqual([
      [1, 2, 3, 4, 5, 6],
      [7, 8, 9, 10, 11, 12],
    ]);
    expect(timers).toEqual([]);
    const alone = batcher.submit(13);
    await new Promise(setImmediate);
    timers[0]?.task();
    await alone;
    expect(batches.at(-1)).toEqual([13]);
  });
});
