/** The stores that the configuration turns on, with their secrets read from their files. */
import { readFile } from 'node:fs/promises';
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import type { StoresConfig } from '../../config-stores.ts';
import { readSecretFile } from '../../platform/secrets.ts';
import { appleStore } from './apple.ts';
import type { StoreDeps } from './call.ts';
import { googleStore } from './google.ts';
import type { StorePort } from './port.ts';
import { stripeStore } from './stripe.ts';

type Build = (deps: StoreDeps) => StorePort;

/** @throws KatafractError `secret_unreadable`, `config_invalid` */
export async function configuredStores(config: StoresConfig): Promise<Build[]> {
  const { stripe, apple, google } = config;
  const built = await Promise.all([
    stripe && stripeOf(stripe),
    apple && appleOf(apple),
    google && googleOf(google),
  ]);
  return built.filter((build) => build !== null);
}

async function stripeOf(config: NonNullable<StoresConfig['stripe']>): Promise<Build> {
  const { secretKeyFile, webhookSecretFile, ...rest } = config;
  const secretKey = await readSecretFile(secretKeyFile);
  const webhookSecrets = (await readSecretFile(webhookSecretFile)).split(/\s+/);
  return (deps) => stripeStore({ ...rest, secretKey, webhookSecrets }, deps);
}

async function appleOf(config: NonNullable<StoresConfig['apple']>): Promise<Build> {
  const { keyFile, rootFiles, appAppleId, ...rest } = config;
  const privateKey = await readSecretFile(keyFile);
  const rootCertificates = await Promise.all(rootFiles.map(readRoot));
  const app = appAppleId === null ? {} : { appAppleId };
  return (deps) => appleStore({ ...rest, ...app, privateKey, rootCertificates }, deps);
}

async function readRoot(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new KatafractError('secret_unreadable', `cannot read ${path}`, { cause });
  }
}

/** The fields we use of a service account's key file. */
const ServiceAccount = z.object({
  client_email: z.string(),
  private_key: z.string(),
  private_key_id: z.string().optional(),
});

async function googleOf(config: NonNullable<StoresConfig['google']>): Promise<Build> {
  const { keyFile, ...rest } = config;
  const serviceAccount = readServiceAccount(keyFile, await readSecretFile(keyFile));
  return (deps) => googleStore({ ...rest, serviceAccount }, deps);
}

/** Never repeats what is in the file. */
function readServiceAccount(path: string, text: string) {
  const invalid = () =>
    new KatafractError('config_invalid', `${path} is not the JSON key of a service account`);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw invalid();
  }
  const parsed = ServiceAccount.safeParse(json);
  if (!parsed.success) throw invalid();
  const { private_key_id, ...account } = parsed.data;
  return { ...account, ...(private_key_id === undefined ? {} : { private_key_id }) };
}
