/**
 * Time for the model: a clock whose timers fire only when a test advances it, one at a time and in a fixed order, each
 * followed by everything it sets off. No real time passes and nothing here depends on how fast the machine is.
 *
 * What a timer sets off runs in microtasks alone (crypto.ts keeps signatures on this thread), and Node empties the
 * microtask queue before it turns to an immediate. So one immediate later everything has settled.
 */
import type { SteadyClock } from '@katafract/shared/clock';

interface Timer {
  readonly at: number;
  readonly task: () => void;
}

export class VirtualClock implements SteadyClock {
  #now: number;
  /** Latest first, so that the next one is popped; of equals the one set first comes out first. */
  readonly #timers: Timer[] = [];
  /** Runs after each timer and what it set off. */
  readonly #onSettled: () => void;

  constructor(start: number, onSettled: () => void = () => undefined) {
    this.#now = start;
    this.#onSettled = onSettled;
  }

  now(): number {
    return this.#now;
  }

  elapsed(): number {
    return this.#now;
  }

  after(ms: number, task: () => void): () => void {
    const timer: Timer = { at: this.#now + Math.max(0, Math.ceil(ms)), task };
    let low = 0;
    let high = this.#timers.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#timers[middle]?.at ?? 0) > timer.at) low = middle + 1;
      else high = middle;
    }
    this.#timers.splice(low, 0, timer);
    return () => {
      const index = this.#timers.indexOf(timer);
      if (index >= 0) this.#timers.splice(index, 1);
    };
  }

  /** Lets time pass: every timer due within `ms` fires in its turn, also those that are set meanwhile. */
  async advance(ms: number): Promise<void> {
    const until = this.#now + ms;
    await this.settle();
    for (let next = this.#timers.at(-1); next && next.at <= until; next = this.#timers.at(-1)) {
      this.#timers.pop();
      this.#now = next.at;
      next.task();
      await this.settle();
    }
    this.#now = until;
  }

  /** Resolves when nothing can happen any more before time passes. */
  async settle(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.#onSettled();
  }
}
