/**
 * What happens by the clock: subscriptions end on time on whichever controller leads, renewals that no message told
 * are found, a store that is down holds up no other, and peers that were suspended come back or are forgotten rightly.
 */
import type { Peer } from '@katafract/shared/api';
import { systemClock } from '@katafract/shared/clock';
import { type DeviceKey, generateDeviceKey } from '@katafract/shared/dpop';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { type Action, PERIOD_MS, type StandIn } from '../stores/stand-in.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import { App, callBound, PAYER, post, type Stores, startStores } from './stores.ts';
import { expectConsistent } from './tables.ts';

const database = useDatabase();
const HOUR = 3_600_000;
/** How far the clock of the test is ahead of the machine's. */
let ahead = 0;
const clock = { now: () => Date.now() + ahead, after: systemClock.after };
let stores: Stores;
let one: TestController;
let two: TestController;
let exit: FakeExit;

beforeAll(async () => {
  stores = await startStores(clock.now);
  const env = { ...stores.env, KATAFRACT_LAPSE_GRACE_SECONDS: '3600' };
  // the first one leads: it runs the fleet's jobs
  one = await startController(database.url, { env, clock });
  await waitFor(
    'the lease',
    async () => (await one.metric('katafract_job_runs_total', 'billing.end_due')) > 0,
  );
  two = await startController(database.url, { env, clock, beside: one });
  await one.addRegion('fra');
  exit = await startExit(one, { node: 'fra-1', region: 'fra' });
  await pass(0);
});
beforeEach(() => {
  for (const { faults } of stores.all)
    Object.assign(faults, { delayMs: 0, outage: false, cut: false, pageSize: 100 });
});
afterAll(async () => {
  await exit.leave();
  await two.close();
  await one.close();
  await stores.close();
});

/** Time passes, and the exit is still there afterwards. */
async function pass(ms: number): Promise<void> {
  ahead += ms;
  await waitFor('the exit', async () => {
    exit.beat();
    for (const { ctx } of [one, two]) await ctx.fleet.refresh();
    return [one, two].every(({ ctx }) => ctx.fleet.roster.regions()[0]?.available === true);
  });
}

const sql = () => one.ctx.db.sql;
const holds = (key: string) => new Set<string>(exit.table.keys()).has(key);
const quiet = () =>
  waitFor('every purchase to be read', async () => (await sql()`select 1 from store_reads`).length === 0);
const tell = async (store: StandIn, webhooks: Awaited<ReturnType<StandIn['create']>>['webhooks']) => {
  for (const webhook of webhooks) expect((await post(one, store.name, webhook)).status).toBe(200);
};
const act = async (store: StandIn, reference: string, action: Action) =>
  tell(store, (await store.act(reference, action)).webhooks);
const provision = async (sigil: string, key: DeviceKey, publicKey = newKey()) => {
  const wish = { method: 'POST', path: '/v1/peers', body: { publicKey, region: 'fra' }, now: clock.now() };
  return (await callBound<Peer>(one, { key, sigil }, wish)).body;
};
const own = (key: DeviceKey, sigil: string) =>
  callBound(one, { key, sigil }, { method: 'GET', path: '/v1/sigil', now: clock.now() });

async function subscribed(store: StandIn) {
  const app = await App.make();
  const { reference, webhooks } = await app.buy(store);
  await tell(store, webhooks);
  await quiet();
  const key = await generateDeviceKey();
  const { body } = await app.claim(one, key, {}, clock.now());
  const peer = await provision(body.sigil, key);
  await waitFor('the peer', () => holds(peer.publicKey));
  const gone = () => waitFor('the peer to be gone', () => !holds(peer.publicKey));
  const back = () => waitFor('the peer to be back', () => holds(peer.publicKey));
  return { app, reference, key, sigil: body.sigil, subscription: body.subscription, peer, gone, back };
}
const end = async (store: StandIn, reference: string) => {
  for (const action of ['failPayment', 'hold'] as const) await act(store, reference, action);
  await quiet();
};
const suspended = (subscription: string) =>
  sql()`select public_key as key from suspended_peers where subscription_id = ${subscription}`;

