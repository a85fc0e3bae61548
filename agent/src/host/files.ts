/** Files that must survive a crash at any point, readable by their owner only. */
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, rename, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { LedgerDisk } from '../ports.ts';

const PRIVATE_FILE = 0o600;
const PRIVATE_DIRECTORY = 0o700;

/** The text of a file; null where there is none. */
export async function readText(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

/** Replaces a file: after a crash it holds the old text or the new one, and once resolved the new one for good. */
export async function writeDurably(path: string, text: string): Promise<void> {
  const temporary = `${path}.new`;
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC;
  await withHandle(open(temporary, flags, PRIVATE_FILE), async (file) => {
    await file.chmod(PRIVATE_FILE); // one left by a crash may have been made under another mask
    await giveToOwner(file, path);
    await file.writeFile(text);
    await file.sync();
  });
  await rename(temporary, path);
  await syncDirectory(dirname(path));
}

/**
 * What root writes into somebody's directory is to be his: an operator enrolls as root, and the agent runs as a user
 * that could not read it otherwise.
 */
export async function giveToOwner(file: FileHandle, path: string): Promise<void> {
  if (process.geteuid?.() !== 0) return;
  const { uid, gid } = await stat(dirname(path));
  await file.chown(uid, gid);
}

async function syncDirectory(path: string): Promise<void> {
  await withHandle(open(path, constants.O_RDONLY | constants.O_DIRECTORY), (directory) => directory.sync());
}

async function withHandle(opening: Promise<FileHandle>, work: (file: FileHandle) => Promise<void>) {
  const file = await opening;
  try {
    await work(file);
  } finally {
    await file.close();
  }
}

export async function makeStateDirectory(path: string): Promise<void> {
  await mkdir(path, { recursive: true, mode: PRIVATE_DIRECTORY });
}

/** The ledger's two files in the state directory. */
export function ledgerFiles(directory: string): LedgerDisk & { close(): Promise<void> } {
  const snapshot = join(directory, 'held.snapshot');
  const journal = join(directory, 'held.journal');
  let handle: FileHandle | null = null;
  const close = async () => {
    await handle?.close();
    handle = null;
  };
  const appending = async () => {
    // each write returns when it is on the disk, which takes one turn in the thread pool instead of two
    const durable = constants.O_APPEND | constants.O_DSYNC;
    const file = await open(journal, constants.O_WRONLY | constants.O_CREAT | durable, PRIVATE_FILE);
    await giveToOwner(file, journal);
    await syncDirectory(directory); // it may just have been made
    return file;
  };
  return {
    load: async () => ({ snapshot: await readText(snapshot), journal: (await readText(journal)) ?? '' }),
    async append(text) {
      handle ??= await appending();
      await handle.appendFile(text);
    },
    writeSnapshot: (text) => writeDurably(snapshot, text),
    async replaceJournal(text) {
      await close(); // it would go on writing to the file that is replaced
      await writeDurably(journal, text);
    },
    close,
  };
}
