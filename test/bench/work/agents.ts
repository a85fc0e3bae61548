/**
 * Agents by the thousand: each has its own identity and the connection that ships (agent/src/host/mqtt.ts), says hello,
 * takes the desired state that it is sent, acknowledges it, and sends a heartbeat each 10 s, give or take one. They have
 * no kernel: what a machine does beside talking is no business of the control plane's.
 */
import { randomBytes } from 'node:crypto';
import { type BrokerLink, brokerLink } from '@katafract/agent/host/mqtt';
import { systemClock } from '@katafract/shared/clock';
import type { Desired } from '@katafract/shared/desired';
import { EMPTY_DIGEST } from '@katafract/shared/digest';
import { type NodePublicJwk, publicJwk } from '@katafract/shared/node-token';
import { Generation, Lineage, NodeId } from '@katafract/shared/units';
import { HEARTBEAT_SECONDS } from '@katafract/shared/uplink';
import { type CryptoKey, exportJWK, generateKeyPair } from 'jose';
import { randomKey } from './exit.ts';

const VERSION = '0.1.0';

/** What the controller knows of an agent beforehand, as if it had enrolled. */
export interface AgentIdentity {
  readonly node: string;
  readonly publicKey: string;
  readonly identity: NodePublicJwk;
}

export interface AgentCounts {
  readonly agents: number;
  readonly connected: number;
  /** Agents that hold what they were sent. */
  readonly applied: number;
  readonly hellos: number;
  readonly heartbeats: number;
  readonly disconnects: number;
}

class Agent {
  readonly node: NodeId;
  readonly #key: CryptoKey;
  readonly #boot = randomBytes(12).toString('hex');
  readonly counts = { hellos: 0, heartbeats: 0, disconnects: 0 };
  connected = false;
  received = false;
  #link: BrokerLink | null = null;
  #timer: NodeJS.Timeout | undefined;
  #at = { lineage: Lineage.parse(1), generation: Generation.parse(0), digest: EMPTY_DIGEST };

  constructor(node: NodeId, key: CryptoKey) {
    this.node = node;
    this.#key = key;
  }

  start(url: string): void {
    const log = {
      info: () => undefined,
      warn: () => undefined,
      error: () => undefined,
      debug: () => undefined,
    };
    const ports = { clock: systemClock, random: Math.random, log, fetch };
    const link = brokerLink(ports, { node: this.node, broker: { url }, key: this.#key });
    this.#link = link;
    link.start({
      onConnected: () => this.#greet(link),
      onDisconnected: () => {
        this.connected = false;
        this.counts.disconnects++;
      },
      onDesired: (jws) => this.#take(link, jws),
    });
  }

  #greet(link: BrokerLink): void {
    this.connected = true;
    this.counts.hellos++;
    const want = this.received ? 'delta' : 'snapshot';
    link.send({ leaf: 'hello', body: { v: 1, boot: this.#boot, version: VERSION, ...this.#at, want } });
    this.#arm(link);
  }

  #take(link: BrokerLink, jws: string): void {
    const message = JSON.parse(Buffer.from(jws.split('.')[1] ?? '', 'base64url').toString()) as Desired;
    this.#at = { lineage: message.lineage, generation: message.to, digest: message.digest };
    this.received = true;
    link.send({ leaf: 'applied', body: { v: 1, ...this.#at } });
  }

  #arm(link: BrokerLink): void {
    clearTimeout(this.#timer);
    const wait = HEARTBEAT_SECONDS * 1000 * (0.9 + 0.2 * Math.random());
    this.#timer = setTimeout(() => {
      this.#beat(link);
      this.#arm(link);
    }, wait);
  }

  #beat(link: BrokerLink): void {
    if (!this.connected) return;
    this.counts.heartbeats++;
    const uptimeSeconds = process.uptime();
    link.send({
      leaf: 'heartbeat',
      body: {
        ...{ v: 1, boot: this.#boot, version: VERSION, at: Date.now(), ...this.#at },
        ...{ peers: 0, peersRecent: 0, rxBytes: Math.round(uptimeSeconds * 1e6), txBytes: 12_345_678 },
        ...{ cpu: 0.12, memoryUsed: 300 << 20, memoryTotal: 1 << 30, load: 0.3, uptimeSeconds },
        ...{ rules: 'ok', dns: 'ok', repairs: 0, refused: {} },
        upkeep: { rebootNeeded: false },
      },
    });
  }

  hush(): void {
    clearTimeout(this.#timer);
  }

  async stop(): Promise<void> {
    this.hush();
    await this.#link?.stop();
  }
}

async function create(node: string): Promise<{ agent: Agent; identity: AgentIdentity }> {
  const { privateKey, publicKey } = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
  const identity = publicJwk(await exportJWK(publicKey));
  return {
    agent: new Agent(NodeId.parse(node), privateKey),
    identity: { node, publicKey: randomKey(), identity },
  };
}

export function agentOperations() {
  let agents: Agent[] = [];
  const sum = (of: (agent: Agent) => number) => agents.reduce((total, agent) => total + of(agent), 0);
  return {
    async make({ count }: { count: number }): Promise<AgentIdentity[]> {
      const made = [];
      for (let at = 1; at <= count; at++) made.push(await create(`agent-${String(at).padStart(5, '0')}`));
      agents = made.map(({ agent }) => agent);
      return made.map(({ identity }) => identity);
    },

    /** Connects them all, so many a second. */
    async connect({ url, perSecond }: { url: string; perSecond: number }): Promise<void> {
      for (const [at, agent] of agents.entries()) {
        agent.start(url);
        if (at % 20 === 19) await new Promise((resolve) => setTimeout(resolve, 20_000 / perSecond));
      }
    },

    async counts(_: undefined): Promise<AgentCounts> {
      return {
        agents: agents.length,
        connected: sum(({ connected }) => Number(connected)),
        applied: sum(({ received }) => Number(received)),
        hellos: sum(({ counts }) => counts.hellos),
        heartbeats: sum(({ counts }) => counts.heartbeats),
        disconnects: sum(({ counts }) => counts.disconnects),
      };
    },

    /** From now on they listen and answer, but send no heartbeats. */
    async hush(_: undefined): Promise<void> {
      for (const agent of agents) agent.hush();
    },

    async stop(_: undefined): Promise<void> {
      await Promise.all(agents.map((agent) => agent.stop()));
    },
  };
}
export type AgentOperations = ReturnType<typeof agentOperations>;
