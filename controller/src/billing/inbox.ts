/**
 * SQL of the inbox: what stores have said, and which purchases are therefore to be read again.
 *
 *   message ─► store_messages (once an id) + store_reads (a wish) ─ commit ─► 200
 *   reader  ─► takes a wish under a lease ─ reads the store ─► one transaction: fence held? apply, mark, finish
 *
 * A reader that dies leaves a lease that runs out; one that comes back late has lost its fence, and its result is void.
 * So readings of one purchase are applied in the order in which they began, each after every message it answers.
 */
import type { Database, Sql, Tx } from '../platform/db.ts';
import type { Signal, StoreName } from './stores/port.ts';

/** How long after the death of a reader somebody else takes its wish. Whoever lives renews its lease. */
const LEASE_MS = 10_000;
export const RENEW_MS = 3_000;

export interface Reading {
  readonly store: StoreName;
  readonly reference: string;
  readonly fence: string;
  /** What was wished for when it began. */
  readonly wanted: number;
  /** Attempts that failed before. */
  readonly attempts: number;
  /** Ids of the messages that it answers. */
  readonly messages: readonly string[];
}

/** Writes a message down with its wish, in one statement. @returns false where it was seen before */
export async function receive(sql: Sql, signal: Signal, now: Date): Promise<boolean> {
  const { store, eventId, type, reference } = signal;
  const [row] = await sql<{ fresh: boolean }[]>`
    with message as (
      insert into store_messages (store, event_id, type, reference, received_at, handled_at)
      values (${store}, ${eventId}, ${type}, ${reference}, ${now}, ${reference === null ? now : null})
      on conflict do nothing returning store, reference
    ), wish as (
      insert into store_reads as w (store, reference, since, due_at, background)
      select store, reference, ${now}, ${now}, false from message where reference is not null
      on conflict (store, reference) do update
      set wanted = w.wanted + 1, due_at = least(w.due_at, excluded.due_at), background = false
    )
    select exists (select 1 from message) as fresh`;
  return row?.fresh === true;
}

/** Asks for readings that no message asks for. Those that are wished for already stay as they are. */
export async function wish(
  sql: Sql,
  store: StoreName,
  references: readonly string[],
  { now, background }: { now: Date; background: boolean },
): Promise<void> {
  if (references.length === 0) return;
  await sql`
    insert into store_reads as w (store, reference, since, due_at, background)
    select distinct ${store}, r, ${now}::timestamptz, ${now}::timestamptz, ${background}
    from unnest(${references as string[]}::text[]) as r
    on conflict (store, reference) do update
    set wanted = w.wanted + 1, background = w.background and excluded.background`;
}

/** Takes the next wish that is due, or a certain one if it is free. */
export async function take(sql: Sql, store: StoreName, now: number, only?: string): Promise<Reading | null> {
  const at = new Date(now);
  const [row] = await sql<Omit<Reading, 'store' | 'messages'>[]>`
    update store_reads set fence = gen_random_uuid(), leased_until = ${new Date(now + LEASE_MS)}
    where (store, reference) = (
      select store, reference from store_reads
      where store = ${store} and (leased_until is null or leased_until <= ${at})
        and ${only === undefined ? sql`due_at <= ${at}` : sql`reference = ${only}`}
      order by background, due_at limit 1 for update skip locked)
    returning reference, fence, wanted, attempts`;
  if (!row) return null;
  // whatever is here now came before the reading begins
  const messages = await sql<{ id: string }[]>`
    select event_id as id from store_messages
    where store = ${store} and reference = ${row.reference} and handled_at is null`;
  return { store, ...row, messages: messages.map(({ id }) => id) };
}

/** Keeps the lease of a reading that takes long. */
export async function renew(sql: Sql, { store, reference, fence }: Reading, now: number): Promise<void> {
  await sql`
    update store_reads set leased_until = ${new Date(now + LEASE_MS)}
    where store = ${store} and reference = ${reference} and fence = ${fence}`;
}

/** Locks the wish of a reading. @returns false where the fence is lost: the reading is void */
export async function hold({ sql }: Tx, { store, reference, fence }: Reading): Promise<boolean> {
  const rows = await sql`
    select 1 from store_reads where store = ${store} and reference = ${reference} and fence = ${fence} for update`;
  return rows.length > 0;
}

