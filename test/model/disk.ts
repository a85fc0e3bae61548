/**
 * The disk under the agent's ledger, in memory, as bad as LedgerDisk's contract allows: what a call writes is there
 * when it resolves; where the machine dies or the call fails in the middle, an append left any prefix of its text and
 * the others left the old text or the new one.
 */
import type { LedgerDisk } from '@katafract/agent/ports';
import type { Faults } from './faults.ts';
import { never, type Process } from './process.ts';
import type { Random } from './random.ts';

export class Disk {
  snapshot: string | null = null;
  journal = '';
  writes = 0;

  wipe(): void {
    this.snapshot = null;
    this.journal = '';
  }
}

/** The disk for one run of the agent. @param onChange after each write */
export function diskPort(
  disk: Disk,
  process: Process,
  random: () => Random,
  faults: () => Faults,
  onChange: () => void,
): LedgerDisk {
  const write = (whole: () => void, broken: () => void): Promise<void> => {
    if (!process.alive) return never();
    disk.writes++;
    const duration = random().chance(0.4) ? 0 : random().integer(0, faults().slow);
    return process.step(
      duration,
      () => {
        if (random().chance(faults().disk)) {
          broken();
          onChange();
          throw new Error('ENOSPC');
        }
        whole();
        onChange();
      },
      broken,
    );
  };
  const atomic = (change: () => void) =>
    write(change, () => {
      if (random().chance(0.5)) change();
    });
  return {
    load: () =>
      process.step(random().integer(0, faults().slow), () => {
        if (random().chance(faults().disk / 2)) throw new Error('EIO');
        return { snapshot: disk.snapshot, journal: disk.journal };
      }),
    append: (text) =>
      write(
        () => {
          disk.journal += text;
        },
        () => {
          disk.journal += text.slice(0, random().integer(0, text.length));
        },
      ),
    writeSnapshot: (text) =>
      atomic(() => {
        disk.snapshot = text;
      }),
    replaceJournal: (text) =>
      atomic(() => {
        disk.journal = text;
      }),
  };
}
