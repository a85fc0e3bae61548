/**
 * The one place (with shells.ts, its faster way for small commands) that starts processes: fixed locale and path, nothing of the agent's own environment, a time limit, and
 * an error that carries the command. Arguments never hold a secret; whatever must stay secret goes by file or stdin.
 */
import { spawn } from 'node:child_process';
import { KatafractError } from '@katafract/shared/errors';

export interface ExecOptions {
  /** Written to the command's stdin. */
  readonly stdin?: string;
  /** Called with stdout as it comes, instead of collecting it. */
  readonly onOutput?: (text: string) => void;
  /** The command leaves something running that must outlive the agent: its own session, out of reach of ours. */
  readonly detached?: boolean;
  /** Milliseconds until it is killed; 30 s where absent. */
  readonly timeoutMs?: number;
}

export interface Exec {
  /**
   * Runs a command to its end and resolves to its stdout (empty with `onOutput`).
   * @throws KatafractError `command_missing` where there is no such program, `command_timeout`, or `command_failed`
   * with `detail.stderr`; the message holds the command line, cut short
   */
  run(program: string, args: readonly string[], options?: ExecOptions): Promise<string>;
}

export const ENVIRONMENT = {
  LC_ALL: 'C',
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
};
export const TIMEOUT_MS = 30_000;
const SHOWN_COMMAND = 200;
const KEPT_STDERR = 4096;

export const systemExec: Exec = { run };

export interface Following {
  /** Resolves when the command has ended, however it did; says why. */
  readonly ended: Promise<string>;
  stop(): void;
}

/**
 * Starts a command that goes on for as long as the agent does, and calls `onOutput` whenever it says something. It ends
 * with the agent, also where that is killed (setpriv --pdeathsig), and says each line at once (stdbuf).
 */
export function follow(program: string, args: readonly string[], onOutput: () => void): Following {
  const words = ['--pdeathsig', 'KILL', '--', 'stdbuf', '-oL', program, ...args];
  const child = spawn('setpriv', words, { env: ENVIRONMENT, stdio: ['ignore', 'pipe', 'pipe'] });
  let stderr = '';
  child.stdout.on('data', onOutput);
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    if (stderr.length < KEPT_STDERR) stderr += text;
  });
  const ended = new Promise<string>((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('close', (status, signal) => resolve(stderr.trim() || `ended by ${signal ?? status}`));
  });
  return { ended, stop: () => child.kill('SIGKILL') };
}

function run(program: string, args: readonly string[], options: ExecOptions = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      env: ENVIRONMENT,
      stdio: [options.stdin === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      detached: options.detached ?? false,
    });
    let timedOut = false;
    const limit = options.timeoutMs ?? TIMEOUT_MS;
    const timer = setTimeout(() => {
      timedOut = true;
      child.kill('SIGKILL');
    }, limit);
    let output = '';
    let stderr = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      if (options.onOutput) options.onOutput(text);
      else output += text;
    });
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      if (stderr.length < KEPT_STDERR) stderr += text;
    });
    // A command that ends without reading all of its input breaks the pipe; its exit status tells more than EPIPE.
    child.stdin?.on('error', () => undefined).end(options.stdin);
    child.on('error', (cause: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      const code = cause.code === 'ENOENT' ? 'command_missing' : 'command_failed';
      reject(failure(code, program, args, cause.code ?? '', cause));
    });
    child.on('close', (status, signal) => {
      clearTimeout(timer);
      if (status === 0) resolve(output);
      else if (timedOut) reject(failure('command_timeout', program, args, `no end after ${limit} ms`));
      else reject(failure('command_failed', program, args, stderr.trim() || `ended by ${signal ?? status}`));
    });
  });
}

/** The error of a command; its line is cut short, and holds no secret since no argument does. */
export function failure(
  code: string,
  program: string,
  args: readonly string[],
  stderr: string,
  cause?: unknown,
): KatafractError {
  const line = [program, ...args.slice(0, 20)].join(' ');
  const command = line.length > SHOWN_COMMAND || args.length > 20 ? `${line.slice(0, SHOWN_COMMAND)}…` : line;
  return new KatafractError(code, `${command}: ${stderr}`, { cause, detail: { program, stderr } });
}
