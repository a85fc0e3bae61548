/**
 * A Sigil that is bound to a device, by the SDK and by hand against a whole controller: it opens every route for that
 * device, nothing for anyone else, and where it ends its peers leave the exits.
 */
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient, generateDeviceKey, makeClaimSecret } from '@katafract/client/sdk';
import { type ClientCredentials, claim, credentialsFor, unbind } from '@katafract/client/wraith/credentials';
import { hostPorts } from '@katafract/client/wraith/host';
import type { IssuedSigil, Peer, SigilInfo } from '@katafract/shared/api';
import { systemClock } from '@katafract/shared/clock';
import { type DeviceKey, makeProof } from '@katafract/shared/dpop';
import { readSigil, verifySigil } from '@katafract/shared/sigil';
import type { JSONWebKeySet } from 'jose';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { type Redis, startRedis } from '../redis.ts';
import { type Answer, startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import { expectConsistent } from './tables.ts';

const PUBLIC = 'http://artemis.test';
const database = useDatabase();
let redis: Redis;
let one: TestController;
let two: TestController;
let exit: FakeExit;
/** How far the controllers' clocks are ahead of ours. */
let aheadMs = 0;
const clock = { ...systemClock, now: () => Date.now() + aheadMs };

beforeAll(async () => {
  redis = await startRedis();
  const env = { REDIS_URL: redis.url };
  one = await startController(database.url, { env, clock });
  const brief = { ...env, KATAFRACT_SIGIL_MINUTES: '1' };
  two = await startController(database.url, { env: brief, clock, beside: one });
  await one.addRegion('fra');
  exit = await startExit(one, { node: 'fra-1', region: 'fra' });
  await waitFor('the exit', async () => {
    await two.ctx.fleet.refresh();
    return [one, two].every(({ ctx }) => ctx.fleet.roster.regions().every(({ available }) => available));
  });
});
afterAll(async () => {
  await exit.leave();
  await two.close();
  await one.close();
  await redis.stop();
});

interface Device {
  readonly key: DeviceKey;
  readonly sigil: string;
  readonly subscription: string;
}

/** A device of a new subscription, or of one that is there. */
async function bind(subscription?: string): Promise<Device> {
  const key = await generateDeviceKey();
  const id = subscription ?? (await one.mint('plus')).subscription;
  const { sigil } = await one.ctx.sigils.issue({ subscriptionId: id, jkt: key.jkt }, 'system');
  return { key, sigil, subscription: id };
}

interface Over {
  readonly scheme?: string;
  readonly proof?: string;
  readonly at?: TestController;
  readonly body?: unknown;
  readonly headers?: Record<string, string>;
}

async function call<T = unknown>(
  { key, sigil }: Device,
  method: string,
  path: string,
  over: Over = {},
): Promise<Answer<T>> {
  const proof =
    over.proof ?? (await makeProof(key, { method, url: `${PUBLIC}${path}`, now: clock.now(), token: sigil }));
  const headers = { authorization: `${over.scheme ?? 'DPoP'} ${sigil}`, dpop: proof, ...over.headers };
  return (over.at ?? one).call<T>(method, path, { headers, body: over.body });
}
const provision = (device: Device, publicKey = newKey()) =>
  call<Peer>(device, 'POST', '/v1/peers', { body: { publicKey, region: 'fra' } });
const holds = (key: string) => [...exit.table.keys()].some((held) => held === key);

it('opens every route to its device, by either controller, and says who is bound', async () => {
  const phone = await bind();
  const laptop = await bind(phone.subscription);
  expect((await provision(phone)).status).toBe(201);
  expect((await call(laptop, 'GET', '/v1/peers?limit=1', { at: two })).status).toBe(200);
  expect((await call(laptop, 'GET', '/v1/regions')).status).toBe(200);
  const { body } = await call<SigilInfo>(laptop, 'GET', '/v1/sigil');
  expect(body.devices).toEqual({ used: 1, limit: 5 });
  expect(body.bindings.map(({ jkt, current }) => [jkt, current])).toEqual(
    expect.arrayContaining([
      [phone.key.jkt, false],
      [laptop.key.jkt, true],
    ]),
  );
});

it('opens nothing to a thief: no proof, no bearer, no other device, nothing twice', async () => {
  const mine = await bind();
  const thief = await bind();
  const stolen = { ...mine, key: thief.key };
  expect((await call(stolen, 'GET', '/v1/sigil')).code).toBe('dpop_invalid');
  const refused = await one.call('GET', '/v1/sigil', { token: mine.sigil });
  expect(refused.code).toBe('dpop_required');
  expect(refused.headers.get('www-authenticate')).toMatch(/^Bearer .*, DPoP .*algs="ES256 EdDSA"/);
  expect((await call(mine, 'GET', '/v1/sigil', { scheme: 'Bearer' })).code).toBe('dpop_required');
  const proof = await makeProof(mine.key, {
    method: 'GET',
    url: `${PUBLIC}/v1/sigil`,
    now: clock.now(),
    token: mine.sigil,
  });
  expect((await call(mine, 'GET', '/v1/sigil', { proof })).status).toBe(200);
  const replays = await Promise.all(
    [one, two, one, two].map((at) => call(mine, 'GET', '/v1/sigil', { proof, at })),
  );
  expect(replays.map(({ code }) => code)).toEqual(Array(4).fill('dpop_replayed'));
  expect(replays[0]?.headers.get('www-authenticate')).toContain('error="invalid_dpop_proof"');
  const elsewhere = [
    { method: 'POST', url: `${PUBLIC}/v1/sigil` },
    { method: 'GET', url: `${PUBLIC}/v1/peers` },
    // what the Host header says counts for nothing
    { method: 'GET', url: `${one.url}/v1/sigil` },
  ];
  for (const target of elsewhere) {
    const other = await makeProof(mine.key, { ...target, now: clock.now(), token: mine.sigil });
    expect((await call(mine, 'GET', '/v1/sigil', { proof: other })).code).toBe('dpop_invalid');
  }
  const old = { method: 'GET', url: `${PUBLIC}/v1/sigil`, now: clock.now() - 120_000, token: mine.sigil };
  const stale = await call(mine, 'GET', '/v1/sigil', { proof: await makeProof(mine.key, old) });
  expect(stale.code).toBe('dpop_stale');
  expect(stale.headers.get('date')).not.toBeNull();
});

it('one proof among many at once, at two controllers, passes once', async () => {
  const mine = await bind();
  const target = { method: 'GET', url: `${PUBLIC}/v1/sigil`, now: clock.now(), token: mine.sigil };
  const proof = await makeProof(mine.key, target);
  const answers = await Promise.all(
    Array.from({ length: 40 }, (_, at) => call(mine, 'GET', '/v1/sigil', { proof, at: at % 2 ? two : one })),
  );
  expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
});

it('each way of ending it takes effect on the next request, at the other controller, and in the exit', async () => {
  const ways: [string, (device: Device) => Promise<unknown>][] = [
    [
      'its id',
      async ({ sigil, subscription }) => {
        const path = `/v1/admin/sigils?subscription=${subscription}`;
        const { items } = await two.operate<{ items: { id: string; device: string | null }[] }>('GET', path);
        const { jti } = await verifySigil(sigil, one.ctx.keyring.jwks(), {
          issuer: PUBLIC,
          now: clock.now(),
        });
        expect(items.map(({ id }) => id)).toContain(jti);
        return two.operate('POST', `/v1/admin/sigils/${jti}/revoke`);
      },
    ],
    [
      'its device',
      ({ key, subscription }) =>
        two.operate('POST', `/v1/admin/subscriptions/${subscription}/devices/${key.jkt}/revoke`),
    ],
    [
      'its subscription',
      ({ subscription }) => two.operate('POST', `/v1/admin/subscriptions/${subscription}/revoke`),
    ],
    [
      'its fellow',
      async ({ key, subscription }) =>
        call(await bind(subscription), 'DELETE', `/v1/sigil/devices/${key.jkt}`),
    ],
  ];
  for (const [name, end] of ways) {
    const device = await bind();
    const fellow = await bind(device.subscription);
    const keys = [newKey(), newKey()] as const;
    expect((await provision(device, keys[0])).body.status, name).toBe('active');
    expect((await provision(fellow, keys[1])).body.status, name).toBe('active');
    expect(keys.every(holds)).toBe(true);
    await end(device);
    expect((await call(device, 'GET', '/v1/peers')).code, name).toBe('sigil_revoked');
    expect((await call(device, 'POST', '/v1/sigils/refresh')).code, name).toBe('sigil_revoked');
    expect((await provision(device)).code, name).toBe('sigil_revoked');
    await waitFor(`the peer to leave by ${name}`, () => !holds(keys[0]));
    const whole = name === 'its subscription';
    if (whole) await waitFor('the other peer', () => !holds(keys[1]));
    expect((await call(fellow, 'GET', '/v1/peers')).status, name).toBe(whole ? 401 : 200);
    expect(holds(keys[1]), name).toBe(!whole);
  }
  await expectConsistent(one);
});

it('a device that was unbound gets no peer back by a rollback', async () => {
  const device = await bind();
  const fellow = await bind(device.subscription);
  const { body } = await provision(device);
  const unbound = await call<{ reissued: IssuedSigil }>(
    fellow,
    'DELETE',
    `/v1/sigil/devices/${device.key.jkt}`,
  );
  expect(unbound.body.reissued.devices).toEqual({ bound: 1, limit: 5 });
  const log = `/v1/admin/audit?subject=peer:${body.id}&action=peer.removed`;
  const [entry] = (await one.operate<{ items: { id: number }[] }>('GET', log)).items;
  const answer = await one.call('POST', `/v1/admin/audit/${entry?.id}/rollback`, {
    token: one.operatorToken,
  });
  expect(answer.code).toBe('device_unbound');
});

it('an operator mints one for a device, lists the devices, and cannot bind more than the tier allows', async () => {
  const { subscription } = await one.mint('free');
  const expiresAt = new Date(clock.now() + 86_400_000).toISOString();
  const mintFor = (device: string) =>
    one.call<{ sigil: string }>('POST', '/v1/admin/sigils', {
      token: one.operatorToken,
      body: { tier: 'free', expiresAt, subscription, device },
    });
  const key = await generateDeviceKey({ alg: 'EdDSA' });
  const { sigil } = (await mintFor(key.jkt)).body;
  expect((await call({ key, sigil, subscription }, 'GET', '/v1/sigil')).status).toBe(200);
  expect((await mintFor((await generateDeviceKey()).jkt)).code).toBe('device_limit');
  expect((await mintFor('not a thumbprint')).code).toBe('bad_request');
  const path = `/v1/admin/subscriptions/${subscription}/devices`;
  const { items } = await one.operate<{ items: { jkt: string }[] }>('GET', path);
  expect(items.map(({ jkt }) => jkt)).toEqual([key.jkt]);
});

it('the SDK claims, refreshes in time and after it was too late, sets its clock, and unbinds', async () => {
  const deviceKey = await generateDeviceKey();
  const kept: string[] = [];
  const base = {
    baseUrl: one.url,
    publicUrl: PUBLIC,
    deviceKey,
    onSigil: (sigil: string) => void kept.push(sigil),
  };
  const wrong = { ...systemClock, now: () => clock.now() - 600_000 };
  const client = createClient({ ...base, clock: wrong });
  const pending = client.claim({ secret: makeClaimSecret(), waitMs: 0 });
  await expect(pending).rejects.toMatchObject({ code: 'claim_pending' });
  const { secret } = await one.operate<{ secret: string }>('POST', '/v1/admin/grants', {
    tier: 'plus',
    expiresAt: new Date(clock.now() + 30 * 86_400_000).toISOString(),
    reason: 'support',
  });
  const issued = await client.claim({ secret });
  expect(kept).toEqual([issued.sigil]);
  const peer = await client.provision({ publicKey: newKey(), region: 'fra' });
  expect((await client.sigil()).bindings).toMatchObject([{ jkt: deviceKey.jkt, current: true }]);
  // in the last fifth of its life, and it is enough that many ask at once
  aheadMs += 3_600_000 - 200_000;
  await Promise.all([client.peer(peer.id), client.peer(peer.id), client.sigil()]);
  expect(kept).toHaveLength(2);
  // long after: a client that starts anew with what was kept
  aheadMs += 5 * 86_400_000;
  const later = createClient({ ...base, clock, sigil: kept[1] ?? '' });
  expect((await later.peer(peer.id)).id).toBe(peer.id);
  expect(kept).toHaveLength(3);
  // by a clock that is a little behind it looks fresh; the API knows better
  const behind = { ...systemClock, now: () => clock.now() - 50_000 };
  const slow = createClient({ ...base, baseUrl: two.url, clock: behind, sigil: kept[2] ?? '' });
  await slow.refresh();
  aheadMs += 61_000;
  expect((await slow.peer(peer.id)).id).toBe(peer.id);
  expect(kept).toHaveLength(5);
  await slow.unbind(deviceKey.jkt);
  await expect(slow.sigil()).rejects.toMatchObject({ code: 'sigil_revoked' });
  expect(readSigil(kept[4] ?? '')?.device).toBe(deviceKey.jkt);
});

it('wraith claims by a secret or a gift code, keeps what it got for its owner alone, and gives it back', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'wraith-claim-'));
  const ports = await hostPorts(folder);
  const connect = ({ sigil, deviceKey, onSigil }: ClientCredentials) =>
    createClient({
      baseUrl: one.url,
      publicUrl: PUBLIC,
      clock,
      ...(sigil ? { sigil } : {}),
      ...(deviceKey ? { deviceKey } : {}),
      ...(onSigil ? { onSigil } : {}),
    });
  const at = (days: number) => new Date(clock.now() + days * 86_400_000).toISOString();
  const gift = { tier: 'plus', days: 30, count: 1, redeemBefore: at(9) };
  const { codes } = await one.operate<{ codes: string[] }>('POST', '/v1/admin/vouchers', gift);
  await claim(ports, connect, { secret: undefined, voucher: codes[0] });
  const file = join(folder, 'sigil.json');
  expect((await stat(file)).mode & 0o777).toBe(0o600);
  // the secret that the code was redeemed for is kept, so it can be claimed again
  const again = await claim(ports, connect, { secret: undefined, voucher: undefined });
  expect(again.devices.bound).toBe(1);
  const minted = await one.mint('plus');
  expect((await credentialsFor(ports.files, minted.sigil)).sigil).toBe(minted.sigil);
  const held = await credentialsFor(ports.files, undefined);
  expect(held.sigil).toBe(again.sigil);
  const client = connect(held);
  expect((await client.sigil()).subscription).toBe(again.subscription);
  await unbind(ports, client);
  expect(await readdir(folder)).toEqual([]);
  await expect(client.sigil()).rejects.toMatchObject({ code: 'sigil_revoked' });
  await rm(folder, { recursive: true });
});

