/**
 * What clients lean on when they ask again and again, from wherever they are: pages that show each entry once, answers
 * of 304 until something changes, limits that several controllers share, and pages of other origins.
 */
import type { Peer } from '@katafract/shared/api';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { type Redis, startRedis } from '../redis.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';

const LIMIT = 60;
const database = useDatabase();
let redis: Redis;
let one: TestController;
let two: TestController;
let exit: FakeExit;

beforeAll(async () => {
  redis = await startRedis();
  const env = { REDIS_URL: redis.url, KATAFRACT_RATE_LIMIT_PER_MINUTE: String(LIMIT) };
  one = await startController(database.url, { env });
  two = await startController(database.url, { env, beside: one });
  await one.addRegion('fra');
  exit = await startExit(one, { node: 'fra-1', region: 'fra' });
  await waitFor('the exit', () => one.ctx.fleet.roster.regions().every(({ available }) => available));
});
afterAll(async () => {
  await exit.leave();
  await two.close();
  await one.close();
  await redis.stop();
});

interface Page {
  readonly items: { readonly id: string | number }[];
  readonly next: string | null;
}

async function everyPage(path: string, token: string): Promise<(string | number)[]> {
  const seen: (string | number)[] = [];
  for (let cursor = ''; ; ) {
    const { status, body } = await one.call<Page>('GET', `${path}?limit=3${cursor}`, { token });
    expect(status).toBe(200);
    expect(body.items.length).toBeLessThanOrEqual(3);
    seen.push(...body.items.map(({ id }) => id));
    if (body.next === null) return seen;
    cursor = `&cursor=${body.next}`;
  }
}

it('a list in pages shows every entry once, in its order, and ends', async () => {
  const { sigil } = await one.mint('pro');
  const made: string[] = [];
  for (let count = 0; count < 6; count++) made.push((await one.provision(sigil, newKey(), 'fra')).body.id);
  expect(await everyPage('/v1/peers', sigil), 'six make two full pages and no third').toEqual(made);
  for (const path of ['/v1/admin/audit', '/v1/admin/sigils']) {
    const seen = await everyPage(path, one.operatorToken);
    expect(new Set(seen).size).toBe(seen.length);
    expect(seen, 'newest first').toEqual([...seen].sort((a, b) => (a < b ? 1 : -1)));
    const { body } = await one.call<Page>('GET', `${path}?limit=100`, { token: one.operatorToken });
    expect(seen).toEqual(body.items.map(({ id }) => id));
  }
  const { body } = await one.call<Page>('GET', '/v1/peers?limit=1', { token: sigil });
  const elsewhere = `/v1/admin/audit?cursor=${body.next}`;
  expect(await one.call('GET', elsewhere, { token: one.operatorToken })).toMatchObject({
    code: 'bad_cursor',
  });
});

it('one subscription sees nothing of another, nor learns that it is there', async () => {
  const [mine, yours] = [await one.mint('plus'), await one.mint('plus')];
  const { body: peer } = await one.provision(mine.sigil, newKey(), 'fra');
  expect(await everyPage('/v1/peers', yours.sigil)).toEqual([]);
  const path = `/v1/peers/${peer.id}`;
  const body = { publicKey: newKey(), region: 'fra' };
  for (const [method, at] of [
    ['GET', path],
    ['DELETE', path],
    ['PUT', `${path}/key`],
    ['POST', `${path}/move`],
  ] as const) {
    const { publicKey, region } = body;
    const wish = method === 'PUT' ? { publicKey } : method === 'POST' ? { region } : undefined;
    const answer = await one.call(method, at, { token: yours.sigil, body: wish });
    expect(answer, `${method} ${at}`).toMatchObject({ status: 404, code: 'peer_unknown' });
  }
  expect((await one.call<Peer>('GET', path, { token: mine.sigil })).body).toEqual(peer);
});

it('a poll answers 304 until a peer changes', async () => {
  const { sigil } = await one.mint('plus');
  const poll = (tag: string) =>
    one.call('GET', '/v1/peers', { token: sigil, headers: tag === '' ? {} : { 'if-none-match': tag } });
  const first = await poll('');
  const tag = first.headers.get('etag') ?? '';
  expect(tag).not.toBe('');
  const same = await poll(tag);
  expect([same.status, same.text, same.headers.get('etag')]).toEqual([304, '', tag]);
  await one.provision(sigil, newKey(), 'fra');
  expect((await poll(tag)).status).toBe(200);
});

it('pages of any origin may call the API of apps, and read its errors; operators have no pages elsewhere', async () => {
  const headers = { origin: 'https://app.example', 'access-control-request-method': 'POST' };
  const preflight = await one.call('OPTIONS', '/v1/peers', { headers });
  expect(preflight.status).toBe(204);
  expect(preflight.headers.get('access-control-allow-methods')).toContain('POST');
  const refused = await one.call('GET', '/v1/peers', { headers });
  expect(refused).toMatchObject({ status: 401, code: 'unauthorized' });
  expect(refused.headers.get('access-control-allow-origin')).toBe('*');
  expect(refused.headers.get('access-control-expose-headers')).toContain('Retry-After');
  const admin = await one.call('OPTIONS', '/v1/admin/nodes', { headers });
  expect(admin.headers.get('access-control-allow-origin')).toBeNull();
});

it('every answer has an id of its own, which the log has too', async () => {
  const answers = await Promise.all([
    one.call('GET', '/healthz'),
    one.call('GET', '/nowhere'),
    one.call('GET', '/v1/peers', { headers: { 'x-request-id': 'chosen by the client' } }),
  ]);
  const ids = answers.map(({ headers }) => headers.get('x-request-id') ?? '');
  expect(new Set(ids).size).toBe(3);
  for (const id of ids) {
    expect(id).toMatch(/^[0-9a-f-]{36}$/);
    expect(one.logs.some((line) => line.includes(id))).toBe(true);
  }
});

it('a limit is one limit at two controllers, and holds on in each while Redis is away', async () => {
  const { sigil } = await one.mint('plus');
  const ask = (index: number) => (index % 2 === 0 ? one : two).call('GET', '/v1/sigil', { token: sigil });
  const many = async () => Promise.all(Array.from({ length: 2 * LIMIT }, (_, index) => ask(index)));
  const answers = await many();
  expect(answers.filter(({ status }) => status === 200)).toHaveLength(LIMIT);
  const refused = answers.filter(({ code }) => code === 'rate_limited');
  expect(refused).toHaveLength(LIMIT);
  for (const { headers } of refused) {
    expect(Number(headers.get('retry-after'))).toBeGreaterThan(0);
    expect(headers.get('ratelimit')).toMatch(/^"subscription";r=0;t=\d+$/);
  }
  await redis.kill();
  const alone = await many();
  expect(
    alone.filter(({ status }) => status === 200),
    'each for itself',
  ).toHaveLength(2 * LIMIT);
  expect((await ask(0)).code).toBe('rate_limited');
});
