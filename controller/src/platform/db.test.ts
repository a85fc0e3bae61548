/** The database handle against a real Postgres: what happens when connections are lost is what it is there for. */
import { mkdtemp, rm } from 'node:fs/promises';
import { connect as connectTo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { KatafractError } from '@katafract/shared/errors';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../../../test/database.ts';
import { waitFor } from '../../../test/lab/wait.ts';
import { auditLog } from '../audit/tables.ts';
import { connect, type Database, databaseError, openDatabase, type Sql } from './db.ts';
import { createLogger } from './log.ts';

const database = useDatabase();
const log = createLogger('silent');
let db: Database;
let admin: Sql;

beforeAll(async () => {
  db = await openDatabase(database.url, log, { max: 3, name: 'db-test' });
  admin = connect(database.url, { max: 1, onnotice: () => undefined });
});
afterAll(async () => {
  await db.close();
  await admin.end();
});

const entry = (subject: string) => ({ actor: 'system', action: 'test', subject, detail: {} });
const subjects = async () => (await db.orm.select().from(auditLog)).map((row) => row.subject);
const pidOf = async (sql: Sql) => Number((await sql`select pg_backend_pid() as pid`)[0]?.pid);
const kill = (pid: number) => admin`select pg_terminate_backend(${pid}, 5000)`;

describe('transactions', () => {
  it('show one transaction through both handles, and leave nothing behind when they fail', async () => {
    const failed = db.transaction(async ({ orm, sql }) => {
      await orm.insert(auditLog).values(entry('rolled-back'));
      expect(await sql`select 1 from audit_log where subject = 'rolled-back'`).toHaveLength(1);
      throw new Error('no');
    });
    await expect(failed).rejects.toThrow('no');
    await db.transaction(async ({ orm }) => void (await orm.insert(auditLog).values(entry('committed'))));
    expect(await subjects()).toEqual(['committed']);
  });

  it('speak numbers, dates and JSON with raw statements', async () => {
    const at = new Date('2026-01-02T03:04:05.678Z');
    const [row] = await db.sql`
      select ${5}::int8 as big, ${at}::timestamptz as at, ${db.sql.json({ a: [1] })}::jsonb as json`;
    expect(row).toMatchObject({ big: 5, json: { a: [1] } });
    expect(new Date(row?.at)).toEqual(at);
  });
});

describe('a connection lost in the middle of a transaction', () => {
  it('fails what is under way as database_unavailable', async () => {
    const lost = db.transaction(async ({ sql }) => {
      const pid = await pidOf(sql);
      await Promise.all([sql`select pg_sleep(30)`, kill(pid)]);
    });
    const error = databaseError(await lost.catch((reason) => reason));
    expect(error).toMatchObject({ code: 'database_unavailable', status: 503, retryAfter: 2 });
  });

  it('never lets a later statement run outside of it, though the pool has reconnected', async () => {
    const lost = db.transaction(async ({ sql }) => {
      await kill(await pidOf(sql));
      // every connection of the pool is used again before the transaction goes on
      await waitFor('reconnection', async () => {
        await Promise.all([1, 2, 3, 4, 5, 6].map(() => db.sql`select pg_sleep(0.01)`));
        return true;
      });
      await sql`insert into audit_log (actor, action, subject, detail) values ('system', 'test', 'escaped', '{}')`;
    });
    await expect(lost).rejects.toThrow();
    expect(await subjects()).not.toContain('escaped');
  });
});

describe('a server that turned read-only', () => {
  it('is left: the next write goes over new connections, and listeners hear again', async () => {
    const heard: string[] = [];
    let ready = 0;
    const stop = await db.listen(
      'db_test',
      (payload) => heard.push(payload),
      () => ready++,
    );
    const before = db.sql;
    const failed = db.transaction(async ({ sql }) => {
      await sql`set transaction read only`;
      await sql`insert into audit_log (actor, action, subject, detail) values ('system', 'test', 'ro', '{}')`;
    });
    const error = databaseError(await failed.catch((reason) => reason));
    expect(error?.code).toBe('database_unavailable');
    expect(db.sql).not.toBe(before);
    await waitFor('listening again', () => ready === 2);
    await db.sql`select pg_notify('db_test', 'again')`;
    await waitFor('the notification', () => heard.includes('again'));
    await stop();
  });
});

describe('a connection that is given up while it comes up', () => {
  it('fails whoever waits for it, and nobody else: a fault that nobody can catch would end the controller', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'kf-db-'));
    const url = new URL(database.url);
    const name = '.s.PGSQL.5432';
    const real = join(url.searchParams.get('host') ?? '', name);
    // never answers what the driver asks before everything else: which types are arrays
    let asked: () => void = () => undefined;
    const asking = new Promise<void>((resolve) => {
      asked = resolve;
    });
    const server = createServer((client) => {
      const upstream = connectTo(real);
      upstream.pipe(client);
      client.on('data', (data) => (data.includes('typarray') ? asked() : upstream.write(data)));
      client.on('close', () => upstream.destroy());
    });
    await new Promise<void>((resolve) => server.listen(join(folder, name), resolve));
    url.searchParams.set('host', folder);
    const uncaught: unknown[] = [];
    const listener = (reason: unknown) => uncaught.push(reason);
    process.on('unhandledRejection', listener);
    try {
      const pool = connect(url.href, { max: 1 });
      const answer = pool`select 1`.catch((error: unknown) => error);
      await asking;
      await pool.end({ timeout: 0 });
      expect(databaseError(await answer)?.code).toBe('database_unavailable');
      await turn();
      expect(uncaught).toEqual([]);
    } finally {
      process.off('unhandledRejection', listener);
      server.close();
      await rm(folder, { recursive: true });
    }
  });
});

describe('LISTEN', () => {
  it('begins again by itself after its connection was lost, and says so', async () => {
    const heard: string[] = [];
    let ready = 0;
    const stop = await db.listen(
      'db_test_lost',
      (payload) => heard.push(payload),
      () => ready++,
    );
    const [listener] = await admin`
      select pid from pg_stat_activity where query = 'listen "db_test_lost"' and state = 'idle'`;
    await kill(Number(listener?.pid));
    await waitFor('listening again', () => ready === 2);
    await db.sql`select pg_notify('db_test_lost', 'again')`;
    await waitFor('the notification', () => heard.includes('again'));
    await stop();
  });
});

describe('databaseError', () => {
  it('knows a database that is not there', async () => {
    const opening = openDatabase('postgres://nobody@127.0.0.1:1/none', log, { patienceMs: 0 });
    await expect(opening).rejects.toMatchObject({ code: 'database_unavailable' });
  });

  it("does not take another system's refused connection for the database's", async () => {
    const redis = new Redis('redis://127.0.0.1:1', { lazyConnect: true, retryStrategy: () => null });
    redis.on('error', () => undefined);
    const error = await redis.connect().catch((reason) => reason);
    expect(error).toBeInstanceOf(Error);
    expect(databaseError(error)).toBeNull();
    expect(databaseError(new KatafractError('other', 'other'))).toBeNull();
  });
});
