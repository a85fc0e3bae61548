/**
 * Signing keys: one for desired state, a rotating line of them for Sigils. Private halves rest in the database sealed
 * by the master key (JWE, RFC 7516, `dir` with A256GCM), so that a copy of the database alone signs nothing.
 *
 * The state key is pinned by every node at enrollment and therefore never rotates by itself. A Sigil key is published
 * a while before it signs, so that every verifier's copy of the JWKS has it by then; it retires when the next one begins
 * to sign, and stays in the JWKS until the last Sigil it can have signed has expired.
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
   * Makes the next Sigil key, if the present one is at least `minAgeMs` old. It is published at once and signs after
   * `leadMs`; until then the old one does, which verifies for `overlapMs` longer.
   * @param record runs in the same transaction, with the ids of both
   */
  rotateSigil(
    now: number,
    overlapMs: number,
    options?: {
      minAgeMs?: number;
      leadMs?: number;
      record?: (tx: Tx, kids: { from: string; to: string }) => Promise<void>;
    },
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
  /** From when on it signs no more, and no longer verifies; Infinity where that is not known yet. */
  readonly retiresAt: number;
  readonly expiresAt: number;
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
    const { kid, use, publicJwk: open } = row;
    return { kid, use, privateKey, publicJwk: open, thumbprint, ...timesOf(row) };
  } catch (cause) {
    throw new KatafractError(
      'master_key_wrong',
      `signing key ${row.kid} does not open with this master key: it is not the one the database was set up with`,
      { cause },
    );
  }
}

function timesOf({ createdAt, retiredAt, expiresAt }: Row) {
  const at = (date: Date | null) => date?.getTime() ?? Number.POSITIVE_INFINITY;
  return { createdAt: createdAt.getTime(), retiresAt: at(retiredAt), expiresAt: at(expiresAt) };
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

  /** Those that verify now, newest first. */
  #live(use: Use): Loaded[] {
    const now = this.#now();
    return this.#keys.filter((key) => key.use === use && key.expiresAt > now);
  }

  /** The oldest that has not retired: the next one waits for its turn. */
  #signer(use: Use): Loaded {
    const now = this.#now();
    const key = this.#live(use).findLast((candidate) => candidate.retiresAt > now);
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
    return this.#live('sigil').find((key) => key.kid === kid);
  }

  jwks(): JSONWebKeySet {
    return {
      keys: this.#live('sigil').map((key) => ({ ...key.publicJwk, kid: key.kid, alg: 'EdDSA', use: 'sig' })),
    };
  }

  async reload(): Promise<void> {
    const rows = await liveRows(this.#db, this.#now());
    const known = new Map(this.#keys.map((key) => [key.kid, key]));
    this.#keys = await Promise.all(
      rows.map(async (row) => {
        const key = known.get(row.kid);
        return key ? { ...key, ...timesOf(row) } : await openKey(row, this.#masterKey);
      }),
    );
  }

  async rotateSigil(
    now: number,
    overlapMs: number,
    { minAgeMs = 0, leadMs = 0, record }: Parameters<Keyring['rotateSigil']>[2] = {},
  ): Promise<boolean> {
    const next = await makeKey('sigil', this.#masterKey, now);
    const rotated = await this.#db.transaction(async (tx) => {
      await tx.sql`select pg_advisory_xact_lock(${LOCK})`;
      const present = (await liveRows(tx, now)).filter((row) => row.use === 'sigil' && !row.retiredAt);
      if (present.some((row) => now - row.createdAt.getTime() < minAgeMs)) return false;
      await tx.orm
        .update(signingKeys)
        .set({ retiredAt: new Date(now + leadMs), expiresAt: new Date(now + leadMs + overlapMs) })
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
