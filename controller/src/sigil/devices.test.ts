/** Devices and their Sigils against a real database: who gets one, how many, and how each way of ending one works. */
import { randomBytes } from 'node:crypto';
import { type DeviceKey, generateDeviceKey, type Jkt, makeProof } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { type SigilRequest, type Tier, verifySigil } from '@katafract/shared/sigil';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../../../test/database.ts';
import { createAudit } from '../audit/audit.ts';
import type { SigilIdentity } from '../platform/api.ts';
import { type Database, openDatabase } from '../platform/db.ts';
import { type Keyring, openKeyring } from '../platform/keyring.ts';
import { createLogger } from '../platform/log.ts';
import { memoryStore } from '../platform/store.ts';
import { Sigils } from './sigil.ts';

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const ISSUER = 'https://api.test';
const database = useDatabase();
let db: Database;
let keyring: Keyring;
let sigils: Sigils;
/** Another controller on the same database, with a memory of its own for proofs. */
let other: Sigils;
let now = 1_800_000_000_000;
/** Devices whose peers were removed, and subscriptions. */
const removed: string[] = [];

beforeAll(async () => {
  db = await openDatabase(database.url, createLogger('silent'), { max: 12 });
  const onError = (error: unknown) => expect.unreachable(String(error));
  keyring = await openKeyring({ db, masterKey: randomBytes(32), now: () => now, onError });
  const create = () =>
    new Sigils({
      db,
      clock: { now: () => now, after: () => () => undefined },
      keyring,
      audit: createAudit(db),
      issuer: ISSUER,
      replays: memoryStore(() => now),
      boundMs: HOUR,
      maxDays: 400,
      rotateDays: 90,
      onEnded: async (_tx, id) => () => removed.push(id),
      onUnbound: async (_tx, _id, jkt) => () => removed.push(jkt),
    });
  [sigils, other] = [create(), create()];
});
afterAll(async () => {
  await keyring.close();
  await db.close();
});

const subscribe = (tier: Tier = 'plus', expiresAt = now + 40 * DAY) =>
  db.transaction((tx) => sigils.openSubscription(tx, { tier, expiresAt }));
const change = (id: string, tier: Tier, expiresAt = now + 40 * DAY) =>
  db.transaction((tx) => sigils.setSubscription(tx, id, { tier, expiresAt }));
const issue = (subscriptionId: string, { jkt }: Pick<DeviceKey, 'jkt'>) =>
  sigils.issue({ subscriptionId, jkt }, 'system');
const randomJkt = () => randomBytes(32).toString('base64url') as Jkt;

const url = `${ISSUER}/v1/sigil`;
async function proven(
  key: DeviceKey,
  token: string,
  over: Partial<SigilRequest> = {},
): Promise<SigilRequest> {
  const dpop = await makeProof(key, { method: 'GET', url, now, token });
  return { authorization: `DPoP ${token}`, dpop, method: 'GET', url, ...over };
}
const use = async (key: DeviceKey, token: string) => sigils.authenticate(await proven(key, token));
const exchange = async (key: DeviceKey, token: string) =>
  sigils.refresh(await sigils.presented(await proven(key, token)));
const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => 'fine',
    (error) => (error instanceof KatafractError ? error.code : String(error)),
  );
const actions = async (subscription: string) =>
  (await createAudit(db).list({ subject: `subscription:${subscription}` }, { limit: 20 }))
    .map((entry) => entry.action)
    .reverse();

/** A subscription with devices, each with its Sigil. */
async function household(count: number, tier: Tier = 'plus') {
  const id = await subscribe(tier);
  const devices: { key: DeviceKey; sigil: string }[] = [];
  for (let at = 0; at < count; at++) {
    const key = await generateDeviceKey();
    devices.push({ key, sigil: (await issue(id, key)).sigil });
    // the order in which they were bound is part of the rules
    now += 1;
  }
  const device = (at: number) => {
    const found = devices[at];
    if (!found) throw new Error('no such device');
    return found;
  };
  return { id, device };
}

