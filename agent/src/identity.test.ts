import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ENROLLING, EnrollRequest, JoinToken } from '@katafract/shared/enroll';
import { verifyNodeToken } from '@katafract/shared/node-token';
import { type CryptoKey, calculateJwkThumbprint, exportJWK, generateKeyPair, importJWK } from 'jose';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { systemExec } from './host/exec.ts';
import { type Enrollment, enroll, loadIdentity } from './identity.ts';
import { CONFIG } from './testing/messages.ts';

const NOW = 1_800_000_000_000;
let directory = '';
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'katafract-identity-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

/** A controller in a function: records what was asked, and answers as told. */
async function controller(answer: (request: EnrollRequest) => { status: number; body: unknown } | 'lost') {
  const { publicKey } = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
  const { x = '' } = await exportJWK(publicKey);
  const stateKey = { kty: 'OKP', crv: 'Ed25519', x } as const;
  const pin = await calculateJwkThumbprint(stateKey);
  const requests: EnrollRequest[] = [];
  const send = (async (_url: URL, init: RequestInit) => {
    const request = EnrollRequest.parse(JSON.parse(String(init.body)));
    requests.push(request);
    const reply = answer(request);
    if (reply === 'lost') throw new TypeError('fetch failed');
    const filled = reply.status === 201 ? { ...(reply.body as object), stateKey } : reply.body;
    return new Response(JSON.stringify(filled), { status: reply.status });
  }) as typeof fetch;
  const enrollment: Enrollment = {
    controller: new URL('https://controller.example'),
    token: JoinToken.parse(`kfj1_${'s'.repeat(43)}_${pin}`),
    directory,
  };
  return { requests, enrollment, ports: { exec: systemExec, fetch: send, now: () => NOW } };
}

const accepted = {
  status: 201,
  body: {
    node: 'fra-1',
    region: 'fra',
    lineage: 1,
    endpoint: '192.0.2.1:51820',
    broker: { url: 'mqtt://100.64.0.1:1883' },
    config: CONFIG,
  },
};

describe('enrolling', () => {
  test('shows public keys and a proof, keeps the private ones for itself', async () => {
    const { requests, enrollment, ports } = await controller(() => accepted);
    const node = await enroll(ports, enrollment);
    expect(node).toMatchObject({ node: 'fra-1', publicKey: requests[0]?.publicKey });
    const key = (await importJWK(requests[0]?.identity ?? {}, 'EdDSA')) as CryptoKey;
    await verifyNodeToken(requests[0]?.proof ?? '', key, {
      node: ENROLLING,
      audience: 'katafract-enroll',
      now: NOW,
    });
    const secrets = [
      readFileSync(join(directory, 'wireguard.key'), 'utf8').trim(),
      JSON.parse(readFileSync(join(directory, 'identity.jwk'), 'utf8')).d,
    ];
    for (const secret of secrets) expect(JSON.stringify(requests)).not.toContain(secret);
    for (const name of readdirSync(directory))
      expect(statSync(join(directory, name)).mode & 0o777, name).toBe(0o600);
    expect((await loadIdentity(directory)).node).toEqual(node);
  });

  test('repeats with the same keys after a lost answer', async () => {
    let calls = 0;
    const { requests, enrollment, ports } = await controller(() => (calls++ === 0 ? 'lost' : accepted));
    await expect(enroll(ports, enrollment)).rejects.toMatchObject({ code: 'controller_unreachable' });
    await enroll(ports, enrollment);
    expect(requests[1]?.publicKey).toBe(requests[0]?.publicKey);
    expect(requests[1]?.identity).toEqual(requests[0]?.identity);
  });

  test('believes only the controller that made the token', async () => {
    const { enrollment, ports } = await controller(() => accepted);
    const token = JoinToken.parse(`kfj1_${'s'.repeat(43)}_${'p'.repeat(43)}`);
    await expect(enroll(ports, { ...enrollment, token })).rejects.toMatchObject({
      code: 'controller_not_pinned',
    });
    await expect(loadIdentity(directory)).rejects.toMatchObject({ code: 'not_enrolled' });
  });

  test("passes the controller's refusal on", async () => {
    const body = { type: 'x', title: 'no', status: 401, code: 'join_token_invalid', detail: 'used up' };
    const { enrollment, ports } = await controller(() => ({ status: 401, body }));
    await expect(enroll(ports, enrollment)).rejects.toMatchObject({
      code: 'enroll_refused',
      detail: { code: 'join_token_invalid' },
      message: expect.stringContaining('used up'),
    });
  });

  test.each([
    ['http://controller.example', 'controller_insecure'],
    ['http://203.0.113.9:8080', 'controller_insecure'],
    ['ftp://127.0.0.1', 'controller_insecure'],
  ])('sends no token to %s', async (url, code) => {
    const { requests, enrollment, ports } = await controller(() => accepted);
    await expect(enroll(ports, { ...enrollment, controller: new URL(url) })).rejects.toMatchObject({ code });
    expect(requests).toEqual([]);
  });

  test.each(['http://100.64.0.1:8080', 'http://127.0.0.1', 'http://[fd7a::1]:8080', 'http://10.1.2.3'])(
    'takes %s, which the internet does not see',
    async (url) => {
      const { enrollment, ports } = await controller(() => accepted);
      await enroll(ports, { ...enrollment, controller: new URL(url) });
    },
  );
});
