/** Tables, migrations and the dump of the schema say the same. */
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../../../test/database.ts';
import { connect, type Sql } from './db.ts';
import { createLogger } from './log.ts';
import { migrate, migrationsFolder } from './migrate.ts';
import { dumpSchema } from './schema-dump.ts';

const database = useDatabase();
const log = createLogger('silent');
let sql: Sql;
let fresh: string;
const options = { max: 1, onnotice: () => undefined };

beforeAll(async () => {
  sql = connect(database.url, options);
  const name = `${new URL(database.url).pathname.slice(1)}_fresh`;
  await sql.unsafe(`create database ${name}`);
  fresh = database.url.replace(/\/[^/?]+\?/, `/${name}?`);
});
afterAll(async () => {
  await sql.unsafe(`drop database ${new URL(fresh).pathname.slice(1)} with (force)`);
  await sql.end();
});

it('brings a fresh database up once, however many controllers start at once', async () => {
  await Promise.all([migrate(fresh, log), migrate(fresh, log), migrate(fresh, log)]);
  const at = connect(fresh, options);
  const applied = await at`select 1 from drizzle.__drizzle_migrations`;
  const files = readdirSync(migrationsFolder()).filter((name) => /^\d{4}_.*\.sql$/.test(name));
  expect(applied).toHaveLength(files.length);
  await expect(`${await dumpSchema(at)}`).toMatchFileSnapshot(join(migrationsFolder(), 'schema.sql'));
  await at.end();
});

it('has a migration for everything in the tables', async () => {
  const { generateDrizzleJson, generateMigration } = createRequire(import.meta.url)('drizzle-kit/api');
  const sources = fileURLToPath(new URL('..', import.meta.url));
  const files = readdirSync(sources, { recursive: true, encoding: 'utf8' }).filter((path) =>
    /^(?:[a-z]+\/)+tables\.ts$/.test(path),
  );
  const tables = Object.assign({}, ...(await Promise.all(files.map((path) => import(join(sources, path))))));
  const journal = JSON.parse(readFileSync(join(migrationsFolder(), 'meta/_journal.json'), 'utf8'));
  const last = String(journal.entries.at(-1).idx).padStart(4, '0');
  const snapshot = JSON.parse(readFileSync(join(migrationsFolder(), `meta/${last}_snapshot.json`), 'utf8'));
  expect(files.length).toBeGreaterThan(4);
  expect(await generateMigration(snapshot, generateDrizzleJson(tables, snapshot.id))).toEqual([]);
});

it('refuses a database that a later version has migrated', async () => {
  const at = connect(fresh, options);
  await at`insert into drizzle.__drizzle_migrations (hash, created_at) values ('later', ${Date.now() * 2})`;
  await at.end();
  await expect(migrate(fresh, log)).rejects.toMatchObject({ code: 'database_newer' });
});
