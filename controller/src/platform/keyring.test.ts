import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { exportJWK, generateKeyPair } from 'jose';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { useDatabase } from '../../../test/database.ts';
import { waitFor } from '../../../test/lab/wait.ts';
import { type Database, openDatabase } from './db.ts';
import { openKeyring, readMasterKey } from './keyring.ts';
import { createLogger } from './log.ts';

const database = useDatabase();
const masterKey = new Uint8Array(32).fill(7);
const DAY = 86_400_000;
let db: Database;
let now = 1_800_000_000_000;
const open = (key = masterKey) =>
  openKeyring({ db, masterKey: key, now: () => now, onError: (error) => expect.unreachable(String(error)) });

beforeAll(async () => {
  db = await openDatabase(database.url, createLogger('silent'), { max: 4 });
});
beforeEach(() => db.sql`delete from signing_keys`);
afterAll(() => db.close());

describe('the keyring', () => {
  it('is the same on controllers that start at once', async () => {
    const rings = await Promise.all([open(), open(), open()]);
    const kids = rings.map((ring) => [ring.state().kid, ring.sigil().kid]);
    expect(new Set(kids.flat()).size).toBe(2);
    expect(kids[1]).toEqual(kids[0]);
    await Promise.all(rings.map((ring) => ring.close()));
  });

  it('keeps no private key in the clear, and says so when the master key is another one', async () => {
    const ring = await open();
    const rows = await db.sql`select * from signing_keys`;
    expect(JSON.stringify(rows)).not.toContain('"d"');
    await ring.close();
    const wrong = open(new Uint8Array(32).fill(8));
    await expect(wrong).rejects.toMatchObject({ code: 'master_key_wrong' });
  });

  it('does not publish a public key that was exchanged in the database', async () => {
    await (await open()).close();
    const { kty, crv, x } = await exportJWK((await generateKeyPair('EdDSA', { crv: 'Ed25519' })).publicKey);
    await db.sql`update signing_keys set public_jwk = ${db.sql.json({ kty, crv, x } as never)}`;
    await expect(open()).rejects.toMatchObject({ code: 'master_key_wrong' });
  });

  it('rotates on every controller, and publishes the old key until it has expired', async () => {
    const [one, other] = [await open(), await open()];
    const before = one.sigil().kid;
    expect(await one.rotateSigil(now, 10 * DAY, { minAgeMs: DAY })).toBe(false);
    now += DAY;
    expect(await one.rotateSigil(now, 10 * DAY, { minAgeMs: DAY })).toBe(true);
    const after = one.sigil().kid;
    expect(after).not.toBe(before);
    await waitFor('the other controller', () => other.sigil().kid === after);
    expect(other.jwks().keys.map((key) => key.kid)).toEqual([after, before]);
    expect(JSON.stringify(other.jwks())).not.toContain('"d"');
    expect(one.state().kid).toBe(other.state().kid);
    now += 10 * DAY;
    expect(other.jwks().keys.map((key) => key.kid)).toEqual([after]);
    expect(other.sigilByKid(before)).toBeUndefined();
    await Promise.all([one.close(), other.close()]);
  });
});

it('publishes a key for a while before it signs', async () => {
  const ring = await open();
  const before = ring.sigil().kid;
  now += DAY;
  await ring.rotateSigil(now, 10 * DAY, { leadMs: 1000 });
  expect(ring.sigil().kid).toBe(before);
  const [next, ...rest] = ring.jwks().keys.map((key) => key.kid);
  expect(rest).toEqual([before]);
  // nor is there a third one while it waits
  expect(await ring.rotateSigil(now, 10 * DAY, { leadMs: 1000, minAgeMs: DAY })).toBe(false);
  now += 1000;
  expect(ring.sigil().kid).toBe(next);
  now += 10 * DAY - 1;
  expect(ring.jwks().keys).toHaveLength(2);
  now += 1;
  expect(ring.jwks().keys.map((key) => key.kid)).toEqual([next]);
  await ring.close();
});

describe('the master key file', () => {
  it('is made once, for its owner only, and refused when it is not a key', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'kf-keys-'));
    const path = join(folder, 'sub', 'master-key');
    const keys = await Promise.all([readMasterKey(path, true), readMasterKey(path, true)]);
    expect(keys[0]).toHaveLength(32);
    expect(keys[1]).toEqual(keys[0]);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(Buffer.from(await readFile(path, 'utf8'), 'base64')).toEqual(keys[0]);
    await writeFile(path, 'short');
    await expect(readMasterKey(path, true)).rejects.toMatchObject({ code: 'master_key_invalid' });
    const absent = readMasterKey(join(folder, 'none'), false);
    await expect(absent).rejects.toMatchObject({ code: 'secret_unreadable' });
    await rm(folder, { recursive: true });
  });
});
