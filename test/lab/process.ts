/**
 * Processes of the lab: one way to run a command to its end, one way to keep a program running with its output in a
 * file that can be waited on.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, statSync, watch } from 'node:fs';

/** Messages in English, and the programs of the sbin directories found whatever the path of the caller. */
function environment(extra: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const { PATH = '' } = process.env;
  return { ...process.env, PATH: `${PATH}:/usr/sbin:/sbin`, LC_ALL: 'C', ...extra };
}

export interface Output {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly input?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly timeoutMs?: number;
}

/** Runs a command to its end, whatever its exit code; -1 stands for an end by a signal or a command that is not there. */
export function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<Output> {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: environment(options.env),
      ...(options.timeoutMs === undefined
        ? {}
        : { timeout: options.timeoutMs, killSignal: 'SIGKILL' as const }),
    });
    const chunks = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
    child.stdout.on('data', (chunk: Buffer) => chunks.stdout.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => chunks.stderr.push(chunk));
    const text = (name: 'stdout' | 'stderr') => Buffer.concat(chunks[name]).toString('utf8');
    child.on('error', (error) =>
      resolve({ code: -1, stdout: text('stdout'), stderr: `${text('stderr')}${error}` }),
    );
    child.on('close', (code) =>
      resolve({ code: code ?? -1, stdout: text('stdout'), stderr: text('stderr') }),
    );
    // a command that does not read its input may be gone before all of it is written
    child.stdin.on('error', () => child.stdin.destroy());
    child.stdin.end(options.input ?? '');
  });
}

/** Runs a command that must succeed, and returns what it printed. */
export async function exec(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const { code, stdout, stderr } = await run(command, args, options);
  if (code !== 0)
    throw new Error(`${command} ${args.join(' ')} failed (${code}): ${stderr.trim() || stdout.trim()}`);
  return stdout;
}

/** A program's output in a file: read on demand, waited on by file events. */
export class LogFile {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  text(): string {
    return existsSync(this.path) ? readFileSync(this.path, 'utf8') : '';
  }

  tail(lines = 30): string {
    return this.text().trimEnd().split('\n').slice(-lines).join('\n');
  }

  /** Position of the end, to wait for lines that come after now. */
  end(): number {
    return existsSync(this.path) ? statSync(this.path).size : 0;
  }

  /** Resolves with the first match at or after `from`; rejects after `deadlineMs`, or at once where `gone` settles. */
  waitFor(
    pattern: RegExp,
    options: { from?: number; deadlineMs?: number; gone?: Promise<unknown> } = {},
  ): Promise<RegExpMatchArray> {
    const { from = 0, deadlineMs = 60_000, gone } = options;
    return new Promise((resolve, reject) => {
      const look = () => {
        const match = readFileSync(this.path).subarray(from).toString('utf8').match(pattern);
        if (match) finish(() => resolve(match));
        return match !== null;
      };
      const fail = (why: string) =>
        finish(() => reject(new Error(`${this.path}: ${pattern} not seen: ${why}\n${this.tail()}`)));
      const watcher = watch(this.path, look);
      const timer = setTimeout(() => look() || fail(`waited ${deadlineMs} ms`), deadlineMs);
      let settled = false;
      const finish = (settle: () => void) => {
        if (settled) return;
        settled = true;
        watcher.close();
        clearTimeout(timer);
        settle();
      };
      gone?.then((how) => look() || fail(`the program ended (${how})`));
      look();
    });
  }
}

/** A running program. */
export class Program {
  readonly log: LogFile;
  /** Resolves with the exit code or the name of the signal that ended it. */
  readonly ended: Promise<number | string>;
  readonly #child: ChildProcess;
  /** Where its own output begins: an earlier run may have written to the same file. */
  readonly #logStart: number;
  #result: number | string | undefined;

  /** Starts it, with standard output and error appended to `logPath`. */
  constructor(
    command: string,
    args: readonly string[],
    logPath: string,
    options: { env?: NodeJS.ProcessEnv; cwd?: string } = {},
  ) {
    this.log = new LogFile(logPath);
    this.#logStart = this.log.end();
    const file = openSync(logPath, 'a');
    this.#child = spawn(command, args, {
      stdio: ['ignore', file, file],
      env: environment(options.env),
      cwd: options.cwd ?? '/',
      // a process group of its own: Ctrl-C in a terminal is for the owner to act on
      detached: true,
    });
    closeSync(file);
    this.ended = new Promise((resolve) => {
      this.#child.once('error', (error) => resolve(String(error)));
      this.#child.once('exit', (code, signal) => resolve(code ?? signal ?? 'unknown'));
    });
    void this.ended.then((result) => {
      this.#result = result;
    });
  }

  get pid(): number {
    if (this.#child.pid === undefined) throw new Error(`not started: ${this.log.path}`);
    return this.#child.pid;
  }

  get running(): boolean {
    return this.#result === undefined;
  }

  /** Sends a signal and waits for the end; asks no second time, so a program that ignores SIGTERM fails the deadline. */
  async stop(signal: NodeJS.Signals = 'SIGTERM', deadlineMs = 30_000): Promise<number | string> {
    if (!this.running) return this.ended;
    this.#child.kill(signal);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      const complain = () =>
        reject(new Error(`${this.log.path}: still running ${deadlineMs} ms after ${signal}`));
      timer = setTimeout(complain, deadlineMs);
    });
    try {
      return await Promise.race([this.ended, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Waits for a line of its output; fails at once where the program ends without it. */
  waitFor(pattern: RegExp, options: { from?: number; deadlineMs?: number } = {}): Promise<RegExpMatchArray> {
    return this.log.waitFor(pattern, { from: this.#logStart, ...options, gone: this.ended });
  }
}
