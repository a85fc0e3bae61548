/**
 * Keys by which operators sign what they say over the broker. The private half is the operator's alone; registered and
 * revoked with the bootstrap token. Whether a key is good is read anew, under its row's lock, for each command, so a
 * revocation holds from the moment it is committed, whatever a broker still lets through.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { NodePublicJwk } from '@katafract/shared/node-token';
import {
  type OperatorKey,
  type OperatorKeyRequest,
  type OperatorName,
  type RegisteredKey,
  verifyOperatorToken,
} from '@katafract/shared/operator-command';
import { calculateJwkThumbprint, importJWK } from 'jose';
import type { Audit } from '../audit/audit.ts';
import { type Database, type Sql, type Tx, uniqueViolation } from '../platform/db.ts';
import { type Asked, keyExpired, onceOnly, uuidOf } from '../platform/once.ts';

export interface OperatorKeysDeps {
  readonly db: Database;
  readonly audit: Audit;
  readonly now: () => number;
  /** What the ids of repeated requests follow from; see platform/once.ts. */
  readonly seedSecret: Uint8Array;
  /** What a registered operator is told, so that its commands find their way. */
  readonly told: Pick<RegisteredKey, 'audience' | 'broker'>;
  readonly bus: {
    evictOperator(name: OperatorName): Promise<void>;
    admitOperator(name: OperatorName, token: string, expiresAt: number): Promise<void>;
  };
  /** A failure that takes nothing from what was asked for. */
  readonly survived: (error: unknown) => void;
}

/** The key of an operator; null for one who has none, or whose was revoked. */
export async function operatorKeyOf(db: Database, name: OperatorName): Promise<NodePublicJwk | null> {
  const [row] = await db.sql<{ jwk: NodePublicJwk }[]>`
    select public_jwk as jwk from operator_keys where name = ${name} and revoked_at is null`;
  return row?.jwk ?? null;
}

/**
 * Whose key it is; null where it is nobody's, or revoked. Inside of a transaction with `lock` it stays good, and its
 * operator's commands take turns, until that ends.
 */
export async function signerOf(
  sql: Sql,
  thumbprint: string,
  lock = false,
): Promise<{ name: OperatorName; jwk: NodePublicJwk } | null> {
  const [row] = await sql<{ name: OperatorName; jwk: NodePublicJwk }[]>`
    select name, public_jwk as jwk from operator_keys
    where thumbprint = ${thumbprint} and revoked_at is null ${lock ? sql`for update` : sql``}`;
  return row ?? null;
}

/**
 * Registers an operator's key; the same key again changes nothing, and one that was revoked makes place for another.
 * @throws KatafractError `operator_key_exists`, `operator_key_in_use` (409), and of `onceOnly`
 */
export async function registerKey(
  deps: OperatorKeysDeps,
  request: OperatorKeyRequest,
  asked: Asked,
): Promise<RegisteredKey> {
  const { name, publicJwk } = request;
  const thumbprint = await calculateJwkThumbprint(publicJwk);
  const once = onceOnly(deps.seedSecret, 'operator keys', request, asked);
  try {
    await deps.db.transaction(async (tx) => {
      const seen = await once.seen(tx);
      const [held] = await tx.sql<{ thumbprint: string; revoked: boolean }[]>`
        select thumbprint, revoked_at is not null as revoked from operator_keys where name = ${name} for update`;
      const same = held?.thumbprint === thumbprint && !held.revoked;
      if (seen !== null && !same) throw keyExpired();
      if (same) return;
      if (held && !held.revoked) throw keyExists(name);
      await writeKey(deps, tx, { ...request, thumbprint }, asked.operator);
      await once.remember(tx, uuidOf(once.seed, 'id of operator key'), new Date(deps.now()));
    });
  } catch (error) {
    const constraint = uniqueViolation(error);
    if (constraint === 'operator_keys_pkey') throw keyExists(name);
    if (constraint === null) throw error;
    throw new KatafractError('operator_key_in_use', 'another operator has this key', { status: 409 });
  }
  return { name, thumbprint, ...deps.told };
}

