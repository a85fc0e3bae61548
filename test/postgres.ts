/**
 * A real Postgres 17 for tests, demo and bench: the one the controller brings along, started through the controller's
 * own module, in a folder of its own that goes away with it. Databases are cloned from a migrated template, which
 * takes a few milliseconds instead of a migration each. What a database's users leave open is a leak, and is told.
 */
import { randomBytes } from 'node:crypto';
import { appendFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect, type Sql } from '../controller/src/platform/db.ts';
import {
  type EmbeddedPostgres,
  startEmbeddedPostgres,
} from '../controller/src/platform/embedded-postgres.ts';
import { createLogger } from '../controller/src/platform/log.ts';
import { migrate } from '../controller/src/platform/migrate.ts';
import { claim } from './lab/registry.ts';
import { waitFor } from './lab/wait.ts';

const TEMPLATE = 'kf_template';

export interface TestDatabase {
  readonly name: string;
  readonly url: string;
  /** Drops it. @returns the connections that were still open, one line each: they are leaks */
  drop(): Promise<string[]>;
}

export interface TestPostgres {
  /** A new migrated database. */
  createDatabase(): Promise<TestDatabase>;
  /** The postmaster, for tests that kill it; the server comes back by itself. */
  pid(): number;
  /** Stops it and removes its files. @returns databases that were not dropped */
  stop(): Promise<string[]>;
}

/** @param settings further `name=value` settings of the server */
export async function startPostgres(settings: Readonly<Record<string, string>> = {}): Promise<TestPostgres> {
  const owned = await claim();
  const logFile = join(owned.folder, 'postgres-supervisor.log');
  const log = createLogger('info', { write: (line) => appendFileSync(logFile, line) });
  try {
    const server = await startEmbeddedPostgres({ dataDir: join(owned.folder, 'postgres'), log, settings });
    const admin = connect(server.databaseUrl('postgres'), {
      max: 1,
      onnotice: () => undefined,
      connection: { application_name: 'test-fixture' },
    });
    await admin.unsafe(`create database ${TEMPLATE}`);
    await migrate(server.databaseUrl(TEMPLATE), log);
    return {
      createDatabase: () => createDatabase(server, admin),
      pid: () => server.pid(),
      async stop() {
        const left = await admin<
          { datname: string }[]
        >`select datname from pg_database where datname like 'kf_test_%'`;
        await admin.end({ timeout: 5 });
        await server.stop();
        await owned.release();
        return left.map((row) => row.datname);
      },
    };
  } catch (error) {
    await owned.release();
    throw error;
  }
}

async function createDatabase(server: EmbeddedPostgres, admin: Sql): Promise<TestDatabase> {
  const name = `kf_test_${randomBytes(6).toString('hex')}`;
  await admin.unsafe(`create database ${name} template ${TEMPLATE}`);
  return {
    name,
    url: server.databaseUrl(name),
    async drop() {
      const open = () => admin<{ line: string }[]>`
        select application_name || ' (' || coalesce(state, '?') || '): ' || left(query, 120) as line
        from pg_stat_activity where datname = ${name} and backend_type = 'client backend'`;
      // the server learns of a closed connection a moment after its client has closed it
      const closed = async () => (await open()).length === 0;
      await waitFor('closed connections', closed, { deadlineMs: 3000 }).catch(() => undefined);
      const leaks = (await open()).map((row) => row.line);
      await admin.unsafe(`drop database ${name} with (force)`);
      return leaks;
    },
  };
}
