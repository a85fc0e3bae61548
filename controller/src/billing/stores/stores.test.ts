/**
 * What all three adapters promise, each against its stand-in: every row of the billing table, forgeries, payer
 * fields, outages, paging. What only one store has is in its own file.
 */
import { ClaimHash, claimHash, claimUuid, makeClaimSecret } from '@katafract/shared/claim';
import { systemClock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { appleStandIn } from '../../../../test/stores/apple.ts';
import { googleStandIn } from '../../../../test/stores/google.ts';
import type { Action, StandIn, Webhook } from '../../../../test/stores/stand-in.ts';
import { stripeStandIn } from '../../../../test/stores/stripe.ts';
import type { StoreDeps } from './call.ts';
import type { Signal, Standing, StorePort } from './port.ts';

const STAND_INS = { stripe: stripeStandIn, apple: appleStandIn, google: googleStandIn } as const;
const PAYER = {
  name: 'Canary Lovelace',
  email: 'canary@payer.example',
  cardLast4: '4929',
  deviceId: 'canary-device-0001',
};
const QUICK: StoreDeps['call'] = {
  tries: 2,
  backoffMs: 1,
  timeoutMs: 60_000,
  circuit: { threshold: 1000, openMs: 1, maxOpenMs: 1 },
};

const verify = (store: StorePort, { body, headers }: Webhook) =>
  store.verify({ body, headers: new Headers(headers) });
const none = async function* (): AsyncGenerator<string> {
  yield* [];
};
async function all(references: AsyncIterable<string>): Promise<string[]> {
  const found: string[] = [];
  for await (const reference of references) found.push(reference);
  return found;
}
async function refused(promise: Promise<unknown>): Promise<KatafractError> {
  const error = await promise.then(
    (value) => new Error(`accepted: ${JSON.stringify(value)}`),
    (reason: unknown) => reason,
  );
  if (!(error instanceof KatafractError)) throw error;
  return error;
}
/** Whole numbers below a limit, the same ones every time (Park and Miller). */
function sequence(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 48_271) % 2_147_483_647;
    return state % below;
  };
}
/** What a message says, also where it is wrapped in base64. */
function planted({ body }: Webhook): string {
  const text = new TextDecoder().decode(body);
  const wrapped = text.match(/[\w+/-]{40,}/g) ?? [];
  return [text, ...wrapped.map((part) => Buffer.from(part, 'base64').toString('utf8'))].join();
}
/** An error with all that a log would show of it. */
const shown = (error: KatafractError) =>
  JSON.stringify([error.message, error.detail, error.stack, error.cause]);

/** The rows of the billing table (FACTS), as steps from a fresh purchase; what each step must be read as. */
type Row = [what: string, steps: Action[], standings: Standing[], renews: boolean];
const ROWS: Record<keyof typeof STAND_INS, Row[]> = {
  stripe: [
    ['bought', [], [], true],
    ['renewed', ['renew'], ['active'], true],
    ['will not renew', ['cancel'], ['active'], false],
    ['will renew again', ['cancel', 'resume'], ['active', 'active'], true],
    ['past due', ['failPayment'], ['grace'], true],
    ['past due, paid', ['failPayment', 'recover'], ['grace', 'active'], true],
    ['unpaid', ['failPayment', 'hold'], ['grace', 'hold'], false],
    ['unpaid, paid', ['failPayment', 'hold', 'recover'], ['grace', 'hold', 'active'], true],
    ['paused', ['pause'], ['hold'], false],
    ['paused, resumed', ['pause', 'recover'], ['hold', 'active'], true],
    ['deleted', ['expire'], ['expired'], false],
    ['refunded', ['refund'], ['revoked'], false],
    ['the refund failed', ['refund', 'reverseRefund'], ['revoked', 'active'], true],
    ['disputed', ['dispute'], ['revoked'], false],
    ['dispute won', ['dispute', 'winDispute'], ['revoked', 'active'], true],
    ['dispute lost', ['dispute', 'loseDispute'], ['revoked', 'revoked'], false],
    [
      'last period refunded, this one paid',
      ['renew', 'refund', 'reverseRefund', 'renew'],
      ['active', 'revoked', 'active', 'active'],
      true,
    ],
  ],
  apple: [
    ['subscribed', [], [], true],
    ['renewed', ['renew'], ['active'], true],
    ['will not renew', ['cancel'], ['active'], false],
    ['will renew again', ['cancel', 'resume'], ['active', 'active'], true],
    ['grace period', ['failPayment'], ['grace'], true],
    ['billing recovery', ['failPayment', 'recover'], ['grace', 'active'], true],
    ['grace period over', ['failPayment', 'hold'], ['grace', 'hold'], false],
    ['billing retry, recovered', ['failPayment', 'hold', 'recover'], ['grace', 'hold', 'active'], true],
    ['expired', ['expire'], ['expired'], false],
    ['refunded', ['refund'], ['revoked'], false],
    ['refund reversed', ['refund', 'reverseRefund'], ['revoked', 'active'], true],
    ['revoked', ['revoke'], ['revoked'], false],
  ],
  google: [
    ['bought', [], [], true],
    ['renewed', ['renew'], ['active'], true],
    ['canceled', ['cancel'], ['active'], false],
    ['restarted', ['cancel', 'resume'], ['active', 'active'], true],
    ['grace period', ['failPayment'], ['grace'], true],
    ['recovered', ['failPayment', 'recover'], ['grace', 'active'], true],
    ['on hold', ['failPayment', 'hold'], ['grace', 'hold'], false],
    ['on hold, recovered', ['failPayment', 'hold', 'recover'], ['grace', 'hold', 'active'], true],
    ['paused', ['pause'], ['hold'], false],
    ['expired', ['expire'], ['expired'], false],
    ['revoked', ['revoke'], ['revoked'], false],
    ['voided while active', ['refund'], ['revoked'], false],
    ['voided, then renewed', ['refund', 'renew'], ['revoked', 'active'], true],
  ],
};

