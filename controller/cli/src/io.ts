/** The world as the command sees it: passed in, so that tests run whole commands in their own process. */
import type { Clock } from '@katafract/shared/clock';

export interface Io {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Home directory of whoever calls. */
  readonly home: string;
  readonly clock: Clock;
  /** Results, whole: a text without its last line break. */
  out(text: string): void;
  /** Progress and problems. */
  err(text: string): void;
  /** One line that takes the place of the one before; null where nobody looks on. */
  readonly live: ((line: string) => void) | null;
}
