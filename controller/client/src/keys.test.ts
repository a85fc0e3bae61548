import { execFileSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { generateKeyPair } from './keys.ts';

describe('generateKeyPair', () => {
  it('makes what wg makes: wg pubkey finds the same public key, the private one is clamped', async () => {
    const pairs = await Promise.all(Array.from({ length: 20 }, generateKeyPair));
    for (const { privateKey, publicKey } of pairs) {
      const byWg = execFileSync('wg', ['pubkey'], { input: privateKey, encoding: 'utf8' }).trim();
      expect(publicKey).toBe(byWg);
      const scalar = Buffer.from(privateKey, 'base64');
      expect(scalar).toHaveLength(32);
      // As `wg genkey` prints it: RFC 7748, section 5.
      expect((scalar[0] ?? 0) & 7).toBe(0);
      expect((scalar[31] ?? 0) & 0b1100_0000).toBe(0b0100_0000);
    }
    expect(new Set(pairs.map((pair) => pair.privateKey)).size).toBe(20);
  });
});
