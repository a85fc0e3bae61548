/**
 * What the node holds, in memory and on disk. A delta costs one line appended to the journal whatever the size of the
 * table; when the journal has outgrown the snapshot, a new snapshot is written beside the running work.
 *
 * Memory may run ahead of the disk (`accept`, then `flush`): the kernel can take a change while the disk does, and
 * nothing is acknowledged before both have. A disk that fails costs acknowledgements, not service.
 */
import type { NodeId } from '@katafract/shared/units';
import type { LedgerDisk, Log } from '../ports.ts';
import { held as after, journalLine, type Restored, recover, snapshotText } from './record.ts';
import type { Change, Held } from './table.ts';

/** The journal may always grow to this many characters before it is folded into a snapshot. */
export const JOURNAL_FLOOR = 1_000_000;

export interface Ledger {
  /** null while nothing was ever received. */
  readonly held: Held | null;
  /** Whether everything accepted is on disk. */
  readonly durable: boolean;
  /** Takes a change that the rules accepted, in memory. */
  accept(change: Change): void;
  /** Makes everything accepted so far durable. @throws whatever the disk threw; what is not durable yet stays due */
  flush(): Promise<void>;
  /** Resolves when no compaction is under way. */
  quiet(): Promise<void>;
}

/** Reads what `node` holds without touching the disk; for looking beside a running agent. */
export async function readHeld(disk: LedgerDisk, node: NodeId): Promise<Held | null> {
  const { snapshot, journal } = await disk.load();
  return recover(snapshot, journal, node).held;
}

/**
 * Opens the ledger of `node`. Text that cannot be believed is logged and counts as nothing received, which removes no
 * peer from any kernel; a torn end of the journal is cut off.
 */
export async function openLedger(disk: LedgerDisk, node: NodeId, log: Log): Promise<Ledger> {
  const { snapshot, journal } = await disk.load();
  const recovery = recover(snapshot, journal, node);
  if (recovery.fault) {
    log.error(
      { code: recovery.fault, generation: recovery.held?.generation ?? null },
      'held state was damaged',
    );
  }
  if (recovery.journal !== journal) await disk.replaceJournal(recovery.journal);
  return new DiskLedger(disk, node, log, recovery.held, {
    snapshot: recovery.held ? (snapshot?.length ?? 0) : 0,
    journal: recovery.journal.length,
  });
}

class DiskLedger implements Ledger {
  readonly #disk: LedgerDisk;
  readonly #node: NodeId;
  readonly #log: Log;
  #held: Restored | null;
  /** Lengths in characters of what is on disk. */
  #size: { snapshot: number; journal: number };
  /** Lines accepted and not written yet. */
  #due: string[] = [];
  /** The journal cannot carry what is due: a snapshot was accepted, or a write left the files in an unknown state. */
  #rewriteDue = false;
  #writing = false;
  /** While a compaction is under way: the lines appended meanwhile, which the new journal starts with. */
  #tail: string[] | null = null;
  /** Disk work runs one after the other. */
  #queue: Promise<void> = Promise.resolve();
  #compaction: Promise<void> = Promise.resolve();
  /** The part of a compaction that runs beside everything else. */
  #folding: Promise<void> = Promise.resolve();

  constructor(
    disk: LedgerDisk,
    node: NodeId,
    log: Log,
    held: Restored | null,
    size: { snapshot: number; journal: number },
  ) {
    this.#disk = disk;
    this.#node = node;
    this.#log = log;
    this.#held = held;
    this.#size = size;
  }

  get held(): Held | null {
    return this.#held;
  }

  get durable(): boolean {
    return this.#due.length === 0 && !this.#rewriteDue && !this.#writing;
  }

  accept(change: Change): void {
    this.#held = after(change, this.#held);
    if (change.kind === 'snapshot') this.#rewriteDue = true;
    else this.#due.push(journalLine(change));
  }

  async flush(): Promise<void> {
    if (this.durable) return;
    await this.#serial(() => this.#write());
    const limit = Math.max(JOURNAL_FLOOR, this.#size.snapshot);
    if (this.#size.journal > limit && this.#tail === null) this.#compaction = this.#compact();
  }

  quiet(): Promise<void> {
    return this.#compaction;
  }

  #serial<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(work);
    // The caller gets the failure; the queue only needs to know that the disk is free again.
    this.#queue = done.then(
      () => undefined,
      () => undefined,
    );
    return done;
  }

  async #write(): Promise<void> {
    const rewrite = this.#rewriteDue;
    this.#rewriteDue = false;
    this.#writing = true;
    try {
      await (rewrite ? this.#rewrite() : this.#append());
    } catch (error) {
      this.#rewriteDue = true;
      throw error;
    } finally {
      this.#writing = false;
    }
  }

  async #append(): Promise<void> {
    const text = this.#due.join('');
    this.#due = [];
    await this.#disk.append(text);
    this.#size.journal += text.length;
    this.#tail?.push(text);
  }

  /** Writes the whole state as it is now; the journal starts empty. */
  async #rewrite(): Promise<void> {
    if (!this.#held) return;
    const text = snapshotText(this.#node, this.#held);
    this.#due = [];
    this.#tail = null;
    await this.#folding; // or its older snapshot could land on top of this one
    await this.#disk.writeSnapshot(text);
    await this.#disk.replaceJournal('');
    this.#size = { snapshot: text.length, journal: 0 };
  }

  /**
   * Folds the journal into a new snapshot while changes go on being appended to the old journal: only building the
   * text and the last step hold them up. A crash in between leaves lines that the snapshot covers; they are skipped.
   */
  async #compact(): Promise<void> {
    if (!this.#held) return;
    const tail: string[] = [];
    this.#tail = tail;
    const text = snapshotText(this.#node, this.#held);
    const writing = this.#disk.writeSnapshot(text);
    this.#folding = writing.catch(() => undefined); // its failure is handled just below
    try {
      await writing;
      await this.#serial(async () => {
        if (this.#tail !== tail) return; // overtaken by a rewrite
        const journal = tail.join('');
        await this.#disk.replaceJournal(journal);
        this.#size = { snapshot: text.length, journal: journal.length };
      });
    } catch (error) {
      this.#rewriteDue = true;
      this.#log.error({ err: error }, 'the journal could not be folded into a snapshot');
    }
    if (this.#tail === tail) this.#tail = null;
  }
}
