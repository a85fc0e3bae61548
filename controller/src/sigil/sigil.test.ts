/** Sigils against a real database: what they grant, and that they stop granting it. */
import { randomBytes } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import { verifySigil } from '@katafract/shared/sigil';
import { SignJWT } from 'jose';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../../../test/database.ts';
import { createAudit } from '../audit/audit.ts';
import { type Database, openDatabase, type Tx } from '../platform/db.ts';
import { type Keyring, openKeyring } from '../platform/keyring.ts';
import { createLogger } from '../platform/log.ts';
import { memoryStore } from '../platform/store.ts';
import { type MintRequest, type SigilDeps, Sigils } from './sigil.ts';

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const database = useDatabase();
let db: Database;
let keyring: Keyring;
let sigils: Sigils;
let now = 1_800_000_000_000;
/** Subscriptions whose peers were to be removed, and those of them whose removal was committed. */
const ended: string[] = [];
const announced: string[] = [];
let failHook = false;

const deps = (): SigilDeps => ({
  db,
  clock: { now: () => now, after: () => () => undefined },
  keyring,
  audit: createAudit(db),
  issuer: 'https://api.test',
  replays: memoryStore(() => now),
  boundMs: HOUR,
  maxDays: 400,
  rotateDays: 90,
  onEnded: async (_tx: Tx, id: string) => {
    if (failHook) throw new Error('the exits cannot be told');
    ended.push(id);
    return () => announced.push(id);
  },
  onUnbound: async () => () => undefined,
});

beforeAll(async () => {
  db = await openDatabase(database.url, createLogger('silent'), { max: 8 });
  keyring = await openKeyring({
    db,
    masterKey: randomBytes(32),
    now: () => now,
    onError: (error) => expect.unreachable(String(error)),
  });
  sigils = new Sigils(deps());
});
afterAll(async () => {
  await keyring.close();
  await db.close();
});

const mint = (wish: Partial<MintRequest> = {}, key?: string) =>
  sigils.mint({ tier: 'plus', expiresAt: now + DAY, ...wish }, 'operator:test', key);
const bearing = (authorization: string | undefined) =>
  sigils.authenticate({ authorization, dpop: undefined, method: 'GET', url: 'https://api.test/v1/sigil' });
const use = (token: string) => bearing(`Bearer ${token}`);
const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => 'fine',
    (error) => (error instanceof KatafractError ? error.code : String(error)),
  );
const actions = async (subject: string) =>
  (await createAudit(db).list({ subject }, { limit: 10 })).map((entry) => entry.action).reverse();

describe('a minted Sigil', () => {
  it('says who it is for, to us and to whoever has the JWKS alone', async () => {
    const { id, subscription, sigil } = await mint();
    expect(await use(sigil)).toEqual({
      sigilId: id,
      subscriptionId: subscription,
      tier: 'plus',
      expiresAt: now + DAY,
      device: null,
    });
    const claims = await verifySigil(sigil, keyring.jwks(), { issuer: 'https://api.test', now });
    expect(claims).toMatchObject({ sub: subscription, jti: id, tier: 'plus', exp: (now + DAY) / 1000 });
    expect(await actions(`sigil:${id}`)).toEqual(['sigil.issued']);
    expect(await actions(`subscription:${subscription}`)).toEqual(['subscription.created']);
  });

  it('is kept nowhere but as a hash', async () => {
    const { sigil } = await mint();
    const dump = JSON.stringify([await db.sql`select * from sigils`, await db.sql`select * from audit_log`]);
    expect(dump).not.toContain(sigil);
    expect(dump).not.toContain(sigil.split('.')[2]);
  });

  it('is refused once altered, of another key, of another kind, or unknown to this database', async () => {
    const { sigil, subscription, id } = await mint();
    const [header = '', payload = '', signature = ''] = sigil.split('.');
    const pro = Buffer.from(payload, 'base64url').toString().replace('plus', 'pro ');
    const forged = [header, Buffer.from(pro).toString('base64url'), signature].join('.');
    expect(await codeOf(use(forged))).toBe('sigil_invalid');
    const none = Buffer.from('{"alg":"none","typ":"kf-sigil+jwt"}').toString('base64url');
    expect(await codeOf(use(`${none}.${payload}.`))).toBe('sigil_invalid');
    const sign = (typ: string, jti: string) =>
      new SignJWT({ tier: 'plus' })
        .setProtectedHeader({ alg: 'EdDSA', typ, kid: keyring.sigil().kid })
        .setIssuer('https://api.test')
        .setSubject(subscription)
        .setJti(jti)
        .setIssuedAt(now / 1000)
        .setExpirationTime(now / 1000 + 60)
        .sign(keyring.sigil().privateKey);
    expect(await codeOf(use(await sign('kf-node+jwt', id)))).toBe('sigil_invalid');
    expect(await codeOf(use(await sign('kf-sigil+jwt', id)))).toBe('sigil_invalid');
    expect(await codeOf(use('x'.repeat(4000)))).toBe('sigil_invalid');
    expect(await codeOf(bearing(undefined))).toBe('unauthorized');
  });

  it('ends by the clock, to the second, however often it was used', async () => {
    const { sigil } = await mint({ expiresAt: now + HOUR });
    now += HOUR - 1;
    expect(await codeOf(use(sigil))).toBe('fine');
    now += 1;
    expect(await codeOf(use(sigil))).toBe('sigil_expired');
  });

  it('must expire in the future, but not too far', async () => {
    expect(await codeOf(mint({ expiresAt: now }))).toBe('expiry_past');
    expect(await codeOf(mint({ expiresAt: now + 401 * DAY }))).toBe('expiry_too_far');
    expect(await codeOf(mint({ subscription: crypto.randomUUID() }))).toBe('subscription_unknown');
  });
});

