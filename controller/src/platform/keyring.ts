/**
 * Signing keys: one for desired state, a rotating line of them for Sigils. Private halves rest in the database sealed
 * by the master key (JWE, RFC 7516, `dir` with A256GCM), so that a copy of the database alone signs nothing.
 *
 * The state key is pinned by every node at enrollment and therefore never rotates by itself. A Sigil key retires when
 * the next one begins to sign, and stays in the JWKS until the last Sigil it can have signed has expired.
 */
import { randomBytes } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import { type NodePublicJwk, publicJwk } from '@katafract/shared/node-token';
import { and, eq, gt, isNull, or } from 'drizzle-orm';
import {
  CompactEncrypt,
  type CryptoKey,
  calculateJwkThumbprint,
  compactDecrypt,
  exportJWK,
  generateKeyPair,
  importJWK,
  type JSONWebKeySet,
} from 'jose';
import type { Database, Tx } from './db.ts';
import { createSecretFile, readSecretFile } from './secrets.ts';
import { signingKeys } from './tables.ts';

export interface SigningKey {
  readonly kid: string;
  readonly privateKey: CryptoKey;
  readonly publicJwk: NodePublicJwk;
  /** RFC 7638; what join tokens carry as their pin. */
  readonly thumbprint: string;
}

export interface Keyring {
  /** Signs desired state. */
  state(): SigningKey;
  /** Signs new Sigils. */
  sigil(): SigningKey;
  /** The key of that id, to sign again what it signed before; undefined once it has expired. */
  sigilByKid(kid: string): SigningKey | undefined;
  /** Every Sigil key that still verifies, newest first, for /.well-known/jwks.json. */
  jwks(): JSONWebKeySet;
  /**
   * Makes the next Sigil key, if the present one is at least `minAgeMs` old; the old one verifies `overlapMs` longer.
   * @param record runs in the same transaction, with the ids of both
   */
  rotateSigil(
    now: number,
    overlapMs: number,
    options?: { minAgeMs?: number; record?: (tx: Tx, kids: { from: string; to: string }) => Promise<void> },
  ): Promise<boolean>;
  /** Reads the keys anew, as after another controller has rotated them. */
  reload(): Promise<void>;
  close(): Promise<void>;
}

/** NOTIFY channel by which one controller tells the others that keys have changed. */
const CHANNEL = 'katafract_keys';
/** Advisory lock held while keys are made, so that two controllers that start at once agree on them. */
const LOCK = 7_261_001;

type Use = 'state' | 'sigil';
interface Loaded extends SigningKey {
  readonly use: Use;
  readonly createdAt: number;
  readonly retired: boolean;
}

/**
 * Reads the master key, or makes one (mode 0600) where `create` says so and there is none.
 * @throws KatafractError `master_key_invalid`: not 32 bytes in base64, base64url or hex
 */
export async function readMasterKey(path: string, create: boolean): Promise<Uint8Array> {
  if (create) await createSecretFile(path, randomBytes(32).toString('base64'));
  const text = await readSecretFile(path);
  const key = /^[0-9a-f]{64}$/i.test(text) ? Buffer.from(text, 'hex') : Buffer.from(text, 'base64url');
  if (key.length !== 32 || !/^[A-Za-z0-9+/_=-]+$/.test(text))
    throw new KatafractError('master_key_invalid', `${path} must hold 32 bytes in base64 or hex`);
  return key;
}

async function makeKey(use: Use, masterKey: Uint8Array, now: number) {
  const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
  const open = publicJwk(await exportJWK(pair.publicKey));
  const kid = await calculateJwkThumbprint(open);
  const sealed = await new CompactEncrypt(Buffer.from(JSON.stringify(await exportJWK(pair.privateKey))))
    .setProtectedHeader({ alg: 'dir', enc: 'A256GCM', kid })
    .encrypt(masterKey);
  return { kid, use, publicJwk: open, sealedJwk: sealed, createdAt: new Date(now) };
}

type Row = typeof signingKeys.$inferSelect;

async function openKey(row: Row, masterKey: Uint8Array): Promise<Loaded> {
  try {
    const { plaintext, protectedHeader } = await compactDecrypt(row.sealedJwk, masterKey, {
      keyManagementAlgorithms: ['dir'],
      contentEncryptionAlgorithms: ['A256GCM'],
    });
    const jwk = JSON.parse(Buffer.from(plaintext).toString('utf8'));
    const thumbprint = await calculateJwkThumbprint(publicJwk(jwk));
    // a row whose public half was exchanged must not be published under the private one's name
    const ids = [protectedHeader.kid, thumbprint, await calculateJwkThumbprint(row.publicJwk)];
    if (!ids.every((id) => id === row.kid)) throw new Error('the row and its sealed key disagree');
    const privateKey = (await importJWK(jwk, 'EdDSA', { extractable: false })) as CryptoKey;
    const { kid, use, publicJwk: open, createdAt, retiredAt } = row;
    const retired = retiredAt !== null;
    return { kid, use, privateKey, publicJwk: open, thumbprint, createdAt: createdAt.getTime(), retired };
  } catch (cause) {
    throw new KatafractError(
      'master_key_wrong',
      `signing key ${row.kid} does not open with this master key: it is not the one the database was set up with`,
      { cause },
    );
  }
}