export async function markHandled({ sql }: Tx, { store, messages }: Reading, now: Date): Promise<void> {
  if (messages.length === 0) return;
  await sql`
    update store_messages set handled_at = ${now}
    where store = ${store} and event_id = any(${messages as string[]}::text[])`;
}

/** Ends a reading that succeeded: its wish goes, or is due again where it was renewed meanwhile. */
export async function finish({ sql }: Pick<Tx, 'sql'>, reading: Reading, now: Date): Promise<void> {
  const { store, reference, fence, wanted } = reading;
  await sql`
    with gone as (
      delete from store_reads
      where store = ${store} and reference = ${reference} and fence = ${fence} and wanted = ${wanted} returning 1
    )
    update store_reads set fence = null, leased_until = null, attempts = 0, due_at = ${now}, since = ${now}
    where store = ${store} and reference = ${reference} and fence = ${fence} and wanted > ${wanted}
      and not exists (select 1 from gone)`;
}

/** Ends a reading that failed: it is due again in `delayMs`. */
export async function postpone(sql: Sql, reading: Reading, now: number, delayMs: number): Promise<void> {
  const { store, reference, fence } = reading;
  await sql`
    update store_reads
    set fence = null, leased_until = null, attempts = attempts + 1, due_at = ${new Date(now + delayMs)}
    where store = ${store} and reference = ${reference} and fence = ${fence}`;
}

/** Drops a wish that only a failed request of a stranger made: no message waits for it. */
export async function drop(sql: Sql, { store, reference, fence }: Reading): Promise<void> {
  await sql`
    delete from store_reads where store = ${store} and reference = ${reference} and fence = ${fence} and wanted = 1
      and not exists (select 1 from entitlements where source = ${store} and reference = ${reference})`;
}

/** When the next wish of a store can be taken, in milliseconds since the epoch. */
export async function nextDue(sql: Sql, store: StoreName): Promise<number | null> {
  const [row] = await sql<{ at: number | null }[]>`
    select (extract(epoch from min(greatest(due_at, leased_until))) * 1000)::float8 as at
    from store_reads where store = ${store}`;
  return row?.at ?? null;
}

export interface Backlog {
  readonly store: StoreName;
  readonly count: number;
  /** Milliseconds since the epoch. */
  readonly oldest: number;
}

export function backlog(sql: Sql): Promise<Backlog[]> {
  return sql<Backlog[]>`
    select store, count(*)::int as count, (extract(epoch from min(since)) * 1000)::float8 as oldest
    from store_reads group by store`;
}

/**
 * Asks for purchases whose renewal should be near or is overdue to be read, each at most once in `againMs`: a message
 * that never came must not end what was paid for.
 */
export async function wishRenewing(
  sql: Sql,
  stores: readonly StoreName[],
  at: { now: number; nearMs: number; overdueMs: number; againMs: number },
): Promise<number> {
  const now = new Date(at.now);
  const rows = await sql`
    insert into store_reads as w (store, reference, since, due_at, background)
    select source, reference, ${now}::timestamptz, ${now}::timestamptz, true from entitlements
    where renews and source = any(${stores as StoreName[]}::text[])
      and expires_at between ${new Date(at.now - at.overdueMs)} and ${new Date(at.now + at.nearMs)}
      and read_at < ${new Date(at.now - at.againMs)}
    order by expires_at limit 1000
    on conflict do nothing returning 1`;
  return rows.length;
}

export async function readCursor(sql: Sql, store: StoreName): Promise<number | null> {
  const [row] = await sql<{ at: number }[]>`
    select (extract(epoch from through) * 1000)::float8 as at from store_cursors where store = ${store}`;
  return row?.at ?? null;
}

/** Never moves backwards. */
export async function moveCursor(sql: Sql, store: StoreName, through: Date): Promise<void> {
  await sql`
    insert into store_cursors as c (store, through) values (${store}, ${through})
    on conflict (store) do update set through = greatest(c.through, excluded.through)`;
}

/** Forgets messages that were handled before: no store repeats one for so long, and a repetition would only be read. */
export async function forgetMessages({ sql }: Pick<Database, 'sql'>, before: Date): Promise<number> {
  const rows = await sql`delete from store_messages where handled_at < ${before} returning 1`;
  return rows.length;
}
