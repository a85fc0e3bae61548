/**
 * A process of the model, agent or controller: it can be killed between any two of its steps, and in the middle of
 * each. Killed, it never goes on: its timers do not fire and its pending steps neither resolve nor reject.
 */
import type { SteadyClock } from '@katafract/shared/clock';

/** What whoever is dead gets. */
export function never(): Promise<never> {
  return new Promise(() => undefined);
}

export class Process {
  #alive = true;
  readonly #clock: SteadyClock;
  /** What a kill in the middle does, per step under way. */
  readonly #underWay = new Set<() => void>();

  constructor(clock: SteadyClock) {
    this.#clock = clock;
  }

  get alive(): boolean {
    return this.#alive;
  }

  /** The clock as this process has it. */
  readonly clock: SteadyClock = {
    now: () => this.#clock.now(),
    elapsed: () => this.#clock.elapsed(),
    after: (ms, task) =>
      this.#clock.after(ms, () => {
        if (this.#alive) task();
      }),
  };

  /**
   * One step outside of the process that takes `ms`; `finish` is its effect and may throw.
   * @param cut the effect where the process is killed first; without it there is none
   */
  step<T>(ms: number, finish: () => T, cut: () => void = () => undefined): Promise<T> {
    if (!this.#alive) return never();
    return new Promise((resolve, reject) => {
      const end = () => {
        this.#underWay.delete(cut);
        try {
          resolve(finish());
        } catch (error) {
          reject(error);
        }
      };
      if (ms <= 0) return end();
      this.#underWay.add(cut);
      this.clock.after(ms, end);
    });
  }

  kill(): void {
    this.#alive = false;
    for (const cut of this.#underWay) cut();
    this.#underWay.clear();
  }
}
