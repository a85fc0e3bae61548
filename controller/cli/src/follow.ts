/** Waiting for something to come about, with what is known of it shown meanwhile. */
import { sleep } from '@katafract/shared/clock';
import type { KatafractError } from '@katafract/shared/errors';
import { isTransient } from './api.ts';
import type { Io } from './io.ts';
import { clean } from './text.ts';

export interface Followed<T> {
  read(): Promise<T>;
  /** One line of where it stands. */
  line(now: T): string;
  /** `failed`: it will not come about any more. */
  outcome(now: T): 'reached' | 'failed' | 'open';
}

const EVERY_MS = 1000;

/**
 * Reads again and again until it is over, or the time is. A controller that is away in between is waited for.
 * @returns the last that was read, with `open` where the time is over; null where nothing could be read by then
 */
export async function follow<T>(
  io: Io,
  seconds: number,
  followed: Followed<T>,
): Promise<{ last: T | null; outcome: 'reached' | 'failed' | 'open' }> {
  const until = io.clock.now() + seconds * 1000;
  let last: T | null = null;
  let said = '';
  for (;;) {
    let line: string;
    try {
      last = await followed.read();
      line = clean(followed.line(last));
    } catch (error) {
      if (!isTransient(error)) throw error;
      line = `waiting: ${clean((error as KatafractError).message)}`;
      last = null;
    }
    const outcome = last === null ? 'open' : followed.outcome(last);
    if (io.live) io.live(line);
    else if (line !== said) io.err(line);
    said = line;
    if (outcome !== 'open' || io.clock.now() >= until) {
      io.live?.('');
      return { last, outcome };
    }
    await sleep(io.clock, Math.min(EVERY_MS, Math.max(1, until - io.clock.now())));
  }
}
