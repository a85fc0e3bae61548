/** The clock of apps and of `wraith`: its timers are plain ones (browsers know no unref) and keep a process waiting. */
import type { Clock } from '@katafract/shared/clock';

export const timerClock: Clock = {
  now: () => Date.now(),
  after(ms, task) {
    const timer = setTimeout(task, ms);
    return () => clearTimeout(timer);
  },
};