describe('a Sigil that is issued to a device', () => {
  it('names it, its fellows and what the tier grants, to whoever has the JWKS alone', async () => {
    const { id, device } = await household(2);
    const { key, sigil } = device(1);
    expect(await verifySigil(sigil, keyring.jwks(), { issuer: ISSUER, now })).toMatchObject({
      sub: id,
      tier: 'plus',
      entitlements: { devices: 5, standbys: 1, storageBytes: 100_000_000_000 },
      cnf: { jkt: key.jkt },
      bindings: [key.jkt, device(0).key.jkt],
      exp: Math.floor((now - 1 + HOUR) / 1000),
    });
    expect(await actions(id)).toEqual(['subscription.created', 'device.bound', 'device.bound']);
  });

  it('opens nothing without a proof, with the proof of another, or with one that was seen', async () => {
    const { id, device } = await household(2);
    const { key, sigil } = device(0);
    expect(await use(key, sigil)).toMatchObject({ subscriptionId: id, tier: 'plus', device: key.jkt });
    const bearer = { authorization: `Bearer ${sigil}` };
    expect(await codeOf(sigils.authenticate(await proven(key, sigil, bearer)))).toBe('dpop_required');
    expect(await codeOf(use(device(1).key, sigil))).toBe('dpop_invalid');
    const once = await proven(key, sigil);
    expect(await codeOf(sigils.authenticate(once))).toBe('fine');
    expect(await codeOf(sigils.authenticate(once))).toBe('dpop_replayed');
    const elsewhere = await proven(key, sigil, { url: `${ISSUER}/v1/peers` });
    expect(await codeOf(sigils.authenticate(elsewhere))).toBe('dpop_invalid');
  });

  it('lives no longer than its subscription, and speaks for its present tier', async () => {
    const id = await subscribe('plus', now + HOUR / 2);
    const key = await generateDeviceKey();
    const { sigil, expiresAt } = await issue(id, key);
    expect(Date.parse(expiresAt)).toBeLessThanOrEqual(now + HOUR / 2);
    await change(id, 'pro');
    expect(await use(key, sigil)).toMatchObject({ tier: 'pro' });
    await change(id, 'pro', now);
    expect(await codeOf(use(key, sigil))).toBe('sigil_expired');
    expect(await codeOf(issue(id, key))).toBe('subscription_over');
    expect(await codeOf(issue(crypto.randomUUID(), key))).toBe('subscription_unknown');
  });

  it('can be minted by an operator: bound, long-lived, and the same again by its Idempotency-Key', async () => {
    const key = await generateDeviceKey({ alg: 'EdDSA' });
    const wish = { tier: 'plus' as const, expiresAt: now + DAY, device: key.jkt };
    const minted = await sigils.mint(wish, 'operator:test', 'bound');
    expect(await use(key, minted.sigil)).toMatchObject({ sigilId: minted.id, device: key.jkt });
    await issue(minted.subscription, { jkt: randomJkt() });
    expect(await sigils.mint(wish, 'operator:test', 'bound')).toEqual(minted);
  });
});

describe('the limit of the tier', () => {
  it('holds under 200 devices that come at once by two controllers', async () => {
    const id = await subscribe('pro');
    const codes = await Promise.all(
      Array.from({ length: 200 }, (_, at) =>
        codeOf((at % 2 ? sigils : other).issue({ subscriptionId: id, jkt: randomJkt() }, 'system')),
      ),
    );
    expect(codes.filter((code) => code === 'fine')).toHaveLength(10);
    expect(codes.filter((code) => code === 'device_limit')).toHaveLength(190);
    expect(await sigils.bindings(id, null)).toHaveLength(10);
  });

  it('counts a device once, however often it asks, also at once', async () => {
    const id = await subscribe('free');
    const jkt = randomJkt();
    const all = await Promise.all(Array.from({ length: 20 }, () => issue(id, { jkt })));
    expect(new Set(all.map(({ devices }) => devices.bound))).toEqual(new Set([1]));
    expect(await codeOf(issue(id, { jkt: randomJkt() }))).toBe('device_limit');
  });

  it('keeps those bound first where the plan has shrunk', async () => {
    const { id, device } = await household(3);
    await change(id, 'free');
    expect(await codeOf(exchange(device(0).key, device(0).sigil))).toBe('fine');
    expect(await codeOf(exchange(device(1).key, device(1).sigil))).toBe('device_limit');
    expect(await codeOf(issue(id, device(2).key))).toBe('device_limit');
  });
});

