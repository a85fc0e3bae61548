/** The real ports: child processes, the state directory, and one lock for everything that changes either. */
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, openSync, unlinkSync, writeSync } from 'node:fs';
import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import { timerClock } from '../clock.ts';
import type { Command, Exec, Files, Ports } from './ports.ts';

const TIMEOUT_MS = 30_000;

export async function hostPorts(stateDir: string): Promise<Ports> {
  const directory = resolve(stateDir);
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const { mode, uid } = await stat(directory);
  // Refused rather than repaired: it may be a directory that others rely on, such as /tmp.
  if ((mode & 0o077) !== 0 || uid !== process.getuid?.()) {
    throw new KatafractError('state_dir_open', `${directory} must belong to this user alone (mode 0700)`);
  }
  return {
    exec: realExec(directory),
    files: realFiles(directory),
    clock: timerClock,
    note: (line) => process.stderr.write(`${line}\n`),
  };
}

function realExec(directory: string): Exec {
  return {
    async run(command) {
      const secret = command.secret === undefined ? undefined : nameless(directory, command.secret);
      try {
        return await run(command, secret);
      } finally {
        if (secret !== undefined) closeSync(secret);
      }
    },
  };
}

/** Descriptor of a 0600 file whose name is gone before the secret is in it. */
function nameless(directory: string, text: string): number {
  const path = join(directory, `.${randomBytes(8).toString('hex')}`);
  const descriptor = openSync(path, 'wx+', 0o600);
  unlinkSync(path);
  writeSync(descriptor, text);
  return descriptor;
}

function run(command: Command, secret: number | undefined): Promise<string> {
  const { program, args, input = '' } = command;
  const text = [program, ...args].join(' ');
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe', secret ?? 'ignore'],
      env: {
        // An ordinary user's PATH lacks where ip and iptables are.
        PATH: `${process.env.PATH ?? '/usr/local/bin:/usr/bin:/bin'}:/usr/local/sbin:/usr/sbin:/sbin`,
        LC_ALL: 'C',
        // wg would try a name that does not resolve for minutes.
        WG_ENDPOINT_RESOLUTION_RETRIES: '3',
      },
      timeout: TIMEOUT_MS,
      killSignal: 'SIGKILL',
    });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout?.on('data', (chunk: Buffer) => out.push(chunk));
    child.stderr?.on('data', (chunk: Buffer) => err.push(chunk));
    child.on('error', (cause: NodeJS.ErrnoException) => {
      const missing = cause.code === 'ENOENT';
      const why = missing ? `${program} is not installed` : `${text}: ${cause.message}`;
      reject(new KatafractError(missing ? 'command_missing' : 'command_failed', why, { cause }));
    });
    child.on('close', (code, signal) => {
      if (code === 0) return resolve(Buffer.concat(out).toString('utf8'));
      const why = Buffer.concat(err).toString('utf8').trim() || `ended with ${code ?? signal}`;
      reject(new KatafractError('command_failed', `${text}: ${why}`, { detail: { code } }));
    });
    // A command that ended early breaks the pipe; its exit code says why.
    child.stdin?.on('error', () => child.stdin?.destroy());
    child.stdin?.end(input);
  });
}

function realFiles(directory: string): Files {
  return {
    async read(name) {
      try {
        return await readFile(join(directory, name), 'utf8');
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
        throw error;
      }
    },
    async write(name, text) {
      const path = join(directory, name);
      const file = await open(`${path}.new`, 'w', 0o600);
      try {
        await file.writeFile(text);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(`${path}.new`, path);
      await syncDirectory(directory);
    },
    async remove(name) {
      await rm(join(directory, name), { force: true });
      await syncDirectory(directory);
    },
  };
}

async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Runs a task while no other `wraith` works on the same state directory. The lock is a socket in the abstract
 * namespace: the kernel lets go of it however the process ends.
 * @throws KatafractError `busy`
 */
export async function locked<T>(stateDir: string, task: () => Promise<T>): Promise<T> {
  const id = createHash('sha256').update(resolve(stateDir)).digest('hex').slice(0, 32);
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    const refuse = (cause: Error) =>
      reject(new KatafractError('busy', 'another wraith is at work', { cause }));
    server.once('error', refuse);
    server.listen({ path: `\0katafract-wraith-${id}` }, resolve);
  });
  try {
    return await task();
  } finally {
    server.close();
  }
}
