/**
 * Makes the kernel agree with what is held. Two ways in, one rule: a change tells the kernel the keys it names and no
 * others (O(change), never a dump); the timer looks at everything and tells what differs. Looking runs beside the
 * changes, so that a dump of a large table holds nobody up: keys told meanwhile are known better than the dump knows.
 *
 * Callers run `applyKeys` and `applyView` one at a time.
 */
import type { NodeConfig } from '@katafract/shared/desired';
import type { PartState } from '@katafract/shared/uplink';
import { applyPeers, type PeersApplied } from './apply/peers.ts';
import type { Held } from './desired/table.ts';
import { observePeers } from './observe/peers.ts';
import { IdleLook, type IdleMemory, NOTHING_SEEN } from './plan/idle.ts';
import {
  type KernelSummary,
  type PeerObservation,
  planForgetting,
  planKeys,
  planTable,
  summarize,
} from './plan/peers.ts';
import type {
  Gates,
  HavenCounts,
  HavenPort,
  HavenView,
  HostInspection,
  HostPort,
  HostReport,
  Log,
  PeerTablePort,
  SteadyClock,
} from './ports.ts';

export interface ReconcilerPorts {
  readonly clock: SteadyClock;
  readonly peers: PeerTablePort;
  readonly host: HostPort;
  /** Absent where the machine has no DNS filter of ours. */
  readonly haven?: HavenPort;
  readonly log: Log;
}

/** Everything a look brought back; null where that part could not be seen. */
export interface View {
  readonly epoch: number;
  readonly peers: PeerObservation | null;
  readonly host: HostInspection | null;
  /** undefined: no filter is wanted. */
  readonly haven: HavenView | null | undefined;
}

export interface HavenPass {
  /** How it was; `off` where none is wanted. */
  readonly state: HavenView['state'] | 'off';
  readonly repairs: number;
  readonly counts: HavenCounts | null;
  /** Whether clients may ask it. */
  readonly open: boolean;
}

/** What came of a full pass. */
export interface Pass {
  /** null where the kernel could not be read: a report would have to guess. */
  readonly kernel: KernelSummary | null;
  readonly recent: number;
  /** Idle peers that the kernel was made to forget. */
  readonly forgotten: number;
  readonly rules: PartState;
  readonly haven: HavenPass;
  readonly repairs: number;
  readonly failures: number;
}

/** A host that could not be looked at. */
const UNSEEN: HostReport = { ready: false, rules: 'failed', repairs: 0, failures: 1 };

export class Reconciler {
  readonly #ports: ReconcilerPorts;
  readonly #held: () => Held | null;
  readonly #config: () => NodeConfig;
  /** Whether SSH may be restricted: the helper has seen that nobody is locked out. */
  readonly #sshGuarded: () => boolean;
  /** Keys that changed and that the kernel has not been told yet. */
  #dirty = new Set<string>();
  /** Keys that the kernel did not take; told again by the timer. */
  #failed = new Set<string>();
  /** Keys the kernel took since the look under way began; null while nobody looks. */
  #told: Set<string> | null = null;
  /** Whether a full pass has been through since the last `invalidate`, so that told keys are all there is to tell. */
  #grounded = false;
  /** Whether the interface and the rules were in place after the last full pass. */
  #hostReady = false;
  #epoch = 0;
  #idleMemory: IdleMemory = NOTHING_SEEN;
  /** By the last word that the filter gave; before the first, nobody asks a filter that is wanted. */
  #dnsOpen = false;

  constructor(
    ports: ReconcilerPorts,
    held: () => Held | null,
    config: () => NodeConfig,
    sshGuarded: () => boolean = () => false,
  ) {
    this.#ports = ports;
    this.#held = held;
    this.#config = config;
    this.#sshGuarded = sshGuarded;
  }

  /** Whether the kernel took everything that is held. */
  get current(): boolean {
    return this.#grounded && this.#hostReady && this.#dirty.size === 0 && this.#failed.size === 0;
  }

  /** Whether a full pass is needed before changes can be applied one by one. */
  get needsView(): boolean {
    return !this.#grounded;
  }

  /** The held state changed at these keys. */
  touch(keys: Iterable<string>): void {
    for (const key of keys) this.#dirty.add(key);
  }

  /** The held state, or the ground under it, changed as a whole: only a look that begins now will do. */
  invalidate(): void {
    this.#grounded = false;
    this.#epoch++;
    this.#dirty.clear();
    this.#failed.clear();
  }