describe.each(['stripe', 'apple', 'google'] as const)('%s', (name) => {
  let standIn: StandIn;
  let store: StorePort;
  let claim: string;
  beforeAll(async () => {
    standIn = await STAND_INS[name]();
    store = standIn.store({ clock: systemClock, call: QUICK });
    claim = await claimHash(makeClaimSecret());
  });
  afterAll(() => standIn.close());
  beforeEach(() => {
    standIn.requests.length = 0;
    Object.assign(standIn.faults, { outage: false, cut: false, rateLimited: 0, failing: 0, pageSize: 100 });
  });

  it('reads every row of the billing table through a message that verifies', async () => {
    const claimed = name === 'apple' ? claimUuid(ClaimHash.parse(claim)) : claim;
    for (const [what, actions, standings, renews] of ROWS[name]) {
      const purchase = await standIn.create({ claim, tier: 'plus', payer: PAYER });
      const { reference } = purchase;
      for (const [index, action] of [null, ...actions].entries()) {
        const step = action === null ? purchase : await standIn.act(reference, action);
        for (const webhook of step.webhooks) {
          const signal = await verify(store, webhook);
          expect(signal).toMatchObject({ store: name, eventId: webhook.eventId, reference });
          expect(signal.type).not.toBe('unknown');
        }
        const view = await store.read(reference);
        const standing = action === null ? 'active' : standings[index - 1];
        expect(view, what).toMatchObject({ store: name, reference, claim: claimed, tier: 'plus', standing });
        // the stand-in's own idea of it is what property tests go by
        expect(view, what).toMatchObject(step.expected);
      }
      expect((await store.read(reference))?.renews, what).toBe(renews);
    }
  });

  it('agrees with the store at every step of any life', async () => {
    const random = sequence(20_261_122);
    for (let life = 0; life < 25; life++) {
      const path: string[] = [];
      const { reference } = await standIn.create({
        claim,
        tier: 'pro',
        payer: PAYER,
        pending: random(3) === 0,
      });
      for (let step = 0; step < 8; step++) {
        const possible = standIn.actions(reference);
        const action = possible[random(possible.length)];
        if (action === undefined) break;
        path.push(action);
        const { expected } = await standIn.act(reference, action);
        expect(await store.read(reference), path.join(', ')).toMatchObject(expected);
      }
    }
  });

  it('says when what was paid for ends, and when a grace does', async () => {
    const { reference } = await standIn.create({ claim, tier: 'pro', payer: PAYER });
    const bought = await store.read(reference);
    expect(bought?.tier).toBe('pro');
    expect(bought?.expiresAt).toBeGreaterThan(Date.now() + 29 * 86_400_000);
    await standIn.act(reference, 'renew');
    const renewed = await store.read(reference);
    expect(renewed?.expiresAt).toBe((bought?.expiresAt ?? 0) + 30 * 86_400_000);
    await standIn.act(reference, 'failPayment');
    const grace = await store.read(reference);
    expect(grace?.expiresAt).toBeGreaterThan(Date.now());
  });

  it('accepts not one forgery', async () => {
    const { reference, webhooks } = await standIn.create({ claim, tier: 'plus', payer: PAYER });
    const forgeries = Object.entries(await standIn.forgeries(reference));
    expect(forgeries.length).toBeGreaterThanOrEqual(9);
    for (const [what, webhook] of forgeries) {
      const error = await refused(verify(store, webhook));
      expect([error.code, error.status], what).toEqual(['webhook_invalid', 401]);
      expect(shown(error), what).not.toMatch(/canary/i);
    }
    for (const webhook of webhooks) expect((await verify(store, webhook)).reference).toBe(reference);
  });

  it('lets what is genuine but unknown change nothing', async () => {
    await standIn.create({ claim, tier: 'plus', payer: PAYER });
    const unknown = await standIn.unknown();
    const expected: Signal = { store: name, eventId: unknown.eventId, type: 'unknown', reference: null };
    expect(await verify(store, unknown)).toEqual(expected);
  });

  it('knows nothing of references that are none, whatever they look like', async () => {
    await standIn.create({ claim, tier: 'plus', payer: PAYER });
    for (const reference of [
      'sub_nothing',
      '200000',
      'aaaaaaaaaaaa',
      '../../etc/passwd',
      '',
      'sub_1/../x?y#z',
    ]) {
      expect(await store.read(reference), reference).toBeNull();
    }
  });

  it('keeps payer fields to itself: in signals, in views, in errors', async () => {
    const { reference, webhooks } = await standIn.create({ claim, tier: 'plus', payer: PAYER });
    const seen: unknown[] = [];
    const refund = await standIn.act(reference, 'refund');
    expect(webhooks.map(planted).join()).toMatch(/canary/i);
    for (const webhook of [...webhooks, ...refund.webhooks]) seen.push(await verify(store, webhook));
    seen.push(await store.read(reference), await all(store.changedSince(Date.now() - 60_000, none)));
    standIn.faults.outage = true;
    seen.push(shown(await refused(store.read(reference))));
    // four digits turn up in any number or identifier; alone they are a card's
    expect(JSON.stringify(seen)).not.toMatch(/canary|(?<![\w.:-])4929(?![\w.:-])/i);
  });

  it('is out of reach with a code when the store is, and back when the store is', async () => {
    const { reference } = await standIn.create({ claim, tier: 'plus', payer: PAYER });
    for (const fault of ['outage', 'cut'] as const) {
      standIn.faults[fault] = true;
      const error = await refused(store.read(reference));
      expect(error).toMatchObject({ code: 'store_unavailable', status: 503 });
      await expect(all(store.changedSince(Date.now() - 60_000, none))).rejects.toMatchObject({
        code: 'store_unavailable',
      });
      standIn.faults[fault] = false;
    }
    expect(await store.read(reference)).toMatchObject({ standing: 'active' });
  });

  it('gets through a rate limit and a fault in between', async () => {
    const { reference } = await standIn.create({ claim, tier: 'plus', payer: PAYER });
    standIn.faults.rateLimited = 1;
    standIn.faults.retryAfter = 0;
    expect(await store.read(reference)).not.toBeNull();
    standIn.faults.failing = 1;
    expect(await store.read(reference)).not.toBeNull();
    expect(standIn.requests.filter(({ status }) => status === 429 || status === 500)).toHaveLength(2);
  });

  it('finds over many pages what changed and was never told', async () => {
    standIn.faults.pageSize = 3;
    const references: string[] = [];
    for (let bought = 0; bought < 8; bought++) {
      const { reference } = await standIn.create({ claim, tier: 'plus', payer: PAYER });
      await standIn.act(reference, 'refund');
      references.push(reference);
    }
    const found = await all(store.changedSince(Date.now() - 60_000, none));
    expect(found).toEqual(expect.arrayContaining(references));
    expect(new Set(found).size).toBe(found.length);
    const later = await all(store.changedSince(Date.now() + 60_000, none));
    expect(later).toEqual([]);
  });

  it('falls back on what is known here where the store keeps no record so far back', async () => {
    const known = async function* () {
      yield 'known_reference';
    };
    expect(await all(store.changedSince(Date.now() - 200 * 86_400_000, known))).toContain('known_reference');
  });
});
