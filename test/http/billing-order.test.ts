/**
 * Every order of the messages of one subscription, doubled, late, and through either of two controllers at once, ends
 * in the state of the true order: that of a twin that lives the same life and whose messages come one by one. A
 * subscription's life is up to six steps, each of whatever its store knows to happen then.
 *
 * KATAFRACT_ORDER_RUNS asks for more lives than the 12 of an ordinary run, KATAFRACT_ORDER_SEED repeats them.
 */
import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import type { StandIn, Step, Webhook } from '../stores/stand-in.ts';
import { startController, type TestController } from './controller.ts';
import { App, PAYER, post, type Stores, startStores } from './stores.ts';

const RUNS = Number(process.env.KATAFRACT_ORDER_RUNS ?? 12);
const SEED = Number(process.env.KATAFRACT_ORDER_SEED ?? Date.now() % 2 ** 31);

const database = useDatabase();
let stores: Stores;
let one: TestController;
let two: TestController;

beforeAll(async () => {
  stores = await startStores();
  one = await startController(database.url, { env: stores.env });
  two = await startController(database.url, { env: stores.env, beside: one });
});
afterAll(async () => {
  await two.close();
  await one.close();
  await stores.close();
});

/** What happens at each step, by its place among what may happen then; and when each message is told. */
const life = fc.record({
  pending: fc.boolean(),
  /** A slow store is read while it changes. */
  delayMs: fc.constantFrom(0, 20, 60),
  actions: fc.array(fc.nat(), { maxLength: 5 }),
  /** For each message in turn: told at once, or later; and once more. */
  tellings: fc.array(fc.record({ late: fc.boolean(), again: fc.boolean(), other: fc.boolean() }), {
    minLength: 1,
    maxLength: 30,
  }),
  /** In which order those that are late are told. */
  order: fc.array(fc.nat(), { minLength: 30, maxLength: 30 }),
});
type Life = typeof life extends fc.Arbitrary<infer T> ? T : never;

/** Lives a life. @returns what happened, so that it can be lived again */
async function live(
  store: StandIn,
  { pending, actions }: Pick<Life, 'pending'> & { actions: readonly (number | string)[] },
  tell: (step: Step) => Promise<void>,
) {
  const app = await App.make();
  const waits = pending && store.name !== 'apple';
  const first = await store.create({ claim: app.hash, tier: 'plus', payer: PAYER, pending: waits });
  await tell(first);
  const lived: string[] = [];
  for (const wish of actions) {
    const may = store.actions(first.reference);
    const action = typeof wish === 'number' ? may[wish % may.length] : may.find((name) => name === wish);
    if (action === undefined) break;
    lived.push(action);
    await tell(await store.act(first.reference, action));
  }
  return { reference: first.reference, app, lived };
}

async function quiet(): Promise<void> {
  await waitFor('every purchase to be read', async () => {
    const waiting = await one.ctx.db.sql`select 1 from store_reads`;
    return waiting.length === 0;
  });
}

/** What became of it here. */
async function outcome(reference: string) {
  const [row] = await one.ctx.db.sql`
    select e.tier, e.standing, e.renews, e.live, e.contested, e.claim is not null as claimed,
           s.id is not null as opened, s.lapsed_at is not null as lapsed,
           case when s.lapsed_at is null then s.tier end as granted,
           (e.live and s.expires_at = e.expires_at) as "untilItsEnd"
    from entitlements e left join subscriptions s on s.id = e.subscription_id where e.reference = ${reference}`;
  return row;
}

/** Tells messages in an order of the life's own. */
function teller(store: StandIn, { tellings, order }: Life) {
  const late: { webhook: Webhook; at: TestController }[] = [];
  const underWay: Promise<unknown>[] = [];
  let count = 0;
  const say = async (webhook: Webhook, at: TestController) =>
    expect((await post(at, store.name, webhook)).status).toBe(200);
  return {
    async tell({ webhooks }: Step) {
      for (const webhook of webhooks) {
        const telling = tellings[count++ % tellings.length];
        const at = telling?.other ? two : one;
        // not waited for: what the store is when it is read may be older or newer than this message
        if (!telling?.late) underWay.push(say(webhook, at));
        if (telling?.late || telling?.again) late.push({ webhook, at });
      }
    },
    async rest() {
      const shuffled = late.map((one, index) => ({ ...one, rank: order[index % order.length] ?? 0 }));
      shuffled.sort((left, right) => left.rank - right.rank);
      for (const { webhook, at } of shuffled) underWay.push(say(webhook, at));
      await Promise.all(underWay);
    },
  };
}

it.each(['stripe', 'apple', 'google'] as const)(
  'messages of %s in any order end in the state of the true order',
  async (name) => {
    const store = stores[name];
    await fc.assert(
      fc.asyncProperty(life, async (wish) => {
        store.faults.delayMs = wish.delayMs;
        const { tell, rest } = teller(store, wish);
        const { reference, lived } = await live(store, wish, tell);
        await rest();
        await quiet();
        store.faults.delayMs = 0;
        const twin = await live(store, { ...wish, actions: lived }, async ({ webhooks }) => {
          for (const webhook of webhooks) await post(one, name, webhook);
          await quiet();
        });
        const state = await outcome(reference);
        expect(state, lived.join()).toEqual(await outcome(twin.reference));
        // Play says nothing of a purchase before it is paid for
        if (state) expect(state).toMatchObject(store.expected(reference));
        else expect(store.expected(reference).standing).toBe('pending');
        const [messages] = await one.ctx.db.sql`
          select count(*)::int as waiting from store_messages where handled_at is null`;
        expect(messages?.waiting).toBe(0);
      }),
      { numRuns: RUNS, seed: SEED, endOnFailure: true },
    );
  },
);
