/**
 * A controller process around the real NodePublisher of one node, as controller/src/fleet/fleet.ts wires it: it reads
 * the model's log where that reads Postgres, signs for real, and writes down what the node reports a little later.
 */

import type { UplinkMessage } from '@katafract/agent/ports';
import type { Advance } from '@katafract/controller/fleet/changes';
import {
  NodePublisher,
  type PublisherEvent,
  type PublisherPorts,
} from '@katafract/controller/fleet/publisher';
import type { SteadyClock } from '@katafract/shared/clock';
import { signDesired } from '@katafract/shared/desired';
import type { NodeId } from '@katafract/shared/units';
import { Applied, Heartbeat, Hello } from '@katafract/shared/uplink';
import type { Faults } from './faults.ts';
import type { LogModel, Position } from './log-model.ts';
import { Process } from './process.ts';
import type { Streams } from './random.ts';

export interface ControllerWorld {
  readonly clock: SteadyClock;
  readonly node: NodeId;
  readonly log: LogModel;
  readonly stateKey: CryptoKey;
  random(): Streams;
  faults(): Faults;
  /** Hands a signed message to the broker. */
  down(jws: string): void;
  /** Counts what came up. */
  met(what: string): void;
  /** A report was written, which the other controllers are notified of. */
  reported(applied: Position): void;
  /** For tests that break something: gets the ports and may return others. */
  tamper?(ports: PublisherPorts): PublisherPorts;
}

/** How often a controller reads every head anew, in ms (jobs.ts). */
const REFRESH_MS = 60_000;
/** How long reports gather before they are written, in ms (reports.ts). */
const REPORT_MS = 200;

export class Controller {
  readonly publisher: NodePublisher;
  readonly process: Process;
  readonly #world: ControllerWorld;
  #report: Position | null = null;
  #connection = 0;

  constructor(world: ControllerWorld) {
    this.#world = world;
    this.process = new Process(world.clock);
    const start = { head: world.log.head(world.node), acked: world.log.applied(world.node) };
    const ports: PublisherPorts = {
      clock: this.process.clock,
      log: {
        head: (node) => this.#query(() => world.log.head(node)),
        delta: (node, from) => this.#query(() => world.log.delta(node, from)),
        snapshot: (node) => this.#query(() => world.log.snapshot(node)),
        raiseLineage: (node, above) => this.#statement(() => world.log.raiseLineage(node, above)),
      },
      send: (_, messages) => this.#send(messages),
      onEvent: (event) => this.#onEvent(event),
    };
    this.publisher = new NodePublisher(world.node, start, world.tamper?.(ports) ?? ports);
    this.#refreshLater();
  }

  #refreshLater(): void {
    this.process.clock.after(REFRESH_MS, () => {
      this.refresh();
      this.#refreshLater();
    });
  }

  #duration(): number {
    const { database } = this.#world.random();
    return database.chance(0.4) ? 0 : database.integer(0, this.#world.faults().slow);
  }

  #fails(): boolean {
    return this.#world.random().database.chance(this.#world.faults().database);
  }

  /** A consistent view of some moment between asking and being answered. */
  #query<T>(read: () => T): Promise<T> {
    const early = this.#world.random().database.chance(0.5) ? { value: read() } : null;
    return this.process.step(this.#duration(), () => {
      if (this.#fails()) throw new Error('the database cannot be reached');
      return early ? early.value : read();
    });
  }

  /** A change that is committed or not where the answer is lost. */
  #statement<T>(run: () => T): Promise<T> {
    const perhaps = () => {
      if (this.#world.random().database.chance(0.5)) run();
    };
    return this.process.step(
      this.#duration(),
      () => {
        if (!this.#fails()) return run();
        perhaps();
        throw new Error('the database cannot be reached');
      },
      perhaps,
    );
  }

  async #send(messages: Parameters<PublisherPorts['send']>[1]): Promise<number> {
    const { stateKey } = this.#world;
    let bytes = 0;
    for (const message of messages) {
      const jws = await signDesired(message, stateKey, 'state');
      bytes += jws.length;
      await this.process.step(this.#duration(), () => {
        if (this.#world.random().database.chance(this.#world.faults().broker)) throw new Error('no broker');
        this.#world.down(jws);
      });
    }
    return bytes;
  }

  #onEvent(event: PublisherEvent): void {
    this.#world.met(describe(event));
    if (event.kind !== 'applied' || !this.process.alive) return;
    if (!this.#report) this.process.clock.after(REPORT_MS, () => this.#writeReport());
    this.#report = { lineage: event.lineage, generation: event.generation };
  }

  #writeReport(): void {
    const report = this.#report;
    this.#report = null;
    if (!report || this.#fails()) return;
    this.#world.log.report(this.#world.node, report);
    this.#world.reported(report);
  }

  /**
   * A transaction of this process committed; the steps of several are announced in no fixed order. Its caller waits
   * for the kernel for up to `ms`; one whose process dies gets no answer.
   */
  announce(step: Advance, ms: number, done: (applied: boolean) => void): void {
    const connection = this.#connection;
    this.process.clock.after(this.#duration(), () => {
      if (connection !== this.#connection) return;
      this.publisher.advance(step);
      void this.publisher.waitFor({ lineage: step.lineage, generation: step.to }, ms).then((applied) => {
        if (this.process.alive) done(applied);
      });
    });
  }

  /** The database was exchanged for another: callers whose answers were still on the way get an error. */
  reconnect(): void {
    this.#connection++;
    this.refresh();
  }

  /** Reads the node's row anew, as after any other change of it; where that fails, the next time will do. */
  refresh(): void {
    this.#query(() => this.#world.log.head(this.#world.node)).then(
      (head) => this.publisher.wake(head),
      () => undefined,
    );
  }

  /** @throws where the text is not a message of the schema */
  receive(leaf: UplinkMessage['leaf'], text: string): void {
    const json: unknown = JSON.parse(text);
    if (leaf === 'hello') this.publisher.hello(Hello.parse(json));
    else if (leaf === 'applied') this.publisher.applied(Applied.parse(json));
    else this.publisher.heartbeat(Heartbeat.parse(json));
  }

  kill(): void {
    this.process.kill();
    this.publisher.close();
  }
}

function describe(event: PublisherEvent): string {
  return event.kind === 'sent'
    ? `sent ${event.update}${event.attempt > 0 ? ' again' : ''}`
    : `publisher: ${event.kind}`;
}
