/**
 * Canaries: a name, an e-mail, a card's last four and a device id are in everything the stores send and answer, also
 * where that is malformed, forged or an error. Afterwards none of them is in any table, log line (at debug level),
 * message to a node or metric; neither are the secrets of apps, codes, and the stores' own keys.
 */
import { generateDeviceKey } from '@katafract/shared/dpop';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import type { StandIn, Webhook } from '../stores/stand-in.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import { App, callBound, PAYER, post, type Stores, startStores } from './stores.ts';
import { tablesText } from './tables.ts';

const database = useDatabase();
let stores: Stores;
let controller: TestController;
let exit: FakeExit;
/** What the stores' own messages and answers must have contained, or this proves nothing. */
let sent = '';
const secrets: string[] = [];
const CANARIES = [
  ...Object.values(PAYER),
  'Canary',
  encodeURIComponent(PAYER.name),
  encodeURIComponent(PAYER.email),
];

beforeAll(async () => {
  stores = await startStores();
  controller = await startController(database.url, { env: stores.env });
  await controller.addRegion('fra');
  exit = await startExit(controller, { node: 'fra-1', region: 'fra' });
  await waitFor('the exit', async () => (await controller.metric('katafract_node_connected')) === 1);
  const { stripe, apple, google } = stores;
  secrets.push(stripe.config.secretKey, ...stripe.config.webhookSecrets);
  for (const pem of [apple.config.privateKey, google.config.serviceAccount.private_key])
    secrets.push(pem.split('\n')[1] ?? 'no key');
});
afterAll(async () => {
  await exit.leave();
  await controller.close();
  await stores.close();
});

async function tell(store: StandIn, webhook: Webhook): Promise<number> {
  sent += `${new TextDecoder().decode(webhook.body)}\n`;
  return (await post(controller, store.name, webhook)).status;
}
const quiet = () =>
  waitFor('every purchase to be read', async () => {
    const waiting = await controller.ctx.db.sql`select 1 from store_reads`;
    return waiting.length === 0;
  });

/** A whole life, and everything that can go wrong about it. */
async function live(store: StandIn): Promise<void> {
  const app = await App.make();
  secrets.push(app.secret);
  const { reference, webhooks } = await app.buy(store);
  for (const webhook of webhooks) expect(await tell(store, webhook)).toBe(200);
  await quiet();
  const key = await generateDeviceKey();
  const { body } = await app.claim(controller, key);
  secrets.push(body.sigil.split('.')[2] ?? 'no signature');
  const wish = { method: 'POST', path: '/v1/peers', body: { publicKey: newKey(), region: 'fra' } };
  expect((await callBound(controller, { key, sigil: body.sigil }, wish)).status).toBe(201);
  for (const webhook of Object.values(await store.forgeries(reference))) await tell(store, webhook);
  await tell(store, await store.unknown());
  for (const body of [`{"name":"${PAYER.name}`, JSON.stringify(PAYER), `email=${PAYER.email}`]) {
    const headers = webhooks[0]?.headers ?? {};
    await tell(store, { eventId: '', body: new TextEncoder().encode(body), headers });
  }
  store.faults.outage = true;
  for (const webhook of (await store.act(reference, 'cancel')).webhooks) await tell(store, webhook);
  const failed = () =>
    controller.metric('katafract_billing_readings_total', `store="${store.name}",outcome="failed"`);
  await waitFor('a failed reading', async () => (await failed()) > 0);
  store.faults.outage = false;
  // its circuit may be open for a while: the store sends again
  for (const webhook of (await store.act(reference, 'refund')).webhooks)
    await waitFor('the refund to be taken', async () => (await tell(store, webhook)) === 200, {
      everyMs: 500,
    });
  await quiet();
  await controller.ctx.billing.reconcile(store.name);
}

it('keeps nothing of who pays, in success and in failure, of any store', async () => {
  for (const store of stores.all) await live(store);
  const voucher = await controller.operate<{ codes: string[] }>('POST', '/v1/admin/vouchers', {
    tier: 'plus',
    days: 30,
    count: 1,
    redeemBefore: '2030-01-01T00:00:00Z',
  });
  const [code = ''] = voucher.codes;
  secrets.push(code, code.replaceAll('-', ''));
  expect((await (await App.make()).claim(controller, undefined, { voucher: code })).status).toBe(201);
  await quiet();
  await exit.idle();
  const decoded = sent.replace(/[\w-]{24,}/g, (part) => Buffer.from(part, 'base64url').toString('latin1'));
  for (const value of [PAYER.name, PAYER.email, PAYER.cardLast4, PAYER.deviceId])
    expect(sent.includes(value) || decoded.includes(value), `the canary ${value} was sent`).toBe(true);

  const found = {
    tables: await tablesText(controller.ctx.db.sql),
    logs: controller.logs.join('\n'),
    messages: exit.heard
      .map((jws) => `${jws}\n${Buffer.from(jws.split('.')[1] ?? '', 'base64url').toString()}`)
      .join('\n'),
    metrics: await controller.metrics(),
  };
  expect(found.tables).toContain('sub_');
  expect(found.logs).toContain('a purchase was not read');
  expect(found.metrics).toContain('katafract_billing_signals_total');
  for (const [where, text] of Object.entries(found)) {
    for (const canary of CANARIES) expect(seen(text, canary), `${canary} in ${where}`).toBe(false);
    for (const [index, secret] of secrets.entries())
      expect(text.includes(secret), `secret ${index} in ${where}`).toBe(false);
  }
});

/** Four digits turn up in any number; alone they are a card's. */
function seen(text: string, canary: string): boolean {
  return canary === PAYER.cardLast4
    ? new RegExp(`(?<![0-9a-zA-Z.:_-])${canary}(?![0-9a-zA-Z.:_-])`).test(text)
    : text.includes(canary);
}
