/** Keys of the model, the same in every run, so that a seed says all there is to say about one. */
import { createHash, createPrivateKey, createPublicKey } from 'node:crypto';
import type { Keys } from './world.ts';

/** What precedes the 32 bytes of an Ed25519 private key in PKCS #8 (RFC 8410). */
const PKCS8_HEAD = Buffer.from('302e020100300506032b657004220420', 'hex');

async function pair(name: string): Promise<CryptoKeyPair> {
  const der = Buffer.concat([PKCS8_HEAD, createHash('sha256').update(name).digest()]);
  const spki = createPublicKey(createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })).export({
    format: 'der',
    type: 'spki',
  });
  const [privateKey, publicKey] = await Promise.all([
    crypto.subtle.importKey('pkcs8', der, 'Ed25519', true, ['sign']),
    crypto.subtle.importKey('spki', Buffer.from(spki), 'Ed25519', true, ['verify']),
  ]);
  return { privateKey, publicKey };
}

export async function makeKeys(): Promise<Keys> {
  return { state: await pair('state key of the model'), foreign: await pair('somebody else') };
}
