/** Waiting for a condition, with an end to it: the only loop with pauses in the tests. */

/** Thrown while asking: what is waited for cannot come any more. */
export class Hopeless extends Error {}

/**
 * Asks until the answer is neither false nor undefined nor null, and returns it.
 * An error while asking counts as "not yet"; the last one is the cause of the failure.
 */
export async function waitFor<T>(
  what: string,
  ask: () => T | Promise<T>,
  options: { deadlineMs?: number; everyMs?: number } = {},
): Promise<NonNullable<Exclude<T, false>>> {
  const { deadlineMs = 60_000, everyMs = 50 } = options;
  const end = performance.now() + deadlineMs;
  let last: unknown = new Error('no answer');
  for (;;) {
    try {
      const answer = await within(Promise.resolve(ask()), end - performance.now());
      if (answer !== false && answer !== undefined && answer !== null)
        return answer as NonNullable<Exclude<T, false>>;
      last = undefined;
    } catch (error) {
      if (error instanceof Hopeless) throw error;
      last = error;
    }
    if (performance.now() > end) throw new Error(`waited ${deadlineMs} ms for: ${what}`, { cause: last });
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}

/** An answer that does not come at all must not outlast the deadline; it gets a second at least. */
async function within<T>(answer: Promise<T>, leftMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('no answer in time')), Math.max(leftMs, 1000));
  });
  try {
    return await Promise.race([answer, late]);
  } finally {
    clearTimeout(timer);
  }
}
