/** Steps committed by this process that a node has not acknowledged yet, so that sending them costs no query. */
import type { Generation } from '@katafract/shared/units';
import { type Advance, coalesce, type Update } from './changes.ts';

/** Rows kept for a slow node; beyond that the log is read. */
const MOST_ROWS = 10_000;

export class RecentSteps {
  #steps: Advance[] = [];
  #rows = 0;

  add(step: Advance): void {
    const last = this.#steps.at(-1);
    this.#steps.push(step);
    this.#rows += step.set.length + step.del.length;
    // Two transactions' commits may reach us in the other order than they were made.
    if (last && last.to > step.to) this.#steps.sort((a, b) => a.to - b.to);
    if (this.#rows > MOST_ROWS) this.forget();
  }

  /** What came after `from` without a gap, as one delta; null where the log has to be read. */
  after(from: Generation): Update | null {
    const start = this.#steps.findIndex((step) => step.from === from);
    if (start < 0) return null;
    const steps = [this.#steps[start] as Advance];
    for (const step of this.#steps.slice(start + 1)) {
      if (step.from !== steps.at(-1)?.to) break;
      steps.push(step);
    }
    return coalesce(steps);
  }

  /** Drops the steps up to a generation, or all of them. */
  forget(upTo: number = Number.POSITIVE_INFINITY): void {
    this.#steps = this.#steps.filter((step) => step.to > upTo);
    this.#rows = this.#steps.reduce((sum, step) => sum + step.set.length + step.del.length, 0);
  }
}