const grant = async (controller: TestController, wish: object) => {
  const { body } = await controller.call<{ secret: App['secret']; subscription: string }>(
    'POST',
    '/v1/admin/grants',
    { token: one.operatorToken, body: { tier: 'plus', reason: 'support', ...wish } },
  );
  return body;
};
const inMs = (ms: number) => new Date(clock.now() + ms).toISOString();

it('a subscription ends at its very time, on the controller that leads, whichever made it', async () => {
  const { secret, subscription } = await grant(two, { expiresAt: inMs(2500) });
  const key = await generateDeviceKey();
  const { body } = await (await App.make(secret)).claim(two, key, {}, clock.now());
  const { publicKey } = await provision(body.sigil, key);
  await waitFor('the peer', () => holds(publicKey));
  // its grace of an hour ends when it would have ended; any change has the worker look at its clock again
  await pass(HOUR);
  await two.operate('POST', '/v1/admin/sigils', { tier: 'plus', expiresAt: inMs(HOUR) });
  await waitFor('its end', async () => (await own(key, body.sigil)).code === 'sigil_expired');
  // long before the worker would look by itself
  await waitFor('the peer to be gone', () => !holds(publicKey), { deadlineMs: 30_000 });
  expect(await suspended(subscription)).toEqual([{ key: publicKey }]);
  const [entry] = await sql()`
    select actor from audit_log where subject = ${`subscription:${subscription}`} and action = 'subscription.lapsed'`;
  expect(entry).toEqual({ actor: 'system' });
});

describe('a renewal that no message told', () => {
  it.each(['stripe', 'apple', 'google'] as const)(
    'of %s is found when it is due, and nothing is cut',
    async (name) => {
      const { app, reference, key, peer, subscription } = await subscribed(stores[name]);
      await pass(PERIOD_MS - 1000);
      await stores[name].act(reference, 'renew');
      await pass(2000);
      await one.ctx.billing.endDue();
      await quiet();
      const [row] = await sql()`
      select lapsed_at, expires_at > ${new Date(clock.now())} as valid from subscriptions where id = ${subscription}`;
      expect(row).toEqual({ lapsed_at: null, valid: true });
      const { body } = await app.claim(one, key, {}, clock.now());
      expect((await own(key, body.sigil)).status).toBe(200);
      const removed = await sql()`
      select 1 from placements where public_key = ${peer.publicKey} and (removed or generation <> (
        select min(generation) from placements where public_key = ${peer.publicKey}))`;
      expect(removed, 'the peer was never touched').toEqual([]);
    },
  );

  it('is waited for while the store is down, but not for ever; and mended when it is back', async () => {
    const store = stores.stripe;
    const { reference, peer, gone, back } = await subscribed(store);
    await pass(PERIOD_MS - 1000);
    await store.act(reference, 'renew');
    store.faults.outage = true;
    await pass(2000);
    await one.ctx.billing.endDue();
    expect(holds(peer.publicKey)).toBe(true);
    await pass(HOUR);
    await one.ctx.billing.endDue();
    await gone();
    store.faults.outage = false;
    // the reader's pause and the store's circuit are over
    await pass(10 * 60_000);
    one.ctx.billing.kick();
    await back();
    expect(exit.table.get(peer.publicKey)).toMatchObject(peer.addresses);
    await quiet();
    await expectConsistent(one);
  });
});

