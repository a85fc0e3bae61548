import { REGIONS_TYP, signBody } from '@katafract/shared/signed-body';
import { type CryptoKey, exportJWK, generateKeyPair, type JSONWebKeySet } from 'jose';
import { beforeEach, describe, expect, it } from 'vitest';
import { KnownRegions, type Shelf } from './regions.ts';

const list = (...ids: string[]) =>
  JSON.stringify({
    items: ids.map((id) => ({
      id,
      name: id,
      country: 'DE',
      latitude: 50,
      longitude: 8,
      available: true,
      exits: [],
    })),
  });

async function makeKey(kid: string): Promise<{ kid: string; key: CryptoKey; jwks: JSONWebKeySet }> {
  const pair = await generateKeyPair('EdDSA', { extractable: true });
  const jwk = { ...(await exportJWK(pair.publicKey)), kid, alg: 'EdDSA' };
  return { kid, key: pair.privateKey, jwks: { keys: [jwk] } };
}

describe('the region list', () => {
  const answers: { body: string; signature: string | null; etag: string }[] = [];
  let jwks: JSONWebKeySet;
  let key: Awaited<ReturnType<typeof makeKey>>;
  let file: string | null;
  let asked: (string | undefined)[];
  const shelf: Shelf = {
    read: async () => file,
    write: async (text) => {
      file = text;
    },
  };
  const client = {
    signedRegions: async (etag?: string) => {
      asked.push(etag);
      return answers.shift() ?? null;
    },
    jwks: async () => jwks,
  };
  const serve = async (body: string, by = key, at = 1000) => {
    const signature = await signBody(body, { ...by, typ: REGIONS_TYP, now: at * 1000 });
    answers.push({ body, signature, etag: `"${body.length}"` });
  };
  const ids = (known: KnownRegions) => known.regions.map(({ id }) => id);

  beforeEach(async () => {
    answers.length = 0;
    asked = [];
    file = null;
    key = await makeKey('one');
    jwks = key.jwks;
  });

  it('is asked for by its ETag, and is there after a restart without the API', async () => {
    const known = new KnownRegions(client, shelf);
    await serve(list('fra'));
    await known.refresh();
    await known.refresh();
    expect(asked[0]).toBeUndefined();
    expect(asked[1]).toMatch(/^"\d+"$/);
    const later = new KnownRegions(client, shelf);
    await later.load();
    expect(ids(later)).toEqual(['fra']);
  });

  it('follows the keys of the controller', async () => {
    const known = new KnownRegions(client, shelf);
    await serve(list('fra'));
    await known.refresh();
    const next = await makeKey('two');
    jwks = next.jwks;
    await serve(list('fra', 'hel'), next, 2000);
    await known.refresh();
    expect(ids(known)).toEqual(['fra', 'hel']);
  });

  it.each([
    [
      'unsigned',
      async () => answers.push({ body: list('evil'), signature: null, etag: '"e"' }),
      'signature_invalid',
    ],
    ['signed by another', async () => serve(list('evil'), await makeKey('one'), 3000), 'signature_invalid'],
    ['older', () => serve(list('evil'), key, 999), 'list_stale'],
  ])('%s is refused, and the one at hand stays', async (_, make, code) => {
    const known = new KnownRegions(client, shelf);
    await serve(list('fra'));
    await known.refresh();
    const before = file;
    await make();
    await expect(known.refresh()).rejects.toMatchObject({ code });
    expect(ids(known)).toEqual(['fra']);
    expect(file).toBe(before);
  });

  it('changed on the disk is refused', async () => {
    const known = new KnownRegions(client, shelf);
    await serve(list('fra'));
    await known.refresh();
    file = file?.replaceAll('fra', 'evl') ?? null;
    const later = new KnownRegions(client, shelf);
    await expect(later.load()).rejects.toMatchObject({ code: 'signature_invalid' });
    expect(ids(later)).toEqual([]);
  });
});
