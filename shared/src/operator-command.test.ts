/** What an operator says is taken only as it was signed: by whom, for which fleet and node, and at its time. */
import { CompactSign, type CryptoKey, generateKeyPair, importJWK } from 'jose';
import { beforeAll, describe, expect, it } from 'vitest';
import fixture from '../fixtures/1/operator-command.json' with { type: 'json' };
import { mintNodeToken, verifyNodeToken } from './node-token.ts';
import {
  COMMAND_LEEWAY_MS,
  COMMAND_LIFE_MS,
  commandKey,
  mintOperatorToken,
  OperatorCommand,
  OperatorName,
  operatorUsername,
  signCommand,
  verifyCommand,
  verifyOperatorToken,
} from './operator-command.ts';
import { NodeId } from './units.ts';

const node = NodeId.parse('fra-1');
const audience = 'https://artemis.example';
const now = Date.UTC(2026, 0, 1);
const thumbprint = 'A'.repeat(43);
const valid: OperatorCommand = {
  v: 1,
  id: '0198f000-0000-7000-8000-000000000001',
  at: now,
  expiresAt: now + COMMAND_LIFE_MS,
  audience,
  node,
  command: 'drain',
  deadline: now + 3_600_000,
};
let key: { privateKey: CryptoKey; publicKey: CryptoKey };
let other: { privateKey: CryptoKey; publicKey: CryptoKey };

beforeAll(async () => {
  key = await generateKeyPair('EdDSA', { crv: 'Ed25519' });
  other = await generateKeyPair('EdDSA', { crv: 'Ed25519' });
});

const open = (jws: string, at: Partial<{ node: NodeId; audience: string; now: number }> = {}) =>
  verifyCommand(jws, key.publicKey, { node, audience, now, ...at });
const reason = (work: Promise<unknown>) =>
  work.then(
    () => 'taken',
    (error: { detail?: { reason?: string } }) => error.detail?.reason,
  );
const signAs = (payload: unknown, header: object = {}) =>
  new CompactSign(new TextEncoder().encode(typeof payload === 'string' ? payload : JSON.stringify(payload)))
    .setProtectedHeader({ alg: 'EdDSA', typ: 'kf-command+jws', kid: thumbprint, ...header })
    .sign(key.privateKey);

