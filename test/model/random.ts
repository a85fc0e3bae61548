/**
 * Chance for the model, by named streams from one seed. Each part of the world draws from its own stream, and every
 * operation of a script brings a new seed: so taking an operation out of a script (which is how a failure is made
 * smaller) leaves what happens in the others alone.
 */

/** mulberry32: 32 bits of state are plenty for a script's chances. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** Uniform in [0, 1). */
  readonly next = (): number => {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };

  chance(probability: number): boolean {
    return probability > 0 && this.next() < probability;
  }

  /** From `low` to `high`, both included. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1));
  }

  pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.next() * list.length)];
  }
}

const STREAMS = ['up', 'down', 'disk', 'kernel', 'host', 'database', 'agent', 'crypto', 'operation'] as const;
export type Stream = (typeof STREAMS)[number];
export type Streams = Record<Stream, Random>;

export function streams(seed: number): Streams {
  const entries = STREAMS.map((name, index) => [
    name,
    new Random(Math.imul(seed ^ 0x9e3779b9, 2 * index + 1)),
  ]);
  return Object.fromEntries(entries) as Streams;
}
