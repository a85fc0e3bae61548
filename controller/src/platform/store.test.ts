import { Counter, Registry } from 'prom-client';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { waitFor } from '../../../test/lab/wait.ts';
import { type Redis, startRedis } from '../../../test/redis.ts';
import { createLogger } from './log.ts';
import { memoryStore, openStore, redisStore, type Store } from './store.ts';

let redis: Redis;
beforeAll(async () => {
  redis = await startRedis();
});
afterAll(() => redis.stop());

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const fail = (error: unknown) => expect.unreachable(String(error));

for (const [name, open] of [
  ['in the process', () => memoryStore(Date.now)],
  ['in Redis', () => redisStore(redis.url, fail)],
] as const) {
  describe(`the store ${name}`, () => {
    let store: Store;
    beforeAll(async () => {
      store = open();
      await waitFor('the store', () => store.get('ready').then(() => true));
    });
    afterAll(() => store.close());

    it('counts by key until the window ends', async () => {
      const hits = await Promise.all([1, 2, 3].map(() => store.hit('a', 60_000)));
      expect(hits.map((hit) => hit.count).sort()).toEqual([1, 2, 3]);
      for (const { resetMs } of hits) expect(resetMs).toBeGreaterThan(50_000);
      expect((await store.hit('b', 60_000)).count).toBe(1);
      await store.hit('short', 40);
      await pause(80);
      expect((await store.hit('short', 40)).count).toBe(1);
    });

    it('keeps a value until it expires', async () => {
      await store.set('value', 'kept', 60_000);
      await store.set('brief', 'gone', 40);
      await pause(80);
      expect(await store.get('value')).toBe('kept');
      expect(await store.get('brief')).toBeNull();
      expect(await store.get('never')).toBeNull();
    });

    it('takes a name once, whoever is first of many, until it expires', async () => {
      const asked = await Promise.all(Array.from({ length: 20 }, () => store.once('proof', 60_000)));
      expect(asked.filter(Boolean)).toHaveLength(1);
      expect(await store.once('proof', 60_000)).toBe(false);
      expect(await store.once('another', 40)).toBe(true);
      expect(await store.once('another', 40)).toBe(false);
      await pause(80);
      expect(await store.once('another', 40)).toBe(true);
      // a name apart from the counters and values
      expect((await store.hit('proof', 60_000)).count).toBe(1);
    });
  });
}

it('goes on in the process, and counts that, while Redis is away', async () => {
  const survived = new Counter({
    name: 'survived',
    help: '-',
    labelNames: ['where'],
    registers: [new Registry()],
  });
  const store = openStore(redis.url, { now: Date.now, log: createLogger('silent'), survived });
  const failures = async () => (await survived.get()).values[0]?.value ?? 0;
  await waitFor('the connection', async () => {
    const before = await failures();
    await store.hit('warm', 60_000);
    return (await failures()) === before;
  });
  await store.hit('k', 60_000);
  expect(await store.once('seen', 60_000)).toBe(true);
  await redis.kill();
  const before = await failures();
  expect((await store.hit('k', 60_000)).count, 'another count, but an answer').toBe(1);
  expect((await store.hit('k', 60_000)).count).toBe(2);
  expect(await failures()).toBe(before + 2);
  // what this process let pass it refuses, whether Redis is away or has forgotten it
  expect(await store.once('seen', 60_000)).toBe(false);
  expect(await store.once('meanwhile', 60_000)).toBe(true);
  expect(await failures()).toBe(before + 3);
  await redis.start();
  await waitFor('Redis again', async () => {
    const before = await failures();
    await store.hit('k', 60_000);
    return (await failures()) === before;
  });
  expect(await store.once('seen', 60_000)).toBe(false);
  expect(await store.once('meanwhile', 60_000)).toBe(false);
  await store.close();
});

it('forgets the oldest keys rather than fill the memory', async () => {
  const store = memoryStore(() => 0);
  for (let at = 0; at < 100_050; at++) await store.hit(`key ${at}`, 60_000);
  expect((await store.hit('key 100049', 60_000)).count).toBe(2);
  expect((await store.hit('key 0', 60_000)).count).toBe(1);
});

it('refuses to take more names rather than forget one before its time', async () => {
  let now = 0;
  const store = memoryStore(() => now, 3);
  for (const name of ['a', 'b', 'c']) expect(await store.once(name, 1000)).toBe(true);
  await expect(store.once('d', 1000)).rejects.toMatchObject({ code: 'replay_cache_full', status: 503 });
  expect(await store.once('a', 1000)).toBe(false);
  now = 1000;
  expect(await store.once('d', 1000)).toBe(true);
});
