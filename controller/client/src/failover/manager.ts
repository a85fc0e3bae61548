/**
 * Watches a tunnel and keeps it on an exit that answers: looks, has rules.ts decide, and does what it says. What the
 * API has to say (another order of exits, one that is being drained) comes in beside that and is never waited for:
 * everything needed to fail over is at hand before it is needed.
 */
import type { Exit, Peer } from '@katafract/shared/api';
import { type Clock, sleep } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { pause } from '../http.ts';
import {
  type Decision,
  decide,
  type ExitSeen,
  type FailoverState,
  homeOf,
  initialState,
  type Observation,
  PATIENCE,
  type Patience,
  probeWait,
  RULES,
} from './rules.ts';

/** What WireGuard says of one peer. */
export interface LinkSeen {
  /** Milliseconds since the epoch, in whole seconds; null before the first. */
  readonly handshakeAt: number | null;
  readonly rxBytes: number;
}

export interface FailoverPorts {
  readonly clock: Clock;
  /** In [0, 1). */
  readonly random: () => number;
  /** Whether the gateway answers through the tunnel within so many milliseconds. */
  probe(waitMs: number): Promise<boolean>;
  /** The device has a carrier and a route to one of these at least, beside the tunnel. */
  link(exits: readonly Exit[]): Promise<boolean>;
  /** Peers of the interface, by public key. @throws KatafractError `tunnel_gone` where it was taken down */
  links(): Promise<ReadonlyMap<string, LinkSeen>>;
  /** Sends everything through this exit, in one step; `gently` keeps its peer as it is, else it is made anew. */
  use(exit: Exit, gently: boolean): Promise<void>;
  /** Makes the exit's peer anew, without routes, so that it shakes hands. */
  knock(exit: Exit): Promise<void>;
  /** Milliseconds to the exit and back beside the tunnel; null where nothing came back. */
  roundTrip(exit: Exit): Promise<number | null>;
  /** The peer as the API has it now. */
  peer(signal: AbortSignal): Promise<Peer>;
  /** Nodes that the signed region list says are being drained. @param signal ends the asking */
  draining(signal: AbortSignal): Promise<ReadonlySet<string>>;
  /** Something that the user should know; no secrets. */
  note(line: string): void;
  /** For `status`. */
  report(status: FailoverStatus): Promise<void>;
}

export interface FailoverStatus {
  readonly exit: string;
  /** Milliseconds since the epoch. */
  readonly since: number;
  readonly reason: FailoverState['reason'];
  readonly home: string | null;
  /** Why nothing better can be done now; null while all is well. */
  readonly waiting: string | null;
}

export interface FailoverOptions {
  /** In the order of provisioning. */
  readonly exits: readonly Exit[];
  /** Node that the tunnel leads to now. */
  readonly inUse: string;
  /** What an earlier run knew; see FailoverPorts. */
  readonly draining?: ReadonlySet<string>;
  readonly patience?: Patience | undefined;
}

/** Between two questions to the API, jittered by a quarter: less than the minute for which an exit that was left still answers. */
const NEWS_MS = 40_000;
const ROUND_TRIP_MS = 600_000;

export const REASONS: Record<FailoverState['reason'], string> = {
  start: 'chosen by `up`',
  dead: 'the one before did not answer',
  leaving: 'the one before is being drained',
  gone: 'the one before is not one of this peer any more',
  home: 'home is well again',
};

export class Failover {
  readonly #ports: FailoverPorts;
  readonly #patience: Patience;
  #exits: readonly Exit[];
  #draining: ReadonlySet<string>;
  readonly #roundTrips = new Map<string, number>();
  #state: FailoverState;
  /** Bytes from the exit in use at the first of the probes that were lost in a row. */
  #received: number | null = null;
  #waiting: string | null = null;
  /** What was last said of the API, so that it is said once. */
  #apiSays = '';

  constructor(ports: FailoverPorts, options: FailoverOptions) {
    const { exits, inUse, draining = new Set(), patience = PATIENCE } = options;
    this.#ports = ports;
    this.#draining = draining;
    this.#exits = exits;
    this.#patience = patience;
    this.#state = initialState(inUse, ports.clock.now());
  }

  /** Runs until the signal. @throws KatafractError `tunnel_gone` */
  async run(signal: AbortSignal): Promise<void> {
    const own = new AbortController();
    const both = AbortSignal.any([signal, own.signal]);
    const beside = [
      this.#every(NEWS_MS, () => this.#askApi(both), both),
      this.#every(ROUND_TRIP_MS, () => this.#measure(both), both),
    ];
    try {
      await this.#report();
      while (!signal.aborted) await this.#turn(signal);
    } finally {
      own.abort();
      await Promise.all(beside);
    }
  }

