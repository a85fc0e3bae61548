import { generateKeyPairSync } from 'node:crypto';
import { claimHash, makeClaimSecret } from '@katafract/shared/claim';
import { type Clock, systemClock } from '@katafract/shared/clock';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type AppleStandIn, appleStandIn } from '../../../../test/stores/apple.ts';
import { appleChain, type Chain } from '../../../../test/stores/pki.ts';
import { bytes, type Webhook } from '../../../../test/stores/stand-in.ts';
import { type AppleConfig, appleStore } from './apple.ts';
import type { CallOutcome, StoreDeps } from './call.ts';
import type { StorePort } from './port.ts';

const PAYER = { name: 'Ada', email: 'ada@example.com', cardLast4: '4929', deviceId: 'device' };
const DAY_MS = 86_400_000;
const DEPS: StoreDeps = { clock: systemClock, call: { tries: 1 } };

let standIn: AppleStandIn;
let store: StorePort;
let claim: string;
let stranger: Chain;
beforeAll(async () => {
  standIn = await appleStandIn();
  stranger = await appleChain();
});
afterAll(() => standIn.close());
beforeEach(async () => {
  store = appleStore(standIn.config, DEPS);
  claim = await claimHash(makeClaimSecret());
});
const bought = () => standIn.create({ claim, tier: 'plus', payer: PAYER });
const verify = ({ body, headers }: Webhook, by = store) => by.verify({ body, headers: new Headers(headers) });
const posted = (signedPayload: unknown): Webhook => ({
  eventId: '',
  body: bytes(JSON.stringify({ signedPayload })),
  headers: {},
});

describe('notifications of the App Store', () => {
  it('count for as long as Apple tries to deliver them, and not before they are made', async () => {
    const { reference } = await bought();
    // by a clock that is ahead, so that the certificates were valid all the time
    const now = Date.now() + 30 * DAY_MS;
    const clock: Clock = { now: () => now, after: systemClock.after };
    const later = appleStore(standIn.config, { ...DEPS, clock });
    const at = async (signedDate: number) => {
      const payload = await standIn.notification(reference, 'DID_RENEW');
      return verify(posted(await standIn.sign({ ...payload, signedDate })), later);
    };
    expect((await at(now)).reference).toBe(reference);
    expect((await at(now - 7 * DAY_MS)).reference).toBe(reference);
    expect((await at(now + 299_000)).reference).toBe(reference);
    for (const wrong of [now - 9 * DAY_MS, now + 301_000]) {
      await expect(at(wrong)).rejects.toMatchObject({
        code: 'webhook_invalid',
        message: expect.stringMatching('time'),
      });
    }
  });

  it('bear their type and subtype', async () => {
    const { reference } = await bought();
    const payload = await standIn.notification(reference, 'DID_FAIL_TO_RENEW', 'GRACE_PERIOD');
    expect((await verify(posted(await standIn.sign(payload)))).type).toBe('DID_FAIL_TO_RENEW/GRACE_PERIOD');
    const odd = await standIn.notification(reference, 'DID_RENEW', 'for ada@example.com');
    expect((await verify(posted(await standIn.sign(odd)))).type).toBe('DID_RENEW');
  });

  it('may be about nothing: a test, a purchase that is no subscription', async () => {
    const { reference } = await bought();
    const payload = await standIn.notification(reference, 'TEST');
    const { signedTransactionInfo: _, ...data } = payload.data as Record<string, unknown>;
    expect(await verify(posted(await standIn.sign({ ...payload, data })))).toMatchObject({
      type: 'TEST',
      reference: null,
    });
    const single = await standIn.sign(await singlePurchase(reference));
    const about = {
      ...payload,
      notificationType: 'ONE_TIME_CHARGE',
      data: { ...data, signedTransactionInfo: single },
    };
    expect((await verify(posted(await standIn.sign(about)))).reference).toBeNull();
  });

  it('are malformed where there is no signed payload', async () => {
    for (const body of [bytes('{'), bytes('{}'), bytes('null'), new Uint8Array([0xff]), posted(7).body]) {
      await expect(verify({ eventId: '', body, headers: {} })).rejects.toMatchObject({
        code: 'webhook_malformed',
        status: 400,
      });
    }
    for (const payload of ['', 'a.b.c', 'x'.repeat(100)]) {
      await expect(verify(posted(payload))).rejects.toMatchObject({ code: 'webhook_invalid' });
    }
  });
});

