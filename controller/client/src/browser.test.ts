/** The SDK as a browser gets it: bundled without one Node builtin, run with nothing but web globals. */
import { type Context, createContext, Script } from 'node:vm';
import { verifyProof } from '@katafract/shared/dpop';
import vectors from '@katafract/shared/fixtures/1/sigil-vectors.json' with { type: 'json' };
import { build } from 'esbuild';
import { beforeAll, expect, it } from 'vitest';
import { SIGIL, startTestApi } from './testing/api.ts';

let bundle: Script;
beforeAll(async () => {
  // For this platform esbuild refuses every import of a Node builtin, with or without the node: prefix.
  const { outputFiles, metafile } = await build({
    entryPoints: [new URL('./sdk.ts', import.meta.url).pathname],
    bundle: true,
    platform: 'browser',
    format: 'iife',
    globalName: 'sdk',
    write: false,
    metafile: true,
    logLevel: 'silent',
  });
  const imports = Object.values(metafile.inputs).flatMap((input) => input.imports);
  expect(imports.filter((found) => found.external)).toEqual([]);
  bundle = new Script(outputFiles[0]?.text ?? '');
});

/** A page with the bundle loaded, and what a test hands it. */
function page(given: Record<string, unknown>): Context {
  const web = { fetch, crypto, URL, AbortController, AbortSignal, setTimeout, clearTimeout, atob, btoa };
  const more = { TextEncoder, TextDecoder, Uint8Array, CryptoKey, structuredClone, console };
  const context = createContext({ ...web, ...more, ...given });
  bundle.runInContext(context);
  return context;
}
const run = (context: Context, body: string): Promise<unknown> =>
  new Script(`(async () => { ${body} })()`).runInContext(context);

it('works with web globals alone', async () => {
  const exit = { node: 'fra-1', region: 'eu-de', endpoint: '203.0.113.5:51820' };
  const api = await startTestApi({
    exits: [{ ...exit, publicKey: 'HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=' }],
  });
  try {
    const answer = await run(
      page({ baseUrl: api.url, sigil: SIGIL }),
      `const keys = await sdk.generateKeyPair();
      const client = sdk.createClient({ baseUrl, sigil });
      const peer = await client.provision({ publicKey: keys.publicKey, region: 'eu-de' });
      const file = sdk.fillPrivateKey(peer.config, keys.privateKey);
      const missing = await client.peer('01932f3e-0000-7000-8000-000000000001').catch((error) => error.code);
      const svg = await sdk.qrSvg(file);
      return { status: peer.status, missing, filled: file.includes(keys.privateKey), svg: svg.slice(0, 4) };`,
    );
    expect(answer).toEqual({ status: 'active', missing: 'peer_unknown', filled: true, svg: '<svg' });
  } finally {
    await api.close();
  }
});

it('judges Sigils and requests offline as every verifier must', async () => {
  const outcomes = await run(
    page({ vectors: JSON.stringify(vectors) }),
    `const { jwks, issuer, now, sigils, requests } = JSON.parse(vectors);
    const verify = (token) => sdk.verifySigil(token, jwks, { issuer, now });
    const seen = new Set();
    const once = async (name) => !seen.has(name) && Boolean(seen.add(name));
    const outcome = (work) => work.then(() => 'valid', (error) => error.code);
    const said = [];
    for (const { token } of sigils) said.push(await outcome(verify(token)));
    for (const { authorization, dpop, method, url } of requests) {
      const request = { authorization: authorization ?? undefined, dpop: dpop ?? undefined, method, url };
      said.push(await outcome(sdk.verifySigilRequest(request, { verify, once, now })));
    }
    return JSON.stringify(said);`,
  );
  const wanted = [...vectors.sigils, ...vectors.requests].map(({ outcome }) => outcome);
  expect(JSON.parse(String(outcomes))).toEqual(wanted);
});

it('makes a key that the page itself cannot read, can keep, and proves its device by', async () => {
  const proofs: unknown[] = [];
  const api = await startTestApi({ exits: [] });
  api.faults.push((seen) => {
    proofs.push(seen.headers.dpop);
    return { status: 202, body: { status: 'pending' } };
  });
  try {
    const answer = await run(
      page({ baseUrl: api.url }),
      `const made = await sdk.generateDeviceKey();
      const deviceKey = structuredClone(made); // as IndexedDB keeps it
      const client = sdk.createClient({ baseUrl, deviceKey });
      const pending = await client.claim({ secret: sdk.makeClaimSecret(), waitMs: 0 }).catch((error) => error.code);
      const readable = await sdk.exportDeviceKey(made).then(() => true, () => false);
      return { pending, readable, jkt: deviceKey.jkt };`,
    );
    expect(answer).toMatchObject({ pending: 'claim_pending', readable: false });
    const proof = await verifyProof(String(proofs[0]), {
      method: 'POST',
      url: `${api.url}/v1/sigils`,
      now: Date.now(),
    });
    expect(proof.jkt).toBe((answer as { jkt: string }).jkt);
  } finally {
    await api.close();
  }
});
