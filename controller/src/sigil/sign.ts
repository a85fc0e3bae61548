/** The envelope: what a Sigil says, and its signature. */
import { BINDINGS_NAMED, SIGIL_TYP, TIERS } from '@katafract/shared/sigil';
import { SignJWT } from 'jose';
import type { Tx } from '../platform/db.ts';
import { uuidv7 } from '../platform/ids.ts';
import type { Keyring, SigningKey } from '../platform/keyring.ts';
import { sha256 } from '../platform/secrets.ts';
import * as store from './store.ts';

type Signable = Pick<
  store.SigilRow,
  'id' | 'subscriptionId' | 'tier' | 'issuer' | 'issuedAt' | 'expiresAt' | 'device' | 'bindings'
>;

/** Same row, same key, same token: Ed25519 signs deterministically. */
export function signSigil(signer: SigningKey, row: Signable): Promise<string> {
  const { tier, device, bindings } = row;
  const { devices, standbys, storageBytes } = TIERS[tier];
  const bound = device === null ? {} : { cnf: { jkt: device }, bindings: bindings ?? [device] };
  return new SignJWT({ tier, entitlements: { devices, standbys, storageBytes }, ...bound })
    .setProtectedHeader({ alg: 'EdDSA', typ: SIGIL_TYP, kid: signer.kid })
    .setIssuer(row.issuer)
    .setSubject(row.subscriptionId)
    .setJti(row.id)
    .setIssuedAt(row.issuedAt.getTime() / 1000)
    .setExpirationTime(row.expiresAt.getTime() / 1000)
    .sign(signer.privateKey);
}

export interface NewSigil extends Pick<Signable, 'subscriptionId' | 'tier' | 'issuer' | 'device'> {
  /** Milliseconds since the epoch, whole seconds. */
  readonly expiresAt: number;
  /** The other devices of the subscription. */
  readonly others?: readonly NonNullable<Signable['device']>[];
  readonly idempotencyKey?: string;
  readonly requestHash?: string;
}

/** Signs a Sigil and writes down its hash; the token itself is kept nowhere. */
export async function issueSigil(
  tx: Tx,
  keyring: Keyring,
  now: number,
  { others = [], ...wish }: NewSigil,
): Promise<{ id: string; sigil: string }> {
  const signer = keyring.sigil();
  const row = {
    ...wish,
    id: uuidv7(now),
    kid: signer.kid,
    bindings: wish.device === null ? null : [wish.device, ...others].slice(0, BINDINGS_NAMED),
    issuedAt: new Date(Math.floor(now / 1000) * 1000),
    expiresAt: new Date(wish.expiresAt),
  };
  const sigil = await signSigil(signer, row);
  await store.insertSigil(tx, { ...row, tokenHash: sha256(sigil).toString('hex') });
  return { id: row.id, sigil };
}
