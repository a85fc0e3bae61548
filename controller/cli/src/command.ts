/** What every command is made of: the API, a way to show results, and the exit codes. */
import { KatafractError } from '@katafract/shared/errors';
import { type Command, InvalidArgumentError } from 'commander';
import type { Answer, Api } from './api.ts';
import { type Followed, follow } from './follow.ts';
import type { Io } from './io.ts';
import { apiFrom } from './settings.ts';
import { duration, moment, span } from './text.ts';

/** Stable: scripts switch on them. 1: a problem; 2: used wrongly; 3: not reached within --wait. */
export const EXIT = { done: 0, problem: 1, usage: 2, notReached: 3 } as const;

export class Context {
  readonly io: Io;
  readonly json: boolean;
  /** What the process will end with. */
  exit: number = EXIT.done;
  #api: Promise<Api> | null = null;

  constructor(io: Io, json: boolean) {
    this.io = io;
    this.json = json;
  }

  /** Opened when it is first needed: some commands ask nobody. */
  get api(): Promise<Api> {
    this.#api ??= apiFrom(this.io);
    return this.#api;
  }

  get now(): number {
    return this.io.clock.now();
  }

  /** For machines all of it, for people what they read. */
  show(raw: unknown, text: () => string): void {
    this.io.out(this.json ? JSON.stringify(raw, null, 2) : text());
  }

  /** Shows an answer at once, or, with `--wait`, once it is over. */
  async showAfter<T>(
    first: Answer<T>,
    seconds: number | undefined,
    {
      read,
      text,
      line,
      outcome,
    }: Omit<Followed<T>, 'read'> & { read(): Promise<Answer<T>>; text(now: T): string },
  ): Promise<void> {
    if (seconds === undefined) return this.show(first.raw, () => text(first.body));
    const end = await follow(this.io, seconds, {
      read,
      line: ({ body }) => line(body),
      outcome: ({ body }) => outcome(body),
    });
    const { body, raw } = end.last ?? first;
    this.show(raw, () => text(body));
    if (end.outcome === 'open') {
      this.exit = EXIT.notReached;
      this.io.err(`not reached within ${span(seconds * 1000)}; it goes on by itself`);
    } else if (end.outcome === 'failed') this.exit = EXIT.problem;
  }
}

/** Registers commands on a program; each gets its context from `act`. */
export type Register = (program: Command, act: Act) => void;
export type Act = <Args extends unknown[]>(
  run: (context: Context, ...args: Args) => Promise<void>,
) => (...args: Args) => Promise<void>;

/** `--wait [time]`: how long at most. */
export const WAIT = '--wait [time]';
export const WAIT_HELP =
  'stay until it is done, 10 min at most or as long as said (90s, 30m, 2h); exit code 3 if it is not';
const WAIT_SECONDS = 600;

export type Wait = number | true | undefined;
export const waitSeconds = (wait: Wait): number | undefined => (wait === true ? WAIT_SECONDS : wait);

export function asDuration(text: string): number {
  const seconds = duration(text);
  if (seconds === null) throw new InvalidArgumentError('a time such as 90s, 30m, 2h or 7d');
  return seconds;
}

/** For an option of a moment; read when the command runs, since it may be counted from then. */
export function asMoment(text: string): string {
  if (moment(text, 0) === null)
    throw new InvalidArgumentError('2026-01-31T22:00:00Z, or from now on: 30m, 2h');
  return text;
}

export function momentFrom(text: string, now: number): string {
  const at = moment(text, now);
  if (at === null) throw new KatafractError('time_invalid', `${text} is no time`);
  return new Date(at).toISOString();
}

export function asNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('a number');
  return value;
}

export function asCount(text: string): number {
  if (!/^\d{1,12}$/.test(text)) throw new InvalidArgumentError('a whole number');
  return Number(text);
}

/** A part of a path. */
export const part = (text: string) => encodeURIComponent(text);
