import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setDigest } from '@katafract/shared/digest';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ledgerFiles } from '../host/files.ts';
import type { LedgerDisk, Log } from '../ports.ts';
import { delta, held, NODE, peer, peers, whole } from '../testing/messages.ts';
import { JOURNAL_FLOOR, type Ledger, openLedger, readHeld } from './ledger.ts';
import { receive } from './receive.ts';
import type { Change, Held } from './table.ts';

class Crash extends Error {}

/** A disk in memory that can lose power at its `crashAt`-th write, having done a part of it. */
class MemoryDisk implements LedgerDisk {
  snapshot: string | null = null;
  journal = '';
  writes = 0;
  crashAt = Number.POSITIVE_INFINITY;
  /** Share of the write that is done at the crash. */
  share = 0;
  failing = false;
  /** Set to hold snapshot writes up until it resolves. */
  gate: Promise<void> = Promise.resolve();

  #step(): boolean {
    if (this.failing) throw new Error('no space left on device');
    return ++this.writes === this.crashAt;
  }

  async load() {
    return { snapshot: this.snapshot, journal: this.journal };
  }

  async append(text: string) {
    const crash = this.#step();
    this.journal += crash ? text.slice(0, Math.floor(text.length * this.share)) : text;
    if (crash) throw new Crash();
  }

  async writeSnapshot(text: string) {
    await this.gate;
    const crash = this.#step();
    if (!crash || this.share > 0.5) this.snapshot = text;
    if (crash) throw new Crash();
  }

  async replaceJournal(text: string) {
    const crash = this.#step();
    if (!crash || this.share > 0.5) this.journal = text;
    if (crash) throw new Crash();
  }
}

function recordingLog(): Log & { errors: unknown[] } {
  const errors: unknown[] = [];
  return { errors, info: () => undefined, warn: () => undefined, error: (fields) => errors.push(fields) };
}

function changeOf(state: Held | null, message: Parameters<typeof receive>[1]): Change {
  const verdict = receive({ held: state, enrolledLineage: message.lineage, staging: null }, message);
  if (verdict.kind !== 'accept') throw new Error(`not accepted: ${JSON.stringify(verdict)}`);
  return verdict.change;
}

/** Ten changes: a snapshot, deltas, a later lineage. */
function* history(): Generator<(state: Held | null) => Change> {
  const all = (rows: Parameters<typeof whole>[2], lineage: number, to: number) => (state: Held | null) =>
    changeOf(state, whole(lineage, to, rows));
  yield all(peers(1, 5), 1, 1);
  for (let n = 6; n <= 9; n++) {
    yield (state) =>
      changeOf(state, delta(1, n - 5, n - 4, { set: [peer(n)], del: [n - 5], after: peers(n - 4, n) }));
  }
  yield all(peers(20, 22), 2, 3);
  for (let n = 23; n <= 26; n++) {
    yield (state) => changeOf(state, delta(2, n - 20, n - 19, { set: [peer(n)], after: peers(20, n) }));
  }
}

const describeHeld = (state: Held | null) =>
  state && `${state.lineage}/${state.generation} ${setDigest(state.peers.values())} ${state.digest}`;

describe('a crash at any write, however much of it was done', () => {
  for (const share of [0, 0.3, 0.99]) {
    test(`${share} of the write done`, async () => {
      for (let crashAt = 1; crashAt <= 13; crashAt++) {
        const disk = new MemoryDisk();
        Object.assign(disk, { crashAt, share });
        const ledger = await openLedger(disk, NODE, recordingLog());
        let promised: string | null = null;
        let offered: string | null = null;
        try {
          for (const step of history()) {
            ledger.accept(step(ledger.held));
            offered = describeHeld(ledger.held);
            await ledger.flush();
            promised = describeHeld(ledger.held);
          }
        } catch (error) {
          if (!(error instanceof Crash)) throw error;
        }
        disk.crashAt = Number.POSITIVE_INFINITY;
        const after = await openLedger(disk, NODE, recordingLog());
        // What was promised is there; what was only offered may be, whole.
        expect([promised, offered]).toContain(describeHeld(after.held));
        // And the disk goes on from there.
        const rows = [...(after.held?.peers.values() ?? [])];
        after.accept(changeOf(after.held, whole(9, 9, [...rows, peer(99)])));
        await after.flush();
        expect(describeHeld(await readHeld(disk, NODE))).toBe(describeHeld(after.held));
      }
    });
  }
});

