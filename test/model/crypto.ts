/**
 * Keeps signatures on this thread. WebCrypto hands Ed25519 to a thread pool, whose answers come in no fixed order and
 * outside of any clock: a failing seed could not be replayed. The same OpenSSL called in place gives the same bytes
 * at once; the model then makes the caller wait on the virtual clock, so that a kill can come in between.
 */
import { KeyObject, sign, verify } from 'node:crypto';

/** Waits as long as one operation takes. */
type Wait = () => Promise<void>;
let wait: Wait = () => Promise.resolve();

/** From now on each operation takes as long as `next` says. */
export function cryptoTakes(next: Wait): void {
  wait = next;
}

const keyObjects = new WeakMap<CryptoKey, KeyObject>();
function keyObject(key: CryptoKey): KeyObject {
  const known = keyObjects.get(key);
  if (known) return known;
  const made = KeyObject.from(key as Parameters<typeof KeyObject.from>[0]);
  keyObjects.set(key, made);
  return made;
}

/** Node knows no type for both views; bytes are bytes. */
function bytes(data: BufferSource): Uint8Array {
  return ArrayBuffer.isView(data)
    ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    : new Uint8Array(data);
}

/** Replaces WebCrypto's Ed25519 in this process (a test worker). */
export function inlineCrypto(): void {
  Object.assign(crypto.subtle, {
    async sign(_algorithm: unknown, key: CryptoKey, data: BufferSource): Promise<ArrayBuffer> {
      await wait();
      return new Uint8Array(sign(null, bytes(data), keyObject(key))).buffer;
    },
    async verify(_algorithm: unknown, key: CryptoKey, signature: BufferSource, data: BufferSource) {
      await wait();
      return verify(null, bytes(data), keyObject(key), bytes(signature));
    },
  });
}
