/**
 * The agent: takes desired state in, keeps the host in line with it, and says what it holds. One loop does all of it.
 * A message, a timer, a connection only leave something to do and wake the loop; what it does depends on what is there,
 * never on who woke it. Messages that arrive while a pass runs are taken together by the next one.
 */

import { type Desired, type NodeConfig, verifyDesired } from '@katafract/shared/desired';
import { KatafractError } from '@katafract/shared/errors';
import type { Lineage, NodeId } from '@katafract/shared/units';
import { HEARTBEAT_SECONDS, type Heartbeat } from '@katafract/shared/uplink';
import type { CryptoKey } from 'jose';
import { Announcer } from './announce.ts';
import { type Ledger, openLedger } from './desired/ledger.ts';
import { receive, type Staging } from './desired/receive.ts';
import { type Change, type Held, outcome } from './desired/table.ts';
import type {
  HavenPort,
  HostPort,
  LedgerDisk,
  Log,
  PeerTablePort,
  SteadyClock,
  TelemetryPort,
  Uplink,
} from './ports.ts';
import { type Pass, Reconciler, type View } from './reconcile.ts';
import { Counts, heartbeat, type Position, position, type Speaker } from './report.ts';
import { type Settled, settleUpkeep, type UpkeepPort } from './upkeep/upkeep.ts';

export interface AgentPorts {
  readonly clock: SteadyClock;
  /** Uniform in [0, 1), for jitter. */
  readonly random: () => number;
  readonly log: Log;
  readonly peers: PeerTablePort;
  readonly host: HostPort;
  readonly disk: LedgerDisk;
  readonly uplink: Uplink;
  readonly telemetry: TelemetryPort;
  /** Absent where the machine has no DNS filter of ours. */
  readonly haven?: HavenPort;
  /** Absent where the machine is kept by other means. */
  readonly upkeep?: UpkeepPort;
}

export interface AgentSettings extends Speaker {
  readonly node: NodeId;
  /** The controller's state key, pinned when the node enrolled. */
  readonly stateKey: CryptoKey;
  readonly enrolledLineage: Lineage;
  /** In force until the controller sends another. */
  readonly enrolledConfig: NodeConfig;
  /** Milliseconds between full passes (and heartbeats) before jitter; HEARTBEAT_SECONDS where absent. */
  readonly intervalMs?: number;
}

export interface AgentStatus {
  readonly position: Position;
  readonly received: boolean;
  readonly heldPeers: number;
  /** The kernel took all of it, and the disk has it. */
  readonly applied: boolean;
  readonly connected: boolean;
  /** Since the last full pass ended, in ms; null before the first. */
  readonly lastPassAge: number | null;
  readonly lastPass: Pass | null;
  readonly lastHeartbeat: Heartbeat | null;
  readonly repairs: number;
  readonly failures: number;
  readonly forgotten: number;
  readonly refused: Readonly<Record<string, number>>;
}

export interface Agent {
  /** Loads what is held and brings the host in line with it, network or not; resolves after that first pass. */
  start(): Promise<void>;
  /** Lets the pass under way finish and does no more. The host stays as it is. */
  stop(): Promise<void>;
  /** A raw message from the broker. */
  onDesired(jws: string): void;
  onConnected(): void;
  onDisconnected(): void;
  /** Somebody may have changed the host. */
  onHostChanged(): void;
  /** Resolves when there is nothing to do until the next event or timer. */
  idle(): Promise<void>;
  status(): AgentStatus;
}

/** Messages waiting beyond this are dropped; the node then says hello and is carried on from what it holds. */
const INBOX_LIMIT = 1024;
const HAVEN_PAUSE_MS = { first: 1000, last: 16_000 };
/** Between two looks for changes of the host, in ms: whoever changes it without end must not keep the node busy. */
const CHANGE_PAUSE_MS = 1000;
/** A part is near 350 kB; nothing honest is larger than this, in characters. */
const LARGEST_MESSAGE = 2_000_000;
type Opened = { readonly message: Desired } | { readonly refused: string };

export function createAgent(ports: AgentPorts, settings: AgentSettings): Agent {
  return new LoopAgent(ports, settings);
}

class LoopAgent implements Agent {
  readonly #ports: AgentPorts;
  readonly #settings: AgentSettings;
  readonly #counts = new Counts();
  readonly #reconciler: Reconciler;
  readonly #announcer: Announcer;
  #ledger: Ledger | null = null;
  #stopped = false;

  readonly #inbox: Promise<Opened>[] = [];
  #staging: Staging | null = null;
  /** A look that is ready to be acted on. */
  #view: View | null = null;
  #looking: Promise<void> | null = null;
  /** Something changed while a look was under way, which may have missed it. */
  #lookAgain = false;
  /** No look for a change of the host before this, by the clock's `elapsed`. */
  #quietUntil = 0;
  #cancelQuiet: (() => void) | null = null;
  #busy = false;
  /** The loop's last run. */
  #running: Promise<void> = Promise.resolve();
  #cancelTimer: () => void = () => undefined;
  #heartbeatDue = false;
  #introduced = false;
  #upkeepDue = false;
  #upkeep: Settled | null = null;
  /** Until the next look at a DNS filter that is not well, in ms. */
  #havenPause = HAVEN_PAUSE_MS.first;
  #lastPass: Pass | null = null;
  #lastPassAt: number | null = null;
  #lastHeartbeat: Heartbeat | null = null;

