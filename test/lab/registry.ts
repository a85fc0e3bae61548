/**
 * Who owns which lab. A lab has a short random id that all its names carry, so that several can run side by side, and
 * a record of its owner, so that what a killed owner left behind can be told from a lab that is in use.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Not under the temporary directory: a later run with another TMPDIR must find the records too. */
const RECORDS = '/run/katafract-lab';
const JANITOR = fileURLToPath(new URL('janitor.sh', import.meta.url));

interface Record {
  readonly pid: number;
  readonly started: string;
  readonly folder: string;
}

export interface Claim {
  /** Four hex digits; the lab's namespaces are called `kf<id>-<host>`. */
  readonly id: string;
  /** Holds logs, state directories and sockets of the lab. A process that works inside it ends with the lab. */
  readonly folder: string;
  /** Removes everything that carries the id. Throws where something could not be removed. */
  release(): Promise<void>;
}

/** Start time of a process in clock ticks since boot (proc(5), field 22), or '' where there is no such process. */
function startTime(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  } catch {
    return ''; // no such process
  }
}

/** Takes an id, after clearing away the labs whose owners are gone. */
export async function claim(): Promise<Claim> {
  mkdirSync(RECORDS, { recursive: true });
  await sweep();
  const folder = mkdtempSync(join(tmpdir(), 'katafract-lab-'));
  chmodSync(folder, 0o755); // Postgres and Mosquitto run as their own users below it
  const id = writeRecord(folder);
  const janitor = startJanitor(id, folder, 'pipe');
  return {
    id,
    folder,
    release: () => finished(janitor, () => janitor.stdin?.end()),
  };
}

function writeRecord(folder: string): string {
  const record: Record = { pid: process.pid, started: startTime(process.pid), folder };
  for (;;) {
    const id = randomBytes(2).toString('hex');
    try {
      writeFileSync(join(RECORDS, id), JSON.stringify(record), { flag: 'wx' });
      return id;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
  }
}

/** In a session of its own, so that Ctrl-C in a terminal and the end of the owner's process group do not reach it. */
function startJanitor(id: string, folder: string, stdin: 'pipe' | 'ignore'): ChildProcess {
  const stdio = [stdin, 'ignore', 'pipe'] as const;
  return spawn(JANITOR, [id, folder, join(RECORDS, id)], { detached: true, stdio: [...stdio], cwd: '/' });
}

function finished(janitor: ChildProcess, begin: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    let complaint = '';
    janitor.stderr?.on('data', (chunk) => {
      complaint += chunk;
    });
    janitor.once('error', reject);
    janitor.once('close', (code) => {
      if (code === 0) resolve();
      else reject(new Error(`the lab was not removed completely (${code}): ${complaint}`));
    });
    begin();
  });
}

/** Removes labs whose owner does not run any more; where its own janitor is still at it, two do no harm. */
async function sweep(): Promise<void> {
  for (const id of readdirSync(RECORDS)) {
    const record = readRecord(id);
    if (!record || startTime(record.pid) === record.started) continue;
    await finished(startJanitor(id, record.folder, 'ignore'), () => undefined);
  }
}

function readRecord(id: string): Record | undefined {
  try {
    return JSON.parse(readFileSync(join(RECORDS, id), 'utf8')) as Record;
  } catch {
    return undefined; // removed since it was listed, or being written this moment
  }
}
