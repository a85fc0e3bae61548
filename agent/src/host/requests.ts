/**
 * The helper's side of the requests. It runs as root in a folder that belongs to the agent, so every path is taken from
 * an open folder, no link is followed, nothing but a plain small file of the folder's owner is read, and what is
 * written is a new file that then takes the name.
 */
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, rename, rm, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import type { MemoryPort, RequestsPort, SystemFilesPort } from '../helper/ports.ts';
import { LARGEST_REQUEST } from '../helper/requests.ts';
import { giveToOwner, readText, writeDurably } from './files.ts';

const { O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = constants;
const READABLE = 0o644;

export interface RequestFolder extends RequestsPort {
  close(): Promise<void>;
}

const refused = (name: string, why: string, cause?: unknown) =>
  new KatafractError('request_refused', `${name}: ${why}`, { cause });

/** @returns null where the agent has never asked for anything */
export async function openRequests(stateDir: string): Promise<RequestFolder | null> {
  const opening = open(join(stateDir, 'requests'), O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  const folder = await opening.catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw refused('requests', 'not a folder', error);
  });
  if (!folder) return null;
  const { uid } = await folder.stat();
  // the folder that was opened, whatever becomes of its name
  const path = (name: string) => `/proc/self/fd/${folder.fd}/${name}`;
  return {
    async take(name) {
      const file = await open(path(name), O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch(
        (error: NodeJS.ErrnoException) => {
          if (error.code === 'ENOENT') return null;
          throw refused(name, 'not a plain file', error);
        },
      );
      if (!file) return undefined;
      try {
        return await readRequest(name, file, uid);
      } finally {
        await file.close();
      }
    },
    remove: (name) => drop(path(name)),
    async answer(name, result) {
      const fresh = path(`${name}.result.new`);
      await drop(fresh);
      const file = await open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, READABLE);
      try {
        await file.chmod(READABLE);
        await file.writeFile(`${JSON.stringify(result)}\n`);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(fresh, path(`${name}.result`));
      await folder.sync();
    },
    close: () => folder.close(),
  };
}

/** A name, if it is there; never a folder with what is in it, whose paths somebody else may be exchanging. */
async function drop(path: string): Promise<void> {
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
  });
}

async function readRequest(name: string, file: FileHandle, owner: number): Promise<unknown> {
  const { size, uid, nlink } = await file.stat().then((stat) => {
    if (!stat.isFile()) throw refused(name, 'not a plain file');
    return stat;
  });
  if (uid !== owner || nlink > 1) throw refused(name, 'not of the owner of the folder alone');
  if (size > LARGEST_REQUEST) throw refused(name, 'too large');
  // it may grow while it is read
  const { buffer, bytesRead } = await file.read(Buffer.alloc(LARGEST_REQUEST + 1), 0, LARGEST_REQUEST + 1, 0);
  if (bytesRead > LARGEST_REQUEST) throw refused(name, 'too large');
  try {
    return JSON.parse(buffer.toString('utf8', 0, bytesRead));
  } catch (cause) {
    throw refused(name, 'not JSON', cause);
  }
}

/** @param root of the system, `/` but in tests */
export function helperMemory(root: string): MemoryPort {
  const path = (name: string) => join(root, 'var/lib/katafract-helper', `${name}.json`);
  return {
    async read(name) {
      const text = await readText(path(name));
      return text === null ? null : (JSON.parse(text) as unknown);
    },
    async write(name, value) {
      await mkdir(dirname(path(name)), { recursive: true, mode: 0o700 });
      if (value === null) await rm(path(name), { force: true });
      else await writeDurably(path(name), `${JSON.stringify(value)}\n`);
    },
  };
}

/** Larger files are none of ours. In bytes. */
const LARGEST_FILE = 4 << 20;

/** @param root of the system, `/` but in tests */
export function systemFiles(root: string): SystemFilesPort {
  return {
    async read(path) {
      const file = await open(join(root, path), O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch(
        (error: NodeJS.ErrnoException) => {
          if (error.code === 'ENOENT') return null;
          throw new KatafractError('file_refused', `${path}: not a plain file`, { cause: error });
        },
      );
      if (!file) return null;
      try {
        const stat = await file.stat();
        if (!stat.isFile() || stat.size > LARGEST_FILE) {
          throw new KatafractError('file_refused', `${path}: not a plain file of a sane size`);
        }
        return await file.readFile('utf8');
      } finally {
        await file.close();
      }
    },
    async write(path, text, how) {
      const to = join(root, path);
      await mkdir(dirname(to), { recursive: true, mode: 0o755 });
      // the folder may belong to somebody else: what it holds under this name is never opened, only replaced
      const fresh = `${to}.katafract-new`;
      await drop(fresh);
      const file = await open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, how ? 0o600 : READABLE);
      try {
        await file.chmod(how ? 0o600 : READABLE);
        if (how) await giveToOwner(file, to);
        await file.writeFile(text);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(fresh, to);
    },
    remove: (path) => drop(join(root, path)),
  };
}
