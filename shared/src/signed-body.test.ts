import { type CryptoKey, exportJWK, generateKeyPair, type JSONWebKeySet } from 'jose';
import { beforeAll, describe, expect, it } from 'vitest';
import { REGIONS_TYP, signBody, verifyBody } from './signed-body.ts';

const BODY = '{"items":[{"id":"fra","name":"Frankfurt am Main – ö"}]}';
const now = 1_800_000_000_000;
let key: CryptoKey;
let other: CryptoKey;
let jwks: JSONWebKeySet;

beforeAll(async () => {
  const pair = await generateKeyPair('EdDSA', { extractable: true });
  key = pair.privateKey;
  other = (await generateKeyPair('EdDSA')).privateKey;
  jwks = { keys: [{ ...(await exportJWK(pair.publicKey)), kid: 'k1', alg: 'EdDSA', use: 'sig' }] };
});

describe('a signed body', () => {
  const sign = (by: Partial<Parameters<typeof signBody>[1]> = {}) =>
    signBody(BODY, { key, kid: 'k1', typ: REGIONS_TYP, now, ...by });
  const verify = (signature: string | null, body = BODY) =>
    verifyBody(body, signature, { jwks, typ: REGIONS_TYP });

  it('is known for what it is, and does not carry the body again', async () => {
    const signature = await sign();
    expect(signature).toMatch(/^[\w-]+\.\.[\w-]+$/);
    expect(await verify(signature)).toEqual({ signedAt: now });
  });

  it.each([
    ['no signature', async () => verify(null)],
    ['an empty one', async () => verify('')],
    ['another body', async () => verify(await sign(), `${BODY} `)],
    ['another type', async () => verify(await sign({ typ: 'kf-sigil+jwt' }))],
    ['another key by that name', async () => verify(await sign({ key: other }))],
    ['a name that is not in the JWKS', async () => verify(await sign({ kid: 'k2' }))],
    ['a whole JWS', async () => verify((await sign()).replace('..', `.${btoa(BODY.slice(0, 9))}.`))],
  ])('is refused with %s', async (_, attempt) => {
    await expect(attempt()).rejects.toMatchObject({ code: 'signature_invalid' });
  });
});
