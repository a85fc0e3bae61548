/**
 * Reads purchases at one store, for whatever was wished for in the inbox. Each store has a reader of its own, so that
 * one which is down or slow holds up no other.
 *
 *   take a wish ─► read the store ─► one transaction: record, mark the messages, finish ─► acknowledge where due
 *
 * A failure postpones the wish; a store that does not serve makes the whole reader pause.
 */
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import type { Database } from '../platform/db.ts';
import type { Logger } from '../platform/log.ts';
import { unlessHalted } from './halt.ts';
import * as inbox from './inbox.ts';
import type { BillingMetrics } from './metrics.ts';
import { withoutText } from './privacy.ts';
import { retryDelay } from './rules.ts';
import { type Recorded, record, type SettleDeps } from './settle.ts';
import type { StorePort } from './stores/port.ts';

export interface ReaderDeps extends SettleDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: BillingMetrics;
  readonly random: () => number;
  /** The controller is shutting down. */
  readonly halted: AbortSignal;
}

/** Purchases of a store that are read at once. */
const LANES = 4;
/** A wish that falls due is noticed at the latest after this, in ms. */
const WATCH_MS = 15_000;

/** The lease of a reading ran out, and another reader has taken over. */
const fenced = () =>
  new KatafractError('reading_void', 'another reader has taken over', { status: 503, retryAfter: 1 });

export class StoreReader {
  readonly #deps: ReaderDeps;
  readonly #store: StorePort;
  #running: Promise<void> | null = null;
  #again = false;
  #stopped = false;
  /** Failures of the store in a row. */
  #failures = 0;
  #pausedUntil = 0;
  #cancelTimer: () => void = () => undefined;

  constructor(store: StorePort, deps: ReaderDeps) {
    this.#store = store;
    this.#deps = deps;
  }

  /** Sees to whatever is due, now or, while the store is paused, after that. Returns at once; never throws. */
  kick(): void {
    if (this.#stopped || this.#deps.halted.aborted) return;
    this.#again = true;
    this.#running ??= this.#run().finally(() => {
      this.#running = null;
      if (this.#again) this.kick();
    });
  }