test('a torn end of the journal is cut off before anything is appended to it', async () => {
  const disk = new MemoryDisk();
  const first = await openLedger(disk, NODE, recordingLog());
  const steps = [...history()].slice(0, 4);
  for (const step of steps) {
    first.accept(step(first.held));
    await first.flush();
  }
  disk.journal = disk.journal.slice(0, -10);
  const log = recordingLog();
  const second = await openLedger(disk, NODE, log);
  expect(second.held?.generation).toBe(3);
  expect(log.errors).toMatchObject([{ code: 'journal_torn', generation: 3 }]);
  second.accept(
    changeOf(second.held, delta(1, 3, 4, { set: [peer(50)], after: [...peers(3, 7), peer(50)] })),
  );
  await second.flush();
  expect((await readHeld(disk, NODE))?.generation).toBe(4);
});

test('a journal damaged in its middle keeps what stands before it', async () => {
  const disk = new MemoryDisk();
  const ledger = await openLedger(disk, NODE, recordingLog());
  for (const step of [...history()].slice(0, 4)) {
    ledger.accept(step(ledger.held));
    await ledger.flush();
  }
  const lines = disk.journal.split('\n');
  lines[1] = (lines[1] ?? '').replace('"generation":3', '"generation":2');
  disk.journal = lines.join('\n');
  const log = recordingLog();
  expect((await openLedger(disk, NODE, log)).held?.generation).toBe(2);
  expect(log.errors).toMatchObject([{ code: 'journal_corrupt' }]);
});

test.each([
  ['rotten', (text: string) => text.replace('10.64.0.3', '10.64.0.4'), 'snapshot_corrupt'],
  ['cut short', (text: string) => text.slice(0, 100), 'snapshot_corrupt'],
  ['empty', () => '', 'snapshot_corrupt'],
])('a %s snapshot counts as nothing received, loudly', async (_what, damage, code) => {
  const disk = new MemoryDisk();
  const ledger = await openLedger(disk, NODE, recordingLog());
  for (const step of [...history()].slice(0, 2)) {
    ledger.accept(step(ledger.held));
    await ledger.flush();
  }
  disk.snapshot = damage(disk.snapshot ?? '');
  const log = recordingLog();
  expect((await openLedger(disk, NODE, log)).held).toBeNull();
  expect(log.errors).toMatchObject([{ code }]);
});

test("another node's state is not taken for our own", async () => {
  const disk = new MemoryDisk();
  const ledger = await openLedger(disk, 'ams-1' as typeof NODE, recordingLog());
  ledger.accept(changeOf(null, whole(1, 1, peers(1, 3))));
  await ledger.flush();
  expect(await readHeld(disk, NODE)).toBeNull();
});

test('a disk that fails makes nothing durable, and everything once it works again', async () => {
  const disk = new MemoryDisk();
  const ledger = await openLedger(disk, NODE, recordingLog());
  ledger.accept(changeOf(null, whole(1, 1, peers(1, 3))));
  await ledger.flush();
  disk.failing = true;
  for (const n of [4, 5]) {
    ledger.accept(changeOf(ledger.held, delta(1, n - 3, n - 2, { set: [peer(n)], after: peers(1, n) })));
    await expect(ledger.flush()).rejects.toThrow('no space');
    expect(ledger.durable).toBe(false);
  }
  expect((await readHeld(disk, NODE))?.generation).toBe(1);
  disk.failing = false;
  await ledger.flush();
  expect(ledger.durable).toBe(true);
  expect((await readHeld(disk, NODE))?.generation).toBe(3);
});

