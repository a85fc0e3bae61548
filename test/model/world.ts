/**
 *     scripts ──► operations.ts ──► log model ◄──── fleet.ts: controllers (real NodePublisher)
 *                     │                 │                │ down            ▲ up
 *                     │                 │                ▼                 │
 *                     │              oracle ◄─── network: loses, doubles, delays, damages, injects
 *                     │                 ▲                │                 ▲
 *                     ▼                 │                ▼                 │
 *               faults, crashes ──► kernel, disk ◄──── node.ts (real agent core)
 *
 * One node and its controllers in virtual time. Everything random comes from the script's seeds.
 */
import type { UplinkMessage } from '@katafract/agent/ports';
import type { NodeConfig } from '@katafract/shared/desired';
import type { Cidr4, Cidr6, Lineage, NodeId } from '@katafract/shared/units';
import type { ControllerWorld } from './controller.ts';
import { cryptoTakes } from './crypto.ts';
import { Disk } from './disk.ts';
import { CALM, type Faults } from './faults.ts';
import { Fleet, type Topology } from './fleet.ts';
import { Kernel } from './kernel.ts';
import { type Copy, LogModel } from './log-model.ts';
import { Network } from './network.ts';
import { NodeRun, type NodeWorld } from './node.ts';
import { Oracle, Violation } from './oracle.ts';
import { type Streams, streams } from './random.ts';
import { VirtualClock } from './virtual-clock.ts';

export const NODE = 'node-a' as NodeId;
export const OTHER_NODE = 'node-b' as NodeId;
const START = Date.UTC(2026, 0, 1);
const ENROLLED_LINEAGE = 1 as Lineage;
const CONFIG: NodeConfig = {
  listenPort: 51820,
  mtu: 1420,
  gateway4: '10.64.0.1/10' as Cidr4,
  gateway6: 'fd00::1/64' as Cidr6,
};

export interface Keys {
  readonly state: CryptoKeyPair;
  /** Of somebody who would like to be the controller. */
  readonly foreign: CryptoKeyPair;
}

/** Ways to break a part, for the tests that the model notices. */
export interface Tampering {
  readonly controller?: ControllerWorld['tamper'];
  readonly agent?: NodeWorld['tamperAgent'];
}

export class World {
  readonly clock: VirtualClock;
  readonly log = new LogModel();
  readonly kernel = new Kernel();
  readonly disk = new Disk();
  readonly fleet: Fleet;
  readonly network: Network;
  readonly oracle: Oracle;
  readonly keys: Keys;
  random: Streams;
  faults: Faults = CALM;
  /** Earlier states of the database, the newest last. */
  readonly copies: Copy[] = [];
  /** The first thing that must not be; the run ends with it. */
  violation: unknown = null;
  /** What came up, for whoever wants to know that a run was worth its while. */
  readonly met = new Set<string>();
  /** When the last fault under way is over. */
  faultsEnd = 0;
  #node: NodeRun | null = null;
  /** Whether the line between node and brokers is whole. */
  #line = true;
  #connected = false;
  #runs = 0;
  readonly #tampering: Tampering;

