/**
 * What `wraith` needs from its host: commands, the state directory, the clock, a line to the user. The real ones are
 * in host.ts; tests wrap them to run inside a network namespace or to die at a chosen command.
 */
import type { Clock } from '@katafract/shared/clock';

export interface Command {
  readonly program: string;
  readonly args: readonly string[];
  /** Written to standard input. */
  readonly input?: string;
  /** What must not be in argv: readable at SECRET_PATH by the command alone, from a 0600 file without a name. */
  readonly secret?: string;
}

/** Where a command finds its `secret`. A path, because `wg` opens its input by name. */
export const SECRET_PATH = '/proc/self/fd/3';

export interface Exec {
  /**
   * Runs a command to its end and returns its standard output. Locale and environment are fixed: children get none
   * of ours, which may hold the Sigil.
   * @throws KatafractError `command_failed` (exit code not 0, or 30 s passed), `command_missing`
   */
  run(command: Command): Promise<string>;
}

/** Files of the state directory (0700), by name; each is 0600 and replaced atomically. */
export interface Files {
  /** Null where there is no such file. */
  read(name: string): Promise<string | null>;
  write(name: string, text: string): Promise<void>;
  remove(name: string): Promise<void>;
}

export interface Ports {
  readonly exec: Exec;
  readonly files: Files;
  readonly clock: Clock;
  /** Tells the user how it goes; results go to standard output elsewhere. */
  readonly note: (line: string) => void;
}

export function command(program: string, ...args: string[]): Command {
  return { program, args };
}