describe('an exchange', () => {
  it('gives a fresh Sigil for one that has expired; the old one stays good until its own end', async () => {
    const { device } = await household(1);
    const { key, sigil } = device(0);
    const next = await exchange(key, sigil);
    expect(await codeOf(use(key, sigil))).toBe('fine');
    expect(await codeOf(use(key, next.sigil))).toBe('fine');
    now += HOUR;
    expect(await codeOf(use(key, sigil))).toBe('sigil_expired');
    // a lost answer: the same one again, and again days later
    now += 10 * DAY;
    expect(await codeOf(exchange(key, sigil))).toBe('fine');
    now += 10 * DAY;
    const late = await exchange(key, sigil);
    expect(await codeOf(use(key, late.sigil))).toBe('fine');
    now += 11 * DAY;
    expect(await codeOf(exchange(key, sigil))).toBe('sigil_expired');
  });

  it('is for the bound device alone', async () => {
    const { device } = await household(2);
    expect(await codeOf(exchange(device(1).key, device(0).sigil))).toBe('dpop_invalid');
    const { sigil } = await sigils.mint({ tier: 'plus', expiresAt: now + DAY }, 'operator:test');
    const bearer = { authorization: `Bearer ${sigil}`, dpop: undefined, method: 'GET', url };
    expect(await codeOf(sigils.presented(bearer))).toBe('sigil_unbound');
  });

  it('leaves no pile of rows behind', async () => {
    const { id, device } = await household(1);
    let { key, sigil } = device(0);
    for (let at = 0; at < 60; at++) {
      now += HOUR - 1000;
      ({ sigil } = await exchange(key, sigil));
    }
    const rows = await db.sql`select 1 from sigils where subscription_id = ${id}`;
    expect(rows.length).toBeLessThan(30);
    now += 31 * DAY;
    while ((await sigils.forgetExpired()) > 0);
    expect(await db.sql`select 1 from sigils where expires_at < ${new Date(now - 30 * DAY)}`).toHaveLength(0);
  });

  it('does not survive the key that signed it', async () => {
    const { device } = await household(1);
    const { key, sigil } = device(0);
    const { sigil: lasting } = await sigils.mint(
      { tier: 'plus', expiresAt: now + 300 * DAY },
      'operator:test',
    );
    const bearer = { authorization: `Bearer ${lasting}`, dpop: undefined, method: 'GET', url };
    await keyring.rotateSigil(now, 2 * DAY);
    now += 2 * DAY - 1;
    expect(await codeOf(exchange(key, sigil))).toBe('fine');
    expect(await codeOf(sigils.authenticate(bearer))).toBe('fine');
    now += 1;
    expect(await codeOf(exchange(key, sigil))).toBe('sigil_invalid');
    expect(await codeOf(sigils.authenticate(bearer))).toBe('sigil_invalid');
  });
});

