/** The SDK against a real HTTP server that speaks the API's documented answers, and its faults. */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@katafract/shared/clock';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { generateKeyPair } from './keys.ts';
import { RETRY, retryDelay } from './retry.ts';
import { type Client, createClient, KatafractError } from './sdk.ts';
import { problem, SIGIL, startTestApi, type TestApi } from './testing/api.ts';

const EXIT_KEY = 'HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=';
const exits = [
  { node: 'fra-1', region: 'eu-de', endpoint: '203.0.113.5:51820', publicKey: EXIT_KEY },
  { node: 'ams-1', region: 'eu-nl', endpoint: '198.51.100.7:51820', publicKey: EXIT_KEY },
];

/** A clock whose pauses are over at once, and written down; the per-request timeout (longer than any) never fires. */
function fastClock(pauses: number[]): Clock {
  return {
    now: () => Date.parse('2026-11-22T04:00:00Z'),
    after(ms, task) {
      if (ms >= 20_000) return () => undefined;
      pauses.push(ms);
      queueMicrotask(task);
      return () => undefined;
    },
  };
}

let api: TestApi;
let client: Client;
let publicKey: string;
let pauses: number[];

beforeEach(async () => {
  api = await startTestApi({ exits });
  ({ publicKey } = await generateKeyPair());
  pauses = [];
  client = createClient({ baseUrl: api.url, sigil: SIGIL, clock: fastClock(pauses), random: () => 0.5 });
});
afterEach(() => api.close());

describe('calls', () => {
  it('provisions, reads, rotates, moves and removes a peer', async () => {
    const peer = await client.provision({ publicKey, region: 'eu-de' });
    expect(peer.exits.map((exit) => [exit.node, exit.role])).toEqual([
      ['fra-1', 'primary'],
      ['ams-1', 'standby'],
    ]);
    expect(await client.peer(peer.id)).toEqual(peer);
    const next = await generateKeyPair();
    expect((await client.rotate(peer.id, next.publicKey)).publicKey).toBe(next.publicKey);
    expect((await client.move(peer.id, 'eu-nl')).exits[0]?.node).toBe('ams-1');
    expect((await client.sigil()).devices).toEqual({ used: 1, limit: 5 });
    expect(await client.remove(peer.id)).toEqual({ id: peer.id, status: 'removed' });
    expect(api.requests.map(({ method, path }) => `${method} ${path.replace(peer.id, 'ID')}`)).toEqual([
      'POST /v1/peers',
      'GET /v1/peers/ID',
      'PUT /v1/peers/ID/key',
      'POST /v1/peers/ID/move',
      'GET /v1/sigil',
      'DELETE /v1/peers/ID',
    ]);
  });

  it('walks every page of peers, and no page more than the loop asks for', async () => {
    for (let i = 0; i < 3; i++) {
      await client.provision({ publicKey: (await generateKeyPair()).publicKey, region: 'eu-de' });
    }
    const ids: string[] = [];
    for await (const peer of client.peers()) ids.push(peer.id);
    expect(ids).toEqual([...api.peers.keys()]);
    const before = api.requests.length;
    for await (const _ of client.peers()) break;
    expect(api.requests.length).toBe(before + 1);
  });

  it('asks for regions conditionally and serves its copy on 304', async () => {
    const first = await client.regions();
    api.faults.push((seen) => {
      expect(seen.headers['if-none-match']).toBe('"2"');
      return undefined;
    });
    expect(await client.regions()).toEqual(first);
    expect(api.requests).toHaveLength(2);
    api.faults.push(() => ({ status: 200, headers: { etag: '"new"' }, body: { items: [] } }));
    expect(await client.regions()).toEqual([]);
  });

  it('keeps a path in the base URL, and takes the Sigil from a function each time', async () => {
    let turn = 0;
    const prefixed = createClient({ baseUrl: `${api.url}/edge/`, sigil: () => `sigil-${++turn}` });
    await expect(prefixed.regions()).rejects.toMatchObject({ code: 'sigil_invalid', status: 401 });
    await expect(prefixed.regions()).rejects.toMatchObject({ code: 'sigil_invalid' });
    expect(api.requests.map((seen) => [seen.path, seen.headers.authorization])).toEqual([
      ['/edge/v1/regions', 'Bearer sigil-1'],
      ['/edge/v1/regions', 'Bearer sigil-2'],
    ]);
  });
});