  /** Tells the kernel the touched keys. */
  async applyKeys(): Promise<void> {
    if (!this.#grounded || this.#dirty.size === 0) return;
    const keys = this.#dirty;
    this.#dirty = new Set();
    const applied = await applyPeers(this.#ports.peers, planKeys(this.#held(), keys));
    this.#record(keys, applied);
    if (applied.tunnelMissing) this.invalidate();
  }

  #record(keys: Iterable<string>, applied: PeersApplied): void {
    for (const key of keys) {
      if (applied.failed.has(key)) this.#failed.add(key);
      else {
        this.#failed.delete(key);
        this.#told?.add(key);
      }
    }
    if (applied.failed.size === 0) return;
    this.#ports.log.error(
      { rows: applied.failed.size, err: applied.error },
      'the kernel did not take every peer',
    );
    if (applied.tunnelMissing) this.invalidate();
  }

  /** Looks at everything, changing nothing. One look at a time. */
  async look(): Promise<View> {
    const epoch = this.#epoch;
    this.#told = new Set();
    const { clock, peers, host, haven, log } = this.#ports;
    const config = this.#config();
    const seen = async <T>(what: string, looking: Promise<T>): Promise<T | null> => {
      try {
        return await looking;
      } catch (error) {
        log.error({ err: error, part: what }, 'could not look at the host');
        return null;
      }
    };
    const idle = new IdleLook(this.#idleMemory, { now: clock.now(), elapsed: clock.elapsed() });
    const [peersSeen, hostSeen, havenSeen] = await Promise.all([
      seen('peers', observePeers(peers, this.#held, idle)),
      seen('host', host.inspect(config)),
      haven && config.haven ? seen('haven', haven.look(config)) : undefined,
    ]);
    this.#idleMemory = idle.memory();
    return { epoch, peers: peersSeen, host: hostSeen, haven: havenSeen };
  }

  /** Plans from a look and applies it; null where the look is out of date and another one is needed. */
  async applyView(view: View): Promise<Pass | null> {
    if (view.epoch !== this.#epoch) return null;
    const host = await this.#settleHost(view);
    this.#hostReady = host.ready;
    // after the rules: what leaks is closed first, and put right then
    const haven = await this.#settleHaven(view);
    const known = this.#told ?? new Set();
    this.#told = null;
    if (!view.peers)
      return { ...host, haven, kernel: null, recent: 0, forgotten: 0, failures: host.failures + 1 };
    const held = this.#held();
    const doubtful = [...this.#dirty, ...this.#failed];
    const keys = planTable(held, view.peers, known, doubtful);
    const drift = this.#grounded ? keys.size - new Set(doubtful).size : 0;
    if (drift > 0) this.#ports.log.warn({ rows: drift }, 'peers had drifted in the kernel');
    const applied = await applyPeers(this.#ports.peers, planKeys(held, keys));
    this.#dirty.clear();
    this.#grounded = true;
    this.#record(keys, applied);
    const idle = view.peers.idle.filter((key) => !keys.has(key) && !known.has(key));
    const forgotten = await applyPeers(this.#ports.peers, planForgetting(held, idle));
    this.#record(idle, forgotten);
    return {
      rules: host.rules,
      haven,
      repairs: host.repairs + haven.repairs + Math.max(0, drift - applied.failed.size),
      failures: host.failures + applied.failed.size + forgotten.failed.size,
      kernel: summarize(held, view.peers, new Set([...applied.failed, ...forgotten.failed])),
      recent: view.peers.recent,
      forgotten: idle.length - forgotten.failed.size,
    };
  }

  #gates({ haven }: View): Gates {
    if (haven === undefined) this.#dnsOpen = true;
    else if (haven?.known) this.#dnsOpen = haven.state !== 'unsafe';
    return { dnsOpen: this.#dnsOpen, sshFromMesh: this.#sshGuarded() };
  }

  async #settleHaven({ haven }: View): Promise<Pass['haven']> {
    if (haven === undefined) return { state: 'off', repairs: 0, counts: null, open: this.#dnsOpen };
    if (haven === null) return { state: 'failed', repairs: 0, counts: null, open: this.#dnsOpen };
    const { state, findings, counts } = haven;
    const wrong = findings.filter(({ holds }) => !holds).map(({ id }) => id);
    if (state !== 'ok') this.#ports.log.warn({ state, wrong }, 'the DNS filter is not as it should be');
    return { state, repairs: await haven.settle(), counts, open: this.#dnsOpen };
  }

  async #settleHost(view: View): Promise<HostReport> {
    if (!view.host) return UNSEEN;
    try {
      return await view.host.settle(view.peers?.tunnels ?? [], this.#gates(view));
    } catch (error) {
      this.#ports.log.error({ err: error }, 'the host could not be set up');
      return UNSEEN;
    }
  }
}