describe('a subscription', () => {
  it('takes tier and prolongation from its newest Sigil; the older ones speak for the new tier', async () => {
    const first = await mint({ tier: 'plus' });
    const { subscription } = first;
    await mint({ tier: 'pro', subscription, expiresAt: now + 2 * DAY });
    expect(await use(first.sigil)).toMatchObject({ tier: 'pro', expiresAt: now + DAY });
    await mint({ tier: 'pro', subscription, expiresAt: now + HOUR });
    expect(await codeOf(use(first.sigil))).toBe('fine');
    expect(await actions(`subscription:${subscription}`)).toEqual([
      'subscription.created',
      'subscription.changed',
    ]);
  });
});

describe('revocation', () => {
  it('takes effect on the next request, on every controller', async () => {
    const other = new Sigils(deps());
    const { id, sigil } = await mint();
    expect(await codeOf(use(sigil))).toBe('fine');
    await other.revoke(id, 'operator:test');
    expect(await codeOf(use(sigil))).toBe('sigil_revoked');
  });

  it('of one Sigil of several leaves the peers; of the last one it takes them', async () => {
    const { id, subscription } = await mint();
    const { id: second, sigil } = await mint({ subscription });
    await sigils.revoke(id, 'operator:test');
    expect(await codeOf(use(sigil))).toBe('fine');
    expect(announced).not.toContain(subscription);
    await sigils.revoke(second, 'operator:test');
    await sigils.revoke(second, 'operator:test');
    expect(announced.filter((one) => one === subscription)).toHaveLength(1);
    expect(await actions(`sigil:${second}`)).toEqual(['sigil.issued', 'sigil.revoked']);
  });

  it('of a subscription ends all its Sigils, and no new one can be minted', async () => {
    const { sigil, subscription } = await mint();
    await sigils.revokeSubscription(subscription, 'operator:test');
    await sigils.revokeSubscription(subscription, 'operator:test');
    expect(announced.filter((one) => one === subscription)).toHaveLength(1);
    expect(await codeOf(use(sigil))).toBe('sigil_revoked');
    expect(await codeOf(mint({ subscription }))).toBe('subscription_revoked');
    expect(await codeOf(sigils.revokeSubscription(crypto.randomUUID(), 'x'))).toBe('subscription_unknown');
    expect(await codeOf(sigils.revoke(crypto.randomUUID(), 'x'))).toBe('sigil_unknown');
  });

  it('is all or nothing: where the peers cannot go, the Sigil stays good', async () => {
    const { id, sigil } = await mint();
    failHook = true;
    await expect(sigils.revoke(id, 'operator:test')).rejects.toThrow('cannot be told');
    failHook = false;
    expect(await codeOf(use(sigil))).toBe('fine');
    expect(await actions(`sigil:${id}`)).toEqual(['sigil.issued']);
  });
});

describe('an Idempotency-Key', () => {
  it('returns the very same token, also to twenty requests at once and after the key has rotated', async () => {
    const wish = { expiresAt: now + 5 * DAY };
    const all = await Promise.all(Array.from({ length: 20 }, () => mint(wish, 'once')));
    expect(new Set(all.map((one) => one.sigil)).size).toBe(1);
    expect(await db.sql`select 1 from sigils where idempotency_key = 'operator:test once'`).toHaveLength(1);
    await keyring.rotateSigil(now, 400 * DAY);
    expect(await mint(wish, 'once')).toEqual(all[0]);
    expect(await codeOf(use(all[0]?.sigil ?? ''))).toBe('fine');
  });

  it('with another request is refused', async () => {
    await mint({}, 'other');
    expect(await codeOf(mint({ tier: 'pro' }, 'other'))).toBe('idempotency_key_reused');
  });
});

it('many requests at once are looked up together, each for itself', async () => {
  const minted = await Promise.all(Array.from({ length: 20 }, () => mint()));
  await sigils.revoke(minted[3]?.id ?? '', 'operator:test');
  const codes = await Promise.all(minted.flatMap(({ sigil }) => [codeOf(use(sigil)), codeOf(use(sigil))]));
  expect(codes.filter((code) => code === 'sigil_revoked')).toHaveLength(2);
  expect(codes.filter((code) => code === 'fine')).toHaveLength(38);
});
