import { generateKeyPairSync } from 'node:crypto';
import { claimHash, makeClaimSecret } from '@katafract/shared/claim';
import { type Clock, systemClock } from '@katafract/shared/clock';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { freePort } from '../../../../test/ports.ts';
import { type AppleStandIn, appleStandIn } from '../../../../test/stores/apple.ts';
import { appleChain, type Chain } from '../../../../test/stores/pki.ts';
import { bytes, type Reply, serve, type Webhook } from '../../../../test/stores/stand-in.ts';
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

describe('answers that cannot be', () => {
  /** A store that answers every question so. */
  async function answering(answer: Reply, check: (store: StorePort) => Promise<void>): Promise<void> {
    const served = await serve({ failing: () => answer, rateLimited: () => answer }, () => answer);
    try {
      await check(appleStore({ ...standIn.config, apiBase: served.url }, DEPS));
    } finally {
      await served.close();
    }
  }
  const unavailable = { code: 'store_unavailable', status: 503 };

  it('are not taken: a transaction of another subscription under the id that was asked for', async () => {
    const { reference } = await bought();
    const signedTransactionInfo = await standIn.signedTransaction(reference);
    const item = (originalTransactionId: string) => ({
      originalTransactionId,
      status: 1,
      signedTransactionInfo,
    });
    const json = { data: [{ lastTransactions: [item('777'), item(reference)] }] };
    await answering({ status: 200, json }, async (liar) => {
      await expect(liar.read('777')).rejects.toMatchObject(unavailable);
      expect(await liar.read('778')).toBeNull();
      expect(await liar.read(reference)).toMatchObject({ standing: 'active', renews: false });
    });
  });

  it('are not taken for "no such subscription" where Apple says to try again', async () => {
    const coded = (errorCode: number) => ({
      status: 404,
      json: { errorCode, errorMessage: 'for ada@example.com' },
    });
    for (const errorCode of [4040002, 4040004, 4040006]) {
      await answering(coded(errorCode), (store) =>
        expect(store.read('1')).rejects.toMatchObject(unavailable),
      );
    }
    for (const errorCode of [4040001, 4040005, 4040010]) {
      await answering(coded(errorCode), async (store) => expect(await store.read('1')).toBeNull());
    }
  });

  it('are none: a page of a proxy, JSON of another kind', async () => {
    for (const answer of [
      { status: 200 },
      { status: 200, json: { data: 'ada@example.com' } },
      { status: 403 },
    ]) {
      await answering(answer, async (store) => {
        const error: unknown = await store.read('1').catch((reason: unknown) => reason);
        expect(error).toMatchObject(unavailable);
        expect(String((error as Error).stack)).not.toContain('ada@');
        await expect(all(store.changedSince(Date.now() - 1000, none))).rejects.toMatchObject(unavailable);
      });
    }
  });
});

describe('with the status of certificates asked for', () => {
  const online = (chain: Chain) =>
    appleStore({ ...standIn.config, rootCertificates: [chain.root], onlineChecks: true }, DEPS);

  it('refuses a chain that does not say where', async () => {
    const { webhooks } = await bought();
    const [webhook] = webhooks;
    const same = appleStore({ ...standIn.config, onlineChecks: true }, DEPS);
    await expect(webhook && verify(webhook, same)).rejects.toMatchObject({ code: 'webhook_invalid' });
  });

  it('refuses for now, not for good, where nobody answers', async () => {
    const { reference } = await bought();
    const chain = await appleChain({ ocsp: `http://127.0.0.1:${await freePort()}/` });
    const payload = await standIn.notification(reference, 'DID_RENEW');
    const webhook = posted(await standIn.sign(payload, chain));
    await expect(verify(webhook, online(chain))).rejects.toMatchObject({
      code: 'store_unavailable',
      status: 503,
    });
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
