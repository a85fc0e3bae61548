/** Every verifier of Sigils says of each vector what it must; the vectors are for other implementations too. */
import { describe, expect, it } from 'vitest';
import vectors from '../fixtures/1/sigil-vectors.json' with { type: 'json' };
import {
  exportDeviceKey,
  generateDeviceKey,
  importDeviceKey,
  makeProof,
  PROOF_ALGS,
  proofExpiry,
  rememberProofKeys,
  verifyProof,
} from './dpop.ts';
import { type RequestVerifier, verifySigil, verifySigilRequest } from './sigil.ts';

const { jwks, issuer, now } = vectors;
const outcome = (work: Promise<unknown>) =>
  work.then(
    () => 'valid',
    (error: { code?: string }) => error.code,
  );

/** As a service would have it: nothing but the JWKS and a memory. */
function verifier(at = now): RequestVerifier & { seen: Map<string, number> } {
  const seen = new Map<string, number>();
  return {
    now: at,
    seen,
    keys: rememberProofKeys(3),
    verify: (token) => verifySigil(token, jwks, { issuer, now: at }),
    once: async (name, ttlMs) => !seen.has(name) && Boolean(seen.set(name, ttlMs)),
  };
}
const requestOf = (name: string) => {
  const found = vectors.requests.find((request) => request.name === name);
  if (!found) throw new Error(`no vector ${name}`);
  const { authorization, dpop, method, url } = found;
  return { authorization: authorization ?? undefined, dpop: dpop ?? undefined, method, url };
};

describe('a Sigil', () => {
  it.each(vectors.sigils)('$name: $outcome', async ({ token, outcome: wanted, claims }) => {
    const work = verifySigil(token, jwks, { issuer, now });
    expect(await outcome(work)).toBe(wanted);
    if (claims) expect(await work).toEqual(claims);
  });

  it('may have expired where it is to be exchanged, but must be good in all else', async () => {
    const exchange = { issuer, now, expired: 'allow' } as const;
    for (const { token, outcome: wanted } of vectors.sigils) {
      const then = wanted === 'sigil_expired' ? 'valid' : wanted;
      expect(await outcome(verifySigil(token, jwks, exchange))).toBe(then);
    }
  });
});

describe('a request', () => {
  const one = verifier();
  it.each(vectors.requests)('$name: $outcome', async ({ name, outcome: wanted }) => {
    expect(await outcome(verifySigilRequest(requestOf(name), one))).toBe(wanted);
  });

  it('passes once with a proof, and the proof is remembered for as long as it would pass', async () => {
    const by = verifier();
    expect(await outcome(verifySigilRequest(requestOf('ES256'), by))).toBe('valid');
    expect(await outcome(verifySigilRequest(requestOf('ES256'), by))).toBe('dpop_replayed');
    const [ttl = 0] = by.seen.values();
    expect(await outcome(verifySigilRequest(requestOf('ES256'), verifier(now + ttl)))).toBe('dpop_stale');
  });

  it('that is refused takes no room in the memory', async () => {
    const by = verifier();
    for (const { name, outcome: wanted } of vectors.requests)
      if (wanted !== 'valid') await outcome(verifySigilRequest(requestOf(name), by));
    expect(by.seen.size).toBe(0);
  });
});

describe('a proof', () => {
  const at = { method: 'POST', url: 'https://api.example.net/v1/sigils', now };

  it.each(PROOF_ALGS)('of a fresh %s key is good, and its key can be kept', async (alg) => {
    const key = await generateDeviceKey({ alg, extractable: true });
    const again = await importDeviceKey(JSON.parse(JSON.stringify(await exportDeviceKey(key))));
    expect(again.jkt).toBe(key.jkt);
    const proof = await verifyProof(await makeProof(again, at), at);
    expect(proof).toMatchObject({ jkt: key.jkt, iat: now / 1000 });
    expect(proofExpiry(proof)).toBeGreaterThan(now + 60_000);
  });

  it('of a key that its runtime keeps to itself is as good, and that key cannot be read', async () => {
    const key = await generateDeviceKey();
    await expect(verifyProof(await makeProof(key, at), at)).resolves.toHaveProperty('jkt', key.jkt);
    await expect(exportDeviceKey(key)).rejects.toThrow(TypeError);
  });

  it('never shows a damaged key in the error', async () => {
    const jwk = await exportDeviceKey(await generateDeviceKey({ extractable: true }));
    const damaged = { ...jwk, x: jwk.d };
    const error = await importDeviceKey(damaged).catch((caught: unknown) => caught);
    expect(error).toMatchObject({ code: 'device_key_invalid' });
    expect(JSON.stringify(error) + String((error as Error).cause)).not.toContain(String(jwk.d));
  });
});
