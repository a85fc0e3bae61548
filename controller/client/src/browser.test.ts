/** The SDK as a browser gets it: bundled without one Node builtin, run with nothing but web globals. */
import { createContext, Script } from 'node:vm';
import { build } from 'esbuild';
import { expect, it } from 'vitest';
import { SIGIL, startTestApi } from './testing/api.ts';

it('bundles for browsers without a Node builtin and works with web globals alone', async () => {
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

  const exit = { node: 'fra-1', region: 'eu-de', endpoint: '203.0.113.5:51820' };
  const api = await startTestApi({
    exits: [{ ...exit, publicKey: 'HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=' }],
  });
  try {
    const web = { fetch, crypto, URL, AbortController, AbortSignal, setTimeout, clearTimeout, atob, btoa };
    const more = { TextEncoder, TextDecoder, Uint8Array, console };
    const page = createContext({ ...web, ...more, baseUrl: api.url, sigil: SIGIL });
    new Script(outputFiles[0]?.text ?? '').runInContext(page);
    const answer: unknown = await new Script(`(async () => {
      const keys = await sdk.generateKeyPair();
      const client = sdk.createClient({ baseUrl, sigil });
      const peer = await client.provision({ publicKey: keys.publicKey, region: 'eu-de' });
      const file = sdk.fillPrivateKey(peer.config, keys.privateKey);
      const missing = await client.peer('01932f3e-0000-7000-8000-000000000001').catch((error) => error.code);
      const svg = await sdk.qrSvg(file);
      return { status: peer.status, missing, filled: file.includes(keys.privateKey), svg: svg.slice(0, 4) };
    })()`).runInContext(page);
    expect(answer).toEqual({ status: 'active', missing: 'peer_unknown', filled: true, svg: '<svg' });
  } finally {
    await api.close();
  }
});
