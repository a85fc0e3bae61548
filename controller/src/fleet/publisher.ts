/**
 * The per-node publisher: carries one node from what it holds to the newest generation, and knows when it got there.
 *
 *            advance (a transaction committed)          hello / applied / heartbeat (the node spoke)
 *                         │                                             │
 *                         ▼                                             ▼
 *                pending steps (memory)                      acked = what the node holds
 *                         └───────────────┬─────────────────────────────┘
 *                                         ▼
 *                 pump: nothing in flight and acked < head → send ONE update, wait for its `applied`
 *
 * One update is in flight at a time: whatever commits meanwhile piles up and goes as one message with the next, so a
 * busy node gets fewer, larger messages, and an idle one gets its change at once. What was committed in this process
 * is sent from memory; after a gap, a restart or a loss the range is read from the log. No message is ever needed for
 * correctness: a lost one is sent again from what the node last acknowledged.
 */
import type { Clock } from '@katafract/shared/clock';
import type { Generation, Lineage, NodeId } from '@katafract/shared/units';
import type { Applied, Heartbeat, Hello } from '@katafract/shared/uplink';
import { type Advance, toMessages, type Update } from './changes.ts';
import { History } from './history.ts';
import { RecentSteps } from './recent.ts';
import { carryOn, type Head, type Held } from './rules.ts';
import { type Position, Waits } from './waits.ts';

/** The log as the database has it. Each call is one consistent read. */
export interface DesiredLog {
  head(node: NodeId): Promise<Head | null>;
  /** Everything after `from`, or null where the tombstones for that are swept. */
  delta(node: NodeId, from: Generation): Promise<Update | null>;
  snapshot(node: NodeId): Promise<Update>;
  /** Starts a new history above `above`; returns the new head. */
  raiseLineage(node: NodeId, above: Lineage): Promise<Head>;
}

export interface PublisherPorts {
  readonly log: DesiredLog;
  readonly clock: Clock;
  /** Signs and sends one update's messages, in order; resolves when the broker has them. Returns their size. */
  send(node: NodeId, messages: ReturnType<typeof toMessages>): Promise<number>;
  /** Counted and logged by the caller; the publisher carries on by its retransmission timer. */
  onEvent(event: PublisherEvent): void;
}

export type PublisherEvent =
  | { kind: 'sent'; node: NodeId; update: 'delta' | 'snapshot'; rows: number; bytes: number; attempt: number }
  | { kind: 'applied'; node: NodeId; lineage: Lineage; generation: Generation }
  | { kind: 'mismatch'; node: NodeId }
  | { kind: 'lineage_raised'; node: NodeId; lineage: Lineage }
  | { kind: 'failed'; node: NodeId; error: unknown };

/** First wait for an answer, in ms; doubles to the longest. Snapshots get more for each row. */
const RETRY_FIRST_MS = 1000;
const RETRY_LONGEST_MS = 30_000;
const SNAPSHOT_MS_PER_ROW = 0.5;
const NOWHERE: Position = { lineage: 0 as Lineage, generation: 0 as Generation };

export class NodePublisher {
  readonly node: NodeId;
  readonly #ports: PublisherPorts;
  /** The newest state this process has heard of. */
  #head: Head;
  /** Of the head's lineage. */
  readonly #history = new History();
  /** The database may have lost what this process knows it had (`lost`: it has); only asking it can tell. */
  #doubt: 'none' | 'possible' | 'lost' = 'none';
  /** What it said it holds; null while the node is away. */
  #held: Held | null = null;
  /** What its kernel is known to have; kept while it is away. */
  #acked: Position;
  /** The kernel showed another table than it should at the newest generation: send the whole one. */
  #drifted = false;
  readonly #recent = new RecentSteps();
  #inFlight: Position | null = null;
  #attempt = 0;
  #snapshots = 0;
  #snapshotNotBefore = 0;
  #cancelRetry: (() => void) | null = null;
  #running = false;
  #again = false;
  #closed = false;
  readonly #waits: Waits;

  constructor(node: NodeId, start: { head: Head; acked: Position }, ports: PublisherPorts) {
    this.node = node;
    this.#head = start.head;
    this.#history.learn(start.head.generation, start.head.digest);
    // A report of what this database has lost says nothing about what it has.
    this.#acked = position(start.acked, start.head) > 0 ? NOWHERE : start.acked;
    this.#ports = ports;
    this.#waits = new Waits(ports.clock);
  }

  get head(): Head {
    return this.#head;
  }

  get acked(): Position {
    return this.#acked;
  }

  get connected(): boolean {
    return this.#held !== null;
  }

  /** Whether the node's kernel is known to have `generation` of the present lineage. */
  holds(generation: Generation): boolean {
    const { lineage } = this.#head;
    return this.#acked.lineage === lineage && this.#reached({ lineage, generation });
  }

