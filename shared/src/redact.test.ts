import { generateKeyPairSync } from 'node:crypto';
import { expect, test } from 'vitest';
import { redact, redactText } from './redact.ts';

const KEY = 'hBMfeLqkTcPVvOQWqBQBkkIHiqfo2cKiFzpYFPbkvVU=';

test.each([
  ['a peer at 203.0.113.7:51820 said', 'a peer at [ip]:51820 said'],
  ['10.64.0.1/10 and 2001:db8::7f/64', '[ip]/10 and [ip]/64'],
  ['mqtt://[fd00::1]:1883', 'mqtt://[[ip]]:1883'],
  ['::1 and ::ffff:192.0.2.1', '[ip] and [ip]'],
  ['2001:0db8:0000:0000:0000:0000:0000:0001', '[ip]'],
  [`wg set wg0 peer ${KEY} remove`, 'wg set wg0 peer [key] remove'],
  ['mail jane.doe+vpn@example.org now', 'mail [email] now'],
  ['postgres://user:pass@db.example/x', 'postgres://[redacted]@db.example/x'],
  ['Authorization: Bearer abcdef.ghijkl-123', 'Authorization: Bearer [token]'],
  [`token eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2ln-_`, 'token [jwt]'],
  [`kfj1_${'a'.repeat(43)}_${'b'.repeat(43)}`, '[token]'],
  ['sk_live_51Habcdefgh', '[token]'],
])('%s', (raw, clean) => {
  expect(redactText(raw)).toBe(clean);
});

test('what only looks a little like an address stays', () => {
  for (const text of [
    '2026-11-22T12:34:56.789Z',
    'generation 7 of lineage 1',
    'std::vector',
    'took 12.5 ms',
    'version 1.2.3',
  ]) {
    expect(redactText(text)).toBe(text);
  }
});

test('private keys in PEM go, also in the middle of JSON', () => {
  const { privateKey } = generateKeyPairSync('ed25519');
  const pem = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
  const line = redactText(JSON.stringify({ msg: `key ${pem} read` }));
  expect(line).toBe('{"msg":"key [private key]\\n read"}');
});

test('fields of a secret name go whatever they hold', () => {
  const logged = redact({
    user: 'n1',
    password: 'x',
    nested: [{ privateKey: 'y', endpoint: 'vpn.example:1' }],
    token: null,
  });
  expect(logged).toEqual({
    user: 'n1',
    password: '[redacted]',
    nested: [{ privateKey: '[redacted]', endpoint: '[redacted]' }],
    token: null,
  });
});

test('errors keep their code and lose what their message gave away', () => {
  const error = Object.assign(new Error('no route to 192.0.2.9', { cause: new Error(`peer ${KEY}`) }), {
    code: 'E1',
  });
  const logged = redact({ err: error }) as { err: Record<string, unknown> };
  expect(logged.err).toMatchObject({
    code: 'E1',
    message: 'no route to [ip]',
    cause: { message: 'peer [key]' },
  });
  expect(JSON.stringify(logged)).not.toContain('192.0.2');
});

test('a value that refers to itself ends', () => {
  const loop: Record<string, unknown> = { a: 1 };
  loop.self = loop;
  expect(JSON.stringify(redact(loop))).toContain('[redacted]');
});
