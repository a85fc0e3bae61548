/**
 * Canaries: a client's address, a name, an e-mail, a device and every kind of secret are sent in all the ways a request
 * can carry them, also where it fails. Afterwards nothing of them is in any table, log line (at debug level), message to
 * a node or metric.
 */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { Agent, request } from 'node:http';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import { tablesText } from './tables.ts';

const ADDRESS = '203.0.113.77';
const ADDRESS6 = '2001:db8:c0:ffee::77';
/** Where the connection itself comes from. */
const LOCAL = '127.77.66.55';
const NAME = 'Jane Canary';
const EMAIL = 'jane.canary@example.org';
const DEVICE = 'CanaryPhone/17.2';
const PERSONAL = [ADDRESS, ADDRESS6, LOCAL, NAME, 'Canary', EMAIL, DEVICE, encodeURIComponent(NAME)];
/** A private key that a client sends by mistake. */
const PRIVATE_KEY = randomBytes(32).toString('base64');

const database = useDatabase();
let controller: TestController;
let exit: FakeExit;
let sigil = '';
const secrets: string[] = [PRIVATE_KEY];
const agent = new Agent({ keepAlive: true, localAddress: LOCAL });

beforeAll(async () => {
  controller = await startController(database.url, {
    env: { KATAFRACT_TRUSTED_PROXIES: '127.0.0.0/8', KATAFRACT_ANONYMOUS_LIMIT_PER_MINUTE: '60' },
  });
  await controller.addRegion('fra');
  exit = await startExit(controller, { node: 'fra-1', region: 'fra' });
  ({ sigil } = await controller.mint('plus'));
  const join = { region: 'fra', node: 'fra-2', endpoint: '192.0.2.2:51820' };
  const { token } = await controller.operate<{ token: string }>('POST', '/v1/admin/join-tokens', join);
  const [, , signature = 'no signature'] = sigil.split('.');
  const masterKey = await readFile(controller.ctx.config.masterKey.path, 'utf8');
  secrets.push(signature, token.slice(5, 48), controller.operatorToken, masterKey.trim());
});
afterAll(async () => {
  agent.destroy();
  await exit.leave();
  await controller.close();
});

/** A request from the planted source, with everything a client could say of itself. */
function send(method: string, path: string, token: string | null, body?: string): Promise<number> {
  const headers = {
    'user-agent': `${DEVICE} (${NAME}; ${EMAIL})`,
    'x-forwarded-for': `${ADDRESS6}, ${ADDRESS}`,
    forwarded: `for=${ADDRESS}`,
    'x-real-ip': ADDRESS,
    'x-device-name': NAME,
    from: EMAIL,
    referer: `https://example.org/?name=${encodeURIComponent(NAME)}`,
    cookie: `name=${encodeURIComponent(NAME)}`,
    ...(token === null ? {} : { authorization: `Bearer ${token}` }),
    ...(body === undefined
      ? {}
      : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }),
  };
  return new Promise((resolve, reject) => {
    const sent = request(`${controller.url}${path}`, { method, headers, agent }, (answer) => {
      answer.resume().on('end', () => resolve(answer.statusCode ?? 0));
    });
    sent.on('error', reject).end(body);
  });
}

async function everything(): Promise<Record<string, string>> {
  await controller.ctx.fleet.refresh();
  await exit.idle();
  const heard = exit.heard.map((jws) => Buffer.from(jws.split('.')[1] ?? '', 'base64url').toString());
  return {
    tables: await tablesText(controller.ctx.db.sql),
    logs: controller.logs.join('\n'),
    messages: [...exit.heard, ...heard].join('\n'),
    metrics: await controller.metrics(),
  };
}

it('keeps nothing of who asked, in success and in failure', async () => {
  const key = newKey();
  const odd = { publicKey: newKey(), region: 'fra', name: NAME, email: EMAIL, endpoint: ADDRESS };
  const query = `?name=${encodeURIComponent(NAME)}&email=${EMAIL}`;
  const requests: [number, string, string, string | null, object?][] = [
    [201, 'POST', '/v1/peers', sigil, { publicKey: key, region: 'fra' }],
    [409, 'POST', '/v1/peers', sigil, { publicKey: key, region: 'fra' }],
    [400, 'POST', '/v1/peers', sigil, odd],
    [400, 'POST', '/v1/peers', sigil, { publicKey: PRIVATE_KEY.slice(1), region: NAME }],
    [400, 'POST', '/v1/peers', sigil, { publicKey: newKey(), region: 'fra', privateKey: PRIVATE_KEY }],
    [422, 'POST', '/v1/peers', sigil, { publicKey: newKey(), region: 'nowhere' }],
    [200, 'GET', `/v1/peers${query}`, sigil],
    [200, 'GET', '/v1/regions', sigil],
    [200, 'GET', '/v1/sigil', sigil],
    [400, 'GET', `/v1/peers/${encodeURIComponent(NAME)}`, sigil],
    [400, 'GET', `/v1/peers?cursor=${EMAIL}`, sigil],
    [401, 'GET', '/v1/peers', EMAIL],
    [401, 'GET', '/v1/peers', null],
    [401, 'GET', '/v1/peers', `${sigil}x`],
    [401, 'GET', '/v1/admin/nodes', sigil],
    [404, 'GET', `/v2/${encodeURIComponent(NAME)}${query}`, null],
    [405, 'DELETE', '/healthz', null],
    [400, 'POST', '/v1/nodes/enroll', null, { token: NAME }],
    [401, 'POST', '/v1/nodes/session', null, { node: 'fra-1', token: EMAIL }],
    [413, 'POST', '/v1/peers', sigil, { name: NAME.repeat(7000) }],
  ];
  for (const [status, method, path, token, body] of requests) {
    const text = body && JSON.stringify(body);
    expect(await send(method, path, token, text), `${method} ${path}`).toBe(status);
  }
  expect(await send('POST', '/v1/peers', sigil, `{"name":"${NAME}",`)).toBe(400);
  let last = 0;
  for (let hit = 0; hit < 100 && last !== 429; hit++) last = await send('GET', '/v1/peers', null);
  expect(last, 'the limit by address counts without keeping it').toBe(429);

  const found = await everything();
  expect(found.tables, 'the canary would be seen').toContain(key);
  expect(found.messages).toContain(key);
  expect(found.logs).toContain('/v1/peers/:id');
  for (const [where, text] of Object.entries(found)) {
    for (const canary of PERSONAL) expect(text.includes(canary), `${canary} in ${where}`).toBe(false);
  }
});

it('keeps nothing of a fault that quotes what was sent', async () => {
  // the database refuses, and its error names the row
  await controller.ctx.db.sql`alter table peers add constraint refuse_all check (false) not valid`;
  const key = newKey();
  expect(await send('POST', '/v1/peers', sigil, JSON.stringify({ publicKey: key, region: 'fra' }))).toBe(500);
  await controller.ctx.db.sql`alter table peers drop constraint refuse_all`;
  const logs = controller.logs.join('\n');
  expect(logs).toContain('a request failed');
  for (const canary of [...PERSONAL, key]) expect(logs.includes(canary), `${canary} in the log`).toBe(false);
});

it('keeps no secret anywhere in the clear', async () => {
  const found = await everything();
  for (const [where, text] of Object.entries(found)) {
    for (const [index, secret] of secrets.entries())
      expect(text.includes(secret), `secret ${index} in ${where}`).toBe(false);
    expect(text, `a private JWK in ${where}`).not.toMatch(/"d": ?"[A-Za-z0-9_-]{43}"/);
  }
});