/** Keys of a use that may still verify at `now`, newest first. */
async function liveRows(tx: Tx, now: number): Promise<Row[]> {
  const rows = await tx.orm
    .select()
    .from(signingKeys)
    .where(or(isNull(signingKeys.expiresAt), gt(signingKeys.expiresAt, new Date(now))));
  return rows.sort((a, b) => b.createdAt.getTime() - a.createdAt.getTime());
}

/**
 * Opens the ring, making what is missing.
 * @param now milliseconds since the epoch, read anew on each reload
 * @throws KatafractError `master_key_wrong`: the keys in the database were sealed with another master key
 */
export async function openKeyring(deps: {
  db: Database;
  masterKey: Uint8Array;
  now: () => number;
  onError: (error: unknown) => void;
}): Promise<Keyring> {
  const { db, masterKey, now } = deps;
  await db.transaction(async (tx) => {
    await tx.sql`select pg_advisory_xact_lock(${LOCK})`;
    const rows = await liveRows(tx, now());
    for (const use of ['state', 'sigil'] as const) {
      const signs = rows.some((row) => row.use === use && row.retiredAt === null);
      if (!signs) await tx.orm.insert(signingKeys).values(await makeKey(use, masterKey, now()));
    }
  });
  const ring = new DatabaseKeyring(db, masterKey, now);
  await ring.reload();
  // also runs after each reconnect, when a notification may have been missed
  const reload = () => void ring.reload().catch(deps.onError);
  ring.stopListening = await db.listen(CHANNEL, reload, reload);
  return ring;
}

class DatabaseKeyring implements Keyring {
  readonly #db: Database;
  readonly #masterKey: Uint8Array;
  readonly #now: () => number;
  #keys: readonly Loaded[] = [];
  stopListening: () => Promise<void> = async () => undefined;

  constructor(db: Database, masterKey: Uint8Array, now: () => number) {
    this.#db = db;
    this.#masterKey = masterKey;
    this.#now = now;
  }

  #signer(use: Use): Loaded {
    const key = this.#keys.find((candidate) => candidate.use === use && !candidate.retired);
    if (!key) throw new KatafractError('signing_key_missing', `there is no ${use} key`);
    return key;
  }

  state(): SigningKey {
    return this.#signer('state');
  }

  sigil(): SigningKey {
    return this.#signer('sigil');
  }

  sigilByKid(kid: string): SigningKey | undefined {
    return this.#keys.find((key) => key.use === 'sigil' && key.kid === kid);
  }

  jwks(): JSONWebKeySet {
    const keys = this.#keys.filter((key) => key.use === 'sigil');
    return { keys: keys.map((key) => ({ ...key.publicJwk, kid: key.kid, alg: 'EdDSA', use: 'sig' })) };
  }

  async reload(): Promise<void> {
    const rows = await liveRows(this.#db, this.#now());
    const known = new Map(this.#keys.map((key) => [key.kid, key]));
    this.#keys = await Promise.all(
      rows.map(async (row) => {
        const key = known.get(row.kid);
        return key ? { ...key, retired: row.retiredAt !== null } : await openKey(row, this.#masterKey);
      }),
    );
  }

  async rotateSigil(
    now: number,
    overlapMs: number,
    { minAgeMs = 0, record }: Parameters<Keyring['rotateSigil']>[2] = {},
  ): Promise<boolean> {
    const next = await makeKey('sigil', this.#masterKey, now);
    const rotated = await this.#db.transaction(async (tx) => {
      await tx.sql`select pg_advisory_xact_lock(${LOCK})`;
      const present = (await liveRows(tx, now)).filter((row) => row.use === 'sigil' && !row.retiredAt);
      if (present.some((row) => now - row.createdAt.getTime() < minAgeMs)) return false;
      await tx.orm
        .update(signingKeys)
        .set({ retiredAt: new Date(now), expiresAt: new Date(now + overlapMs) })
        .where(and(eq(signingKeys.use, 'sigil'), isNull(signingKeys.retiredAt)));
      await tx.orm.insert(signingKeys).values(next);
      await record?.(tx, { from: present[0]?.kid ?? '', to: next.kid });
      await tx.sql`select pg_notify(${CHANNEL}, ${next.kid})`;
      return true;
    });
    await this.reload();
    return rotated;
  }

  async close(): Promise<void> {
    await this.stopListening();
  }
}
