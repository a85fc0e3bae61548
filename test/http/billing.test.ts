/**
 * From a payment in any store to a Sigil and back, over HTTP against a whole controller and the stores' stand-ins:
 * what pays opens, what lapses takes the peers off their exits and recovery puts them back where they were, what an
 * operator gives or takes holds, and a store that is down is nobody else's trouble.
 */

import type { Peer } from '@katafract/shared/api';
import { generateDeviceKey } from '@katafract/shared/dpop';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import type { Action, StandIn } from '../stores/stand-in.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import { App, callBound, post, type Stores, startStores } from './stores.ts';
import { expectConsistent } from './tables.ts';

const database = useDatabase();
let stores: Stores;
let controller: TestController;
let exit: FakeExit;

beforeAll(async () => {
  stores = await startStores();
  controller = await startController(database.url, {
    env: { ...stores.env, KATAFRACT_LAPSE_GRACE_SECONDS: '0' },
  });
  await controller.addRegion('fra');
  exit = await startExit(controller, { node: 'fra-1', region: 'fra' });
  await waitFor('the exit', async () => (await controller.metric('katafract_node_connected')) === 1);
});
afterAll(async () => {
  await exit.leave();
  await controller.close();
  await stores.close();
});

const sql = () => controller.ctx.db.sql;
const settled = () => controller.ctx.billing.idle();
const act = async (store: StandIn, reference: string, action: Action) => {
  const step = await store.act(reference, action);
  for (const webhook of step.webhooks) expect((await post(controller, store.name, webhook)).status).toBe(200);
  await settled();
  return step;
};
/** An app that has paid, with its Sigil and a peer. */
async function subscribed(store: StandIn) {
  const app = await App.make();
  const step = await app.buy(store);
  for (const webhook of step.webhooks) expect((await post(controller, store.name, webhook)).status).toBe(200);
  await settled();
  const key = await generateDeviceKey();
  const { status, body } = await app.claim(controller, key);
  expect(status).toBe(201);
  const publicKey = newKey();
  const wish = { method: 'POST', path: '/v1/peers', body: { publicKey, region: 'fra' } };
  const peer = await callBound<Peer>(controller, { key, sigil: body.sigil }, wish);
  expect(peer.status).toBe(201);
  return {
    app,
    reference: step.reference,
    device: { key, sigil: body.sigil },
    peer: peer.body,
    publicKey,
    issued: body,
  };
}
const holds = (key: string) => new Set<string>(exit.table.keys()).has(key);

describe.each(['stripe', 'apple', 'google'] as const)('a subscription of %s', (name) => {
  const store = () => stores[name];

  it('opens with its payment, to its secret alone', async () => {
    const app = await App.make();
    const device = await generateDeviceKey();
    const before = await app.claim(controller, device);
    expect(before.status).toBe(202);
    expect(before.headers.get('retry-after')).toBe('2');
    const step = await app.buy(store(), 'pro');
    for (const webhook of step.webhooks) await post(controller, name, webhook);
    await settled();
    const { status, body } = await app.claim(controller, device);
    expect(status).toBe(201);
    expect(body).toMatchObject({ tier: 'pro', devices: { bound: 1, limit: 10 } });
    const again = await app.claim(controller, device);
    expect(again.body).toMatchObject({ subscription: body.subscription, devices: { bound: 1 } });
    expect((await (await App.make()).claim(controller)).status).toBe(202);
  });

  it('takes its peers off when it ends, and puts them back where they were', async () => {
    const { device, peer, publicKey, reference } = await subscribed(store());
    await waitFor('the peer', () => holds(publicKey));
    const ends: Action = name === 'stripe' ? 'hold' : 'hold';
    if (store().actions(reference).includes('failPayment')) {
      await act(store(), reference, 'failPayment');
      expect((await callBound(controller, device, { method: 'GET', path: '/v1/sigil' })).status).toBe(200);
      expect(holds(publicKey)).toBe(true);
    }
    await act(store(), reference, ends);
    await waitFor('the peer to be gone', () => !holds(publicKey));
    const [tombstone] = await sql()`
      select removed from placements where public_key = ${publicKey} and node_id = 'fra-1'`;
    expect(tombstone?.removed).toBe(true);
    const refused = await callBound(controller, device, { method: 'GET', path: '/v1/sigil' });
    expect(refused.code).toBe('sigil_expired');
    await act(store(), reference, 'recover');
    await waitFor('the peer to be back', () => holds(publicKey));
    expect(exit.table.get(peer.publicKey)).toMatchObject(peer.addresses);
    const back = await callBound<Peer>(controller, device, { method: 'GET', path: `/v1/peers/${peer.id}` });
    expect(back.body).toMatchObject({ id: peer.id, publicKey, addresses: peer.addresses });
    await expectConsistent(controller);
  });

  it('ends with a refund, whatever was paid for', async () => {
    const { publicKey, reference, app } = await subscribed(store());
    await act(store(), reference, 'refund');
    await waitFor('the peer to be gone', () => !holds(publicKey));
    expect((await app.claim(controller)).code).toBe('subscription_over');
  });

  it('accepts no forgery, and answers what it does not know', async () => {
    const { reference } = await subscribed(store());
    const messages = async () => (await sql()`select count(*)::int as n from store_messages`)[0]?.n;
    const before = await messages();
    for (const [what, webhook] of Object.entries(await store().forgeries(reference)))
      expect([400, 401], what).toContain((await post(controller, name, webhook)).status);
    expect(await messages()).toBe(before);
    const unknown = await controller.metric(
      'katafract_billing_signals_total',
      `store="${name}",type="unknown"`,
    );
    expect((await post(controller, name, await store().unknown())).status).toBe(200);
    expect(await controller.metric('katafract_billing_signals_total', `store="${name}",type="unknown"`)).toBe(
      unknown + 1,
    );
  });
});

it('a tier that is over takes the peers with it that the remaining one has no room for, the youngest first', async () => {
  const body = {
    tier: 'plus',
    expiresAt: new Date(Date.now() + 86_400_000).toISOString(),
    reason: 'support',
  };
  const granted = await controller.operate<{ subscription: string }>('POST', '/v1/admin/grants', body);
  const { subscription } = granted;
  const { sigil } = await controller.mint('pro', { subscription });
  // minting made it `pro` for a while; the grants alone say so from here on
  const soon = new Date(Date.now() + 4000).toISOString();
  await controller.operate('POST', '/v1/admin/grants', {
    ...body,
    tier: 'pro',
    expiresAt: soon,
    subscription,
  });
  const made: Peer[] = [];
  for (let count = 0; count < 7; count++) {
    const peer = await controller.provision(sigil, newKey(), 'fra');
    expect(peer.status).toBe(201);
    made.push(peer.body);
  }
  const left = async () => {
    const { body } = await controller.call<{ items: Peer[] }>('GET', '/v1/peers', { token: sigil });
    return body.items.map(({ id }) => id);
  };
  await waitFor('the larger tier to be over', async () => (await left()).length < 7, { deadlineMs: 20_000 });
  expect(await left()).toEqual(made.slice(0, 5).map(({ id }) => id));
  const holds = ({ publicKey }: Peer) => exit.table.has(publicKey);
  await waitFor('the exit to follow', () => !made.slice(5).some(holds));
  expect(made.slice(0, 5).every(holds)).toBe(true);
  await expectConsistent(controller);
});
