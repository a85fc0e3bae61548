/** The state machine of an entitlement, and what readings under a fence make of messages in any order. */
import { claimHash, claimUuid, makeClaimSecret } from '@katafract/shared/claim';
import { Tier } from '@katafract/shared/sigil';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  apply,
  claimKey,
  type Entitlement,
  isLive,
  retryDelay,
  standingOfSubscription,
  voucherExpiry,
} from './rules.ts';
import type { StoreView } from './stores/port.ts';

const NOW = 1_800_000_000_000;
const DAY = 86_400_000;
const CLAIM = 'a'.repeat(64);

const standing = fc.constantFrom('active', 'grace', 'hold', 'expired', 'revoked', 'pending' as const);
const view: fc.Arbitrary<StoreView> = fc.record({
  store: fc.constant('stripe' as const),
  reference: fc.constant('sub_1'),
  claim: fc.constant(CLAIM),
  tier: fc.option(fc.constantFrom(...Tier.options)),
  standing,
  renews: fc.boolean(),
  expiresAt: fc.integer({ min: NOW - DAY, max: NOW + DAY }),
  acknowledge: fc.boolean(),
});
const entitlement: fc.Arbitrary<Entitlement> = view.map(
  (one) => apply(null, one)?.next ?? expect.unreachable(),
);

/**
 * Messages of one subscription that went through `history`, in any order and any number, and readers of which some are
 * slow: each reads what the store is at that time, and writes it down later, if its fence still holds.
 */
const happenings = fc.array(fc.constantFrom('change', 'message', 'take', 'read', 'write', 'steal' as const), {
  maxLength: 60,
});

const first = fc.constantFrom('write' as const, 'steal' as const);

interface World {
  at: number;
  wanted: number;
  reader: { fence: number; wanted: number; view: StoreView | null | undefined } | null;
  late: NonNullable<World['reader']>[];
  fence: number;
  state: Entitlement | null;
}

/** What inbox.ts does in SQL. @param steal a lease that ran out */
function take(world: World, steal: boolean): void {
  if (world.wanted === 0 || (world.reader && !steal)) return;
  if (world.reader) world.late.push(world.reader);
  world.fence += 1;
  world.reader = { fence: world.fence, wanted: world.wanted, view: undefined };
}

function write(world: World, reader: NonNullable<World['reader']>): void {
  if (reader.view === undefined || reader.fence !== world.fence) return;
  world.state = apply(world.state, reader.view)?.next ?? world.state;
  if (world.wanted === reader.wanted) world.wanted = 0;
  world.reader = null;
}

/** @param first of what happens to a reading that is under way when all is said: it ends, or loses its lease */
function run(history: readonly StoreView[], steps: readonly string[], first: 'write' | 'steal'): World {
  const world: World = { at: -1, wanted: 0, reader: null, late: [], fence: 0, state: null };
  const now = () => history[world.at] ?? null;
  const step = (what: string) => {
    if (what === 'change') world.at = Math.min(world.at + 1, history.length - 1);
    else if (what === 'message') world.wanted += 1;
    else if (what === 'take' || what === 'steal') take(world, what === 'steal');
    else if (what === 'read') {
      for (const reader of [...world.late, ...(world.reader ? [world.reader] : [])]) reader.view ??= now();
    } else {
      // the late ones last, which is what a fence is for
      if (world.reader) write(world, world.reader);
      for (const reader of world.late.splice(0)) write(world, reader);
    }
  };
  for (const what of steps) step(what);
  // what has not happened by now does: the last change, its message, and whoever reads for it
  world.at = history.length - 1;
  step('message');
  for (let round = 0; round < 3; round++) for (const what of [first, 'take', 'read', 'write']) step(what);
  return world;
}

describe('messages of one subscription', () => {
  it('end in the state of the true order, in whatever order and however often they come', () => {
    fc.assert(
      fc.property(
        fc.array(view, { minLength: 1, maxLength: 6 }),
        happenings,
        first,
        (history, steps, how) => {
          const inOrder = history.reduce<Entitlement | null>(
            (state, one) => apply(state, one)?.next ?? null,
            null,
          );
          const world = run(history, steps, how);
          expect(world.state).toEqual(inOrder);
          expect(world.wanted).toBe(0);
        },
      ),
      { numRuns: 2000 },
    );
  });

  it('change nothing when the store says what is known', () => {
    fc.assert(
      fc.property(view, (one) => {
        const first = apply(null, one);
        expect(first?.changed).toBe(true);
        expect(apply(first?.next ?? null, one)).toEqual({ next: first?.next, changed: false });
      }),
    );
  });
});

