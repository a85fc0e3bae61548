/** One run of the real agent core on the model's kernel and disk, as agent/src/main.ts wires it to the real ones. */
import { type Agent, type AgentPorts, type AgentStatus, createAgent } from '@katafract/agent/agent';
import type { UplinkMessage } from '@katafract/agent/ports';
import type { SteadyClock } from '@katafract/shared/clock';
import type { NodeConfig } from '@katafract/shared/desired';
import type { Lineage, NodeId } from '@katafract/shared/units';
import { type Disk, diskPort } from './disk.ts';
import type { Faults } from './faults.ts';
import { hostPort, type Kernel, KernelPort, type KernelWatch } from './kernel.ts';
import { Process } from './process.ts';
import type { Streams } from './random.ts';

export interface NodeWorld {
  readonly clock: SteadyClock;
  readonly node: NodeId;
  readonly kernel: Kernel;
  readonly disk: Disk;
  readonly pinnedKey: CryptoKey;
  readonly enrolledLineage: Lineage;
  readonly enrolledConfig: NodeConfig;
  random(): Streams;
  faults(): Faults;
  watch: KernelWatch;
  /** Counts what came up. */
  met(what: string): void;
  /** Hands a message to the broker. */
  up(message: UplinkMessage): void;
  /** The agent is through its first pass, and would connect now. */
  started(): void;
  /** It ended by itself: something it cannot do without failed. */
  ended(): void;
  /** For tests that break something: gets the ports and may return others. */
  tamperAgent?(ports: AgentPorts): AgentPorts;
}

const TELEMETRY = {
  cpu: 0,
  memoryUsed: 0,
  memoryTotal: 1,
  load: 0,
  uptimeSeconds: 0,
  rxBytes: 0,
  txBytes: 0,
};

export class NodeRun {
  readonly process: Process;
  readonly agent: Agent;
  ready = false;
  readonly #met: (what: string) => void;

  constructor(world: NodeWorld, boot: string) {
    this.process = new Process(world.clock);
    this.#met = (what) => world.met(what);
    const { process } = this;
    const random = world.random();
    const faults = () => world.faults();
    const ports: AgentPorts = {
      clock: process.clock,
      random: random.agent.next,
      log: {
        info: () => undefined,
        warn: (_, message) => world.met(`agent: ${message}`),
        error: ({ code }, message) => world.met(`agent: ${typeof code === 'string' ? code : message}`),
      },
      peers: new KernelPort(world.kernel, process, () => world.random().kernel, faults, world.watch),
      host: hostPort(world.kernel, process, () => world.random().host, faults),
      disk: diskPort(
        world.disk,
        process,
        () => world.random().disk,
        faults,
        () => world.watch.changed(),
      ),
      uplink: {
        send: (message) => {
          if (process.alive) world.up(message);
        },
      },
      telemetry: { read: () => process.step(0, () => TELEMETRY) },
    };
    this.agent = createAgent(world.tamperAgent?.(ports) ?? ports, {
      node: world.node,
      boot,
      version: '1.0.0',
      stateKey: world.pinnedKey,
      enrolledLineage: world.enrolledLineage,
      enrolledConfig: world.enrolledConfig,
    });
    this.agent.start().then(
      () => {
        this.ready = true;
        if (process.alive) world.started();
      },
      () => {
        if (process.alive) world.ended();
      },
    );
  }

  /** Null once it is dead. */
  status(): AgentStatus | null {
    return this.process.alive ? this.agent.status() : null;
  }

  /** Counts what it has come across, of which it says nothing more. */
  tell(): void {
    for (const reason of Object.keys(this.agent.status().refused)) this.#met(`refused: ${reason}`);
  }

  kill(): void {
    this.tell();
    this.process.kill();
  }
}
