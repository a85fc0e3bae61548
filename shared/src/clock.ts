/** The one way to time: rules take `now` as a value, effects take a Clock, tests pass a virtual one. */
export interface Clock {
  /** Milliseconds since the Unix epoch. */
  now(): number;
  /** Runs `task` once after `ms` milliseconds; the returned function cancels it. */
  after(ms: number, task: () => void): () => void;
}

/** One that also tells how long something takes, whoever sets the time meanwhile. */
export interface SteadyClock extends Clock {
  /** Milliseconds since some moment. */
  elapsed(): number;
}

/** The real clock. Its timers do not keep a process alive on their own. */
export const systemClock: SteadyClock = {
  now: () => Date.now(),
  elapsed: () => performance.now(),
  after(ms, task) {
    const timer = setTimeout(task, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};

/** Resolves after `ms` of the clock's time. */
export function sleep(clock: Clock, ms: number): Promise<void> {
  return new Promise((resolve) => clock.after(ms, resolve));
}
