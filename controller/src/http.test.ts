/** The edge of the API over real sockets: every refusal is a problem document, and nothing is open by accident. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Problem } from '@katafract/shared/problem';
import { REGIONS_TYP, SIGNATURE_HEADER, verifyBody } from '@katafract/shared/signed-body';
import type { JSONWebKeySet } from 'jose';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../../test/database.ts';
import { loadConfig } from './config.ts';
import { type Context, createContext } from './context.ts';
import { createHttp } from './http.ts';
import { createLogger } from './platform/log.ts';
import { type HttpListener, listenHttp } from './platform/server.ts';

const database = useDatabase();
const lines: string[] = [];
const onFault = (error: unknown) => expect.fail(String(error));
let folder: string;
let ctx: Context;
let open: HttpListener;
let mesh: HttpListener;
let operator: Record<string, string>;
let app: Record<string, string>;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kf-http-'));
  const config = loadConfig({
    DATABASE_URL: database.url,
    KATAFRACT_DATA_DIR: folder,
    KATAFRACT_MESH_LISTEN: '127.0.0.1:0',
    KATAFRACT_MQTT_LISTEN: '127.0.0.1:0',
    KATAFRACT_TRUSTED_PROXIES: '127.0.0.1',
    KATAFRACT_RATE_LIMIT_PER_MINUTE: '50',
    KATAFRACT_ANONYMOUS_LIMIT_PER_MINUTE: '5',
  });
  ctx = await createContext(config, {
    log: createLogger('debug', { write: (line) => void lines.push(line) }),
  });
  const api = createHttp(ctx);
  api.get('/v1/regions/broken', () => {
    throw new Error('password=hunter2 in an internal message');
  });
  open = await listenHttp(api, { host: '127.0.0.1', port: 0 }, false, onFault);
  mesh = await listenHttp(api, { host: '127.0.0.1', port: 0 }, true, onFault);
  operator = { authorization: `Bearer ${(await readFile(config.operatorToken.path, 'utf8')).trim()}` };
  app = { authorization: `Bearer ${(await mint()).sigil}` };
});
afterAll(async () => {
  await Promise.all([open.drain(1000), mesh.drain(1000)]);
  await ctx.close();
  await rm(folder, { recursive: true });
});

let stranger = 0;
/** Each from an address of its own, as told by the trusted proxy, so that no test uses up another's limit. */
const call = (path: string, init: RequestInit & { at?: HttpListener; from?: string } = {}) =>
  fetch(`${(init.at ?? open).url}${path}`, {
    ...init,
    headers: { 'x-forwarded-for': init.from ?? `198.51.100.${stranger++}`, ...(init.headers as object) },
  });