describe('errors', () => {
  it('are the codes of the problem documents', async () => {
    await expect(client.provision({ publicKey, region: 'mars' })).rejects.toMatchObject({
      name: 'KatafractError',
      code: 'region_unknown',
      status: 422,
    });
    const errors = [{ path: 'region', message: 'no' }];
    api.faults.push(() => problem(400, 'bad_request', { detail: 'see errors', errors }));
    await expect(client.regions()).rejects.toMatchObject({ message: 'see errors', detail: { errors } });
  });

  it.each([
    ['a body that is not JSON', { status: 200, body: '<html>' }],
    ['a body of another schema', { status: 200, body: { items: [{ id: 'EU' }] } }],
    ['an error without a problem document', { status: 502, body: 'Bad Gateway' }],
    ['a 304 nobody asked for', { status: 304 }],
    ['a redirect', { status: 302, headers: { location: '/v1/sigil' } }],
  ])('%s is bad_response or unreachable, and never a value', async (_, reply) => {
    for (let i = 0; i < 4; i++) api.faults.push(() => reply);
    const code = reply.status === 302 ? 'unreachable' : 'bad_response';
    await expect(client.regions()).rejects.toMatchObject({ code });
    expect(api.requests.every((seen) => seen.path === '/v1/regions')).toBe(true);
  });

  it('what the API would refuse is not sent', async () => {
    await expect(client.provision({ publicKey: 'short', region: 'eu-de' })).rejects.toMatchObject({
      code: 'bad_request',
      detail: { errors: [{ path: 'publicKey' }] },
    });
    await expect(client.peer('../../admin')).rejects.toMatchObject({ code: 'bad_request' });
    expect(api.requests).toEqual([]);
  });

  it('nobody listening is unreachable, and no error shows the Sigil', async () => {
    await api.close();
    const error = await client.sigil().catch((caught: unknown) => caught);
    expect(error).toMatchObject({ code: 'unreachable', status: 503 });
    expect(JSON.stringify(error) + String(error)).not.toContain(SIGIL);
  });

  it('silence is unreachable after the timeout', async () => {
    const retry = { timeoutMs: 20, attempts: 1 };
    const hanging: typeof fetch = (_, init) =>
      new Promise((_, reject) => init?.signal?.addEventListener('abort', () => reject(init.signal?.reason)));
    const impatient = createClient({ baseUrl: api.url, sigil: SIGIL, fetch: hanging, retry });
    await expect(impatient.sigil()).rejects.toMatchObject({ code: 'unreachable' });
  });
});

describe('retries', () => {
  it('a lost answer to provision makes one peer: the same Idempotency-Key goes out again', async () => {
    api.faults.push(() => 'drop');
    const peer = await client.provision({ publicKey, region: 'eu-de' });
    expect([...api.peers.keys()]).toEqual([peer.id]);
    const keys = api.requests.map((seen) => seen.headers['idempotency-key']);
    expect(keys).toHaveLength(2);
    expect(new Set(keys).size).toBe(1);
    const mine = { publicKey: (await generateKeyPair()).publicKey, region: 'eu-de', idempotencyKey: 'mine' };
    await client.provision(mine);
    expect(api.requests.at(-1)?.headers['idempotency-key']).toBe('mine');
  });

  it('waits as long as Retry-After says, in the header or in the problem', async () => {
    api.faults.push(
      () => ({ ...problem(503, 'exits_full'), headers: { 'retry-after': '2' } }),
      () => problem(429, 'rate_limited', { retryAfter: 3 }),
      () => ({ status: 503, headers: { 'retry-after': 'Sun, 22 Nov 2026 04:00:04 GMT' }, body: 'busy' }),
    );
    await client.sigil();
    expect(pauses).toEqual([2125, 3125, 4125]);
  });

  it('gives up after four sendings, or at once when asked to wait too long', async () => {
    for (let i = 0; i < 9; i++) api.faults.push(() => problem(503, 'unavailable'));
    await expect(client.sigil()).rejects.toMatchObject({ code: 'unavailable', status: 503 });
    expect(pauses).toEqual([187.5, 375, 750]);
    api.faults.length = 0;
    api.faults.push(() => problem(503, 'unavailable', { retryAfter: 3600 }));
    await expect(client.sigil()).rejects.toMatchObject({ code: 'unavailable', retryAfter: 3600 });
    expect(api.requests).toHaveLength(5);
  });

  it('move names an end state, so a lost answer is asked for again', async () => {
    const { id } = await client.provision({ publicKey, region: 'eu-de' });
    api.faults.push(
      () => problem(429, 'rate_limited'),
      () => 'drop',
    );
    expect((await client.move(id, 'eu-nl')).region).toBe('eu-nl');
    expect(api.requests).toHaveLength(4);
  });

  it.each([
    [429, false, true],
    [503, true, true],
    [503, false, false],
    [500, true, false],
    [409, true, false],
  ])('status %i, repeatable %s: sent again %s', (status, repeatable, again) => {
    const error = new KatafractError('some_code', '', { status });
    expect(retryDelay(RETRY, error, repeatable, 1, 0) !== null).toBe(again);
  });

  it('remove takes "not found" for done only after a sending whose answer was lost', async () => {
    const { id } = await client.provision({ publicKey, region: 'eu-de' });
    api.faults.push(() => 'drop');
    expect(await client.remove(id)).toEqual({ id, status: 'pending' });
    await expect(client.remove(randomUUID())).rejects.toMatchObject({ code: 'peer_unknown' });
  });

  it('stops by its signal: before sending, and while waiting for the next attempt', async () => {
    await expect(client.sigil({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'aborted' });
    expect(api.requests).toEqual([]);
    const controller = new AbortController();
    const waiting: Clock = { now: () => 0, after: () => () => undefined };
    const slow = createClient({ baseUrl: api.url, sigil: SIGIL, clock: waiting });
    api.faults.push(() => problem(503, 'unavailable'));
    const call = slow.sigil({ signal: controller.signal });
    const settled = expect(call).rejects.toMatchObject({ code: 'aborted', status: 499 });
    while (api.requests.length === 0) await new Promise((resolve) => setImmediate(resolve));
    controller.abort();
    await settled;
  });
});