it('without a device key, a bearer is what it was; with one, too', async () => {
  const { sigil } = await one.mint('plus');
  for (const deviceKey of [undefined, await generateDeviceKey()]) {
    const client = createClient({ baseUrl: one.url, sigil, ...(deviceKey ? { deviceKey } : {}) });
    expect((await client.sigil()).bindings).toEqual([]);
  }
  const device = await bind();
  const keyless = createClient({ baseUrl: one.url, sigil: device.sigil });
  await expect(keyless.sigil()).rejects.toMatchObject({ code: 'device_key_missing' });
});

it('the JWKS may be kept for far less time than a key is published before it signs', async () => {
  const read = async () => (await one.call<JSONWebKeySet>('GET', '/.well-known/jwks.json')).body;
  const { headers } = await one.call('GET', '/.well-known/jwks.json');
  const maxAgeMs = Number(/max-age=(\d+)/.exec(headers.get('cache-control') ?? '')?.[1]) * 1000;
  aheadMs += 91 * 86_400_000;
  const kept = await read();
  expect(await one.ctx.sigils.rotateKey()).toBe(true);
  // minted before the verifier has to ask again: by the key it knows
  aheadMs += maxAgeMs;
  const device = await bind((await one.mint('plus', { days: 300 })).subscription);
  const at = { issuer: PUBLIC, now: clock.now() };
  await expect(verifySigil(device.sigil, kept, at)).resolves.toBeDefined();
  const known = await read();
  expect(known.keys).toHaveLength(kept.keys.length + 1);
  aheadMs += 3_600_000;
  const next = await bind(device.subscription);
  await expect(verifySigil(next.sigil, known, { ...at, now: clock.now() })).resolves.toBeDefined();
  await expect(verifySigil(next.sigil, kept, { ...at, now: clock.now() })).rejects.toMatchObject({
    code: 'sigil_invalid',
  });
  expect((await call(device, 'GET', '/v1/sigil')).code).toBe('sigil_expired');
  expect((await call(device, 'POST', '/v1/sigils/refresh')).status).toBe(200);
});
