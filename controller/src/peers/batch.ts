/**
 * Micro-batching: whatever is waiting when the previous batch has finished goes together into the next one. A lone
 * caller pays no delay; many callers share one transaction, so throughput is not one commit each.
 *
 * Callers who were answered together come back together, the first of them a moment before the rest. Taken alone it
 * would make all the others wait for a whole transaction, so after a batch of several the next one gathers for a
 * while first (as Postgres does by commit_delay and commit_siblings).
 */
import type { Clock } from '@katafract/shared/clock';

/** One outcome a request, in the order of the requests. */
export type Outcome<T> = { ok: true; value: T } | { ok: false; error: unknown };

interface Waiting<Request, Result> {
  readonly request: Request;
  readonly resolve: (value: Result) => void;
  readonly reject: (error: unknown) => void;
}

/** From how many requests on a batch counts as one of several callers at once. */
const SEVERAL = 4;
/** How long the next batch then gathers, at most: as this part of the time that the last one took, and in ms. */
const GATHER = { part: 0.5, most: 20 };

export class Batcher<Request, Result> {
  readonly #run: (requests: Request[]) => Promise<Outcome<Result>[]>;
  readonly #most: number;
  readonly #clock: Clock;
  #waiting: Waiting<Request, Result>[] = [];
  #running: Promise<void> | null = null;
  /** About how many requests come together, and how long the last such batch took, in ms. */
  #before = 0;
  #tookMs = 0;
  /** Ends the gathering under way. */
  #gathered: (() => void) | null = null;

  /**
   * @param run handles one batch. Where it throws with more than one request in it, each is tried again alone, so that
   *   one request cannot fail its neighbours; it must therefore leave nothing behind when it throws.
   * @param most requests in a batch
   */
  constructor(run: (requests: Request[]) => Promise<Outcome<Result>[]>, most: number, clock: Clock) {
    this.#run = run;
    this.#most = most;
    this.#clock = clock;
  }

  submit(request: Request): Promise<Result> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ request, resolve, reject });
      if (this.#waiting.length >= this.#before) this.#gathered?.();
      this.#running ??= this.#drain();
    });
  }

  /** Resolves when everything submitted so far has its outcome. */
  async idle(): Promise<void> {
    while (this.#running) await this.#running;
  }

  async #drain(): Promise<void> {
    // Whoever submits in the same turn of the event loop belongs to the same batch.
    await null;
    while (this.#waiting.length > 0) {
      if (this.#before >= SEVERAL && this.#waiting.length < this.#before) await this.#gather();
      const batch = this.#waiting.splice(0, this.#most);
      const started = this.#clock.now();
      await this.#settle(batch);
      // a small one in between says little of how many callers there are
      this.#before = Math.max(batch.length, Math.floor(this.#before / 2));
      if (batch.length === this.#before) this.#tookMs = this.#clock.now() - started;
    }
    this.#running = null;
  }

  /** Waits for as many as came the last time, but not for long. */
  #gather(): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        cancel();
        this.#gathered = null;
        resolve();
      };
      const cancel = this.#clock.after(Math.min(GATHER.most, this.#tookMs * GATHER.part), done);
      this.#gathered = done;
    });
  }

  async #settle(batch: Waiting<Request, Result>[]): Promise<void> {
    try {
      const outcomes = await this.#run(batch.map(({ request }) => request));
      batch.forEach(({ resolve, reject }, index) => {
        const outcome = outcomes[index];
        if (outcome?.ok) resolve(outcome.value);
        else reject(outcome?.error ?? new Error('a batch lost a request'));
      });
    } catch (error) {
      const [first] = batch;
      if (batch.length === 1) first?.reject(error);
      else for (const one of batch) await this.#settle([one]);
    }
  }
}