async function writeKey(
  { audit, now }: OperatorKeysDeps,
  tx: Tx,
  { name, publicJwk, thumbprint }: OperatorKeyRequest & { thumbprint: string },
  by: string,
): Promise<void> {
  await tx.sql`delete from operator_keys where name = ${name} and revoked_at is not null`;
  await tx.sql`
    insert into operator_keys (name, public_jwk, thumbprint, created_by, created_at)
    values (${name}, ${tx.sql.json(publicJwk)}, ${thumbprint}, ${by}, ${new Date(now())})`;
  await audit.record(tx, [
    {
      actor: `operator:${by}`,
      action: 'operator_key.registered',
      subject: `operator:${name}`,
      detail: { thumbprint },
    },
  ]);
}

/** Every key, also those that were revoked, by name. */
export async function listKeys({ db }: OperatorKeysDeps): Promise<OperatorKey[]> {
  type Row = Omit<OperatorKey, 'createdAt' | 'revokedAt'> & { createdAt: string; revokedAt: string | null };
  const rows = await db.sql<Row[]>`
    select name, thumbprint, created_by as "createdBy", created_at as "createdAt", revoked_at as "revokedAt"
    from operator_keys order by name`;
  return rows.map((row) => ({
    ...row,
    createdAt: new Date(row.createdAt).toISOString(),
    revokedAt: row.revokedAt === null ? null : new Date(row.revokedAt).toISOString(),
  }));
}

/**
 * Revokes an operator's key: no command of it works from now on, and its connection to the broker ends.
 * @throws KatafractError `operator_unknown` (404)
 */
export async function revokeKey(deps: OperatorKeysDeps, name: OperatorName, by: string): Promise<void> {
  await deps.db.transaction(async (tx) => {
    const [held] = await tx.sql<{ thumbprint: string; revoked: boolean }[]>`
      select thumbprint, revoked_at is not null as revoked from operator_keys where name = ${name} for update`;
    if (!held) throw new KatafractError('operator_unknown', `${name} has no key`, { status: 404 });
    if (held.revoked) return;
    await tx.sql`update operator_keys set revoked_at = ${new Date(deps.now())} where name = ${name}`;
    const { thumbprint } = held;
    await deps.audit.record(tx, [
      {
        actor: `operator:${by}`,
        action: 'operator_key.revoked',
        subject: `operator:${name}`,
        detail: { thumbprint },
      },
    ]);
  });
  // what a broker that is away still lets in can say nothing that is obeyed
  await deps.bus.evictOperator(name).catch(deps.survived);
}

/**
 * Lets an operator in at a foreign broker: checks the token here and hands the broker the result.
 * @throws KatafractError `operator_proof_invalid` (401)
 */
export async function admitOperator(
  { db, bus, now }: Pick<OperatorKeysDeps, 'db' | 'bus' | 'now'>,
  name: OperatorName,
  token: string,
): Promise<void> {
  const jwk = await operatorKeyOf(db, name);
  const key = jwk === null ? null : await importJWK(jwk, 'EdDSA');
  if (key === null || key instanceof Uint8Array)
    throw new KatafractError('operator_proof_invalid', 'the proof of the operator is not valid', {
      status: 401,
    });
  const { expiresAt } = await verifyOperatorToken(token, key, { name, now: now() });
  await bus.admitOperator(name, token, expiresAt);
}

/** Forgets commands that are too old to come again. */
export async function forgetCommands(db: Database, now: Date): Promise<number> {
  const { count } = await db.sql`delete from operator_commands where forget_at < ${now}`;
  return count;
}

function keyExists(name: string): KatafractError {
  return new KatafractError('operator_key_exists', `${name} has a key; revoke that first`, { status: 409 });
}
