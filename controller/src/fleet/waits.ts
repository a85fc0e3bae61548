/** Callers who wait until a node has what they committed. */
import type { Clock } from '@katafract/shared/clock';
import type { Generation, Lineage } from '@katafract/shared/units';

export interface Position {
  readonly lineage: Lineage;
  readonly generation: Generation;
}

interface Waiter {
  readonly target: Position;
  readonly done: (applied: boolean) => void;
}

export class Waits {
  readonly #clock: Clock;
  readonly #waiters = new Set<Waiter>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Resolves true when settled, false when failed or after `ms`. Never rejects. */
  wait(target: Position, ms: number): Promise<boolean> {
    return new Promise((resolve) => {
      const waiter: Waiter = {
        target,
        done: (applied) => {
          this.#waiters.delete(waiter);
          cancel();
          resolve(applied);
        },
      };
      const cancel = this.#clock.after(ms, () => waiter.done(false));
      this.#waiters.add(waiter);
    });
  }

  /** Tells those whose target is reached. */
  settle(reached: (target: Position) => boolean): void {
    for (const { target, done } of [...this.#waiters]) if (reached(target)) done(true);
  }

  /** Tells all of them that nobody can say. */
  fail(): void {
    for (const { done } of [...this.#waiters]) done(false);
  }
}
