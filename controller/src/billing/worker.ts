/**
 * The subscription reconciler: what happens by the clock rather than by a message. It ends what has run out, and asks
 * the stores for what their messages may have missed. Runs on one controller at a time; every step can be cut off
 * anywhere and is taken up again by the next run.
 */
import { unlessHalted } from './halt.ts';
import * as inbox from './inbox.ts';
import type { ReaderDeps } from './reader.ts';
import { settle } from './settle.ts';
import * as store from './store.ts';
import { STORES, type StoreName, type StorePort } from './stores/port.ts';

export interface WorkerDeps extends ReaderDeps {
  readonly stores: ReadonlyMap<StoreName, StorePort>;
  readonly kick: (store: StoreName) => void;
}

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** How far back a store is asked the first time. */
const FIRST_LOOK_MS = 3 * DAY_MS;
/** How much of the time already asked for is asked for again: stores' own lists lag a little. */
const OVERLAP_MS = 10 * 60_000;
const ENDED_AT_ONCE = 100;

/**
 * Ends entitlements and subscriptions whose time has come, the peers with them, and has purchases that should have
 * been renewed by then read at their stores.
 * @returns how many
 */
export async function endDue(deps: WorkerDeps): Promise<number> {
  const { db, clock, graceMs } = deps;
  const failures: unknown[] = [];
  const ending = (id: string, first: Parameters<typeof settling>[2] = async () => undefined) =>
    settling(deps, id, first).catch((error: unknown) => failures.push(error));
  const ended = await store.endedEntitlements(db.sql, new Date(clock.now()), ENDED_AT_ONCE);
  for (const { id, subscriptionId } of ended) {
    await ending(subscriptionId, (tx, now) => store.endEntitlement(tx, id, new Date(now)));
  }
  for (const name of STORES) {
    const references = ended.filter(({ source }) => source === name).map(({ reference }) => reference);
    if (references.length === 0 || !deps.stores.has(name)) continue;
    await inbox.wish(db.sql, name, references, { now: new Date(clock.now()), background: false });
    deps.kick(name);
  }
  const before = new Date(clock.now() - graceMs);
  const lapsed = await store.lapsedSubscriptions(db.sql, before, ENDED_AT_ONCE);
  for (const id of lapsed) await ending(id);
  // one that fails keeps none from ending
  if (failures.length > 0) throw failures[0];
  return ended.length + lapsed.length;
}

async function settling(
  deps: WorkerDeps,
  subscriptionId: string,
  first: (tx: Parameters<typeof settle>[1], now: number) => Promise<unknown>,
): Promise<void> {
  const afterCommit = await deps.db.transaction(async (tx) => {
    await store.lockSubscription(tx, subscriptionId);
    const now = deps.clock.now();
    await first(tx, now);
    return settle(deps, tx, subscriptionId, now);
  });
  afterCommit();
}

/** When `endDue` has something to do next, in milliseconds since the epoch. */
export function nextEnd({ db, graceMs }: WorkerDeps): Promise<number | null> {
  return store.nextEnd(db.sql, graceMs);
}

/** Has purchases whose renewal is near or overdue read at their stores, each once an hour at most. */
export async function readRenewing(deps: WorkerDeps): Promise<number> {
  const count = await inbox.wishRenewing(deps.db.sql, [...deps.stores.keys()], {
    now: deps.clock.now(),
    nearMs: HOUR_MS,
    overdueMs: 3 * DAY_MS,
    againMs: HOUR_MS,
  });
  if (count > 0) for (const name of deps.stores.keys()) deps.kick(name);
  return count;
}

/**
 * Asks a store what has changed since it was last asked, and has all of it read. What was named before a crash is
 * wished for already; the rest is named again, since the cursor moves only at the end.
 * @returns how many purchases
 * @throws KatafractError `store_unavailable` (503)
 */
export async function reconcile(deps: WorkerDeps, port: StorePort): Promise<number> {
  const { db, clock } = deps;
  const began = clock.now();
  const cursor = (await inbox.readCursor(db.sql, port.name)) ?? began - FIRST_LOOK_MS;
  const known = () => store.liveReferences(db, port.name);
  let count = 0;
  let some: string[] = [];
  const flush = async () => {
    await inbox.wish(db.sql, port.name, some, { now: new Date(clock.now()), background: true });
    count += some.length;
    some = [];
    deps.kick(port.name);
  };
  const changed = port.changedSince(cursor - OVERLAP_MS, known)[Symbol.asyncIterator]();
  for (;;) {
    const { done, value } = await unlessHalted(deps.halted, changed.next());
    if (done) break;
    some.push(value);
    if (some.length >= 100) await flush();
  }
  if (some.length > 0) await flush();
  await inbox.moveCursor(db.sql, port.name, new Date(began));
  return count;
}