describe('ending one', () => {
  const identity = (key: DeviceKey, token: string): Promise<SigilIdentity> => use(key, token);

  it('unbound: its place is free, its Sigils are over, and the one that asked has an envelope without it', async () => {
    const { id, device } = await household(2);
    const [mine, gone] = [device(0), device(1)];
    const { reissued } = await sigils.unbind(await identity(mine.key, mine.sigil), gone.key.jkt);
    expect(removed).toContain(gone.key.jkt);
    expect(await codeOf(use(gone.key, gone.sigil))).toBe('sigil_revoked');
    expect(await codeOf(exchange(gone.key, gone.sigil))).toBe('sigil_revoked');
    const claims = await verifySigil(reissued?.sigil ?? '', keyring.jwks(), { issuer: ISSUER, now });
    expect(claims.bindings).toEqual([mine.key.jkt]);
    const again = sigils.unbind(await identity(mine.key, mine.sigil), gone.key.jkt);
    expect(await codeOf(again)).toBe('device_unknown');
    // it may be bound again by whoever holds the claim
    expect(await codeOf(issue(id, gone.key))).toBe('fine');
    const itself = await sigils.unbind(await identity(mine.key, mine.sigil), mine.key.jkt);
    expect(itself.reissued).toBeNull();
    expect(await actions(id)).toContain('device.unbound');
  });

  it('an exchange that races with unbinding never binds the device again', async () => {
    const { id, device } = await household(2);
    const [mine, gone] = [device(0), device(1)];
    const asking = await identity(mine.key, mine.sigil);
    const presented = await sigils.presented(await proven(gone.key, gone.sigil));
    const codes = await Promise.all([
      codeOf(sigils.unbind(asking, gone.key.jkt)),
      ...Array.from({ length: 8 }, (_, at) => codeOf((at % 2 ? other : sigils).refresh(presented))),
    ]);
    expect(codes[0]).toBe('fine');
    for (const code of codes) expect(['fine', 'sigil_revoked']).toContain(code);
    expect((await sigils.bindings(id, null)).map(({ jkt }) => jkt)).toEqual([mine.key.jkt]);
    const live = await db.sql`
      select 1 from sigils where device = ${gone.key.jkt} and revoked_at is null`;
    expect(live).toHaveLength(0);
  });

  it('by the id of a Sigil: all of that device, on every controller; it may claim again', async () => {
    const { id, device } = await household(2);
    const { key, sigil } = device(0);
    const next = await exchange(key, sigil);
    const { sigilId } = await use(key, sigil);
    expect(await codeOf(other.authenticate(await proven(key, sigil)))).toBe('fine');
    await sigils.revoke(sigilId, 'operator:test');
    await sigils.revoke(sigilId, 'operator:test');
    expect(removed.filter((one) => one === key.jkt)).toHaveLength(1);
    expect(removed).not.toContain(id);
    for (const token of [sigil, next.sigil]) {
      expect(await codeOf(other.authenticate(await proven(key, token)))).toBe('sigil_revoked');
      expect(await codeOf(exchange(key, token))).toBe('sigil_revoked');
    }
    expect(await codeOf(use(device(1).key, device(1).sigil))).toBe('fine');
    expect(await codeOf(use(key, (await issue(id, key)).sigil))).toBe('fine');
  });

  it('by device: its key is never bound again, and its place is free', async () => {
    const { id, device } = await household(5);
    const { key, sigil } = device(2);
    const target = { subscriptionId: id, jkt: key.jkt };
    expect(await codeOf(use(key, sigil))).toBe('fine');
    await other.revokeDevice(target, 'operator:test');
    await other.revokeDevice(target, 'operator:test');
    expect(removed.filter((one) => one === key.jkt)).toHaveLength(1);
    expect(await codeOf(use(key, sigil))).toBe('sigil_revoked');
    expect(await codeOf(issue(id, key))).toBe('device_revoked');
    expect(await codeOf(issue(id, { jkt: randomJkt() }))).toBe('fine');
    expect(await codeOf(sigils.revokeDevice({ ...target, jkt: randomJkt() }, 'x'))).toBe('device_unknown');
    expect((await actions(id)).filter((action) => action === 'device.revoked')).toHaveLength(1);
    const listed = await sigils.devices(id, { limit: 100 });
    expect(listed.filter(({ revokedAt }) => revokedAt !== null).map(({ jkt }) => jkt)).toEqual([key.jkt]);
  });

  it('by subscription: every device of it, for good', async () => {
    const { id, device } = await household(2);
    await sigils.revokeSubscription(id, 'operator:test');
    expect(removed).toContain(id);
    for (const { key, sigil } of [device(0), device(1)]) {
      expect(await codeOf(use(key, sigil))).toBe('sigil_revoked');
      expect(await codeOf(exchange(key, sigil))).toBe('sigil_revoked');
      expect(await codeOf(issue(id, key))).toBe('subscription_revoked');
    }
    expect(await codeOf(change(id, 'pro'))).toBe('subscription_revoked');
  });
});