/** Appends deltas until the journal is over its limit; returns the generation reached. */
async function outgrow(ledger: Ledger, disk: MemoryDisk, generation: number): Promise<number> {
  const rows = peers(1, 2000);
  let next = generation;
  while (disk.journal.length <= JOURNAL_FLOOR) {
    ledger.accept(changeOf(ledger.held, delta(1, next, ++next, { set: rows, after: rows })));
    await ledger.flush();
  }
  return next;
}

describe('compaction', () => {
  test('folds a journal that has outgrown the snapshot, while changes go on', async () => {
    const disk = new MemoryDisk();
    const ledger = await openLedger(disk, NODE, recordingLog());
    ledger.accept(changeOf(null, whole(1, 1, peers(1, 2000))));
    await ledger.flush();
    let open: () => void = () => undefined;
    disk.gate = new Promise((resolve) => {
      open = resolve;
    });
    const old = disk.snapshot;
    const full = await outgrow(ledger, disk, 1);
    const after = [...peers(1, 2000), peer(3000)];
    ledger.accept(changeOf(ledger.held, delta(1, full, full + 1, { set: [peer(3000)], after })));
    await ledger.flush();
    expect(ledger.durable).toBe(true);
    expect(disk.snapshot).toBe(old);
    expect((await readHeld(disk, NODE))?.generation).toBe(full + 1);
    open();
    await ledger.quiet();
    expect(disk.snapshot).not.toBe(old);
    expect(disk.journal.split('\n')).toHaveLength(2);
    expect(describeHeld(await readHeld(disk, NODE))).toBe(describeHeld(ledger.held));
  });

  test('that is overtaken by a snapshot of the controller leaves the newer one', async () => {
    const disk = new MemoryDisk();
    const ledger = await openLedger(disk, NODE, recordingLog());
    ledger.accept(changeOf(null, whole(1, 1, peers(1, 2000))));
    await ledger.flush();
    await outgrow(ledger, disk, 1);
    ledger.accept(changeOf(ledger.held, whole(2, 1, peers(1, 1500))));
    await ledger.flush();
    await ledger.quiet();
    expect(await readHeld(disk, NODE)).toMatchObject({ lineage: 2, generation: 1 });
  });
});

describe('on real files', () => {
  let directory = '';
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'katafract-ledger-'));
  });
  afterEach(() => rmSync(directory, { recursive: true }));

  test('holds across opens, for its owner only, and a delta leaves the snapshot alone', async () => {
    const disk = ledgerFiles(directory);
    const ledger = await openLedger(disk, NODE, recordingLog());
    let state: Held | null = null;
    let before = '';
    for (const [index, step] of [...history()].entries()) {
      ledger.accept(step(state));
      await ledger.flush();
      state = ledger.held;
      const text = readFileSync(join(directory, 'held.snapshot'), 'utf8');
      if (index !== 0 && index !== 5) expect(text).toBe(before);
      before = text;
    }
    await disk.close();
    expect(describeHeld(await readHeld(ledgerFiles(directory), NODE))).toBe(describeHeld(state));
    expect(describeHeld(state)).toBe(describeHeld(held(2, 7, peers(20, 26))));
    for (const name of ['held.snapshot', 'held.journal']) {
      expect(statSync(join(directory, name)).mode & 0o777).toBe(0o600);
    }
  });

  test('goes on in the new journal after one was replaced', async () => {
    const disk = ledgerFiles(directory);
    await disk.append('a\n');
    await disk.replaceJournal('b\n');
    await disk.append('c\n');
    await disk.close();
    expect(readFileSync(join(directory, 'held.journal'), 'utf8')).toBe('b\nc\n');
    writeFileSync(join(directory, 'held.snapshot'), 'x');
    expect(await ledgerFiles(directory).load()).toEqual({ snapshot: 'x', journal: 'b\nc\n' });
  });
});
