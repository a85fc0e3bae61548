/**
 * The floor under any API that stores what it is told: a bare Hono route that inserts one row through postgres.js. The
 * same HTTP server, driver, database and pool size as the controller's, and nothing else.
 */
import { serve } from '@hono/node-server';
import { Hono } from 'hono';
import { connect } from '../../controller/src/platform/db.ts';
import { FLOOR_TABLE } from './work/parts.ts';

const { DATABASE_URL = '', HOST = '', PORT = '', POOL = '' } = process.env;
const sql = connect(DATABASE_URL, { max: Number(POOL), onnotice: () => undefined });
await sql.unsafe(`create table if not exists ${FLOOR_TABLE} (id uuid primary key, public_key text not null)`);

const app = new Hono();
app.post('/rows', async (c) => {
  const { publicKey } = await c.req.json<{ publicKey: string }>();
  const id = crypto.randomUUID();
  await sql`insert into ${sql(FLOOR_TABLE)} (id, public_key) values (${id}, ${publicKey})`;
  return c.json({ id }, 201);
});
serve({ fetch: app.fetch, hostname: HOST, port: Number(PORT) }, () => console.log('listening'));
