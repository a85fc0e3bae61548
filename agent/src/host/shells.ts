/**
 * Runs small commands through shells that are already there. Starting a process from Node forks Node itself: measured
 * at 1.3 ms of a blocked event loop and 2.3 ms for one `wg set`, against 0.1 ms and 1.5 ms when a small shell forks.
 * That is the largest single part of a change's way into the kernel.
 *
 * A shell does one command at a time; several are kept, so that a change never waits for a look at the host.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { ENVIRONMENT, type Exec, type ExecOptions, failure, systemExec, TIMEOUT_MS } from './exec.ts';

/** Longer command lines are started directly: there the fork is the small part. */
const MOST_ARGUMENTS = 256;
const MOST_IDLE = 3;
/** Ends the output of a command, followed by its exit status; no command here prints it. */
const END = '\u0004';

export interface ShellExec extends Exec {
  /** Lets the shells go. */
  close(): void;
}

export function shellExec(): ShellExec {
  const idle: Shell[] = [];
  let closed = false;
  const viaShell = async (program: string, args: readonly string[], timeoutMs: number): Promise<string> => {
    const shell = idle.pop() ?? new Shell();
    try {
      return await shell.run(program, args, timeoutMs);
    } finally {
      if (shell.alive && !closed && idle.length < MOST_IDLE) idle.push(shell);
      else shell.end();
    }
  };
  return {
    run(program, args, options: ExecOptions = {}) {
      const { stdin, onOutput, detached, timeoutMs = TIMEOUT_MS } = options;
      const direct = stdin !== undefined || onOutput || detached || args.length > MOST_ARGUMENTS;
      return direct ? systemExec.run(program, args, options) : viaShell(program, args, timeoutMs);
    },
    close() {
      closed = true;
      for (const shell of idle.splice(0)) shell.end();
    },
  };
}

function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

interface Running {
  readonly program: string;
  readonly args: readonly string[];
  readonly resolve: (output: string) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

class Shell {
  readonly #child: ChildProcessWithoutNullStreams;
  #running: Running | null = null;
  #output = '';
  #errors = '';
  alive = true;

  constructor() {
    // A session of its own: a Ctrl-C at the terminal is for the agent to act on, not for the command under way.
    this.#child = spawn('/bin/sh', [], { env: ENVIRONMENT, detached: true, stdio: ['pipe', 'pipe', 'pipe'] });
    this.#child.stdout.setEncoding('utf8').on('data', (text: string) => {
      this.#output += text;
      this.#finish();
    });
    this.#child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#errors += text;
      this.#finish();
    });
    this.#child.stdin.on('error', () => this.#die('the shell is gone'));
    this.#child.on('error', (error) => this.#die(error.message));
    this.#child.on('close', () => this.#die('the shell ended'));
  }

  run(program: string, args: readonly string[], timeoutMs: number): Promise<string> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#die(`no end after ${timeoutMs} ms`, 'command_timeout');
        if (this.#child.pid) process.kill(-this.#child.pid, 'SIGKILL');
      }, timeoutMs);
      this.#running = { program, args, resolve, reject, timer };
      this.#output = '';
      this.#errors = '';
      const words = [program, ...args].map(quote).join(' ');
      this.#child.stdin.write(`${words} </dev/null; printf '${END}%d\\n' $?; printf '${END}' >&2\n`);
    });
  }

  end(): void {
    this.alive = false;
    this.#child.stdin.end();
  }

  /** Both streams must have come to their end: the status is on one, the reason on the other. */
  #finish(): void {
    const running = this.#running;
    const end = this.#output.lastIndexOf(END);
    if (!running || end < 0 || !this.#output.endsWith('\n') || !this.#errors.endsWith(END)) return;
    this.#running = null;
    clearTimeout(running.timer);
    const status = Number(this.#output.slice(end + 1));
    const stderr = this.#errors.slice(0, -END.length).trim();
    if (status === 0) running.resolve(this.#output.slice(0, end));
    else {
      const code = status === 127 ? 'command_missing' : 'command_failed';
      running.reject(failure(code, running.program, running.args, stderr || `ended by ${status}`));
    }
    this.#output = '';
    this.#errors = '';
  }

  #die(why: string, code = 'command_failed'): void {
    this.alive = false;
    const running = this.#running;
    if (!running) return;
    this.#running = null;
    clearTimeout(running.timer);
    running.reject(failure(code, running.program, running.args, why));
  }
}
