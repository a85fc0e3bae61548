/** The contract still understands everything that was ever said. */
import { importJWK } from 'jose';
import { describe, expect, it } from 'vitest';
import desired from '../fixtures/1/desired.json' with { type: 'json' };
import edge from '../fixtures/1/edge.json' with { type: 'json' };
import enrollment from '../fixtures/1/enroll.json' with { type: 'json' };
import nodeToken from '../fixtures/1/node-token.json' with { type: 'json' };
import sigil from '../fixtures/1/sigil.json' with { type: 'json' };
import upkeep from '../fixtures/1/upkeep.json' with { type: 'json' };
import uplink from '../fixtures/1/uplink.json' with { type: 'json' };
import { verifyDesired } from './desired.ts';
import { ENROLLING, EnrollRequest, EnrollResponse, splitJoinToken } from './enroll.ts';
import { verifyNodeToken } from './node-token.ts';
import { verifySigil } from './sigil.ts';
import { NodeId } from './units.ts';
import { Applied, Heartbeat, Hello, Presence } from './uplink.ts';

const publicKey = async (jwk: object) => {
  const key = await importJWK(jwk, 'EdDSA');
  if (key instanceof Uint8Array) throw new Error('not a public key');
  return key;
};
const node = NodeId.parse(desired.node);
const signed = [...desired.snapshot, ...desired.delta, ...desired.empty];
const reasonOf = (work: Promise<unknown>) =>
  work.then(
    () => null,
    (error: { detail?: { reason?: string } }) => error.detail?.reason,
  );

describe('protocol 1', () => {
  it('opens every signed message', async () => {
    const key = await publicKey(desired.stateKey);
    for (const { jws, message } of signed) expect(await verifyDesired(jws, key, node)).toEqual(message);
  });

  it('refuses each for another node, by another key, and with any part of it changed', async () => {
    const key = await publicKey(desired.stateKey);
    const other = await publicKey(nodeToken.key);
    for (const { jws } of signed) {
      expect(await reasonOf(verifyDesired(jws, key, NodeId.parse('ams-1')))).toBe('node');
      expect(await reasonOf(verifyDesired(jws, other, node))).toBe('signature');
      const [header = '', payload = '', signature = ''] = jws.split('.');
      const turned = (text: string) =>
        text[9] === 'A' ? `${text.slice(0, 9)}B${text.slice(10)}` : `${text.slice(0, 9)}A${text.slice(10)}`;
      for (const forged of [
        `${turned(header)}.${payload}.${signature}`,
        `${header}.${turned(payload)}.${signature}`,
        `${header}.${payload}.${turned(signature)}`,
        `${Buffer.from('{"alg":"none","typ":"kf-desired+jws"}').toString('base64url')}.${payload}.`,
        payload,
        '',
      ]) {
        expect(await reasonOf(verifyDesired(forged, key, node))).toBe('signature');
      }
    }
  });

  it('reads what nodes said', () => {
    expect(Hello.parse(uplink.hello)).toEqual(uplink.hello);
    expect(Applied.parse(uplink.applied)).toEqual(uplink.applied);
    expect(Heartbeat.parse(uplink.heartbeat)).toEqual(uplink.heartbeat);
    expect(Presence.parse(uplink.presence)).toEqual(uplink.presence);
  });

  it('reads what a node is told of its upkeep, and what it says of it', async () => {
    const { stateKey, delta, heartbeat } = upkeep;
    const told = await verifyDesired(delta.jws, await publicKey(stateKey), node);
    expect(told).toEqual(delta.message);
    expect(told.config?.upkeep).toBeDefined();
    expect(Heartbeat.parse(heartbeat)).toEqual(heartbeat);
  });

  it('reads what a node is told of its filter, of SSH and of its tunnel interfaces', async () => {
    const { stateKey, delta } = edge;
    const told = await verifyDesired(delta.jws, await publicKey(stateKey), node);
    expect(told).toEqual(delta.message);
    expect([told.config?.haven, told.config?.sshFromMesh, told.config?.tunnels]).not.toContain(undefined);
  });

  it('accepts a node’s token at its time, and not long after', async () => {
    const { at, token, key } = nodeToken;
    const check = async (now: number) =>
      verifyNodeToken(token, await publicKey(key), { node, audience: 'katafract-broker', now });
    await expect(check(at)).resolves.toHaveProperty('expiresAt');
    await expect(check(at + 3_600_000)).rejects.toMatchObject({ code: 'node_token_invalid', status: 401 });
  });

  it('reads an enrollment and its proof', async () => {
    const request = EnrollRequest.parse(enrollment.request);
    EnrollResponse.parse(enrollment.response);
    expect(splitJoinToken(request.token).pin).toHaveLength(43);
    const expected = { node: ENROLLING, audience: 'katafract-enroll', now: enrollment.at } as const;
    await expect(
      verifyNodeToken(request.proof, await publicKey(request.identity), expected),
    ).resolves.toHaveProperty('expiresAt');
  });

  it('verifies a Sigil with nothing but the JWKS, until it expires', async () => {
    const { token, jwks, issuer, at, claims } = sigil;
    expect(await verifySigil(token, jwks, { issuer, now: at })).toEqual(claims);
    await expect(verifySigil(token, jwks, { issuer, now: claims.exp * 1000 })).rejects.toMatchObject({
      code: 'sigil_expired',
    });
    await expect(verifySigil(token, jwks, { issuer: 'https://other', now: at })).rejects.toMatchObject({
      code: 'sigil_invalid',
    });
    await expect(verifySigil(token, { keys: [] }, { issuer, now: at })).rejects.toMatchObject({
      code: 'sigil_invalid',
    });
  });
});
