/**
 * The simulated nodes and the line between them and the controller: the Bus that the controller is given (fleet/bus.ts).
 * Messages get lost on it. Time is cut into slots; what a node is sent it answers in the next one.
 */
import type { Bus, BusHandlers } from '@katafract/controller/fleet/bus';
import type { Desired } from '@katafract/shared/desired';
import type { UpLeaf } from '@katafract/shared/topics';
import type { NodeId } from '@katafract/shared/units';
import { HEARTBEAT_SECONDS } from '@katafract/shared/uplink';
import type { Random } from '../model/random.ts';
import type { SimulatedNode, Word } from './node.ts';

export const SLOT_MS = 100;
const LOST_UP = 0.05;
const LOST_DOWN = 0.01;
/** A reboot takes so long, in seconds, from and to. */
const REBOOT_S = [30, 90] as const;

export class SimulatedFleet implements Bus {
  readonly nodes: ReadonlyMap<NodeId, SimulatedNode>;
  readonly sent = { heartbeats: 0, lost: 0, answers: 0, reboots: 0 };
  readonly #random: Random;
  readonly #agenda = new Map<number, (() => void)[]>();
  #handlers: BusHandlers | null = null;
  #now = 0;

  constructor(nodes: readonly SimulatedNode[], random: Random, start: number) {
    this.nodes = new Map(nodes.map((node) => [node.id, node]));
    this.#random = random;
    this.#now = start;
    for (const node of nodes) {
      this.#later(random.next() * 8000, () => this.#say(node, node.hello(), 0));
      this.#later(random.next() * 10_000, () => this.#beat(node));
    }
  }

  /** Runs something in the first slot after `ms`. */
  #later(ms: number, task: () => void): void {
    const slot = Math.floor((this.#now + ms) / SLOT_MS) + 1;
    const due = this.#agenda.get(slot);
    if (due) due.push(task);
    else this.#agenda.set(slot, [task]);
  }

  /** Lets whatever is due at a slot happen. @param now its time, a multiple of the slot's length */
  step(now: number): void {
    this.#now = now;
    const slot = Math.floor(now / SLOT_MS);
    const due = this.#agenda.get(slot) ?? [];
    this.#agenda.delete(slot);
    for (const task of due) task();
  }

  #beat(node: SimulatedNode): void {
    this.#later(HEARTBEAT_SECONDS * 1000 * (0.9 + 0.2 * this.#random.next()), () => this.#beat(node));
    if (!node.alive) return;
    this.sent.heartbeats++;
    this.#say(node, node.heartbeat(this.#now), LOST_UP);
    if (node.takeLease(this.#now)) this.#reboot(node);
  }

  #reboot(node: SimulatedNode): void {
    this.sent.reboots++;
    this.leave(node, this.#random.integer(...REBOOT_S) * 1000, true);
  }

  #say(node: SimulatedNode, { leaf, body }: Word, lost: number): void {
    if (!node.alive) return;
    if (this.#random.chance(lost)) {
      this.sent.lost++;
      return;
    }
    node.heard = this.#now;
    this.#hand(node.id, leaf, body);
  }

  #hand(node: NodeId, leaf: UpLeaf, body: object): void {
    this.#handlers?.onMessage(node, leaf, Buffer.from(JSON.stringify(body)));
  }

  /** A node is away for `ms`, or for good; half of the time the broker notices that its connection is gone. */
  leave(node: SimulatedNode, ms: number | null, leased = false): void {
    if (!node.alive) return;
    node.leave(this.#now, leased);
    if (this.#random.chance(0.5)) this.#hand(node.id, 'presence', { v: 1, online: false });
    if (ms === null) return;
    this.#later(ms, () => {
      node.come(this.#now);
      this.#say(node, node.hello(), 0);
    });
  }

  async start(handlers: BusHandlers): Promise<void> {
    this.#handlers = handlers;
    handlers.onConnection(true);
  }

  async publish(topic: string, payload: string): Promise<void> {
    const node = this.nodes.get((topic.split('/')[2] ?? '') as NodeId);
    if (!node?.alive || this.#random.chance(LOST_DOWN)) return;
    const text = Buffer.from(payload.split('.')[1] ?? '', 'base64url').toString();
    const answer = node.take(JSON.parse(text) as Desired);
    if (!answer) return;
    this.sent.answers++;
    this.#later(0, () => this.#say(node, answer, LOST_UP));
  }

  ready(): boolean {
    return this.#handlers !== null;
  }

  async stop(): Promise<void> {
    this.#handlers = null;
  }

  /** No connections to close and nobody to admit: simulated nodes need no tokens. */
  async evict(): Promise<void> {
    return;
  }

  async admit(): Promise<void> {
    return;
  }

  evictOperator = this.evict;
  admitOperator = this.admit;
}