  constructor(seed: number, topology: Topology, keys: Keys, tampering: Tampering = {}) {
    this.keys = keys;
    this.#tampering = tampering;
    this.random = streams(seed);
    this.clock = new VirtualClock(START, () => this.check(() => this.oracle.observe()));
    const random = () => this.random;
    const faults = () => this.faults;
    this.log.add(NODE, ENROLLED_LINEAGE, CONFIG);
    const { controller: tamper } = tampering;
    this.fleet = new Fleet(
      {
        clock: this.clock,
        node: NODE,
        log: this.log,
        stateKey: keys.state.privateKey,
        random,
        faults,
        down: (jws) => this.network.down(jws),
        met: (what) => this.met.add(what),
        ...(tamper ? { tamper } : {}),
      },
      topology,
    );
    this.network = new Network(this.clock, random, faults, {
      online: () => this.#connected,
      toNode: (jws) => this.#node?.agent.onDesired(jws),
      toController: (leaf, text) => this.check(() => this.fleet.receive(leaf, text)),
      garbled: (leaf, text) => this.check(() => this.#garbled(leaf, text)),
    });
    this.oracle = new Oracle({
      node: NODE,
      log: this.log,
      kernel: this.kernel,
      disk: this.disk,
      status: () => this.#node?.status() ?? null,
    });
    cryptoTakes(() => this.#cryptoTime());
  }

  /** Mostly none, so that most runs stay cheap. */
  #cryptoTime(): Promise<void> {
    if (this.random.crypto.chance(0.8)) return Promise.resolve();
    return new Promise((resolve) => this.clock.after(this.random.crypto.integer(0, 3), resolve));
  }

  #garbled(leaf: UplinkMessage['leaf'], text: string): void {
    try {
      this.fleet.receive(leaf, text);
    } catch {
      return; // as it should be
    }
    if (this.fleet.hearing.length > 0) throw new Violation('a damaged message was read');
  }

  /** Runs a check; what it throws ends the run. */
  check(work: () => void): void {
    if (this.violation) return;
    try {
      work();
    } catch (error) {
      this.violation = error;
    }
  }

  get node(): NodeRun | null {
    return this.#node;
  }

  /** Does something that a fault leads to, after `ms`. */
  later(ms: number, task: () => void): void {
    this.faultsEnd = Math.max(this.faultsEnd, this.clock.now() + ms);
    this.clock.after(ms, task);
  }

  /** From now on chance comes from another seed. */
  reseed(seed: number): void {
    this.random = streams(seed);
  }

  startControllers(): void {
    this.fleet.start();
    this.#connectSoon();
  }

  killController(which: number): void {
    if (this.fleet.kill(which)) this.#disconnect();
  }

  startNode(): void {
    if (this.#node) return;
    this.oracle.restarted();
    const { agent: tamperAgent } = this.#tampering;
    this.#node = new NodeRun(
      {
        clock: this.clock,
        node: NODE,
        kernel: this.kernel,
        disk: this.disk,
        pinnedKey: this.keys.state.publicKey,
        enrolledLineage: ENROLLED_LINEAGE,
        enrolledConfig: CONFIG,
        random: () => this.random,
        faults: () => this.faults,
        watch: {
          told: (batch) => this.check(() => this.oracle.told(batch)),
          changed: () => this.check(() => this.oracle.evidence()),
        },
        up: (message) => this.#up(message),
        met: (what) => this.met.add(what),
        started: () => this.#connectSoon(),
        ended: () => {
          this.killNode();
          this.clock.after(1000, () => this.startNode());
        },
        ...(tamperAgent ? { tamperAgent } : {}),
      },
      `boot${String(++this.#runs).padStart(4, '0')}`,
    );
  }

  killNode(): void {
    this.#node?.kill();
    this.#node = null;
    this.#disconnect();
  }

  #up(message: UplinkMessage): void {
    if (message.leaf === 'applied') this.check(() => this.oracle.applied(message.body));
    if (this.#connected) this.network.up(message);
  }

  cutLine(): void {
    this.#line = false;
    this.#disconnect();
  }

  mendLine(): void {
    this.#line = true;
    this.#connectSoon();
  }

  #connectSoon(): void {
    this.clock.after(1 + this.random.operation.integer(0, this.faults.slow), () => {
      if (this.#connected || !this.#line || !this.#node?.ready || !this.fleet.connect()) return;
      this.#connected = true;
      this.#node.agent.onConnected();
    });
  }

  /** The node notices at once. */
  #disconnect(): void {
    if (!this.#connected) return;
    this.#connected = false;
    if (this.#node?.process.alive) this.#node.agent.onDisconnected();
    this.fleet.disconnected();
  }
}