const post = (path: string, body: unknown, headers: Record<string, string> = {}, at = mesh) =>
  call(path, {
    at,
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
async function problem(response: Response) {
  expect(response.headers.get('content-type')).toBe('application/problem+json');
  const parsed = Problem.parse(await response.json());
  expect(parsed.status).toBe(response.status);
  return parsed;
}
const code = async (response: Response) => [response.status, (await problem(response)).code];
async function mint(): Promise<{ id: string; subscription: string; sigil: string }> {
  const body = { tier: 'plus', expiresAt: new Date(Date.now() + 3_600_000).toISOString() };
  const response = await post('/v1/admin/sigils', body, operator);
  expect(response.status).toBe(201);
  return (await response.json()) as { id: string; subscription: string; sigil: string };
}

describe('refusals', () => {
  it('name what is wrong with a request', async () => {
    expect(await code(await post('/v1/admin/sigils', '{"tier":', operator))).toEqual([400, 'bad_json']);
    const wrong = await problem(await post('/v1/admin/sigils', { tier: 'gold', x: 1 }, operator));
    expect(wrong).toMatchObject({ status: 400, code: 'bad_request' });
    expect(wrong.errors?.map((error) => error.path)).toContain('json.tier');
    expect(
      await code(await post('/v1/admin/sigils', 'tier=plus', { ...operator, 'content-type': 'text/plain' })),
    ).toEqual([415, 'unsupported_media_type']);
    const cursor = await call('/v1/admin/sigils?cursor=AAAA', { at: mesh, headers: operator });
    expect(await code(cursor)).toEqual([400, 'bad_cursor']);
    expect(await code(await call('/v1/nothing'))).toEqual([404, 'not_found']);
  });

  it('name the methods that a path knows', async () => {
    const response = await call('/v1/regions', { method: 'DELETE', headers: app });
    expect(response.headers.get('allow')).toBe('GET, HEAD');
    expect(await code(response)).toEqual([405, 'method_not_allowed']);
  });

  it('stop a body that is too large, declared or in chunks', async () => {
    const body = JSON.stringify({ tier: 'plus', padding: 'x'.repeat(70_000) });
    expect(await code(await post('/v1/admin/sigils', body, operator))).toEqual([413, 'body_too_large']);
    const stream = new Blob([body]).stream();
    const headers = { ...operator, 'content-type': 'application/json' };
    const init = { at: mesh, method: 'POST', headers, body: stream, duplex: 'half' } as RequestInit;
    expect(await code(await call('/v1/admin/sigils', init))).toEqual([413, 'body_too_large']);
  });

  it('are problem documents even where the HTTP parser refuses', async () => {
    const { port, hostname } = new URL(open.url);
    const socket = connect(Number(port), hostname);
    socket.end('NONSENSE\r\n\r\n');
    let answer = '';
    for await (const chunk of socket) answer += chunk;
    expect(answer).toMatch(/^HTTP\/1\.1 400 .*application\/problem\+json.*"code":"bad_request"/s);
  });

  it('explain nothing about a fault of ours, but log it under the request id', async () => {
    const response = await call('/v1/regions/broken', { headers: app });
    const id = response.headers.get('x-request-id') ?? '-';
    const text = await response.clone().text();
    expect(await code(response)).toEqual([500, 'internal']);
    expect(text).not.toContain('hunter2');
    expect(lines.some((line) => line.includes(id) && line.includes('in an internal message'))).toBe(true);
  });
});

describe('who may do what', () => {
  it('lets nobody without a token in, and no token in at the wrong door', async () => {
    expect(await code(await call('/v1/peers'))).toEqual([401, 'unauthorized']);
    expect(await code(await call('/v1/peers', { headers: operator }))).toEqual([401, 'sigil_invalid']);
    expect(await code(await call('/v1/admin/audit', { at: mesh, headers: app }))).toEqual([
      401,
      'unauthorized',
    ]);
    expect(await code(await call('/v1/admin/nothing', { at: mesh }))).toEqual([401, 'unauthorized']);
    const response = await call('/v1/peers');
    expect(response.headers.get('www-authenticate')).toMatch(/^Bearer/);
  });

  it('serves operators, metrics and node sessions on the mesh alone', async () => {
    for (const path of ['/v1/admin/audit', '/metrics', '/v1/nodes/session'])
      expect(await code(await call(path, { headers: operator }))).toEqual([404, 'not_found']);
    expect((await call('/metrics', { at: mesh })).status).toBe(200);
    expect((await call('/v1/admin/audit', { at: mesh, headers: operator })).status).toBe(200);
  });

  it('shuts out a revoked Sigil at its next request', async () => {
    const { id, sigil } = await mint();
    const headers = { authorization: `Bearer ${sigil}` };
    expect((await call('/v1/sigil', { headers })).status).toBe(200);
    expect((await post(`/v1/admin/sigils/${id}/revoke`, '', operator)).status).toBe(200);
    expect(await code(await call('/v1/sigil', { headers }))).toEqual([401, 'sigil_revoked']);
  });
});

describe('limits', () => {
  it('hold per subscription, and say when to come back', async () => {
    const headers = { authorization: `Bearer ${(await mint()).sigil}` };
    for (let left = 49; left >= 0; left--) {
      const response = await call('/v1/sigil', { headers });
      expect(response.status).toBe(200);
      expect(response.headers.get('ratelimit')).toMatch(new RegExp(`^"subscription";r=${left};t=\\d+$`));
    }
    const refused = await call('/v1/sigil', { headers });
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(0);
    expect(await code(refused)).toEqual([429, 'rate_limited']);
    expect((await call('/v1/sigil', { headers: app })).status).toBe(200);
  });

  it('hold per address where no token is good, and keep no address', async () => {
    const from = '203.0.113.66';
    const bad = { authorization: 'Bearer nonsense' };
    for (let hit = 0; hit < 5; hit++)
      expect((await call('/v1/peers', { from, headers: bad })).status).toBe(401);
    expect(await code(await call('/v1/peers', { from, headers: bad }))).toEqual([429, 'rate_limited']);
    expect((await call('/v1/peers', { from, headers: app })).status, 'a good token is not held up').toBe(200);
    expect((await call('/openapi.json', { from })).status).toBe(429);
    const metrics = await (await call('/metrics', { at: mesh })).text();
    for (const where of [lines.join(), metrics]) expect(where).not.toContain(from);
  });
});

describe('lists', () => {
  it('that are polled answer 304 until they change', async () => {
    const first = await call('/v1/regions', { headers: app });
    const tag = first.headers.get('etag') ?? '';
    expect(await first.json()).toEqual({ items: [] });
    const again = { ...app, 'if-none-match': tag };
    expect((await call('/v1/regions', { headers: again })).status).toBe(304);
    const region = { id: 'fra', name: 'Frankfurt', country: 'DE', latitude: 50.1, longitude: 8.7 };
    expect((await post('/v1/admin/regions', region, operator)).status).toBe(201);
    expect((await call('/v1/regions', { headers: again })).status).toBe(200);
  });

  it('of regions are signed by a key of the JWKS, also in a 304', async () => {
    const first = await call('/v1/regions', { headers: app });
    const body = await first.text();
    const jwks = (await (await call('/.well-known/jwks.json')).json()) as JSONWebKeySet;
    const expected = { jwks, typ: REGIONS_TYP };
    await verifyBody(body, first.headers.get(SIGNATURE_HEADER), expected);
    await expect(verifyBody(`${body} `, first.headers.get(SIGNATURE_HEADER), expected)).rejects.toThrow(
      'not signed',
    );
    const tag = { 'if-none-match': first.headers.get('etag') ?? '' };
    const held = await call('/v1/regions', { headers: { ...app, ...tag } });
    expect(held.status).toBe(304);
    await verifyBody(body, held.headers.get(SIGNATURE_HEADER), expected);
  });

  it('come in pages, each entry once', async () => {
    for (let made = 0; made < 5; made++) await mint();
    const seen: string[] = [];
    let next: string | null = '';
    while (next !== null) {
      const query = next === '' ? '?limit=2' : `?limit=2&cursor=${next}`;
      const response = await call(`/v1/admin/sigils${query}`, { at: mesh, headers: operator });
      const body = (await response.json()) as { items: { id: string }[]; next: string | null };
      seen.push(...body.items.map((item) => item.id));
      next = body.next;
    }
    const [all] = await ctx.db.sql`select count(*) as count from sigils`;
    expect(new Set(seen).size).toBe(seen.length);
    expect(seen).toHaveLength(all?.count);
  });
});

describe('the audit log', () => {
  it('says what was done to whom, newest first, and by whom', async () => {
    const { id } = await mint();
    await post(`/v1/admin/sigils/${id}/revoke`, '', operator);
    const query = `subject=sigil:${id}&actor=operator:bootstrap`;
    const read = async (more = '') => {
      const response = await call(`/v1/admin/audit?${query}${more}`, { at: mesh, headers: operator });
      return (await response.json()) as { items: { action: string }[]; next: string | null };
    };
    expect((await read()).items.map((entry) => entry.action)).toEqual(['sigil.revoked', 'sigil.issued']);
    expect((await read('&action=sigil.issued')).items).toHaveLength(1);
    const first = await read('&limit=1');
    expect(first.items.map((entry) => entry.action)).toEqual(['sigil.revoked']);
    const rest = await read(`&limit=1&cursor=${first.next}`);
    expect(rest).toMatchObject({ items: [{ action: 'sigil.issued' }], next: null });
  });
});

describe('what machines and people read', () => {
  it('is a valid picture of the routes, and a page that loads nothing from elsewhere', async () => {
    const document = (await (await call('/openapi.json')).json()) as { openapi: string; paths: object };
    expect(document.openapi).toBe('3.1.0');
    expect(Object.keys(document.paths)).toContain('/v1/admin/subscriptions/{id}/revoke');
    const page = await call('/docs');
    expect(page.headers.get('content-security-policy')).toContain("default-src 'none'; script-src 'self'");
    const html = await page.text();
    expect(html).not.toMatch(/https?:\/\//);
    for (const [, path] of html.matchAll(/(?:src|href)="([^"]+)"/g))
      expect((await call(path ?? '')).status, path).toBe(200);
    const jwks = await call('/.well-known/jwks.json');
    expect(jwks.headers.get('cache-control')).toContain('max-age');
    expect(await jwks.json()).toEqual(JSON.parse(JSON.stringify(ctx.keyring.jwks())));
  });
});

describe('shutdown', () => {
  it('says so, and answers what is under way before it ends', async () => {
    expect((await call('/readyz')).status).toBe(200);
    const api = createHttp(ctx);
    let answer = () => undefined as undefined;
    let arrived = () => undefined as undefined;
    const under = new Promise<void>((resolve) => {
      arrived = () => void resolve();
    });
    api.get('/slow', async (c) => {
      await new Promise<void>((resolve) => {
        answer = () => void resolve();
        arrived();
      });
      return c.text('done');
    });
    const listener = await listenHttp(api, { host: '127.0.0.1', port: 0 }, true, onFault);
    const slow = fetch(`${listener.url}/slow`);
    await under;
    ctx.state.draining = true;
    const drained = listener.drain(10_000);
    expect(await code(await call('/readyz'))).toEqual([503, 'not_ready']);
    await expect(fetch(`${listener.url}/healthz`)).rejects.toThrow();
    answer();
    expect(await (await slow).text()).toBe('done');
    await drained;
    ctx.state.draining = false;
  });
});