  /** Resolves when no reading is under way any more. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#again = false;
    this.#cancelTimer();
    await this.#running;
  }

  /** Resolves when nothing is under way; for tests. */
  async idle(): Promise<void> {
    while (this.#running) await this.#running;
  }

  /**
   * Reads one purchase for a request that waits for it.
   * @returns false where somebody else is reading it just now
   * @throws KatafractError `store_unavailable` (503); the wish stays where there was one before
   */
  async readNow(reference: string): Promise<boolean> {
    const { db, clock } = this.#deps;
    const { name } = this.#store;
    const now = clock.now();
    await inbox.wish(db.sql, name, [reference], { now: new Date(now), background: false });
    const reading = await inbox.take(db.sql, name, now, reference);
    if (!reading) return false;
    try {
      await this.#read(reading);
      return true;
    } catch (error) {
      await inbox.drop(db.sql, reading);
      await this.#postpone(reading, error);
      throw error;
    }
  }

  async #run(): Promise<void> {
    this.#cancelTimer();
    this.#again = false;
    try {
      const { db, clock } = this.#deps;
      const due = await inbox.nextDue(db.sql, this.#store.name);
      const now = clock.now();
      if (due !== null && due <= now && now >= this.#pausedUntil) {
        await Promise.all(Array.from({ length: LANES }, () => this.#lane()));
      }
      await this.#watch();
    } catch (err) {
      // the database: its own watch tells of it, and the wishes are in it
      this.#deps.log.warn({ err, reason: this.#store.name }, 'purchases could not be read');
      this.#timer(WATCH_MS);
    }
  }

  async #lane(): Promise<void> {
    const { db, clock, halted } = this.#deps;
    while (!this.#stopped && !halted.aborted && clock.now() >= this.#pausedUntil) {
      const reading = await inbox.take(db.sql, this.#store.name, clock.now());
      if (!reading) return;
      await this.#read(reading).catch((error) => this.#postpone(reading, error));
    }
  }

  async #watch(): Promise<void> {
    const due = await inbox.nextDue(this.#deps.db.sql, this.#store.name);
    const now = this.#deps.clock.now();
    if (due !== null) this.#timer(Math.min(WATCH_MS, Math.max(due, this.#pausedUntil) - now));
  }

  #timer(inMs: number): void {
    this.#cancelTimer();
    if (this.#stopped) return;
    this.#cancelTimer = this.#deps.clock.after(Math.max(1, inMs), () => this.kick());
  }

  async #read(reading: inbox.Reading): Promise<void> {
    const { db, clock, metrics } = this.#deps;
    const { name } = this.#store;
    const view = await this.#renewing(reading, this.#store.read(reading.reference));
    this.#failures = 0;
    let acknowledge = false;
    const { outcome, afterCommit } = await db.transaction(async (tx): Promise<Recorded> => {
      if (!(await inbox.hold(tx, reading))) throw fenced();
      const now = clock.now();
      const recorded = await record(this.#deps, tx, { ...reading, view, now });
      await inbox.markHandled(tx, reading, new Date(now));
      // what nobody can claim is not accepted: the store gives the money back
      const granted = recorded.outcome === 'applied' || recorded.outcome === 'unchanged';
      acknowledge = view?.acknowledge === true && granted && this.#store.acknowledge !== undefined;
      if (!acknowledge) await inbox.finish(tx, reading, new Date(now));
      return recorded;
    });
    afterCommit();
    metrics.readings.inc({ store: name, outcome });
    if (acknowledge && view) await this.#acknowledge(reading, view);
  }

  /** Waits for the store, and keeps the lease meanwhile. */
  async #renewing<T>(reading: inbox.Reading, asked: Promise<T> | T): Promise<T> {
    const { db, clock, log, halted } = this.#deps;
    let cancel: () => void = () => undefined;
    const renew = () => {
      cancel = clock.after(inbox.RENEW_MS, () => {
        // a lease that is lost costs a second reading, and is noticed when the result is written
        inbox
          .renew(db.sql, reading, clock.now())
          .catch((err) => log.debug({ err }, 'the lease of a reading was not renewed'));
        renew();
      });
    };
    renew();
    try {
      return await unlessHalted(halted, asked);
    } finally {
      cancel();
    }
  }

  /** The wish stays until the store has taken it, so that it is tried again whatever happens. */
  async #acknowledge(
    reading: inbox.Reading,
    view: Parameters<NonNullable<StorePort['acknowledge']>>[0],
  ): Promise<void> {
    const { db, clock, metrics } = this.#deps;
    const { name } = this.#store;
    try {
      await this.#renewing(reading, this.#store.acknowledge?.(view));
    } catch (error) {
      metrics.acknowledgements.inc({ store: name, outcome: 'failed' });
      throw error;
    }
    metrics.acknowledgements.inc({ store: name, outcome: 'done' });
    await db.transaction(async (tx) => {
      if (await inbox.hold(tx, reading)) await inbox.finish(tx, reading, new Date(clock.now()));
    });
  }

  async #postpone(reading: inbox.Reading, error: unknown): Promise<void> {
    const { db, clock, log, metrics, random } = this.#deps;
    const store = this.#store.name;
    const { code, retryAfter = 0 } =
      error instanceof KatafractError ? error : { code: 'internal', retryAfter: 0 };
    if (code === 'shutting_down') return inbox.postpone(db.sql, reading, clock.now(), 0);
    metrics.readings.inc({ store, outcome: code === 'reading_void' ? 'void' : 'failed' });
    if (code === 'store_unavailable') {
      this.#failures += 1;
      const pause = Math.max(retryAfter * 1000, retryDelay(this.#failures, random()));
      this.#pausedUntil = clock.now() + Math.min(pause, LONGEST_PAUSE_MS);
    }
    const fields = { reason: store, code, err: withoutText(error), attempt: reading.attempts + 1 };
    log.warn(fields, 'a purchase was not read; it will be tried again');
    const delay = retryDelay(reading.attempts + 1, random());
    await inbox.postpone(db.sql, reading, clock.now(), delay);
  }
}

/** A store that says how long it will be away is asked again after this all the same. */
const LONGEST_PAUSE_MS = 60_000;
