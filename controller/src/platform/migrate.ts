/**
 * Brings a database up to this version's schema at start. Several controllers may start at once: one migrates under a
 * session lock, the others wait and find nothing left to do.
 */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { KatafractError } from '@katafract/shared/errors';
import { drizzle } from 'drizzle-orm/postgres-js';
import { migrate as drizzleMigrate } from 'drizzle-orm/postgres-js/migrator';
import { connect, type Sql } from './db.ts';
import type { Logger } from './log.ts';

const LOCK = 7_261_002;

/** /drizzle of this tree: above the sources, and above the bundle as well. */
export function migrationsFolder(): string {
  for (let at = dirname(fileURLToPath(import.meta.url)); ; at = dirname(at)) {
    const folder = join(at, 'drizzle');
    if (existsSync(join(folder, 'meta', '_journal.json'))) return folder;
    if (at === dirname(at)) throw new KatafractError('migrations_missing', 'the drizzle folder is not there');
  }
}

/** When the newest migration of a folder was made, in milliseconds since the epoch: what drizzle orders them by. */
async function newest(folder: string): Promise<number> {
  const journal = JSON.parse(await readFile(join(folder, 'meta', '_journal.json'), 'utf8'));
  return Math.max(...journal.entries.map((entry: { when: number }) => entry.when));
}

/**
 * Applies what is missing, all in one transaction.
 * @throws KatafractError `database_newer`: the schema is of a later version than this program
 */
export async function migrate(url: string, log: Logger, folder = migrationsFolder()): Promise<void> {
  const sql = connect(url, {
    max: 1,
    connect_timeout: 5,
    target_session_attrs: 'primary',
    onnotice: () => undefined,
  });
  try {
    await sql`select pg_advisory_lock(${LOCK})`;
    const before = await lastApplied(sql);
    const wanted = await newest(folder);
    if (before > wanted)
      throw new KatafractError('database_newer', 'the database was migrated by a later version of Katafract');
    if (before === wanted) return;
    await drizzleMigrate(drizzle(sql), { migrationsFolder: folder });
    log.info({ from: before, to: wanted }, 'the schema was migrated');
  } finally {
    await sql.end({ timeout: 5 });
  }
}

async function lastApplied(sql: Sql): Promise<number> {
  const [table] = await sql`select to_regclass('drizzle.__drizzle_migrations') is not null as there`;
  if (table?.there !== true) return 0;
  const [row] =
    await sql`select coalesce(max(created_at), 0)::float8 as at from drizzle.__drizzle_migrations`;
  return row?.at ?? 0;
}
