/**
 * The way between controller and node: it loses, doubles, delays (and so reorders) and damages messages, and whoever
 * sits on it can say again what he heard. What the controller is told goes over a connection that the broker has
 * authenticated, so there a damaged message comes out as garbage, never as another message.
 */

import type { UplinkMessage } from '@katafract/agent/ports';
import type { Clock } from '@katafract/shared/clock';
import type { Faults } from './faults.ts';
import type { Random, Streams } from './random.ts';

export interface Ends {
  /** Whether the node is connected at this moment. */
  online(): boolean;
  toNode(jws: string): void;
  toController(leaf: UplinkMessage['leaf'], text: string): void;
  /** Like toController, of what was a message once. */
  garbled(leaf: UplinkMessage['leaf'], text: string): void;
}

/** Messages kept for whoever replays them. */
const MEMORY = 300;

export class Network {
  readonly #clock: Clock;
  readonly #random: () => Streams;
  readonly #faults: () => Faults;
  readonly #ends: Ends;
  /** Everything the controller ever sent, the last ones only. */
  readonly overheard: string[] = [];
  /** Messages of the controller. */
  sent = 0;

  constructor(clock: Clock, random: () => Streams, faults: () => Faults, ends: Ends) {
    this.#clock = clock;
    this.#random = random;
    this.#faults = faults;
    this.#ends = ends;
  }

  /** From the controller; `jws` is as signed. */
  down(jws: string): void {
    this.sent++;
    this.overheard.push(jws);
    if (this.overheard.length > MEMORY) this.overheard.shift();
    const random = this.#random().down;
    this.#carry(random, () => this.#ends.toNode(this.#damaged(random, jws)));
  }

  /** From whoever sits on the way, to the node. */
  inject(jws: string): void {
    this.#clock.after(1, () => {
      if (this.#ends.online()) this.#ends.toNode(jws);
    });
  }

  up(message: UplinkMessage): void {
    const random = this.#random().up;
    const text = JSON.stringify(message.body);
    this.#carry(random, () => {
      if (!random.chance(this.#faults().damage)) this.#ends.toController(message.leaf, text);
      else this.#ends.garbled(message.leaf, text.slice(0, random.integer(0, text.length - 1)));
    });
  }

  #carry(random: Random, arrive: () => void): void {
    const { lose, double, delay } = this.#faults();
    if (random.chance(lose)) return;
    for (let copies = random.chance(double) ? 2 : 1; copies > 0; copies--) {
      this.#clock.after(1 + random.integer(0, delay), () => {
        if (!this.#ends.online()) return;
        arrive();
      });
    }
  }

  #damaged(random: Random, jws: string): string {
    return random.chance(this.#faults().damage) ? flipped(random, jws) : jws;
  }
}

/** One character made another one of its alphabet. */
export function flipped(random: Random, jws: string): string {
  const at = random.integer(0, jws.length - 1);
  return jws.slice(0, at) + (jws[at] === 'A' ? 'B' : 'A') + jws.slice(at + 1);
}
