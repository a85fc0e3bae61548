import { generateKeyPairSync } from 'node:crypto';
import { claimHash, makeClaimSecret } from '@katafract/shared/claim';
import { type Clock, systemClock } from '@katafract/shared/clock';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type GoogleStandIn, googleStandIn } from '../../../../test/stores/google.ts';
import { bytes, type Webhook } from '../../../../test/stores/stand-in.ts';
import type { StoreDeps } from './call.ts';
import { googleStore } from './google.ts';
import type { StorePort } from './port.ts';

const PAYER = { name: 'Ada', email: 'ada@example.com', cardLast4: '4929', deviceId: 'device' };
const DEPS: StoreDeps = { clock: systemClock, call: { tries: 1 } };

let standIn: GoogleStandIn;
let store: StorePort;
let claim: string;
beforeAll(async () => {
  standIn = await googleStandIn();
});
afterAll(() => standIn.close());
beforeEach(async () => {
  standIn.faults.outage = false;
  standIn.requests.length = 0;
  store = googleStore(standIn.config, DEPS);
  claim = await claimHash(makeClaimSecret());
});
const bought = (pending = false) => standIn.create({ claim, tier: 'plus', payer: PAYER, pending });
const verify = ({ body, headers }: Webhook, by = store) => by.verify({ body, headers: new Headers(headers) });
const asked = (path: string) => standIn.requests.filter((request) => request.path.includes(path)).length;
const notification = (over: object) => ({ version: '1.0', packageName: standIn.config.packageName, ...over });

describe('pushes of Pub/Sub', () => {
  it('bear the type of the notification', async () => {
    const { reference } = await bought();
    const [canceled] = (await standIn.act(reference, 'cancel')).webhooks;
    const [voided] = (await standIn.act(reference, 'refund')).webhooks;
    const types = [];
    for (const webhook of [canceled, voided]) types.push(webhook && (await verify(webhook)).type);
    expect(types).toEqual(['SUBSCRIPTION_CANCELED', 'VOIDED_PURCHASE']);
  });

  it('may be about nothing: a test, a product that is no subscription', async () => {
    const about = async (over: object) => verify(await standIn.push(notification(over)));
    expect(await about({ testNotification: { version: '1.0' } })).toMatchObject({
      type: 'TEST',
      reference: null,
    });
    const single = { purchaseToken: 'token.of.a.product', productType: 2 };
    expect(await about({ voidedPurchaseNotification: single })).toMatchObject({
      type: 'unknown',
      reference: null,
    });
    const product = { notificationType: 1, purchaseToken: 'token.of.a.product', sku: 'x' };
    expect(await about({ oneTimeProductNotification: product })).toMatchObject({
      type: 'unknown',
      reference: null,
    });
  });

  it('are malformed where the sender is genuine and the message is none', async () => {
    const { headers } = await standIn.push(notification({}));
    const data = (text: string) =>
      JSON.stringify({ message: { messageId: '1', data: Buffer.from(text).toString('base64') } });
    for (const text of [
      '{',
      '{}',
      data('{'),
      data('{}'),
      data('[]'),
      JSON.stringify({ message: { data: 'e30=' } }),
    ]) {
      const body = bytes(text);
      await expect(verify({ eventId: '', body, headers })).rejects.toMatchObject({
        code: 'webhook_malformed',
        status: 400,
      });
    }
  });

  it('are refused for now, not for good, while the keys cannot be had', async () => {
    const webhook = await standIn.push(notification({ testNotification: {} }));
    standIn.faults.outage = true;
    await expect(verify(webhook)).rejects.toMatchObject({ code: 'store_unavailable', status: 503 });
    standIn.faults.outage = false;
    expect((await verify(webhook)).type).toBe('TEST');
    standIn.faults.outage = true;
    expect((await verify(webhook)).type).toBe('TEST');
  });

  it('of forged senders do not make us fetch the keys each time', async () => {
    const { privateKey: key } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    for (let forged = 0; forged < 5; forged++) {
      const webhook = await standIn.push(notification({ testNotification: {} }), {
        key,
        kid: `forged-${forged}`,
      });
      await expect(verify(webhook)).rejects.toMatchObject({ code: 'webhook_invalid' });
    }
    expect(asked('/certs')).toBe(1);
  });
});

