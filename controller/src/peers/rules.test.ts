import type { Tier } from '@katafract/shared/sigil';
import type { NodeId, PeerId, PublicKey, RegionId } from '@katafract/shared/units';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type BatchFacts, decideBatch, type ProvisionWish, planMove } from './rules.ts';

const NOW = 1000;
const wish = (key: string, change: Partial<ProvisionWish> = {}): ProvisionWish => ({
  subscriptionId: 'one',
  sigilId: 'sigil',
  tier: 'plus',
  publicKey: key as PublicKey,
  region: 'fra' as RegionId,
  ...change,
});
const facts = (change: Partial<BatchFacts> = {}, peerCount = 0, tier: Tier = 'plus'): BatchFacts => ({
  subscriptions: new Map([['one', { tier, expiresAt: NOW + 1, revoked: false, peerCount }]]),
  revokedSigils: new Set(),
  keysInUse: new Set(),
  seen: new Map(),
  ...change,
});
const codes = (wishes: ProvisionWish[], known: BatchFacts, now = NOW) =>
  decideBatch(wishes, known, now).map((one) => (one.do === 'refuse' ? one.error.code : one.do));

describe('deciding a batch', () => {
  it('grants up to the limit of the tier, counting those granted before', () => {
    expect(
      codes(
        ['a', 'b', 'c'].map((key) => wish(key)),
        facts({}, 3),
      ),
    ).toEqual(['create', 'create', 'device_limit']);
  });

  it('goes by the tier the subscription has now, not by what the token said', () => {
    expect(codes([wish('a', { tier: 'pro' })], facts({}, 1, 'free'))).toEqual(['device_limit']);
  });

  it('refuses who has been revoked or has expired', () => {
    expect(codes([wish('a')], facts({ revokedSigils: new Set(['sigil']) }))).toEqual(['sigil_revoked']);
    expect(codes([wish('a', { subscriptionId: 'two' })], facts())).toEqual(['sigil_revoked']);
    expect(codes([wish('a')], facts(), NOW + 1)).toEqual(['sigil_expired']);
  });

  it('refuses a key that is in use, in the database or earlier in the batch', () => {
    const known = facts({ keysInUse: new Set(['a' as PublicKey]) });
    expect(codes([wish('a'), wish('b'), wish('b')], known)).toEqual([
      'public_key_in_use',
      'create',
      'public_key_in_use',
    ]);
  });

  it('knows a repeated request by its key, and a key that is used for something else', () => {
    const keyed = (key: string, requestHash: string) => wish(key, { idempotency: { key: 'k', requestHash } });
    const seen = new Map([['one k', { requestHash: 'h', resourceId: 'peer' as PeerId }]]);
    expect(decideBatch([keyed('a', 'h')], facts({ seen }), NOW)).toEqual([{ do: 'replay', peer: 'peer' }]);
    expect(codes([keyed('a', 'other')], facts({ seen }))).toEqual(['idempotency_key_reused']);
    expect(decideBatch([keyed('a', 'h'), keyed('a', 'h')], facts(), NOW)[1]).toEqual({
      do: 'same_as',
      index: 0,
    });
    expect(codes([keyed('a', 'h'), keyed('b', 'x')], facts())).toEqual(['create', 'idempotency_key_reused']);
  });

  it('never exceeds the limit, whatever comes together', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(20), { maxLength: 40 }), fc.integer({ min: 0, max: 6 }), (keys, used) => {
        const outcome = codes(
          keys.map((key) => wish(String(key))),
          facts({}, used),
        );
        const created = outcome.filter((code) => code === 'create').length;
        expect(created).toBeLessThanOrEqual(Math.max(0, 5 - used));
        expect(created).toBe(Math.min(new Set(keys).size, Math.max(0, 5 - used)));
      }),
    );
  });
});

describe('moving', () => {
  it('adds before it leaves, and keeps what both have', () => {
    const ids = (text: string) => text.split('') as NodeId[];
    expect(planMove(ids('ab'), ids('bc'))).toEqual({
      add: [{ node: 'c', rank: 1 }],
      keep: [{ node: 'b', rank: 0 }],
      leave: ['a'],
    });
  });
});
