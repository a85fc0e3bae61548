/**
 * The operator's key file, and what is signed with it: commands that go to the broker. The private half never leaves
 * the file but into a signature.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { mkdir, open, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import { NodePublicJwk, publicJwk } from '@katafract/shared/node-token';
import {
  COMMAND_LIFE_MS,
  mintOperatorToken,
  type OperatorCommand,
  operatorClientId,
  operatorUsername,
  RegisteredKey,
  signCommand,
} from '@katafract/shared/operator-command';
import { topic } from '@katafract/shared/topics';
import { type CryptoKey, calculateJwkThumbprint, exportJWK, generateKeyPair, importJWK } from 'jose';
import { z } from 'zod';
import type { Io } from './io.ts';
import { keyFile, mustBePrivate, readText, UsageError } from './settings.ts';

const PrivateJwk = NodePublicJwk.extend({ d: z.string().regex(/^[A-Za-z0-9_-]{43}$/) });
const KeyFile = z.object({ privateJwk: PrivateJwk, registered: RegisteredKey.optional() });
type KeyFile = z.infer<typeof KeyFile>;

/** Time for the way to the broker and its receipt, by which an embedded one says that the command was decided. */
const RECEIPT_MS = 30_000;

/**
 * Makes a key in a new file. @returns its thumbprint
 * @throws UsageError `key_exists`
 */
export async function makeKey(path: string): Promise<string> {
  const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
  const privateJwk = PrivateJwk.parse(await exportJWK(pair.privateKey));
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  await writeNew(path, { privateJwk }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
    throw new UsageError('key_exists', `there is a key in ${path} already`);
  });
  return calculateJwkThumbprint(publicJwk(privateJwk));
}

async function writeNew(path: string, content: KeyFile): Promise<void> {
  const file = await open(path, 'wx', 0o600);
  try {
    await file.writeFile(`${JSON.stringify(content, null, 2)}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
}

export interface OperatorKeyPair {
  readonly publicJwk: NodePublicJwk;
  readonly privateKey: CryptoKey;
  readonly registered: RegisteredKey | null;
}

/** @throws UsageError `key_unreadable`, `key_file_open`, `key_malformed` */
export async function readKey(path: string): Promise<OperatorKeyPair> {
  const { privateJwk, registered } = await readFileOf(path);
  const privateKey = await importJWK(privateJwk, 'EdDSA');
  if (privateKey instanceof Uint8Array) throw new TypeError('an OKP key is never symmetric');
  return { publicJwk: publicJwk(privateJwk), privateKey, registered: registered ?? null };
}

async function readFileOf(path: string): Promise<KeyFile> {
  const text = await readText(path, 'key_unreadable');
  await mustBePrivate(path);
  try {
    return KeyFile.parse(JSON.parse(text));
  } catch {
    // not the cause: it quotes the file
    throw new UsageError('key_malformed', `${path} is no key file`);
  }
}

/** Writes down beside the key what its registration answered. */
export async function keepRegistration(path: string, registered: RegisteredKey): Promise<void> {
  const { privateJwk } = await readFileOf(path);
  const draft = `${path}.${randomBytes(4).toString('hex')}`;
  await writeNew(draft, { privateJwk, registered });
  await rename(draft, path);
}

/**
 * Signs a command and gives it to the broker, which keeps the last one for each node until a controller has heard it.
 * @throws UsageError `key_not_registered` and those of readKey; KatafractError `broker_refused`, and `unreachable` (503)
 */
export async function publishCommand(
  io: Io,
  wish: Pick<OperatorCommand, 'node' | 'command' | 'deadline'>,
): Promise<OperatorCommand> {
  const { privateKey, registered } = await readKey(keyFile(io));
  if (!registered)
    throw new UsageError('key_not_registered', 'register the key first: katafract key register <name>');
  const now = io.clock.now();
  const { audience } = registered;
  const command: OperatorCommand = {
    v: 1,
    id: randomUUID(),
    at: now,
    expiresAt: now + COMMAND_LIFE_MS,
    audience,
    ...wish,
  };
  const jws = await signCommand(command, privateKey, registered.thumbprint);
  const token = await mintOperatorToken(privateKey, registered.name, now);
  await showToken(registered, token);
  await give(io, registered, token, topic(wish.node, 'drain'), jws);
  return command;
}

/** A foreign broker knows the token only after the controller has been shown it. */
async function showToken({ name, broker }: RegisteredKey, token: string): Promise<void> {
  if (broker.sessionUrl === undefined) return;
  const response = await fetch(broker.sessionUrl, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ operator: name, token }),
    redirect: 'error',
    signal: AbortSignal.timeout(RECEIPT_MS),
  }).catch((cause: unknown) => {
    throw unreachable(broker.sessionUrl ?? '', cause);
  });
  if (response.status !== 204)
    throw new KatafractError(
      'broker_refused',
      `the controller did not take the key: status ${response.status}`,
    );
}

async function give(io: Io, by: RegisteredKey, token: string, name: string, payload: string): Promise<void> {
  const { connectAsync } = await import('mqtt');
  const { url, ca } = by.broker;
  const client = await connectAsync(url, {
    clientId: operatorClientId(by.name),
    username: operatorUsername(by.name),
    password: token,
    clean: true,
    reconnectPeriod: 0,
    connectTimeout: RECEIPT_MS,
    ...(ca === undefined ? {} : { ca }),
  }).catch((cause: unknown) => {
    const code = (cause as { code?: unknown }).code;
    // CONNACK 4 and 5: bad name or password, not authorized
    if (code !== 4 && code !== 5) throw unreachable(url, cause);
    throw new KatafractError('broker_refused', 'the broker does not know the key; was it revoked?', {
      cause,
    });
  });
  // by then it is either receipted or lost with the connection
  const lost = new Promise<never>((_, reject) => {
    client.on('error', () => undefined); // what it comes to is the close
    client.once('close', () =>
      reject(new KatafractError('broker_refused', 'the broker ended the connection')),
    );
  });
  let cancel = () => undefined as unknown;
  const late = new Promise<never>((_, reject) => {
    cancel = io.clock.after(RECEIPT_MS, () => reject(unreachable(url, new Error('no receipt'))));
  });
  try {
    await Promise.race([client.publishAsync(name, payload, { qos: 1, retain: true }), lost, late]);
  } finally {
    cancel();
    lost.catch(() => undefined); // the end of the connection is ours from here on
    await client.endAsync(true);
  }
}

function unreachable(url: string, cause: unknown): KatafractError {
  return new KatafractError('unreachable', `no answer from ${url}`, { status: 503, cause });
}
