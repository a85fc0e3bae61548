/**
 * The controllers and the brokers between them and the node: one or two controllers on the same database, each with a
 * broker of its own inside it, or all of them on one broker apart. They hear of each other's commits and reports by
 * notices that may be lost with the connection to the database.
 */
import type { UplinkMessage } from '@katafract/agent/ports';
import type { Advance } from '@katafract/controller/fleet/changes';
import { Controller, type ControllerWorld } from './controller.ts';
import type { Position } from './log-model.ts';

export const TOPOLOGIES = ['embedded', 'external', 'two embedded', 'two external'] as const;
export type Topology = (typeof TOPOLOGIES)[number];

export type FleetWorld = Omit<ControllerWorld, 'down' | 'reported'> & {
  /** Hands a signed message to the network. */
  down(jws: string): void;
};

export class Fleet {
  readonly #world: FleetWorld;
  readonly #external: boolean;
  readonly #controllers: (Controller | null)[];
  /** Whose broker the node was last connected to; of no meaning where there is but one broker. */
  #session = 0;

  constructor(world: FleetWorld, topology: Topology) {
    this.#world = world;
    this.#external = topology.endsWith('external');
    this.#controllers = topology.startsWith('two') ? [null, null] : [null];
  }

  get alive(): Controller[] {
    return this.#controllers.filter((one) => one !== null);
  }

  /** Those who hear the node while it is connected. */
  get hearing(): Controller[] {
    if (this.#external) return this.alive;
    const one = this.#controllers[this.#session];
    return one ? [one] : [];
  }

  /** Any of those that run, by chance. */
  any(): Controller | null {
    return this.#world.random().operation.pick(this.alive) ?? null;
  }

  start(): void {
    this.#controllers.forEach((one, index) => {
      if (one) return;
      const started: Controller = new Controller({
        ...this.#world,
        down: (jws) => {
          if (this.hearing.includes(started)) this.#world.down(jws);
        },
        reported: (at) => this.#tellOthers(started, at),
      });
      this.#controllers[index] = started;
    });
  }

  /** @returns whether the node lost its connection with it */
  kill(which: number): boolean {
    const index = which % this.#controllers.length;
    const hit = !this.#external && index === this.#session;
    this.#controllers[index]?.kill();
    this.#controllers[index] = null;
    return hit;
  }

  /** The node connects to a broker. @returns false where there is none */
  connect(): boolean {
    if (this.#external) return true;
    const up = this.#controllers.flatMap((one, index) => (one ? [index] : []));
    const session = this.#world.random().operation.pick(up);
    if (session === undefined) return false;
    this.#session = session;
    return true;
  }

  /** The brokers find out, sooner or later, that the node is gone. */
  disconnected(): void {
    for (const one of this.hearing) {
      this.#world.clock.after(this.#world.random().operation.integer(0, 2000), () => one.publisher.gone());
    }
  }

  /** A controller committed a step, and its caller waits. */
  announce(by: Controller, step: Advance, ms: number, done: (applied: boolean) => void): void {
    by.announce(step, ms, done);
    for (const one of this.#others(by)) one.refresh();
  }

  #others(than: Controller): Controller[] {
    const { random, faults } = this.#world;
    return this.alive.filter((one) => one !== than && !random().database.chance(faults().database));
  }

  #tellOthers(by: Controller, at: Position): void {
    const others = this.#others(by);
    this.#world.clock.after(1, () => {
      for (const one of others) if (one.process.alive) one.publisher.learn(at);
    });
  }

  /** The database was exchanged under them. */
  reconnect(): void {
    for (const one of this.alive) one.reconnect();
  }

  /** @throws where the text is not a message of the schema */
  receive(leaf: UplinkMessage['leaf'], text: string): void {
    for (const one of this.hearing) one.receive(leaf, text);
  }
}