describe('what Play says of a purchase', () => {
  it('is pending until it is paid for, and needs no acknowledgement before', async () => {
    for (const [action, standing] of [
      ['complete', 'active'],
      ['abandon', 'expired'],
    ] as const) {
      const { reference } = await bought(true);
      expect(await store.read(reference)).toMatchObject({ standing: 'pending', acknowledge: false });
      await store.acknowledge?.({ reference, tier: 'plus' });
      expect(standIn.acknowledged(reference)).toBe(false);
      await standIn.act(reference, action);
      expect(await store.read(reference)).toMatchObject({ standing });
    }
  });

  it('asks for an acknowledgement until it has one', async () => {
    const { reference } = await bought();
    const view = await store.read(reference);
    expect(view?.acknowledge).toBe(true);
    await store.acknowledge?.({ reference, tier: 'plus' });
    await store.acknowledge?.({ reference, tier: 'plus' });
    expect(asked(':acknowledge')).toBe(1);
    expect(standIn.acknowledged(reference)).toBe(true);
    expect((await store.read(reference))?.acknowledge).toBe(false);
    await store.acknowledge?.({ reference: 'token.of.nothing', tier: 'plus' });
  });

  it('links an upgrade to what it replaced, and keeps the claim, inside the app and outside', async () => {
    for (const inApp of [true, false]) {
      const { reference } = await bought();
      const upgrade = await standIn.upgrade(reference, 'pro', inApp);
      const view = await store.read(upgrade.reference);
      expect(view).toMatchObject({ claim, tier: 'pro', standing: 'active', replaces: reference });
      expect(await store.read(reference)).toMatchObject({ claim, standing: 'expired' });
      const told: (string | null)[] = [];
      for (const webhook of upgrade.webhooks) told.push((await verify(webhook)).reference);
      expect(told).toEqual([upgrade.reference, reference]);
    }
  });

  it('grants nothing for what nobody pays for, unless the configuration says so', async () => {
    const { reference } = await bought();
    standIn.asTester(reference);
    expect(await store.read(reference)).toMatchObject({ tier: null, standing: 'active' });
    const lenient = googleStore({ ...standIn.config, testPurchases: true }, DEPS);
    expect(await lenient.read(reference)).toMatchObject({ tier: 'plus' });
  });

  it('is over when what was canceled has run out, also before Play says so, and forgotten long after', async () => {
    let now = Date.now();
    const clock: Clock = { now: () => now, after: systemClock.after };
    const old = await googleStandIn(clock.now);
    try {
      const far = googleStore(old.config, { ...DEPS, clock });
      const { reference } = await old.create({ claim, tier: 'plus', payer: PAYER });
      await old.act(reference, 'cancel');
      now += 31 * 86_400_000;
      expect(await far.read(reference)).toMatchObject({ standing: 'expired', renews: false });
      await old.act(reference, 'expire');
      now += 61 * 86_400_000;
      expect(await far.read(reference)).toBeNull();
    } finally {
      await old.close();
    }
  });
});

describe('access to Play', () => {
  it('asks for one token, however many ask at once, and for another when that was revoked or is over', async () => {
    let now = Date.now();
    const clock: Clock = { now: () => now, after: systemClock.after };
    const timed = await googleStandIn(clock.now);
    try {
      const granted = () => timed.requests.filter(({ path }) => path === '/token').length;
      const store = googleStore(timed.config, { ...DEPS, clock });
      const { reference } = await timed.create({ claim, tier: 'plus', payer: PAYER });
      await Promise.all(Array.from({ length: 5 }, () => store.read(reference)));
      expect(granted()).toBe(1);
      timed.revokeTokens();
      expect(await store.read(reference)).not.toBeNull();
      expect(granted()).toBe(2);
      now += 3_599_000;
      expect(await store.read(reference)).not.toBeNull();
      expect(granted()).toBe(3);
    } finally {
      await timed.close();
    }
  });

  it('is refused to another account, whose key no error shows', async () => {
    const { reference } = await bought();
    const pem = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({
      type: 'pkcs8',
      format: 'pem',
    });
    const serviceAccount = { ...standIn.config.serviceAccount, private_key: pem.toString() };
    const stranger = googleStore({ ...standIn.config, serviceAccount }, DEPS);
    await expect(stranger.read(reference)).rejects.toMatchObject({
      code: 'store_unavailable',
      message: 'google does not serve: no access token, status 400',
    });
    const broken = { ...serviceAccount, private_key: 'secret-text' };
    expect(() => googleStore({ ...standIn.config, serviceAccount: broken }, DEPS)).toThrow(/RSA key/);
    expect(() => googleStore({ ...standIn.config, serviceAccount: broken }, DEPS)).not.toThrow(/secret-text/);
  });

  it('takes a purchase token from an app only where it can be one', async () => {
    const { reference } = await bought();
    expect(await store.referenceOf?.(reference)).toBe(reference);
    for (const purchase of ['', 'short', 'with/slash/and/more', 'x'.repeat(3000), 'with space in it']) {
      await expect(store.referenceOf?.(purchase)).rejects.toMatchObject({
        code: 'purchase_invalid',
        status: 422,
      });
    }
  });
});
