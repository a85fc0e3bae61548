/**
 * Which peers the kernel is to forget, pure. WireGuard keeps the endpoint and the time of the last handshake of every
 * peer until it is removed; for one that has gone quiet they serve nobody but whoever seizes the machine. Removed and
 * added again, a peer has neither, and its tunnel comes back by itself with the device's next packet.
 *
 * A session without a new handshake is dead after 180 s (REJECT_AFTER_TIME; Donenfeld, "WireGuard", section 6), so
 * nothing is lost with it.
 */

/** A peer counts as recent for this long after a handshake, in seconds: WireGuard's REJECT_AFTER_TIME. */
export const RECENT_SECONDS = 180;
/** A handshake that began is done within this, or is begun anew, in ms: WireGuard's REKEY_TIMEOUT, twice. */
const HANDSHAKE_MS = 10_000;
/** Clocks drift apart by less than this between two looks, in ms; more is a step. */
const STEP_MS = 2000;
/** After a step of the clock every session that lives has shaken hands by the new time within this, in ms. */
const UNSURE_MS = (RECENT_SECONDS + 10) * 1000;

export interface Times {
  /** Milliseconds since the epoch, by the clock that WireGuard stamps handshakes with. */
  readonly now: number;
  /** Milliseconds by a clock that never steps. */
  readonly elapsed: number;
}

/** What is remembered from one look to the next. */
export interface IdleMemory {
  /** The step between the two clocks; null before the first look. */
  readonly offset: number | null;
  /** Stamps are not believed before this, by `elapsed`. */
  readonly unsureUntil: number;
  /** Peers that have an endpoint and never shook hands, and since when, by `elapsed`. */
  readonly begun: ReadonlyMap<string, number>;
}

export const NOTHING_SEEN: IdleMemory = { offset: null, unsureUntil: 0, begun: new Map() };

/** One look at every peer. */
export class IdleLook {
  readonly #times: Times;
  readonly #before: IdleMemory;
  readonly #offset: number;
  readonly #unsureUntil: number;
  readonly #begun = new Map<string, number>();
  /** To be forgotten. */
  readonly idle: string[] = [];
  recent = 0;

  constructor(before: IdleMemory, times: Times) {
    this.#before = before;
    this.#times = times;
    this.#offset = times.now - times.elapsed;
    const stepped = before.offset !== null && Math.abs(this.#offset - before.offset) > STEP_MS;
    this.#unsureUntil = stepped ? times.elapsed + UNSURE_MS : before.unsureUntil;
  }

  /** @param handshake Unix seconds, 0 never; @param known whether the kernel has an endpoint */
  see(publicKey: string, handshake: number, known: boolean): void {
    const { now, elapsed } = this.#times;
    if (handshake > 0) {
      const age = now / 1000 - handshake;
      const recent = age < RECENT_SECONDS;
      if (recent) this.recent++;
      // a stamp from the future is from before a step back
      const live = recent && age > -STEP_MS / 1000;
      if (!live && elapsed >= this.#unsureUntil) this.idle.push(publicKey);
    } else if (known) {
      const since = this.#before.begun.get(publicKey) ?? elapsed;
      if (elapsed - since >= HANDSHAKE_MS) this.idle.push(publicKey);
      else this.#begun.set(publicKey, since);
    }
  }

  memory(): IdleMemory {
    return { offset: this.#offset, unsureUntil: this.#unsureUntil, begun: this.#begun };
  }
}