  constructor(ports: AgentPorts, settings: AgentSettings) {
    this.#ports = ports;
    this.#settings = settings;
    const config = () => this.#held()?.config ?? settings.enrolledConfig;
    this.#reconciler = new Reconciler(
      ports,
      () => this.#held(),
      config,
      () => this.#upkeep?.sshGuarded ?? false,
    );
    this.#announcer = new Announcer(ports.clock, ports.uplink, settings, () => this.#wake());
  }

  #held(): Held | null {
    return this.#ledger?.held ?? null;
  }

  async start(): Promise<void> {
    this.#ledger = await openLedger(this.#ports.disk, this.#settings.node, this.#ports.log);
    this.#armTimer();
    this.#look();
    await this.idle();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#cancelTimer();
    this.#cancelQuiet?.();
    this.#announcer.stop();
    await this.idle();
    await this.#ledger?.quiet();
  }

  onDesired(jws: string): void {
    if (this.#stopped) return;
    if (this.#inbox.length >= INBOX_LIMIT) {
      this.#refuse('overflow');
      this.#announcer.gap();
      return;
    }
    this.#inbox.push(this.#open(jws));
    this.#wake();
  }

  onConnected(): void {
    this.#announcer.connect(this.#held());
    this.#upkeepDue = true;
    if (!this.#introduced) {
      // whoever waits for this version, or for the end of a reboot, need not wait for the timer
      this.#introduced = true;
      this.#heartbeatDue = true;
      this.#look();
    }
    this.#wake();
  }

  onDisconnected(): void {
    this.#announcer.disconnect();
  }

  onHostChanged(): void {
    if (this.#stopped || this.#cancelQuiet) return;
    const { clock } = this.#ports;
    const wait = this.#quietUntil - clock.elapsed();
    if (wait > 0) {
      this.#cancelQuiet = clock.after(wait, () => {
        this.#cancelQuiet = null;
        this.onHostChanged();
      });
      return;
    }
    this.#quietUntil = clock.elapsed() + CHANGE_PAUSE_MS;
    this.#lookAgain = this.#looking !== null || this.#view !== null;
    this.#look();
  }

  async idle(): Promise<void> {
    while (this.#busy || this.#looking) await Promise.all([this.#running, this.#looking]);
  }

  status(): AgentStatus {
    const held = this.#held();
    return {
      position: position(held, this.#settings),
      received: held !== null,
      heldPeers: held?.peers.size ?? 0,
      applied: this.#applied(),
      connected: this.#announcer.connected,
      lastPassAge: this.#lastPassAt === null ? null : this.#ports.clock.elapsed() - this.#lastPassAt,
      lastPass: this.#lastPass,
      lastHeartbeat: this.#lastHeartbeat,
      repairs: this.#counts.repairs,
      failures: this.#counts.failures,
      forgotten: this.#counts.forgotten,
      refused: { ...this.#counts.refused },
    };
  }

  #applied(): boolean {
    return this.#held() !== null && this.#reconciler.current && this.#ledger?.durable === true;
  }

  /** Begins at once, so that signatures are checked while a pass runs. Never rejects. */
  async #open(jws: string): Promise<Opened> {
    if (jws.length > LARGEST_MESSAGE) return { refused: 'size' };
    try {
      return { message: await verifyDesired(jws, this.#settings.stateKey, this.#settings.node) };
    } catch (error) {
      const reason = error instanceof KatafractError ? error.detail?.reason : undefined;
      return { refused: typeof reason === 'string' ? reason : 'signature' };
    }
  }

  #wake(): void {
    if (this.#busy || !this.#ledger) return;
    this.#busy = true;
    this.#running = this.#loop();
  }

  async #loop(): Promise<void> {
    await Promise.resolve(); // what the same turn of the event loop leaves to do is taken together
    for (;;) {
      if (this.#view) await this.#fullPass(this.#view);
      else if (this.#inbox.length > 0) await this.#changePass();
      else if (this.#upkeepDue) await this.#settleUpkeep();
      else break;
    }
    this.#speak();
    this.#busy = false;
  }

  async #changePass(): Promise<void> {
    for (const opening of this.#inbox.splice(0)) this.#take(await opening);
    await Promise.all([this.#flush(), this.#reconciler.applyKeys()]);
    if (this.#reconciler.needsView) this.#look();
    this.#speak();
  }

  async #fullPass(view: View): Promise<void> {
    this.#view = null;
    const [pass] = await Promise.all([
      this.#reconciler.applyView(view),
      this.#flush(),
      this.#heartbeatDue ? this.#settleUpkeep() : undefined,
    ]);
    if (pass) this.#watchHaven(pass);
    if (!pass || this.#lookAgain) {
      this.#lookAgain = false;
      this.#look();
    }
    if (!pass) return;
    this.#lastPass = pass;
    this.#lastPassAt = this.#ports.clock.elapsed();
    this.#counts.add(pass);
    this.#speak();
    if (this.#heartbeatDue) await this.#sendHeartbeat(pass);
  }

  /** A filter that was put right is looked at again at once, one that is not well ever less often. */
  #watchHaven({ haven: { state, repairs } }: Pass): void {
    if (state === 'off' || (state === 'ok' && repairs === 0)) {
      this.#havenPause = HAVEN_PAUSE_MS.first;
      return;
    }
    const pause = repairs > 0 ? 0 : this.#havenPause;
    if (repairs === 0) this.#havenPause = Math.min(pause * 2, HAVEN_PAUSE_MS.last);
    this.#ports.clock.after(pause, () => this.onHostChanged());
  }

  async #flush(): Promise<void> {
    try {
      await this.#ledger?.flush();
    } catch (error) {
      this.#counts.failures++;
      this.#ports.log.error(
        { err: error },
        'held state could not be written; nothing is acknowledged until it is',
      );
    }
  }

  async #settleUpkeep(): Promise<void> {
    this.#upkeepDue = false;
    const { upkeep, haven, clock, log } = this.#ports;
    if (!upkeep) return;
    const { version } = this.#settings;
    const config = this.#held()?.config;
    const wish = {
      upkeep: config?.upkeep,
      haven: (config && haven?.request(config)) ?? null,
      sshFromMesh: config?.sshFromMesh !== undefined,
    };
    const state = { version, connected: this.#announcer.connected, now: clock.now() };
    const before = this.#upkeep?.sshGuarded ?? false;
    this.#upkeep = (await settleUpkeep(upkeep, wish, state, log)) ?? this.#upkeep;
    // the rules follow what the helper has done
    if ((this.#upkeep?.sshGuarded ?? false) !== before) this.onHostChanged();
  }

  #refuse(reason: string): void {
    const first = this.#counts.refuse(reason);
    if (first) this.#ports.log.warn({ reason }, 'desired state refused');
  }

  #take(opened: Opened): void {
    if ('refused' in opened) {
      this.#refuse(opened.refused);
      return;
    }
    const { enrolledLineage } = this.#settings;
    const verdict = receive({ held: this.#held(), enrolledLineage, staging: this.#staging }, opened.message);
    switch (verdict.kind) {
      case 'ignore':
        if (verdict.acknowledge) this.#announcer.acknowledgeAgain();
        return;
      case 'gap':
        this.#announcer.gap();
        return;
      case 'stage':
        this.#staging = verdict.staging;
        this.#announcer.staged();
        return;
      case 'refuse':
        if (verdict.reason !== 'stale') this.#staging = null; // an old message takes nothing from a newer one
        this.#refuse(verdict.reason);
        if (verdict.resend) this.#announcer.historiesDiffer();
        return;
      case 'same':
        this.#staging = null;
        this.#announcer.caughtUp();
        this.#announcer.acknowledgeAgain();
        this.#reconciler.invalidate();
        return;
      case 'accept':
        this.#accept(verdict.change);
    }
  }

  #accept(change: Change): void {
    this.#staging = null;
    this.#announcer.caughtUp();
    this.#ledger?.accept(change);
    if (change.config) this.#upkeepDue = true;
    if (change.kind === 'snapshot' || change.config) this.#reconciler.invalidate();
    else this.#reconciler.touch(outcome(change).keys());
  }

  /** A node that cannot write down what it holds says nothing: every word of it counts as a promise. */
  #speak(): void {
    if (this.#ledger?.durable) this.#announcer.speak(this.#held(), this.#applied());
  }

  #armTimer(): void {
    const interval = this.#settings.intervalMs ?? HEARTBEAT_SECONDS * 1000;
    const wait = interval * (0.9 + 0.2 * this.#ports.random());
    this.#cancelTimer = this.#ports.clock.after(wait, () => {
      this.#armTimer();
      this.#heartbeatDue = true;
      this.#counts.forget();
      this.#announcer.onTimer();
      this.#look();
      this.#wake();
    });
  }

  /** Looks at everything beside the loop, which acts on it when it is there. */
  #look(): void {
    if (this.#looking || this.#view || this.#stopped) return;
    this.#looking = this.#reconciler.look().then((view) => {
      this.#looking = null;
      this.#view = view;
      this.#wake();
    });
  }

  async #sendHeartbeat(pass: Pass): Promise<void> {
    this.#heartbeatDue = false;
    try {
      const telemetry = await this.#ports.telemetry.read();
      const now = this.#ports.clock.now();
      const said = heartbeat(this.#settings, this.#held(), pass, telemetry, this.#counts, now);
      const body = said && this.#upkeep ? { ...said, upkeep: this.#upkeep.report } : said;
      this.#counts.said(pass);
      this.#lastHeartbeat = body ?? this.#lastHeartbeat;
      if (body && this.#ledger?.durable) this.#announcer.beat(body);
    } catch (error) {
      this.#ports.log.error({ err: error }, 'no heartbeat: the machine could not be read');
    }
  }
}
