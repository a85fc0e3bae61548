/**
 * Claims, codes and grants: each limit holds exactly however many ask at once and at whichever controller, what is
 * shown twice opens once, and whoever shows what was made for another gets nothing.
 */
import { makeClaimSecret } from '@katafract/shared/claim';
import { type DeviceKey, generateDeviceKey } from '@katafract/shared/dpop';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { type Answer, startController, type TestController } from './controller.ts';
import { App, callBound, post, type Stores, startStores } from './stores.ts';

const database = useDatabase();
const DAY = 86_400_000;
let stores: Stores;
let one: TestController;
let two: TestController;

beforeAll(async () => {
  stores = await startStores();
  one = await startController(database.url, { env: stores.env });
  two = await startController(database.url, { env: stores.env, beside: one });
});
afterAll(async () => {
  await two.close();
  await one.close();
  await stores.close();
});

const at = (index: number) => (index % 2 === 0 ? one : two);
const times = <T>(count: number, work: (index: number) => Promise<T>) =>
  Promise.all(Array.from({ length: count }, (_, index) => work(index)));
const tally = (answers: readonly Answer[]) => {
  const counts: Record<string, number> = {};
  for (const { status, code } of answers) counts[code ?? status] = (counts[code ?? status] ?? 0) + 1;
  return counts;
};
const inDays = (days: number) => new Date(Date.now() + days * DAY).toISOString();
const mint = async (wish: object = {}, key?: string) =>
  one.call<{ batch: string; codes: string[] }>('POST', '/v1/admin/vouchers', {
    token: one.operatorToken,
    body: { tier: 'plus', days: 30, count: 1, redeemBefore: inDays(90), ...wish },
    headers: key === undefined ? {} : { 'idempotency-key': key },
  });
const code = async (wish: object = {}) => (await mint(wish)).body.codes[0] ?? '';
const grant = (wish: object = {}, key?: string) =>
  one.call<{ subscription: string; secret: App['secret'] }>('POST', '/v1/admin/grants', {
    token: one.operatorToken,
    body: { tier: 'plus', expiresAt: inDays(30), reason: 'complimentary', ...wish },
    headers: key === undefined ? {} : { 'idempotency-key': key },
  });
const tables = async () =>
  JSON.stringify(await Promise.all(['vouchers', 'claims', 'entitlements', 'audit_log'].map(rowsOf)));
const rowsOf = (table: string) => one.ctx.db.sql.unsafe(`select t::text from ${table} t`);
const paid = async (store: 'stripe' | 'apple' | 'google', app: App) => {
  const step = await app.buy(stores[store]);
  for (const webhook of step.webhooks) await post(one, store, webhook);
  await one.ctx.billing.idle();
  return step;
};

describe('claims', () => {
  it('by 200 devices at once bind exactly as many as the tier allows', async () => {
    const app = await App.make();
    await paid('stripe', app);
    const answers = await times(200, (index) => app.claim(at(index)));
    expect(tally(answers)).toEqual({ 201: 5, device_limit: 195 });
    const good = answers.filter(({ status }) => status === 201);
    expect(new Set(good.map(({ body }) => body.subscription)).size).toBe(1);
  });

  it('by one device, however often, bind it once, and each gives a Sigil that works', async () => {
    const app = await App.make();
    await paid('google', app);
    const key = await generateDeviceKey();
    const answers = await times(50, (index) => app.claim(at(index), key));
    expect(tally(answers)).toEqual({ 201: 50 });
    expect(answers.every(({ body }) => body.devices.bound === 1)).toBe(true);
    for (const { body } of answers.slice(0, 3)) {
      const own = await callBound(two, { key, sigil: body.sigil }, { method: 'GET', path: '/v1/sigil' });
      expect(own.status).toBe(200);
    }
  });

  it('need a proof of the device, good once and for this', async () => {
    const { secret } = await App.make();
    expect((await one.call('POST', '/v1/sigils', { body: { secret } })).code).toBe('dpop_required');
    const headers = { dpop: 'x.y.z' };
    expect((await one.call('POST', '/v1/sigils', { body: { secret }, headers })).code).toBe('dpop_invalid');
    const both = { apple: 'x', voucher: 'y' };
    expect((await (await App.make()).claim(one, undefined, both)).code).toBe('bad_request');
  });

  it('of what is not paid for yet wait, and of what never will be as well', async () => {
    const app = await App.make();
    const step = await app.buy(stores.google, 'plus', { pending: true });
    for (const webhook of step.webhooks) await post(one, 'google', webhook);
    await one.ctx.billing.idle();
    expect(await app.claim(one)).toMatchObject({ status: 202, body: { status: 'pending' } });
    for (const webhook of (await stores.google.act(step.reference, 'complete')).webhooks)
      await post(one, 'google', webhook);
    await one.ctx.billing.idle();
    expect((await app.claim(one)).status).toBe(201);
  });
});