describe('what messages missed', () => {
  it.each(['stripe', 'apple', 'google'] as const)('%s is asked for, page by page', async (name) => {
    const store = stores[name];
    const { reference, gone } = await subscribed(store);
    const lost = await App.make();
    await lost.buy(store);
    await store.act(reference, 'refund');
    store.faults.pageSize = 1;
    expect(await one.ctx.billing.reconcile(name)).toBeGreaterThan(0);
    await quiet();
    await gone();
    // Play does not list purchases: one whose message was lost comes with its app, which holds the token
    if (name !== 'google') expect((await lost.claim(one, undefined, {}, clock.now())).status).toBe(201);
  });

  it('is asked for again from where it was, after a run that was cut off', async () => {
    const store = stores.stripe;
    await one.ctx.billing.reconcile('stripe');
    const cursor = async () =>
      (await sql()`select through from store_cursors where store = 'stripe'`)[0]?.through;
    const before = await cursor();
    const apps = await Promise.all(Array.from({ length: 6 }, () => App.make()));
    for (const app of apps) await app.buy(store);
    store.faults.pageSize = 1;
    store.faults.delayMs = 50;
    const from = store.requests.length;
    const run = one.ctx.billing.reconcile('stripe');
    await waitFor('its third page', () => store.requests.length > from + 2, { everyMs: 5 });
    store.faults.outage = true;
    await expect(run).rejects.toMatchObject({ code: 'store_unavailable' });
    expect(await cursor()).toBe(before);
    store.faults.outage = false;
    store.faults.delayMs = 0;
    await pass(10 * 60_000);
    await two.ctx.billing.reconcile('stripe');
    await quiet();
    expect(Date.parse(await cursor())).toBeGreaterThan(Date.parse(before));
    for (const app of apps) expect((await app.claim(one, undefined, {}, clock.now())).status).toBe(201);
  });
});

it('a store that is down holds up no other, and what it owes is done when it is back', async () => {
  stores.stripe.faults.cut = true;
  const waiting = await App.make();
  await tell(stores.stripe, (await waiting.buy(stores.stripe)).webhooks);
  const other = await App.make();
  await tell(stores.google, (await other.buy(stores.google)).webhooks);
  await waitFor(
    'the other store',
    async () => (await other.claim(one, undefined, {}, clock.now())).status === 201,
  );
  expect(await one.metric('katafract_billing_backlog', 'store="stripe"')).toBe(1);
  expect(await one.metric('katafract_billing_oldest_seconds', 'store="stripe"')).toBeGreaterThan(0);
  expect(await one.metric('katafract_billing_backlog', 'store="google"')).toBe(0);
  stores.stripe.faults.cut = false;
  await pass(10 * 60_000);
  for (const { ctx } of [one, two]) ctx.billing.kick();
  await quiet();
  expect((await waiting.claim(one, undefined, {}, clock.now())).status).toBe(201);
  expect(await one.metric('katafract_billing_backlog')).toBe(0);
});

it('a controller that ends waits for no store, and leaves the purchase to the others', async () => {
  const third = await startController(database.url, { env: stores.env, clock, beside: one });
  const app = await App.make();
  const { reference, webhooks } = await app.buy(stores.stripe);
  stores.stripe.faults.delayMs = 5000;
  const [webhook] = webhooks.slice(-1);
  if (!webhook) return expect.unreachable();
  expect((await post(third, 'stripe', webhook)).status).toBe(200);
  await waitFor('the lease', async () => {
    const rows = await sql()`select 1 from store_reads where reference = ${reference} and fence is not null`;
    return rows.length > 0;
  });
  const answered = stores.stripe.requests.length;
  await third.close();
  expect(stores.stripe.requests.length, 'closed before the store answered').toBe(answered);
  stores.stripe.faults.delayMs = 0;
  await quiet();
  expect((await app.claim(one, undefined, {}, clock.now())).status).toBe(201);
});