  /** One look, and what follows from it. */
  async #turn(signal: AbortSignal): Promise<void> {
    let lookAt = this.#ports.clock.now() + RULES.probeEvery;
    try {
      const decision = decide(this.#state, await this.#look(), this.#ports.clock.now(), this.#patience);
      await this.#carryOut(decision);
      lookAt = decision.lookAt;
    } catch (error) {
      if (!(error instanceof KatafractError) || error.code === 'tunnel_gone') throw error;
      // such as another wraith at work on this tunnel; the same look leads to the same decision
      this.#ports.note(`not done (${error.code}): ${error.message}`);
    }
    const left = lookAt - this.#ports.clock.now();
    if (left > 0) await untilAborted(pause(this.#ports.clock, left, signal));
  }

  async #look(): Promise<Observation> {
    const { ports, state } = { ports: this.#ports, state: this.#state };
    const answered = await this.#probe(probeWait(state));
    const seen = this.#seen(new Map());
    const atHome = homeOf(seen)?.node === state.exit;
    // all is well: one probe a second is all it costs
    const calm = answered && atHome && !state.trying;
    const links = calm ? new Map<string, LinkSeen>() : await ports.links();
    const key = this.#exits.find(({ node }) => node === state.exit)?.publicKey ?? '';
    const bytes = links.get(key)?.rxBytes ?? null;
    const received = !answered && bytes !== null && this.#received !== null && bytes > this.#received;
    this.#received = answered ? null : bytes;
    const link = answered || (await ports.link(this.#exits));
    return { exits: this.#seen(links), link, answered, received, random: ports.random() };
  }

  /** A probe that could not even be sent must not count for more than one that was waited for. */
  async #probe(waitMs: number): Promise<boolean> {
    const { clock } = this.#ports;
    const end = clock.now() + waitMs;
    if (await this.#ports.probe(waitMs)) return true;
    if (clock.now() < end) await sleep(clock, end - clock.now());
    return false;
  }

  #seen(links: ReadonlyMap<string, LinkSeen>): ExitSeen[] {
    return this.#exits.map(({ node, role, publicKey }) => ({
      node,
      leaving: role === 'leaving' || this.#draining.has(node),
      handshakeAt: links.get(publicKey)?.handshakeAt ?? null,
      rttMs: this.#roundTrips.get(node),
    }));
  }

  /** The state is taken over only once the deed is done: what failed is decided again. */
  async #carryOut({ state, action }: Decision): Promise<void> {
    const before = this.#state;
    if (action.kind === 'knock') await this.#ports.knock(this.#exit(action.at));
    if (action.kind === 'switch') {
      await this.#ports.use(this.#exit(action.to), action.gently);
      this.#received = null;
      this.#ports.note(`${before.exit} → ${action.to}: ${REASONS[action.reason]}`);
    }
    this.#state = state;
    const waiting = action.kind === 'wait' ? action.reason : state.waitUntil === null ? null : this.#waiting;
    if (waiting !== this.#waiting && waiting !== null) this.#ports.note(`waiting: ${waiting}`);
    if (before.trying && !state.trying) this.#ports.note(`${state.exit} answers`);
    const changed = waiting !== this.#waiting || action.kind === 'switch';
    this.#waiting = waiting;
    if (changed) await this.#report();
  }

  #exit(node: string): Exit {
    const exit = this.#exits.find((candidate) => candidate.node === node);
    if (exit === undefined) throw new KatafractError('exit_unknown', `${node} is not one of this peer`);
    return exit;
  }

  #report(): Promise<void> {
    const { exit, since, reason } = this.#state;
    const home = homeOf(this.#seen(new Map()))?.node ?? null;
    return this.#ports.report({ exit, since, reason, home, waiting: this.#waiting });
  }

  /** Exits and their order, and who is being drained; the last that is known holds while the API is away. */
  async #askApi(signal: AbortSignal): Promise<void> {
    let says = 'the API answers';
    const failed = (error: unknown) => {
      if (!(error instanceof KatafractError)) throw error;
      says = `the API: ${error.message} (${error.code})`;
    };
    const [peer, draining] = await Promise.all([
      this.#ports.peer(signal).catch(failed),
      this.#ports.draining(signal).catch(failed),
    ]);
    if (signal.aborted) return;
    if (peer && peer.exits.length > 0) this.#exits = peer.exits;
    if (draining) this.#draining = draining;
    if (says !== this.#apiSays && (this.#apiSays !== '' || !says.endsWith('answers'))) this.#ports.note(says);
    this.#apiSays = says;
  }

  async #measure(signal: AbortSignal): Promise<void> {
    for (const exit of this.#exits) {
      if (signal.aborted) return;
      const took = await this.#ports.roundTrip(exit);
      if (took === null) this.#roundTrips.delete(exit.node);
      else this.#roundTrips.set(exit.node, took);
    }
  }

  async #every(ms: number, task: () => Promise<void>, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await task();
      } catch (error) {
        // only news: without it the exits at hand are used as they are
        this.#ports.note(`could not look beyond the tunnel: ${String(error)}`);
      }
      const jittered = ms * (0.75 + this.#ports.random() / 2);
      await untilAborted(pause(this.#ports.clock, jittered, signal));
    }
  }
}

/** A pause that was aborted is over. */
async function untilAborted(wait: Promise<void>): Promise<void> {
  try {
    await wait;
  } catch (error) {
    if (!(error instanceof KatafractError && error.code === 'aborted')) throw error;
  }
}