describe('a purchase that the app shows', () => {
  /** What an app would hold. */
  const shown = async (name: 'apple' | 'google', reference: string) =>
    name === 'google' ? { google: reference } : { apple: await stores.apple.signedTransaction(reference) };

  it.each(['apple', 'google'] as const)('of %s opens before any message has come', async (name) => {
    const app = await App.make();
    const { reference } = await app.buy(stores[name]);
    expect((await app.claim(one)).status).toBe(202);
    const { status, body } = await app.claim(one, undefined, await shown(name, reference));
    expect(status).toBe(201);
    expect(body.tier).toBe('plus');
    await one.ctx.billing.idle();
    expect((await app.claim(two)).status).toBe(201);
  });

  it.each(['apple', 'google'] as const)('of %s opens nothing to whom it was not made for', async (name) => {
    const owner = await App.make();
    const { reference } = await owner.buy(stores[name]);
    const thief = await App.make();
    const proof = await shown(name, reference);
    expect((await thief.claim(one, undefined, proof)).code).toBe('purchase_claimed');
    expect((await owner.claim(one, undefined, proof)).status).toBe(201);
    expect((await thief.claim(two, undefined, proof)).code).toBe('purchase_claimed');
    expect((await thief.claim(two)).status).toBe(202);
  });

  it('must be one', async () => {
    const app = await App.make();
    expect((await app.claim(one, undefined, { apple: 'x.y.z' })).code).toBe('purchase_invalid');
    expect((await app.claim(one, undefined, { google: 'no-such-token' })).code).toBe('purchase_invalid');
    expect(await one.ctx.db.sql`select 1 from store_reads`).toEqual([]);
  });
});

describe('a code', () => {
  it('shown by 200 at once is redeemed for one of them', async () => {
    const voucher = await code();
    const apps = await times(200, () => App.make());
    const answers = await Promise.all(apps.map((app, index) => app.claim(at(index), undefined, { voucher })));
    expect(tally(answers)).toEqual({ 201: 1, voucher_redeemed: 199 });
    expect(await one.ctx.db.sql`select 1 from entitlements where source = 'voucher'`).toHaveLength(1);
  });

  it('shown 50 times by its owner is redeemed once', async () => {
    const voucher = await code();
    const app = await App.make();
    const key = await generateDeviceKey();
    const answers = await times(50, (index) => app.claim(at(index), key, { voucher }));
    expect(tally(answers)).toEqual({ 201: 50 });
    const rows = await one.ctx.db.sql`
      select e.expires_at from entitlements e join claims c using (subscription_id)
      where c.subscription_id = ${answers[0]?.body.subscription ?? ''}`;
    expect(rows).toHaveLength(1);
  });

  it('is read as people write it, and follows what was redeemed before', async () => {
    const [first, second] = (await mint({ count: 2 })).body.codes;
    const app = await App.make();
    const key = await generateDeviceKey();
    const typed = (first ?? '').toLowerCase().replaceAll('-', ' ').replaceAll('0', 'o').replaceAll('1', 'l');
    expect((await app.claim(one, key, { voucher: typed })).status).toBe(201);
    const { body } = await app.claim(two, key, { voucher: second ?? '' });
    const own = await callBound<{ expiresAt: string }>(
      one,
      { key, sigil: body.sigil },
      { method: 'GET', path: '/v1/sigil' },
    );
    expect(own.status).toBe(200);
    const [row] = await one.ctx.db.sql`
      select (expires_at - now())::text as left from subscriptions where id = ${body.subscription}`;
    expect(row?.left).toMatch(/^59 days/);
  });

  it('must exist, be in time, and is not spent where it can give nothing', async () => {
    const app = await App.make();
    for (const voucher of ['x', 'AAAAA-AAAAA-AAAAA-AAAAA', `${await code()}0`])
      expect((await app.claim(one, undefined, { voucher })).code).toBe('voucher_unknown');
    const late = await code();
    await one.ctx.db
      .sql`update vouchers set redeem_before = now() - interval '1 second' where redeemed_at is null`;
    expect((await app.claim(one, undefined, { voucher: late })).code).toBe('voucher_expired');
    const { subscription, secret } = (await grant()).body;
    await one.operate('POST', `/v1/admin/subscriptions/${subscription}/revoke`);
    const voucher = await code();
    const revoked = await App.make(secret);
    expect((await revoked.claim(one, undefined, { voucher })).code).toBe('subscription_revoked');
    expect((await app.claim(one, undefined, { voucher })).status).toBe(201);
  });

  it('has a hundred bits, none of which is kept', async () => {
    const { codes } = (await mint({ count: 200 })).body;
    expect(new Set(codes).size).toBe(200);
    for (const one of codes) expect(one).toMatch(/^[0-9A-HJKMNP-TV-Z]{5}(?:-[0-9A-HJKMNP-TV-Z]{5}){3}$/);
    const kept = await tables();
    for (const one of codes) {
      expect(kept).not.toContain(one);
      expect(kept).not.toContain(one.replaceAll('-', ''));
    }
  });

  it('made again with its Idempotency-Key is the same, and with another request none', async () => {
    expect((await mint({ redeemBefore: '2099-01-01T00:00:00Z' })).code).toBe('expiry_too_far');
    const wish = { count: 3, redeemBefore: '2030-01-01T00:00:00Z' };
    const same = await times(20, () => mint(wish, 'gifts'));
    expect(tally(same)).toEqual({ 201: 20 });
    expect(new Set(same.map(({ text }) => text)).size).toBe(1);
    expect((await mint({ ...wish, count: 4 }, 'gifts')).code).toBe('idempotency_key_reused');
    await one.ctx.db.sql`delete from idempotency_keys`;
    expect((await mint(wish, 'gifts')).code).toBe('idempotency_expired');
  });
});

