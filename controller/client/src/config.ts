/**
 * wg-quick files on the device: the private key is filled in here and nowhere else. A file from the network is parsed
 * by an allow-list first, since wg-quick runs PostUp and its like as root.
 */
import type { Exit, Peer } from '@katafract/shared/api';
import { KatafractError } from '@katafract/shared/errors';
import { Endpoint, Ipv4, Ipv6, PublicKey } from '@katafract/shared/units';
import { renderWgQuick } from '@katafract/shared/wg-quick';
import { z } from 'zod';

const list = (text: string) => text.split(',').map((part) => part.trim());
const address = z.string().regex(/^[0-9a-f.:]+\/\d{1,3}$/);
export const PrivateKey = z
  .string()
  .regex(/^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$/, 'a WireGuard private key is 32 bytes in base64');

const Interface = z.strictObject({
  PrivateKey: z.union([PrivateKey, z.literal('')]),
  Address: z.string().transform(list).pipe(z.array(address).min(1)),
  DNS: z
    .string()
    .transform(list)
    .pipe(z.array(z.union([Ipv4, Ipv6])))
    .optional(),
  MTU: z.coerce.number().int().min(1280).max(9000).optional(),
});
const PeerSection = z.strictObject({
  PublicKey,
  Endpoint,
  AllowedIPs: z.string().transform(list).pipe(z.array(address).min(1)),
  PersistentKeepalive: z.coerce.number().int().min(0).max(65535).optional(),
});
const File = z.strictObject({ Interface, Peer: PeerSection });
export type WgQuickConfig = z.infer<typeof File>;

/**
 * Reads a wg-quick file with one peer, such as the API returns.
 * @throws KatafractError `config_invalid`: a setting unknown here (PostUp above all), doubled, missing or malformed.
 */
export function parseConfig(text: string): WgQuickConfig {
  const parsed = File.safeParse(sections(text));
  if (parsed.success) return parsed.data;
  // Paths and messages only: the value may be a private key.
  const issues = parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
  throw new KatafractError('config_invalid', issues.join('; '), { status: 400 });
}

function sections(text: string): Record<string, Record<string, string>> {
  const found: Record<string, Record<string, string>> = {};
  let current: Record<string, string> | undefined;
  for (const line of text.split('\n').map((raw) => raw.replace(/#.*/, '').trim())) {
    const header = /^\[(Interface|Peer)\]$/.exec(line)?.[1];
    const [, name, value = ''] = /^([A-Za-z]+)\s*=\s*(.*)$/.exec(line) ?? [];
    if (line === '') continue;
    if (header !== undefined && !Object.hasOwn(found, header)) {
      current = {};
      found[header] = current;
    } else if (name !== undefined && current !== undefined && !Object.hasOwn(current, name)) {
      current[name] = value;
    } else {
      throw new KatafractError('config_invalid', 'not a wg-quick file with one peer', { status: 400 });
    }
  }
  return found;
}

/**
 * The API's file with the device's private key filled in.
 * @throws KatafractError `config_invalid`, also where the file already holds a private key.
 */
export function fillPrivateKey(config: string, privateKey: string): string {
  if (parseConfig(config).Interface.PrivateKey !== '') {
    throw new KatafractError('config_invalid', 'the file already holds a private key', { status: 400 });
  }
  const filled = config.replace(/^PrivateKey\s*=\s*$/m, `PrivateKey = ${privateKey}`);
  parseConfig(filled);
  return filled;
}

/**
 * A whole file for any exit of the peer, for a device that fails over on its own.
 * @throws KatafractError `config_invalid`
 */
export function configFor(peer: Peer, exit: Exit, privateKey: string): string {
  const { addresses, dns } = peer;
  const mtu = mtuOf(peer);
  const text = renderWgQuick({ addresses, dns, exit, privateKey, ...(mtu === undefined ? {} : { mtu }) });
  parseConfig(text);
  return text;
}

/** The MTU in bytes that the API's file sets; undefined where it leaves that to the device. */
export function mtuOf(peer: Peer): number | undefined {
  // Blank while the peer has no primary.
  return peer.config === '' ? undefined : parseConfig(peer.config).Interface.MTU;
}
