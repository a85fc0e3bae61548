/**
 * This device at the API: its key pair, made here, and its peer. Whatever is about to be asked is written down first,
 * so that a crash between question and answer neither loses a peer nor makes a second one.
 */
import { Peer } from '@katafract/shared/api';
import { KatafractError } from '@katafract/shared/errors';
import { PublicKey } from '@katafract/shared/units';
import { z } from 'zod';
import { PrivateKey } from '../config.ts';
import { generateKeyPair } from '../keys.ts';
import type { Client } from '../sdk.ts';
import type { Files, Ports } from './ports.ts';

const Keys = z.object({ privateKey: PrivateKey, publicKey: PublicKey });
const Device = z.object({
  /** Base URL of the API. */
  api: z.string(),
  keys: Keys,
  /** Offered to the API; in use once it has confirmed them. */
  nextKeys: Keys.optional(),
  peer: Peer.optional(),
});
export type Device = z.infer<typeof Device>;
export type ProvisionedDevice = Device & { readonly peer: Peer };

const FILE = 'device.json';

/** @throws KatafractError `state_invalid` */
export async function readDevice(files: Files): Promise<Device | null> {
  const text = await files.read(FILE);
  return text === null ? null : parseState(Device, text, FILE);
}

/** Reads a state file; what is wrong is said without values, which may be keys. */
export function parseState<S extends z.ZodType>(schema: S, text: string, name: string): z.output<S> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    json = undefined;
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const where = parsed.error.issues.map((issue) => issue.path.join('.') || '(whole file)').join(', ');
  throw new KatafractError('state_invalid', `${name} in the state directory is damaged: ${where}`);
}

export interface Wish {
  readonly api: string;
  /** Undefined: where the peer is. */
  readonly region: string | undefined;
  readonly newKey: boolean;
}

/**
 * Brings this device's peer to where it is wished: provisions it, or reuses, moves and rotates the one there is. With
 * the API out of reach a saved peer that needs no change will do: its exits hold it without the API.
 * @throws KatafractError of the API; `region_missing` where there is no peer yet and no region was named
 */
export async function settleDevice(
  { files, note }: Pick<Ports, 'files' | 'note'>,
  client: Client,
  wish: Wish,
): Promise<ProvisionedDevice> {
  const save = async <D extends Device>(device: D): Promise<D> => {
    await files.write(FILE, `${JSON.stringify(device, null, 2)}\n`);
    return device;
  };
  const saved = (await readDevice(files)) ?? { api: wish.api, keys: await generateKeyPair() };
  const device: Device = { ...saved, api: wish.api };
  const { current, offline } = await currentPeer(client, device, wish);
  if (current !== null && offline !== undefined) {
    note(`the API is out of reach (${offline}): using the peer as saved`);
    return current;
  }
  const region = wish.region ?? device.peer?.region;
  if (region === undefined) {
    throw new KatafractError('region_missing', 'no peer yet: name a region with --region', { status: 400 });
  }
  let settled = await save(current ?? (await provision(client, device, region, save)));
  if (wish.region !== undefined && settled.peer.region !== wish.region) {
    settled = await save({ ...settled, peer: await client.move(settled.peer.id, wish.region) });
  }
  return wish.newKey || settled.nextKeys !== undefined ? rotate(client, settled, save) : settled;
}

/** Keeps what the API says of the peer now; not where it has become another one or has another key meanwhile. */
export async function savePeer(files: Files, peer: Peer): Promise<void> {
  const device = await readDevice(files);
  const same = device?.peer?.id === peer.id && device.keys.publicKey === peer.publicKey;
  if (device === null || !same || JSON.stringify(device.peer) === JSON.stringify(peer)) return;
  await files.write(FILE, `${JSON.stringify({ ...device, peer }, null, 2)}\n`);
}

interface Current {
  /** Null where there is no peer. */
  readonly current: ProvisionedDevice | null;
  /** Why the API could not be asked. */
  readonly offline?: string;
}

/** The peer as the API has it now, or as saved where the API is out of reach and nothing else is wished. */
async function currentPeer(client: Client, device: Device, wish: Wish): Promise<Current> {
  const { peer } = device;
  if (peer === undefined) return { current: null };
  try {
    return { current: { ...device, peer: await client.peer(peer.id) } };
  } catch (error) {
    if (!(error instanceof KatafractError)) throw error;
    if (error.status === 404) return { current: null };
    const unchanged = !wish.newKey && (wish.region ?? peer.region) === peer.region;
    if (error.status !== 503 || !unchanged) throw error;
    return { current: { ...device, peer }, offline: error.code };
  }
}

type Save = <D extends Device>(device: D) => Promise<D>;

async function provision(
  client: Client,
  device: Device,
  region: string,
  save: Save,
): Promise<ProvisionedDevice> {
  const { api, keys } = device;
  await save({ api, keys });
  try {
    return { api, keys, peer: await client.provision({ publicKey: keys.publicKey, region }) };
  } catch (error) {
    if (!(error instanceof KatafractError) || error.code !== 'public_key_in_use') throw error;
    // Our own peer, made by an earlier run that did not live to hear of it.
    for await (const peer of client.peers()) {
      if (peer.publicKey === keys.publicKey) return { api, keys, peer };
    }
    throw error;
  }
}

async function rotate(client: Client, device: ProvisionedDevice, save: Save): Promise<ProvisionedDevice> {
  const { api, peer, nextKeys = await generateKeyPair() } = device;
  await save({ ...device, nextKeys });
  const confirmed = peer.publicKey === nextKeys.publicKey;
  const rotated = confirmed ? peer : await client.rotate(peer.id, nextKeys.publicKey);
  return save({ api, keys: nextKeys, peer: rotated });
}

/** Gives the peer back and forgets its keys. */
export async function forgetDevice(files: Files, client: Client, device: Device): Promise<void> {
  if (device.peer !== undefined) {
    await client.remove(device.peer.id).catch((error: unknown) => {
      if (!(error instanceof KatafractError && error.status === 404)) throw error;
    });
  }
  await files.remove(FILE);
}