describe('a grant', () => {
  it('is claimed by the secret that is shown once, of which nothing is kept', async () => {
    const wish = { tier: 'pro', expiresAt: '2030-01-01T00:00:00Z' };
    const answers = await times(20, () => grant(wish, 'friend'));
    expect(tally(answers)).toEqual({ 201: 20 });
    expect(new Set(answers.map(({ text }) => text)).size).toBe(1);
    const { secret, subscription } = answers[0]?.body ?? expect.unreachable();
    const app = await App.make(secret);
    expect((await app.claim(two)).body).toMatchObject({ subscription, tier: 'pro' });
    const kept = await tables();
    expect(kept).not.toContain(secret);
    expect(kept).not.toContain(app.hash);
    const log = await one.operate<{ items: { action: string }[] }>(
      'GET',
      `/v1/admin/audit?subject=subscription:${subscription}`,
    );
    expect(log.items.map(({ action }) => action)).toEqual(
      expect.arrayContaining(['grant.made', 'subscription.created']),
    );
  });

  it('adds to a subscription, and takes nothing from what an operator minted', async () => {
    const { subscription } = await one.mint('plus', { days: 200 });
    const added = await grant({ subscription, reason: 'support', tier: 'pro', expiresAt: inDays(10) });
    expect(added.body).toEqual({ subscription, secret: null });
    const [row] = await one.ctx.db.sql`
      select tier, (expires_at - now())::text as left from subscriptions where id = ${subscription}`;
    expect(row).toMatchObject({ tier: 'pro', left: expect.stringMatching(/^199 days/) });
    expect((await grant({ subscription: crypto.randomUUID() })).code).toBe('subscription_unknown');
    expect((await grant({ expiresAt: inDays(-1) })).code).toBe('expiry_past');
    expect((await grant({ expiresAt: inDays(9000) })).code).toBe('expiry_too_far');
  });
});

it('a subscription that an operator revoked stays revoked, whatever is paid', async () => {
  const app = await App.make();
  const { reference } = await paid('stripe', app);
  const key: DeviceKey = await generateDeviceKey();
  const { subscription } = (await app.claim(one, key)).body;
  await one.operate('POST', `/v1/admin/subscriptions/${subscription}/revoke`);
  for (const webhook of (await stores.stripe.act(reference, 'renew')).webhooks)
    await post(one, 'stripe', webhook);
  await paid('apple', app);
  expect((await app.claim(one, key)).code).toBe('subscription_revoked');
});

it('a checkout is made for a tier and a secret, and pays for it', async () => {
  const app = await App.make();
  const body = { tier: 'plus', claim: app.hash };
  const buy = (tier = 'plus', key = 'buy') =>
    one.call<{ url: string }>('POST', '/v1/billing/stripe/checkout', {
      body: { ...body, tier },
      headers: { 'idempotency-key': key },
    });
  const { status, body: session } = await buy();
  expect(status).toBe(201);
  expect((await buy()).body).toEqual(session);
  expect((await buy('ops')).code).toBe('tier_not_sold');
  const payer = { name: 'a', email: 'b', cardLast4: '1', deviceId: 'c' };
  for (const webhook of (await stores.stripe.pay(session.url, payer)).webhooks)
    await post(one, 'stripe', webhook);
  await one.ctx.billing.idle();
  expect((await app.claim(two)).status).toBe(201);
  const other = { ...body, claim: (await App.make(makeClaimSecret())).hash };
  const theirs = await one.call<{ url: string }>('POST', '/v1/billing/stripe/checkout', {
    body: other,
    headers: { 'idempotency-key': 'buy' },
  });
  expect(theirs.body.url).not.toBe(session.url);
});