describe('a purchase of Play', () => {
  const known = async (reference: string) =>
    (await sql()`select 1 from entitlements where reference = ${reference}`).length > 0;

  it('is acknowledged in the end, however often that fails', async () => {
    const { faults, acknowledged } = stores.google;
    const { reference, webhooks } = await (await App.make()).buy(stores.google);
    faults.delayMs = 300;
    await tell(stores.google, webhooks);
    await waitFor('the entitlement', () => known(reference), { everyMs: 5 });
    faults.outage = true;
    faults.delayMs = 0;
    const failed = () => one.metric('katafract_billing_acknowledgements_total', 'outcome="failed"');
    await waitFor('a failure', async () => (await failed()) > 0);
    expect(acknowledged(reference)).toBe(false);
    expect(await one.metric('katafract_billing_backlog', 'store="google"')).toBe(1);
    faults.outage = false;
    await pass(10 * 60_000);
    for (const { ctx } of [one, two]) ctx.billing.kick();
    await quiet();
    expect(acknowledged(reference)).toBe(true);
  });

  it('that nobody can claim is not acknowledged, so that the money goes back', async () => {
    const wish = { tier: 'plus', payer: PAYER, claim: 'somebody@example.org' } as const;
    const { reference, webhooks } = await stores.google.create(wish);
    await tell(stores.google, webhooks);
    await quiet();
    expect(await known(reference)).toBe(true);
    expect(stores.google.acknowledged(reference)).toBe(false);
    const app = await App.make();
    const answer = await app.claim(one, undefined, { google: reference }, clock.now());
    expect(answer.code).toBe('purchase_unclaimable');
  });
});

describe('suspended peers', () => {
  it('are gone for good when an operator revokes the subscription', async () => {
    const { reference, subscription, gone, peer, app } = await subscribed(stores.apple);
    await end(stores.apple, reference);
    await gone();
    expect(await suspended(subscription)).toHaveLength(1);
    await one.operate('POST', `/v1/admin/subscriptions/${subscription}/revoke`);
    expect(await suspended(subscription)).toEqual([]);
    await act(stores.apple, reference, 'recover');
    await quiet();
    expect((await app.claim(one, undefined, {}, clock.now())).code).toBe('subscription_revoked');
    expect(holds(peer.publicKey)).toBe(false);
  });

  it('are forgotten where their address or their key has gone to another', async () => {
    const first = await subscribed(stores.apple);
    const second = await provision(first.sigil, first.key);
    const third = await provision(first.sigil, first.key);
    await end(stores.apple, first.reference);
    await first.gone();
    const index = sql()`select address_index from suspended_peers where id = ${first.peer.id}`;
    await sql()`delete from resting_addresses where address_index = (${index})`;
    const { sigil } = await one.mint('plus', { days: 300 });
    expect((await one.provision(sigil, second.publicKey, 'fra')).status).toBe(201);
    await act(stores.apple, first.reference, 'recover');
    await waitFor('the third', () => holds(third.publicKey));
    await quiet();
    expect(await suspended(first.subscription)).toEqual([]);
    const left =
      await sql()`select public_key as key from peers where subscription_id = ${first.subscription}`;
    expect(left).toEqual([{ key: third.publicKey }]);
    await expectConsistent(one);
  });

  it('wait where their region has no exit, and come back with it', async () => {
    const { reference, gone, back, subscription, peer } = await subscribed(stores.google);
    await end(stores.google, reference);
    await gone();
    const cordon = (state: string) => one.operate('PATCH', '/v1/admin/nodes/fra-1', { state });
    await cordon('cordoned');
    await act(stores.google, reference, 'recover');
    await quiet();
    expect(await suspended(subscription)).toEqual([{ key: peer.publicKey }]);
    await cordon('active');
    await back();
    expect(exit.table.get(peer.publicKey)).toMatchObject(peer.addresses);
    expect(await suspended(subscription)).toEqual([]);
    await expectConsistent(one);
  });

  it('come back when an operator prolongs what was minted', async () => {
    const { sigil, subscription } = await one.operate<{ sigil: string; subscription: string }>(
      'POST',
      '/v1/admin/sigils',
      { tier: 'plus', expiresAt: inMs(HOUR) },
    );
    const key = newKey();
    const { body } = await one.provision(sigil, key, 'fra');
    await waitFor('the peer', () => holds(key));
    await pass(2 * HOUR + 1000);
    await one.ctx.billing.endDue();
    await waitFor('the peer to be gone', () => !holds(key));
    await one.operate('POST', '/v1/admin/sigils', { tier: 'plus', subscription, expiresAt: inMs(HOUR) });
    await waitFor('the peer to be back', () => holds(key));
    expect(exit.table.get(body.publicKey)).toMatchObject(body.addresses);
  });
});
