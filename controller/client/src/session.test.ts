/** When a Sigil is exchanged, and what a request bears meanwhile. */
import type { IssuedSigil } from '@katafract/shared/api';
import { generateDeviceKey, verifyProof } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { beforeEach, describe, expect, it } from 'vitest';
import { Session } from './session.ts';

const HOUR = 3_600_000;
const publicBase = new URL('https://api.example/edge/');
const deviceKey = await generateDeviceKey();
let now = 1_800_000_000_000;
let exchanges: boolean[];
let answer: () => Promise<IssuedSigil>;
let kept: string[];

const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
/** Read here, and verified elsewhere. */
function sigil(lifeMs: number): string {
  const [iat, exp] = [now / 1000, (now + lifeMs) / 1000];
  const ids = { sub: crypto.randomUUID(), jti: crypto.randomUUID(), iss: 'https://api.example' };
  return `${part({ alg: 'EdDSA' })}.${part({ ...ids, tier: 'plus', iat, exp, cnf: { jkt: deviceKey.jkt } })}.x`;
}
const session = (held: string) =>
  new Session({
    sigil: held,
    deviceKey,
    publicBase,
    clock: { now: () => now, after: () => () => undefined },
    onSigil: (fresh) => void kept.push(fresh),
    exchange: (hasten) => {
      exchanges.push(hasten);
      return answer();
    },
  });
const bears = async (at: Session) => (await at.headers('GET', 'v1/peers', 'sigil')).authorization;
const issued = (token: string): IssuedSigil => ({
  sigil: token,
  subscription: crypto.randomUUID(),
  tier: 'plus',
  expiresAt: new Date(now + HOUR).toISOString(),
  devices: { bound: 1, limit: 5 },
});

beforeEach(() => {
  exchanges = [];
  kept = [];
  answer = async () => issued(sigil(HOUR));
});

describe('a session', () => {
  it('proves each request for the public URL, and for that token', async () => {
    const held = sigil(HOUR);
    const { authorization, dpop = '' } = await session(held).headers('GET', 'v1/peers?limit=5', 'sigil');
    expect(authorization).toBe(`DPoP ${held}`);
    const at = { method: 'GET', url: 'https://api.example/edge/v1/peers', now };
    await expect(verifyProof(dpop, at)).rejects.toMatchObject({ code: 'dpop_invalid' });
    const { dpop: bare = '' } = await session(held).headers('GET', 'v1/peers', 'device');
    await expect(verifyProof(bare, at)).resolves.toMatchObject({ jkt: deviceKey.jkt });
  });

  it('exchanges its Sigil in the last minutes of its life, once for all that wait', async () => {
    const held = sigil(HOUR);
    const one = session(held);
    now += HOUR - 300_001;
    expect(await bears(one)).toBe(`DPoP ${held}`);
    now += 1;
    const [first, ...rest] = await Promise.all([bears(one), bears(one), bears(one)]);
    expect(first).toBe(`DPoP ${kept[0]}`);
    expect(new Set(rest)).toEqual(new Set([first]));
    expect(exchanges).toEqual([true]);
  });

  it('goes on with what it has while the API is away, but not beyond its end', async () => {
    answer = () => Promise.reject(new KatafractError('unreachable', '', { status: 503 }));
    const held = sigil(HOUR);
    const one = session(held);
    now += HOUR - 1000;
    expect(await bears(one)).toBe(`DPoP ${held}`);
    now += 1000;
    await expect(bears(one)).rejects.toMatchObject({ code: 'unreachable' });
    expect(exchanges, 'with patience only once there is no other way').toEqual([true, false]);
  });

  it('does not go on with a Sigil that was revoked', async () => {
    answer = () => Promise.reject(new KatafractError('sigil_revoked', '', { status: 401 }));
    const one = session(sigil(HOUR));
    now += HOUR - 1000;
    await expect(bears(one)).rejects.toMatchObject({ code: 'sigil_revoked' });
  });

  it('sets its clock by the API, after a proof was turned down for its time', async () => {
    const one = session(sigil(HOUR));
    const stale = new KatafractError('dpop_stale', '', { status: 401 });
    expect(await one.recover(stale, 'sigil'), 'without a Date there is nothing to go by').toBe(false);
    one.noteDate(new Date(now - 600_000).toUTCString());
    expect(await one.recover(stale, 'sigil')).toBe(true);
    const { dpop = '' } = await one.headers('POST', 'v1/sigils', 'device');
    const at = { method: 'POST', url: 'https://api.example/edge/v1/sigils' };
    await expect(verifyProof(dpop, { ...at, now: now - 600_000 })).resolves.toBeDefined();
  });
});
