/**
 * The controller as it ships, killed (SIGKILL) at every step of a message: while it is written down, while its purchase
 * is leased, read, written, opened, and acknowledged. A lock that the test takes in the database, or a store that is
 * slow to answer, holds it at the very statement. The store sends again what was not answered; afterwards everything
 * is there, once.
 */
import { connect, type Sql } from '@katafract/controller/platform/db';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import type { Webhook } from '../stores/stand-in.ts';
import { ShippedController } from './shipped.ts';
import { App, PUBLIC_URL, post, type Stores, startStores } from './stores.ts';

const database = useDatabase();
let stores: Stores;
let api: ShippedController;
let sql: Sql;

beforeAll(async () => {
  stores = await startStores();
  sql = connect(database.url, { max: 4, onnotice: () => undefined });
  api = await ShippedController.run(database.url, { ...stores.env, KATAFRACT_PUBLIC_URL: PUBLIC_URL });
});
afterAll(async () => {
  await api.close();
  await sql.end({ timeout: 5 });
  await stores.close();
});

/** Kills the controller when it waits in `statement` for a table that nobody may write to. */
async function killedAt(statement: string, table: string, begin: Begin): Promise<void> {
  await sql.begin(async (tx) => {
    await tx.unsafe(`lock table ${table} in share mode`);
    const answer = begin().catch(() => null);
    await waitFor(`the controller in: ${statement}`, async () => {
      const waiting = await sql`
        select 1 from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query ~* ${statement}`;
      return waiting.length > 0;
    });
    await api.kill();
    await answer;
  });
}

/** Kills the controller while it waits for a store that is slow. */
async function killedWhen(what: string, ready: () => Promise<boolean>, begin: Begin): Promise<void> {
  stores.google.faults.delayMs = 2000;
  const answer = begin().catch(() => null);
  await waitFor(what, ready, { everyMs: 10 });
  await api.kill();
  stores.google.faults.delayMs = 0;
  await answer;
}

type Begin = () => Promise<unknown>;
const there = async (query: Promise<readonly unknown[]>) => (await query).length > 0;
const leased = () => there(sql`select 1 from store_reads where leased_until is not null`);
const written = (reference: string) => () =>
  there(sql`select 1 from entitlements where live and reference = ${reference}`);

const STEPS: Record<string, (begin: Begin, reference: string) => Promise<void>> = {
  'before the message is safe': (begin) => killedAt('insert into store_messages', 'store_messages', begin),
  'while the store is read': (begin) => killedWhen('the lease', leased, begin),
  'before a subscription is opened': (begin) =>
    killedAt('insert into "subscriptions"', 'subscriptions', begin),
  'before its claim is written': (begin) => killedAt('insert into claims', 'claims', begin),
  'before the entitlement is written': (begin) => killedAt('insert into entitlements', 'entitlements', begin),
  'after the commit, before the purchase is acknowledged': (begin, reference) =>
    killedWhen('the entitlement', written(reference), begin),
  'when the store has acknowledged, before that is written': async (begin, reference) => {
    stores.google.faults.delayMs = 1000;
    await begin();
    await waitFor('the entitlement', written(reference), { everyMs: 10 });
    stores.google.faults.delayMs = 0;
    await killedAt('delete from store_reads', 'store_reads', async () => undefined);
  },
};

it.each(Object.entries(STEPS))(
  'killed %s: nothing is lost and nothing is done twice',
  async (_step, kill) => {
    const app = await App.make();
    const { reference, webhooks } = await app.buy(stores.google);
    const tell = async (webhook: Webhook) => {
      const { status } = await post(api, 'google', webhook);
      expect(status).toBe(200);
    };
    const [webhook] = webhooks;
    if (!webhook) return expect.unreachable();
    await kill(() => tell(webhook), reference);
    await api.start();
    // a store sends again what it believes was not taken
    await tell(webhook);
    await waitFor('the purchase to be read', async () => !(await there(sql`select 1 from store_reads`)));
    expect(stores.google.acknowledged(reference)).toBe(true);
    expect((await app.claim(api)).status).toBe(201);
    const [found] = await sql`
    select count(*)::int as entitlements, min(e.subscription_id::text) as subscription from entitlements e
    where reference = ${reference} and live`;
    expect(found?.entitlements).toBe(1);
    const log = await sql`
    select action, count(*)::int as times from audit_log
    where subject = ${`subscription:${found?.subscription}`} and action <> 'device.bound' group by 1 order by 1`;
    expect(log).toEqual([
      { action: 'entitlement.changed', times: 1 },
      { action: 'subscription.created', times: 1 },
    ]);
    const messages = await sql`
    select handled_at is not null as handled from store_messages where reference = ${reference}`;
    expect(messages).toEqual([{ handled: true }]);
  },
);

it('leaves no subscription that nobody can claim', async () => {
  const orphans = await sql`
    select s.id from subscriptions s left join claims c on c.subscription_id = s.id where c.claim is null`;
  expect(orphans).toEqual([]);
});