describe('a command', () => {
  it('is read as it was signed, and names its key', async () => {
    const jws = await signCommand(valid, key.privateKey, thumbprint);
    expect(commandKey(jws)).toBe(thumbprint);
    expect(await open(jws)).toEqual(valid);
  });

  it('is good for its node, its fleet and its time alone', async () => {
    const jws = await signCommand(valid, key.privateKey, thumbprint);
    expect(await reason(open(jws, { node: NodeId.parse('ams-1') }))).toBe('node');
    expect(await reason(open(jws, { audience: 'https://other.example' }))).toBe('audience');
    expect(await reason(open(jws, { now: now - COMMAND_LEEWAY_MS }))).toBe('taken');
    expect(await reason(open(jws, { now: now - COMMAND_LEEWAY_MS - 1 }))).toBe('early');
    expect(await reason(open(jws, { now: valid.expiresAt - 1 }))).toBe('taken');
    expect(await reason(open(jws, { now: valid.expiresAt }))).toBe('expired');
  });

  it('is refused by another key, of another type, and with any part of it changed', async () => {
    const jws = await signCommand(valid, key.privateKey, thumbprint);
    expect(await reason(open(await signCommand(valid, other.privateKey, thumbprint)))).toBe('signature');
    for (const typ of ['kf-desired+jws', 'JWT', undefined]) {
      expect(await reason(open(await signAs(valid, { typ })))).toBe('signature');
    }
    const [header = '', payload = '', signature = ''] = jws.split('.');
    const turned = (text: string) => `${text.slice(0, 9)}${text[9] === 'A' ? 'B' : 'A'}${text.slice(10)}`;
    const none = Buffer.from('{"alg":"none","typ":"kf-command+jws"}').toString('base64url');
    for (const forged of [
      `${turned(header)}.${payload}.${signature}`,
      `${header}.${turned(payload)}.${signature}`,
      `${header}.${payload}.${turned(signature)}`,
      `${none}.${payload}.`,
      payload,
      '',
    ]) {
      expect(await reason(open(forged)), forged).toBe('signature');
    }
  });

  it('names a key by a thumbprint, of the one algorithm and type', async () => {
    for (const header of [{ kid: undefined }, { kid: "' or 1=1" }, { kid: ['x'] }, { typ: 'JWT' }]) {
      const jws = await signAs(valid, header);
      expect(() => commandKey(jws)).toThrow(expect.objectContaining({ code: 'command_refused' }));
    }
  });

  it.each([
    ['another version', { v: 2 }, 'version'],
    ['a life too long', { expiresAt: now + COMMAND_LIFE_MS + 1 }, 'schema'],
    ['no life', { expiresAt: now }, 'schema'],
    ['no such command', { command: 'retire' }, 'schema'],
    ['a deadline for a pause', { command: 'pause' }, 'schema'],
    ['a deadline that no database knows', { deadline: Number.MAX_SAFE_INTEGER }, 'schema'],
    ['something unheard of', { onlyIf: 'empty' }, 'schema'],
    ['no id', { id: 'one' }, 'schema'],
    ['a topic for a node', { node: 'fra-1/desired' }, 'schema'],
  ])('is refused with %s', async (_, change, expected) => {
    expect(await reason(open(await signAs({ ...valid, ...change })))).toBe(expected);
  });

  it('is refused where it is no JSON', async () => {
    expect(await reason(open(await signAs('{"v":1')))).toBe('schema');
    expect(await reason(open(await signAs('null')))).toBe('version');
  });

  it('of the fixture is understood as ever', async () => {
    const { jws, jwk, command } = fixture;
    const fixed = await importJWK(jwk, 'EdDSA');
    if (fixed instanceof Uint8Array) throw new Error('not a public key');
    expect(commandKey(jws)).toBe(fixture.thumbprint);
    const expected = { node: NodeId.parse(command.node), audience: command.audience, now: command.at };
    expect(await verifyCommand(jws, fixed, expected)).toEqual(OperatorCommand.parse(command));
  });
});

describe('an operator’s token', () => {
  const name = OperatorName.parse('eve');
  const code = (work: Promise<unknown>) =>
    work.then(
      () => 'taken',
      (error: { code?: string }) => error.code,
    );

  it('opens a connection in its own name, for a while', async () => {
    const token = await mintOperatorToken(key.privateKey, name, now);
    await expect(verifyOperatorToken(token, key.publicKey, { name, now })).resolves.toHaveProperty(
      'expiresAt',
    );
    const another = OperatorName.parse('adam');
    for (const [by, at, of] of [
      [key.publicKey, now + 3_600_000, name],
      [key.publicKey, now, another],
      [other.publicKey, now, name],
    ] as const) {
      expect(await code(verifyOperatorToken(token, by, { name: of, now: at }))).toBe(
        'operator_proof_invalid',
      );
    }
  });

  it('never passes for a node’s, nor the reverse, though key and name were the same', async () => {
    const twin = NodeId.parse('eve');
    const operators = await mintOperatorToken(key.privateKey, name, now);
    for (const audience of ['katafract-broker', 'katafract-enroll', 'katafract-session'] as const) {
      const nodes = await mintNodeToken(key.privateKey, twin, audience, now);
      expect(await code(verifyOperatorToken(nodes, key.publicKey, { name, now }))).toBe(
        'operator_proof_invalid',
      );
      expect(await code(verifyNodeToken(operators, key.publicKey, { node: twin, audience, now }))).toBe(
        'node_token_invalid',
      );
    }
    expect(NodeId.safeParse(operatorUsername(name)).success).toBe(false);
  });

  it.each(['bootstrap', 'system', 'Eve', 'e', 'eve:x', '', '-eve'])('is nobody’s of the name %j', (text) => {
    expect(OperatorName.safeParse(text).success).toBe(false);
  });
});