describe('a claim', () => {
  it('is compared by the UUID of its hash, as which Apple has it', async () => {
    const hash = await claimHash(makeClaimSecret());
    expect(claimKey(hash)).toBe(claimUuid(hash));
    expect(claimKey(claimUuid(hash).toUpperCase())).toBe(claimUuid(hash));
    for (const foreign of ['', 'jane@example.org', hash.slice(1), `${claimUuid(hash)} `])
      expect(claimKey(foreign)).toBeNull();
    expect(claimKey(null)).toBeNull();
  });

  it('stays with whom it was first seen for', () => {
    fc.assert(
      fc.property(view, fc.array(view), (first, later) => {
        const other = 'b'.repeat(64);
        let state = apply(null, first)?.next ?? null;
        for (const one of later) state = apply(state, { ...one, claim: other })?.next ?? null;
        expect(state?.claim).toBe(claimKey(CLAIM));
        expect(state?.contested).toBe(later.length > 0);
        expect(apply(state, first)?.next.contested).toBe(false);
      }),
    );
  });

  it('may become known later', () => {
    const one = { store: 'apple', reference: '1', tier: 'plus', standing: 'active' } as const;
    const rest = { renews: true, expiresAt: NOW + DAY, acknowledge: false };
    const unclaimed = apply(null, { ...one, ...rest, claim: null })?.next ?? null;
    expect(unclaimed?.claim).toBeNull();
    expect(apply(unclaimed, { ...one, ...rest, claim: CLAIM })?.next).toMatchObject({
      claim: claimKey(CLAIM),
      contested: false,
    });
  });
});

describe('a store that knows nothing of a purchase', () => {
  it('takes nothing away, and brings nothing', () => {
    expect(apply(null, null)).toBeNull();
    fc.assert(
      fc.property(entitlement, (one) => {
        expect(apply(one, null)?.next).toEqual({ ...one, renews: false });
      }),
    );
  });
});

describe('a subscription', () => {
  it('is worth the best of what is live, until the last of it ends', () => {
    fc.assert(
      fc.property(fc.array(entitlement, { maxLength: 5 }), (all) => {
        const live = all.filter((one) => isLive(one, NOW));
        const result = standingOfSubscription(all, NOW);
        expect(result.over).toBe(live.length === 0);
        if (result.over) return;
        expect(result.expiresAt).toBe(Math.max(...live.map(({ expiresAt }) => expiresAt)));
        expect(result.expiresAt).toBeGreaterThan(NOW);
        const rank = (tier: Tier | null) => Tier.options.indexOf(tier ?? 'free');
        expect(rank(result.tier)).toBe(Math.max(...live.map(({ tier }) => rank(tier))));
      }),
    );
  });

  it('does not depend on the order of its entitlements', () => {
    fc.assert(
      fc.property(fc.array(entitlement, { maxLength: 5 }), (all) => {
        expect(standingOfSubscription([...all].reverse(), NOW)).toEqual(standingOfSubscription(all, NOW));
      }),
    );
  });

  it('ends at once by the word of its store, and by the clock with a time to be late in', () => {
    const base = { claim: null, tier: 'plus', renews: true, contested: false } as const;
    const over = (...all: Pick<Entitlement, 'standing' | 'expiresAt'>[]) =>
      standingOfSubscription(
        all.map((one) => ({ ...base, ...one })),
        NOW,
      );
    for (const word of ['hold', 'expired', 'revoked', 'pending'] as const)
      expect(over({ standing: word, expiresAt: NOW + DAY })).toEqual({ over: true, since: null });
    expect(over({ standing: 'active', expiresAt: NOW })).toEqual({ over: true, since: NOW });
    expect(over({ standing: 'grace', expiresAt: NOW - 5 }, { standing: 'revoked', expiresAt: NOW })).toEqual({
      over: true,
      since: NOW - 5,
    });
    expect(over()).toEqual({ over: true, since: null });
  });
});

it('codes of one tier follow one another, and run beside whatever else there is', () => {
  const voucher = { claim: null, tier: 'plus', standing: 'active', renews: false, contested: false } as const;
  const first = { ...voucher, source: 'voucher', expiresAt: NOW + 10 * DAY } as const;
  const paid = { ...voucher, source: 'stripe', expiresAt: NOW + 300 * DAY } as const;
  const ended = { ...voucher, source: 'voucher', expiresAt: NOW - DAY } as const;
  expect(voucherExpiry([paid, ended], { tier: 'plus', days: 30 }, NOW)).toBe(NOW + 30 * DAY);
  expect(voucherExpiry([first, paid], { tier: 'plus', days: 30 }, NOW)).toBe(NOW + 40 * DAY);
  expect(voucherExpiry([first, paid], { tier: 'pro', days: 30 }, NOW)).toBe(NOW + 30 * DAY);
});

it('waits longer after each failure, spread, and never more than five minutes', () => {
  expect([1, 2, 3].map((attempt) => retryDelay(attempt, 1))).toEqual([1000, 2000, 4000]);
  expect(retryDelay(1, 0)).toBe(500);
  expect(retryDelay(1000, 1)).toBe(300_000);
});
