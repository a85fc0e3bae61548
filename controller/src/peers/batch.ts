/**
 * Micro-batching: whatever is waiting when the previous batch has finished goes together into the next one. A lone
 * caller pays no delay; many callers share one transaction, so throughput is not one commit each.
 */

/** One outcome a request, in the order of the requests. */
export type Outcome<T> = { ok: true; value: T } | { ok: false; error: unknown };

interface Waiting<Request, Result> {
  readonly request: Request;
  readonly resolve: (value: Result) => void;
  readonly reject: (error: unknown) => void;
}

export class Batcher<Request, Result> {
  readonly #run: (requests: Request[]) => Promise<Outcome<Result>[]>;
  readonly #most: number;
  #waiting: Waiting<Request, Result>[] = [];
  #running: Promise<void> | null = null;

  /**
   * @param run handles one batch. Where it throws with more than one request in it, each is tried again alone, so that
   *   one request cannot fail its neighbours; it must therefore leave nothing behind when it throws.
   * @param most requests in a batch
   */
  constructor(run: (requests: Request[]) => Promise<Outcome<Result>[]>, most: number) {
    this.#run = run;
    this.#most = most;
  }

  submit(request: Request): Promise<Result> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ request, resolve, reject });
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
    while (this.#waiting.length > 0) await this.#settle(this.#waiting.splice(0, this.#most));
    this.#running = null;
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
