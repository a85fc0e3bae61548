/**
 * What this machine proves itself with: its device key, made here, and the Sigil that is bound to it. Both are in one
 * file of the state directory (0600); a Sigil that comes from elsewhere is used as it is.
 */
import { ClaimSecret } from '@katafract/shared/claim';
import { KatafractError } from '@katafract/shared/errors';
import { readSigil } from '@katafract/shared/sigil';
import { z } from 'zod';
import {
  type Client,
  type DeviceKey,
  exportDeviceKey,
  generateDeviceKey,
  type IssuedSigil,
  importDeviceKey,
  makeClaimSecret,
} from '../sdk.ts';
import { parseState } from './device.ts';
import type { Files, Ports } from './ports.ts';

const FILE = 'sigil.json';
const Stored = z.object({
  /** Private JWK. */
  key: z.record(z.string(), z.string()),
  sigil: z.string().optional(),
  /** Made here for a gift code, which it has taken the place of. */
  secret: ClaimSecret.optional(),
});
type Stored = z.infer<typeof Stored>;
/** Refusals that mean: it is not bound any more. */
const GONE = ['sigil_revoked', 'device_unknown'];

/** What a client is made with. */
export interface ClientCredentials {
  readonly sigil: string | undefined;
  readonly deviceKey: DeviceKey | undefined;
  readonly onSigil?: (sigil: string) => Promise<void>;
}

async function read(files: Files): Promise<Stored | null> {
  const text = await files.read(FILE);
  return text === null ? null : parseState(Stored, text, FILE);
}

const write = (files: Files, stored: Stored) => files.write(FILE, `${JSON.stringify(stored, null, 2)}\n`);

/** What was kept; a key is made and written down first, so that no Sigil is ever bound to one that is lost. */
async function readOrMake(files: Files): Promise<Stored> {
  const stored = await read(files);
  if (stored !== null) return stored;
  const made = { key: await exportDeviceKey(await generateDeviceKey({ extractable: true })) };
  await write(files, made);
  return made;
}

/**
 * The Sigil to use and the key it may be bound to.
 * @param given a Sigil from elsewhere; where it is bound to this machine, a later one that it was exchanged for is better
 * @throws KatafractError `state_invalid`, `device_key_invalid`
 */
export async function credentialsFor(files: Files, given: string | undefined): Promise<ClientCredentials> {
  const stored = await read(files);
  const deviceKey = stored === null ? undefined : await importDeviceKey(stored.key);
  return { deviceKey, sigil: given === undefined ? stored?.sigil : later(given, stored?.sigil) };
}

function later(given: string, kept: string | undefined): string {
  const [theirs, ours] = [readSigil(given), kept === undefined ? null : readSigil(kept)];
  const same = theirs?.device != null && theirs.subscription === ours?.subscription;
  return kept !== undefined && same && ours.issuedAt > theirs.issuedAt ? kept : given;
}

/** Keeps a fresh Sigil for the next start. */
export async function keepSigil(files: Files, sigil: string): Promise<void> {
  await write(files, { ...(await readOrMake(files)), sigil });
}

/** Names this machine to an operator. */
export async function deviceThumbprint({ files }: Pick<Ports, 'files'>): Promise<string> {
  return (await importDeviceKey((await readOrMake(files)).key)).jkt;
}

/**
 * Claims a Sigil for this machine and keeps it. A gift code is redeemed for a secret that is made here and kept too.
 * @throws KatafractError `secret_missing`, and of the API; `claim_pending` where nothing was paid for the secret
 */
export async function claim(
  { files }: Pick<Ports, 'files'>,
  connect: (given: ClientCredentials) => Client,
  { secret, voucher }: { secret: string | undefined; voucher: string | undefined },
): Promise<IssuedSigil> {
  const stored = await readOrMake(files);
  const own = secret ?? stored.secret ?? (voucher === undefined ? undefined : makeClaimSecret());
  if (own === undefined) {
    throw new KatafractError('secret_missing', 'put the claim secret into --secret-file or WRAITH_SECRET');
  }
  // before it is sent: a code is redeemed once, and only this secret claims again what it gave
  const kept = secret === undefined ? { ...stored, secret: ClaimSecret.parse(own) } : stored;
  await write(files, kept);
  const client = connect({ sigil: undefined, deviceKey: await importDeviceKey(stored.key) });
  const issued = await client.claim({
    secret: own,
    waitMs: 0,
    ...(voucher === undefined ? {} : { voucher }),
  });
  await write(files, { ...kept, sigil: issued.sigil });
  return issued;
}

/** Gives this machine's place back, and forgets key and Sigil; also where the place was taken from it already. */
export async function unbind({ files }: Pick<Ports, 'files'>, client: Client): Promise<void> {
  const stored = await read(files);
  if (stored !== null) {
    await client.unbind((await importDeviceKey(stored.key)).jkt).catch((error: unknown) => {
      const gone = error instanceof KatafractError && GONE.includes(error.code);
      if (!gone) throw error;
    });
  }
  await files.remove(FILE);
  // its peer went with it
  await files.remove('device.json');
}