describe('a signed transaction from an app', () => {
  it('leads to the subscription, also after renewals', async () => {
    const { reference } = await bought();
    await standIn.act(reference, 'renew');
    expect(await store.referenceOf?.(await standIn.signedTransaction(reference))).toBe(reference);
  });

  it('is no purchase where it does not verify, or is of another kind', async () => {
    const { reference } = await bought();
    const genuine = await singlePurchase(reference);
    const subscription = { ...genuine, type: 'Auto-Renewable Subscription' };
    const forged = [
      'nonsense',
      await standIn.sign(subscription, stranger),
      await standIn.sign({ ...subscription, bundleId: 'com.example.other' }),
      await standIn.sign({ ...subscription, environment: 'Sandbox' }),
      await standIn.sign(genuine),
    ];
    for (const purchase of forged) {
      await expect(store.referenceOf?.(purchase)).rejects.toMatchObject({
        code: 'purchase_invalid',
        status: 422,
      });
    }
    expect(await store.referenceOf?.(await standIn.sign(subscription))).toBe(reference);
  });
});

describe('what the App Store says of a subscription', () => {
  it('counts only where its signature holds', async () => {
    const { reference } = await bought();
    const distrusting = appleStore({ ...standIn.config, rootCertificates: [stranger.root] }, DEPS);
    await expect(distrusting.read(reference)).rejects.toMatchObject({ code: 'store_unavailable' });
  });

  it('has a grace that ends when Apple says', async () => {
    const { reference } = await bought();
    await standIn.act(reference, 'failPayment');
    const view = await store.read(reference);
    expect(view?.expiresAt).toBeGreaterThan(Date.now() + 15 * DAY_MS);
  });

  it('cannot be had with another key', async () => {
    const { reference } = await bought();
    const other = appleStore({ ...standIn.config, privateKey: ecKey() }, DEPS);
    await expect(other.read(reference)).rejects.toMatchObject({
      code: 'store_unavailable',
      message: expect.stringContaining('401'),
    });
  });

  it('is passed over in the history where the signature does not hold, and counted', async () => {
    const { reference } = await bought();
    const seen: CallOutcome[] = [];
    const distrusting = appleStore(
      { ...standIn.config, rootCertificates: [stranger.root] },
      { ...DEPS, observe: (_, outcome) => seen.push(outcome) },
    );
    const since = Date.now() - 60_000;
    expect(await all(distrusting.changedSince(since, none))).toEqual([]);
    expect(seen).toContain('unverified');
    expect(await all(store.changedSince(since, none))).toContain(reference);
  });
});

describe('the configuration', () => {
  const wrong: [what: string, over: object, names: RegExp][] = [
    ['an environment in which the library verifies nothing', { environment: 'LocalTesting' }, /environment/],
    ['another of those', { environment: 'Xcode' }, /environment/],
    ['no root', { rootCertificates: [] }, /root/],
    ['production without the id of the app', { appAppleId: undefined }, /id of the app/],
    ['no key', { privateKey: 'secret-text' }, /private key/],
    ['a key of another kind', { privateKey: rsaKey() }, /elliptic/],
  ];
  it.each(wrong)('refuses %s', (_, over, names) => {
    const config = { ...standIn.config, ...over } as AppleConfig;
    expect(() => appleStore(config, DEPS)).toThrow(names);
    expect(() => appleStore(config, DEPS)).not.toThrow(/secret-text/);
  });
});

async function* none(): AsyncGenerator<string> {
  yield* [];
}

async function all(references: AsyncIterable<string>): Promise<string[]> {
  const found: string[] = [];
  for await (const reference of references) found.push(reference);
  return found;
}

async function singlePurchase(reference: string): Promise<Record<string, unknown>> {
  const [, payload = ''] = (await standIn.signedTransaction(reference)).split('.');
  const transaction = JSON.parse(Buffer.from(payload, 'base64url').toString('utf8')) as object;
  return { ...transaction, type: 'Consumable' };
}

function ecKey(): string {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' })
    .privateKey.export({ type: 'pkcs8', format: 'pem' })
    .toString();
}

function rsaKey(): string {
  return generateKeyPairSync('rsa', { modulusLength: 2048 })
    .privateKey.export({ type: 'pkcs8', format: 'pem' })
    .toString();
}