  /**
   * Resolves true once the kernel has `target`; false after `ms`, or when a new lineage begins, since then nobody can
   * tell whether the change is among what was lost. Never rejects.
   */
  waitFor(target: Position, ms: number): Promise<boolean> {
    if (this.#reached(target)) return Promise.resolve(true);
    if (target.lineage < this.#head.lineage) return Promise.resolve(false);
    return this.#waits.wait(target, ms);
  }

  /** A transaction of this process committed. */
  advance(step: Advance): void {
    this.#hear({ ...this.#head, lineage: step.lineage, generation: step.to, digest: step.digest });
    if (step.lineage === this.#head.lineage) this.#recent.add(step);
    this.pump();
  }

  /** The node's row as the database has it: it changed in another way or in another process, or was read anew. */
  wake(head: Head): void {
    this.#hear(head);
    this.pump();
  }

  /** The node connected, or found a gap. What it holds may not be in its kernel yet: it says `applied` when it is. */
  hello(hello: Hello): void {
    this.#held = { ...hello };
    this.#land();
    this.pump();
  }

  /** The kernel of the node took what it names. */
  applied(applied: Applied): void {
    // A delayed one says nothing new; a node that truly fell back says hello.
    if (this.#held && position(applied, this.#held) < 0) return;
    this.#held = { ...applied, want: 'delta' };
    if (this.#inFlight && reaches(applied, this.#inFlight)) this.#land();
    this.#attempt = 0;
    this.#snapshots = 0;
    this.#note(applied);
    this.pump();
  }

  /** Ten-second truth: what the kernel was seen to hold. Also stands in for a hello that this process missed. */
  heartbeat(beat: Heartbeat): void {
    const order = this.#held ? position(beat, this.#held) : 1;
    if (order > 0 || (order < 0 && !this.#inFlight)) this.#held = { ...beat, want: 'delta' };
    const current = beat.lineage === this.#head.lineage && beat.generation === this.#head.generation;
    // With the firewall not in place nothing counts as in force, whatever the table.
    if (current && beat.digest === this.#head.digest && beat.rules !== 'failed') this.#note(beat);
    if (current && beat.digest !== this.#head.digest && !this.#inFlight) {
      this.#held = { ...beat, digest: this.#head.digest, want: 'delta' };
      this.#drifted = true;
      this.#ports.onEvent({ kind: 'mismatch', node: this.node });
    }
    this.pump();
  }

  /** Another controller heard the node acknowledge this. */
  learn(at: Position): void {
    if (at.lineage !== this.#head.lineage || position(at, this.#acked) <= 0) return;
    this.#acked = { lineage: at.lineage, generation: at.generation };
    this.#settle();
  }

  /** The broker lost the node. What was in flight will be asked for again. */
  gone(): void {
    this.#held = null;
    this.#land();
  }

  close(): void {
    this.#closed = true;
    this.gone();
    this.#waits.fail();
  }

  /** Sends what is due, if anything is. Wake-ups carry no input: all of them run this same code. */
  pump(): void {
    this.#again = true;
    if (this.#running) return;
    this.#running = true;
    void this.#run().finally(() => {
      this.#running = false;
      if (this.#again && !this.#closed) this.pump();
    });
  }

  async #run(): Promise<void> {
    while (this.#again && !this.#closed) {
      this.#again = false;
      try {
        const update = await this.#next();
        if (update) await this.#send(update);
      } catch (error) {
        this.#ports.onEvent({ kind: 'failed', node: this.node, error });
        this.#retryIn(this.#backoff());
      }
    }
  }

  async #next(): Promise<Update | null> {
    const { log } = this.#ports;
    if (this.#doubt !== 'none') await this.#ask();
    if (!this.#held || this.#inFlight) return null;
    let step = carryOn(this.#held, this.#head);
    if (step.do === 'raise') {
      // Another process may have gone ahead of what this one has heard of: only the database can tell.
      const head = await log.head(this.node);
      if (!head) return null;
      this.#see(head);
      step = this.#held ? carryOn(this.#held, this.#head) : { do: 'nothing' };
    }
    if (step.do === 'raise') {
      await this.#raise(step.above);
      step = { do: 'snapshot' };
    }
    if (step.do === 'nothing' && this.#drifted) step = { do: 'snapshot' };
    if (step.do === 'nothing') return null;
    const recent = step.do === 'delta' ? this.#recent.after(step.from) : null;
    if (recent) return recent;
    const known = this.#head;
    const read = step.do === 'delta' ? await log.delta(this.node, step.from) : null;
    const update = read ?? (await this.#snapshot());
    if (!update || position({ lineage: update.lineage, generation: update.to }, known) >= 0) return update;
    // Read after `known` was committed and yet older: the database has lost it, or so it seems.
    this.#doubt = 'possible';
    this.#again = true;
    return null;
  }

  /** Asks the database whether it still has what this process heard of. If not, a new lineage begins. */
  async #ask(): Promise<void> {
    const { log } = this.#ports;
    const known = this.#head;
    const head = await log.head(this.node);
    if (!head) return;
    this.#see(head);
    if (this.#doubt === 'lost' || position(head, known) < 0) {
      this.#lose();
      return this.#raise(known.lineage);
    }
    this.#doubt = 'none';
    this.#settle();
  }

  async #raise(above: Lineage): Promise<void> {
    this.#see(await this.#ports.log.raiseLineage(this.node, above));
    this.#land();
    this.#ports.onEvent({ kind: 'lineage_raised', node: this.node, lineage: this.#head.lineage });
  }

  /** The database has lost transactions: no acknowledgement counts, and nobody is told that his change is in force. */
  #lose(): void {
    this.#doubt = 'lost';
    this.#acked = NOWHERE;
    this.#waits.fail();
  }

  /** A node that asks for its table over and over gets it ever more slowly, until it makes progress. */
  async #snapshot(): Promise<Update | null> {
    const { clock, log } = this.#ports;
    const now = clock.now();
    if (now < this.#snapshotNotBefore) {
      this.#retryIn(this.#snapshotNotBefore - now);
      return null;
    }
    const update = await log.snapshot(this.node);
    if (this.#snapshots++ > 0) {
      this.#snapshotNotBefore = now + Math.min(RETRY_LONGEST_MS, RETRY_FIRST_MS * 2 ** this.#snapshots);
    }
    this.#drifted = false;
    return update;
  }

  async #send(update: Update): Promise<void> {
    if (!this.#held) return;
    const rows = update.set.length + update.del.length;
    this.#see({ ...this.#head, lineage: update.lineage, generation: update.to, digest: update.digest });
    // Before the send: the answer may arrive while the broker's receipt is still on its way.
    this.#inFlight = { lineage: update.lineage, generation: update.to };
    const attempt = this.#attempt++;
    const wait = this.#backoff(attempt) + (update.kind === 'snapshot' ? rows * SNAPSHOT_MS_PER_ROW : 0);
    this.#retryIn(wait);
    const bytes = await this.#ports.send(this.node, toMessages(update));
    this.#ports.onEvent({ kind: 'sent', node: this.node, update: update.kind, rows, bytes, attempt });
  }

  /** Of two commits, or of a commit and a read, the news may come in the other order; or what was known is lost. */
  #hear(head: Head): void {
    if (position(head, this.#head) < 0 && this.#doubt === 'none') this.#doubt = 'possible';
    this.#see(head);
  }

  /** The head only ever rises. */
  #see(head: Head): void {
    if (head.lineage < this.#head.lineage) return;
    if (head.lineage > this.#head.lineage) {
      this.#lose();
      this.#doubt = 'none';
      this.#recent.forget();
      this.#history.clear();
    }
    if (!this.#history.learn(head.generation, head.digest)) this.#lose();
    if (position(head, this.#head) > 0) this.#head = head;
  }

  /** The node says it holds this: if it is ours, whoever waits for it may go on. */
  #note(at: Position & { digest: Head['digest'] }): void {
    if (at.lineage !== this.#head.lineage || !this.#history.has(at.generation, at.digest)) return;
    if (position(at, this.#acked) <= 0) return;
    this.#acked = { lineage: at.lineage, generation: at.generation };
    this.#recent.forget(at.generation);
    this.#ports.onEvent({ kind: 'applied', node: this.node, ...this.#acked });
    this.#settle();
  }

  #reached(target: Position): boolean {
    return this.#doubt === 'none' && reaches(this.#acked, target);
  }

  #settle(): void {
    this.#waits.settle((target) => this.#reached(target));
  }

  #land(): void {
    this.#inFlight = null;
    this.#cancelRetry?.();
    this.#cancelRetry = null;
  }

  #backoff(attempt = this.#attempt): number {
    return Math.min(RETRY_LONGEST_MS, RETRY_FIRST_MS * 2 ** Math.min(attempt, 10));
  }

  #retryIn(ms: number): void {
    this.#cancelRetry?.();
    this.#cancelRetry = this.#ports.clock.after(ms, () => {
      this.#land();
      this.pump();
    });
  }
}

/** Order of two positions: lineage first. */
function position(a: Position, b: Position): number {
  return a.lineage - b.lineage || a.generation - b.generation;
}

/** A change committed at `target` is in every later state of the same lineage. */
function reaches(at: Position, target: Position): boolean {
  return at.lineage === target.lineage && at.generation >= target.generation;
}
