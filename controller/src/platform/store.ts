/**
 * A small store for what may be forgotten: rate limits, caches, proofs that were used. In the process, or in Redis where
 * several controllers must agree. Redis may go away at any time; then each counts by itself for a while, loudly, and
 * the API stays up.
 */
import { KatafractError } from '@katafract/shared/errors';
import { Redis } from 'ioredis';
import type { Counter } from 'prom-client';
import type { Logger } from './log.ts';

export interface Hit {
  /** Hits in the present window, this one included. */
  readonly count: number;
  /** Until the window ends, in ms. */
  readonly resetMs: number;
}

export interface Store {
  /** Counts one hit of a key. The window opens with its first hit. */
  hit(key: string, windowMs: number): Promise<Hit>;
  get(key: string): Promise<string | null>;
  set(key: string, value: string, ttlMs: number): Promise<void>;
  /**
   * True for the first who asks within `ttlMs`, false for all others.
   * @throws KatafractError `replay_cache_full` (503) rather than forget one before its time
   */
  once(key: string, ttlMs: number): Promise<boolean>;
  close(): Promise<void>;
}

/** Keys held at once; beyond that the oldest are forgotten, so that strangers cannot fill the memory. */
const CAPACITY = 100_000;
/** Names that `once` holds, at most: about 100 MB of them. */
const ONCE_CAPACITY = 1_000_000;

/** @param now milliseconds since the epoch */
export function memoryStore(now: () => number, onceCapacity = ONCE_CAPACITY): Store {
  // in order of insertion, which is nearly that of expiry
  const entries = new Map<string, { value: string; count: number; until: number }>();
  const live = (key: string) => {
    const entry = entries.get(key);
    if (entry && entry.until > now()) return entry;
    entries.delete(key);
    return undefined;
  };
  // apart from the rest: nothing here may be forgotten early
  const spent = new Map<string, number>();
  const forgetSpent = () => {
    for (const [oldest, until] of spent) {
      if (until > now()) break;
      spent.delete(oldest);
    }
  };
  const put = (key: string, value: string, ttlMs: number) => {
    const entry = { value, count: 0, until: now() + ttlMs };
    entries.delete(key);
    entries.set(key, entry);
    for (const [oldest, { until }] of entries) {
      if (until > now() && entries.size <= CAPACITY) break;
      entries.delete(oldest);
    }
    return entry;
  };
  return {
    async hit(key, windowMs) {
      const entry = live(key) ?? put(key, '', windowMs);
      entry.count++;
      return { count: entry.count, resetMs: entry.until - now() };
    },
    get: async (key) => live(key)?.value ?? null,
    async set(key, value, ttlMs) {
      put(key, value, ttlMs);
    },
    async once(key, ttlMs) {
      if ((spent.get(key) ?? 0) > now()) return false;
      spent.delete(key);
      forgetSpent();
      if (spent.size >= onceCapacity) throw storeFull();
      spent.set(key, now() + ttlMs);
      return true;
    },
    async close() {
      entries.clear();
      spent.clear();
    },
  };
}

const storeFull = () =>
  new KatafractError('replay_cache_full', 'too much to remember', { status: 503, retryAfter: 5 });

const PREFIX = 'katafract:';
/** One step on the server, so that a counter can never be left without its expiry. */
const HIT = `
local count = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  left = tonumber(ARGV[1])
end
return {count, left}`;

/** Rejects at once while Redis is away; see resilientStore. */
export function redisStore(url: string, onError: (error: unknown) => void): Store {
  const redis = new Redis(url, {
    keyPrefix: PREFIX,
    // nothing waits for Redis: what cannot be asked now is answered without it
    enableOfflineQueue: false,
    enableAutoPipelining: true,
    maxRetriesPerRequest: 0,
    connectTimeout: 2000,
    commandTimeout: 250,
    retryStrategy: (attempt) => Math.min(100 * attempt, 1000),
  });
  redis.on('error', onError);
  return {
    async hit(key, windowMs) {
      const [count, resetMs] = (await redis.eval(HIT, 1, key, windowMs)) as [number, number];
      return { count, resetMs };
    },
    get: (key) => redis.get(key),
    async set(key, value, ttlMs) {
      await redis.set(key, value, 'PX', ttlMs);
    },
    once: async (key, ttlMs) => (await redis.set(`once:${key}`, '', 'PX', Math.ceil(ttlMs), 'NX')) === 'OK',
    async close() {
      redis.disconnect();
    },
  };
}

/** `first` while it works, `second` for each call that fails there. */
export function resilientStore(
  first: Store,
  second: Store,
  deps: { log: Logger; survived: Counter<'where'> },
): Store {
  let down = false;
  const attempt = async <T>(work: (store: Store) => Promise<T>): Promise<T> => {
    try {
      const result = await work(first);
      if (down) deps.log.info({}, 'Redis is back');
      down = false;
      return result;
    } catch (err) {
      deps.survived.inc({ where: 'redis' });
      if (!down)
        deps.log.error(
          { err },
          'Redis fails: limits and used proofs are known to this process alone until it is back',
        );
      down = true;
      return work(second);
    }
  };
  return {
    hit: (key, windowMs) => attempt((store) => store.hit(key, windowMs)),
    get: (key) => attempt((store) => store.get(key)),
    set: (key, value, ttlMs) => attempt((store) => store.set(key, value, ttlMs)),
    // Here first, Redis or not: what this process has seen it refuses even if Redis was away or lost its memory since.
    // While it is away another controller cannot know: each refuses only what it saw itself, and that is counted.
    async once(key, ttlMs) {
      if (!(await second.once(key, ttlMs))) return false;
      return attempt((store) => (store === second ? Promise.resolve(true) : store.once(key, ttlMs)));
    },
    async close() {
      await first.close();
      await second.close();
    },
  };
}

/** The store that the configuration asks for. */
export function openStore(
  redisUrl: string | null,
  deps: { now: () => number; log: Logger; survived: Counter<'where'> },
): Store {
  const memory = memoryStore(deps.now);
  if (redisUrl === null) return memory;
  const redis = redisStore(redisUrl, (err) => deps.log.debug({ err }, 'Redis connection'));
  return resilientStore(redis, memory, deps);
}
