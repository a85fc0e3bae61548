/**
 * The one database handle: drizzle over postgres.js, with the raw postgres.js handle beside it for LISTEN and for hot
 * statements. Two facts of the driver shape its use:
 * - drizzle sends unprepared statements; a tagged `sql` statement is prepared once per connection.
 * - statements issued concurrently inside one transaction are pipelined in one round trip (`Promise.all`).
 *
 * A demoted primary keeps its connections and answers writes with 25006 for ever, so on that code (and when a ping
 * finds a standby) the whole pool is exchanged: read `db.sql` and `db.orm` anew for each use, never keep them.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { PgDatabase } from 'drizzle-orm/pg-core';
import { drizzle, type PostgresJsQueryResultHKT, PostgresJsSession } from 'drizzle-orm/postgres-js';
import postgres from 'postgres';
import type { Logger } from './log.ts';

export type Orm = PgDatabase<PostgresJsQueryResultHKT>;
/** bigint columns come as numbers, timestamps as text; Date, number, string and null are fine as parameters. */
export type Sql = postgres.Sql;

/** One transaction, reached through either of the two. */
export interface Tx {
  readonly orm: Orm;
  readonly sql: Sql;
}

/** Runs once the transaction it came from is committed; never if it was rolled back. */
export type AfterCommit = () => void;

export interface Database extends Tx {
  /** Commits when `fn` resolves and rolls back when it rejects. A lost connection rejects; nothing is retried. */
  transaction<T>(fn: (tx: Tx) => Promise<T>): Promise<T>;
  /**
   * Subscribes to NOTIFY. `onReady` runs each time listening begins, so also after every reconnect: notifications in
   * between are lost, and a listener must look for itself what it missed.
   */
  listen(channel: string, fn: (payload: string) => void, onReady?: () => void): Promise<() => Promise<void>>;
  /** A connection of its own, never recycled, for what is bound to one: the caller ends it. */
  session(): Sql;
  /** @throws KatafractError `database_unavailable` (503), also when the server is a read-only standby. */
  ping(): Promise<void>;
  close(): Promise<void>;
}

export interface DatabaseOptions {
  /** Connections at most; the LISTEN connection comes on top. */
  readonly max?: number;
  /** Shown in pg_stat_activity. */
  readonly name?: string;
}

const UNAVAILABLE = new Set([
  'CONNECTION_CLOSED',
  'CONNECTION_DESTROYED',
  'CONNECTION_ENDED',
  'CONNECT_TIMEOUT',
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ENOENT',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  '25006',
  '53300',
  '57P01',
  '57P02',
  '57P03',
]);
/** Serialization failure, deadlock, lock timeout: the same request may well succeed a moment later. */
const BUSY = new Set(['40001', '40P01', '55P03']);

/** The code of the driver's error, however deep drizzle or a caller has wrapped it; undefined where there is none. */
function driverCode(error: unknown): string | undefined {
  for (let at = error, depth = 0; at instanceof Error && depth < 5; at = at.cause, depth++) {
    const { code } = at as { code?: unknown };
    // postgres.js marks the errors of its own: with the query, or by its own kind of code. Others' ECONNREFUSED
    // (a broker's, say) must not pass for the database's.
    const own = at instanceof postgres.PostgresError || 'query' in at || /^CONNECT/.test(String(code));
    if (own && typeof code === 'string') return code;
  }
  return undefined;
}

/**
 * Reads a failure of the database.
 * @returns KatafractError `database_unavailable` or `database_busy` (503), or null where it is another failure
 */
export function databaseError(error: unknown): KatafractError | null {
  const code = driverCode(error);
  if (code === undefined) return null;
  const options = { status: 503, retryAfter: 2, cause: error };
  if (UNAVAILABLE.has(code) || code.startsWith('08'))
    return new KatafractError('database_unavailable', 'the database cannot be reached', options);
  if (BUSY.has(code)) return new KatafractError('database_busy', 'the database was busy', options);
  return null;
}

/** SQLSTATE of a violated unique constraint with its name, for callers that expect one. */
export function uniqueViolation(error: unknown): string | null {
  for (let at = error, depth = 0; at instanceof Error && depth < 5; at = at.cause, depth++) {
    if (at instanceof postgres.PostgresError && at.code === '23505') return at.constraint_name ?? '';
  }
  return null;
}

/**
 * A postgres.js handle for a URL. Beyond the driver's own it reads `?host=/directory`, libpq's form for a Unix socket.
 */
export function connect(url: string, options: postgres.Options<Record<string, never>>): Sql {
  const parsed = new URL(url);
  const host = parsed.searchParams.get('host');
  parsed.searchParams.delete('host');
  return postgres(parsed.href, host === null ? options : { ...options, host });
}

