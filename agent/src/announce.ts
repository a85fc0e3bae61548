/**
 * The node's side of the conversation: when to say hello and when to say `applied`. A hello that brings nothing is
 * repeated ever more slowly, so that two histories which cannot be joined do not keep the broker busy.
 */
import { PROTOCOL } from '@katafract/shared/topics';
import type { Heartbeat } from '@katafract/shared/uplink';
import type { Held } from './desired/table.ts';
import type { Clock, Uplink } from './ports.ts';
import { hello, type Position, position, type Speaker } from './report.ts';

/** Time between two hellos that nothing came of, in milliseconds: doubled from the first to the last. */
const HELLO_PAUSE = { first: 200, last: 10_000 };

export class Announcer {
  readonly #clock: Clock;
  readonly #uplink: Uplink;
  readonly #speaker: Speaker;
  /** Makes the owner call `speak`. */
  readonly #wake: () => void;
  #connected = false;
  #stopped = false;
  #acknowledged: Position | null = null;
  /** Say `applied` again although it was said: the answer may have been lost. */
  #acknowledgeDue = false;
  #wantSnapshot = false;
  /** Something is missing that a hello should bring. */
  #waiting = false;
  /** Parts staged so far, and how many of them at the last timer: a transfer that moves needs no hello. */
  #progress = 0;
  #progressAtTimer = -1;
  #helloDue = false;
  #helloPause = HELLO_PAUSE.first;
  /** Not before this time. */
  #helloAt = 0;
  #cancelHello: () => void = () => undefined;

  constructor(clock: Clock, uplink: Uplink, speaker: Speaker, wake: () => void) {
    this.#clock = clock;
    this.#uplink = uplink;
    this.#speaker = speaker;
    this.#wake = wake;
  }

  get connected(): boolean {
    return this.#connected;
  }

  /** Every connection begins with a hello, and an answer that may not have got through is given again. */
  connect(held: Held | null): void {
    this.#connected = true;
    this.#acknowledged = null;
    this.#waiting ||= held === null;
    this.#helloPause = HELLO_PAUSE.first;
    this.#helloAt = 0;
    this.#helloDue = true;
  }

  disconnect(): void {
    this.#connected = false;
  }

  stop(): void {
    this.#stopped = true;
    this.#cancelHello();
  }

  /** Something between what is held and what came is missing. */
  gap(): void {
    this.#waiting = true;
    this.#helloDue = true;
  }

  /** The numbers may agree, the histories do not: only a snapshot helps. */
  historiesDiffer(): void {
    this.#wantSnapshot = true;
    this.gap();
  }

  staged(): void {
    this.#waiting = true;
    this.#progress++;
  }

  /** A message was accepted whole, which proves one history on both sides. */
  caughtUp(): void {
    this.#waiting = false;
    this.#helloDue = false;
    this.#wantSnapshot = false;
    this.#helloPause = HELLO_PAUSE.first;
  }

  acknowledgeAgain(): void {
    this.#acknowledgeDue = true;
  }

  onTimer(): void {
    if (this.#waiting && this.#progress === this.#progressAtTimer) this.#helloDue = true;
    this.#progressAtTimer = this.#progress;
  }

  /** Says what is due. @param applied the kernel and the disk have everything that is held */
  speak(held: Held | null, applied: boolean): void {
    if (this.#helloDue) this.#sayHello(held);
    if (!this.#connected || this.#stopped || !held || !applied) return;
    const now = position(held, this.#speaker);
    const said = this.#acknowledged;
    const news = !said || said.lineage !== now.lineage || said.generation !== now.generation;
    if (!news && !this.#acknowledgeDue) return;
    this.#acknowledgeDue = false;
    this.#acknowledged = now;
    this.#uplink.send({ leaf: 'applied', body: { v: PROTOCOL, ...now } });
  }

  beat(body: Heartbeat): void {
    if (this.#connected && !this.#stopped) this.#uplink.send({ leaf: 'heartbeat', body });
  }

  #sayHello(held: Held | null): void {
    this.#helloDue = false;
    this.#cancelHello();
    if (!this.#connected || this.#stopped) return;
    const wait = this.#helloAt - this.#clock.now();
    if (wait > 0) {
      this.#cancelHello = this.#clock.after(wait, () => {
        this.#helloDue = this.#waiting;
        this.#wake();
      });
      return;
    }
    this.#helloAt = this.#clock.now() + this.#helloPause;
    this.#helloPause = Math.min(this.#helloPause * 2, HELLO_PAUSE.last);
    this.#uplink.send({ leaf: 'hello', body: hello(this.#speaker, held, this.#wantSnapshot) });
  }
}