function openPool(
  url: string,
  options: DatabaseOptions,
  log: Logger,
  overrides: { max_lifetime?: null } = {},
) {
  const sql = connect(url, {
    max: options.max ?? 16,
    connect_timeout: 5,
    max_lifetime: 300,
    // How soon a lost database is tried again, in seconds. The driver's own rises to 20.
    backoff: (retries: number) => Math.min(0.05 * 2 ** retries, 0.5),
    // `read-write` would connect to a hot standby; `primary` does not.
    target_session_attrs: 'primary',
    connection: { application_name: options.name ?? 'katafract' },
    onnotice: (notice) => log.debug({ code: notice.code ?? '' }, `postgres: ${notice.message ?? ''}`),
    ...overrides,
  });
  const orm = drizzle(sql);
  // drizzle makes dates and JSON pass through untouched, for the whole handle. Let parameters of raw statements be
  // Dates and objects as well, and int8 a number: every one of ours is below 2^53.
  const date = (value: unknown) => (value instanceof Date ? value.toISOString() : value);
  for (const type of [1184, 1114]) sql.options.serializers[type] = date;
  const text = (value: unknown) => (typeof value === 'string' ? value : JSON.stringify(value));
  for (const type of [114, 3802]) sql.options.serializers[type] = text;
  sql.options.parsers[20] = Number;
  return { sql, orm };
}

/**
 * Connects, and waits until the database answers.
 * @param url one host: a name that follows the primary, or a Unix socket by `?host=`
 * @throws KatafractError `database_unavailable` after `patienceMs`
 */
export async function openDatabase(
  url: string,
  log: Logger,
  options: DatabaseOptions & { patienceMs?: number } = {},
): Promise<Database> {
  const database = new PostgresDatabase(url, log, options);
  const deadline = Date.now() + (options.patienceMs ?? 10_000);
  for (;;) {
    try {
      await database.ping();
      return database;
    } catch (error) {
      if (Date.now() > deadline || databaseError(error) === null) {
        await database.close();
        throw databaseError(error) ?? error;
      }
      log.warn({ err: error }, 'the database does not answer yet');
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  }
}

type Pool = ReturnType<typeof openPool>;

/** A server that takes longer to answer the smallest question counts as lost. */
const PING_MS = 5000;

const unavailable = (message: string) =>
  new KatafractError('database_unavailable', message, { status: 503, retryAfter: 2 });

interface Listener {
  readonly channel: string;
  readonly fn: (payload: string) => void;
  readonly onReady: () => void;
  stop: () => Promise<void>;
}

class PostgresDatabase implements Database {
  readonly #url: string;
  readonly #log: Logger;
  readonly #options: DatabaseOptions;
  readonly #listeners = new Set<Listener>();
  #pool: Pool;
  #watch: Sql | null = null;

  constructor(url: string, log: Logger, options: DatabaseOptions) {
    this.#url = url;
    this.#log = log;
    this.#options = options;
    this.#pool = openPool(url, options, log);
  }

  get orm(): Orm {
    return this.#pool.orm;
  }

  get sql(): Sql {
    return this.#pool.sql;
  }

  async transaction<T>(fn: (tx: Tx) => Promise<T>): Promise<T> {
    const pool = this.#pool;
    try {
      return await pool.orm.transaction((orm) => {
        const { session } = orm._;
        if (!(session instanceof PostgresJsSession)) throw new TypeError('not a session of postgres.js');
        return fn({ orm, sql: session.client });
      });
    } catch (error) {
      if (driverCode(error) === '25006') this.#recycle(pool);
      throw error;
    }
  }

  async listen(channel: string, fn: (payload: string) => void, onReady: () => void = () => undefined) {
    const listener: Listener = { channel, fn, onReady, stop: async () => undefined };
    await this.#subscribe(listener);
    this.#listeners.add(listener);
    return async () => {
      this.#listeners.delete(listener);
      await listener.stop();
    };
  }

  async #subscribe(listener: Listener): Promise<void> {
    const { unlisten } = await this.sql.listen(listener.channel, listener.fn, listener.onReady);
    listener.stop = unlisten;
  }

  session(): Sql {
    return openPool(this.#url, { ...this.#options, max: 1 }, this.#log, { max_lifetime: null }).sql;
  }

  async ping(): Promise<void> {
    const pool = this.#pool;
    // on a connection of its own: a pool that is merely busy must not look like a lost database
    const watch = this.#watch ?? this.session();
    this.#watch = watch;
    let timer: NodeJS.Timeout | undefined;
    const silence = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(unavailable('the database does not answer')), PING_MS);
    });
    try {
      const [row] = await Promise.race([
        watch<{ standby: boolean }[]>`select pg_is_in_recovery() as standby`,
        silence,
      ]);
      if (row?.standby !== false) throw unavailable('the database is a standby');
    } catch (error) {
      // refused or reset connections end by themselves; those to a silent or demoted server must be cut
      if (error instanceof KatafractError) this.#recycle(pool);
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Leaves a demoted or silent server: new connections resolve the name again and insist on a primary. */
  #recycle(stale: Pool): void {
    if (this.#pool !== stale) return;
    this.#log.warn({}, 'the database is not the primary any more, or silent: reconnecting');
    this.#pool = openPool(this.#url, this.#options, this.#log);
    const failed = (err: unknown) => this.#log.error({ err }, 'the exchange of the database pool failed');
    stale.sql.end({ timeout: 0 }).catch(failed);
    this.#watch?.end({ timeout: 0 }).catch(failed);
    this.#watch = null;
    for (const listener of this.#listeners) this.#subscribe(listener).catch(failed);
  }

  async close(): Promise<void> {
    this.#listeners.clear();
    await this.#watch?.end({ timeout: 1 });
    await this.#pool.sql.end({ timeout: 5 });
  }
}
