/** A WraithGate of the lab: a host with an uplink and a mesh address, a state directory and the agent on it. */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AGENT } from './bundles.ts';
import { Host } from './host.ts';
import { type Cable, plug, unplug } from './network.ts';
import { exec, type Program } from './process.ts';

/** One row of `wg show … dump`. */
export interface KernelPeer {
  readonly publicKey: string;
  readonly endpoint: string;
  /** As printed, e.g. `10.64.0.2/32,fd4b::2/128`. */
  readonly allowedIps: string;
  /** Unix seconds, 0 for never. */
  readonly latestHandshake: number;
}

export interface ExitOptions {
  readonly name: string;
  readonly region: string;
  readonly wiring: readonly Cable[];
  /** Name of its ports in the internet and the mesh. */
  readonly port: string;
  readonly agentArgs: readonly string[];
  readonly agentEnv: NodeJS.ProcessEnv;
}

export const WIREGUARD_PORT = 51820;
export const METRICS_PORT = 9105;

export class Exit extends Host {
  readonly region: string;
  readonly publicAddress4: string;
  readonly publicAddress6: string;
  readonly meshAddress: string;
  /** Holds what survives a reboot. */
  readonly stateDir: string;
  readonly tunnel = 'wg0';
  readonly #options: ExitOptions;
  readonly #inet: Host;
  readonly #mesh: Host;
  /** What runs as the agent; another release of it where one was installed. */
  agentBundle = AGENT;
  #agent: Program | undefined;

  constructor(id: string, folder: string, options: ExitOptions, inet: Host, mesh: Host) {
    super(id, options.name, folder);
    this.#options = options;
    this.#inet = inet;
    this.#mesh = mesh;
    this.region = options.region;
    const [uplink, meshSide] = options.wiring;
    if (!uplink || !meshSide) throw new Error('an exit has an uplink and a mesh cable');
    this.publicAddress4 = uplink.ipv4;
    this.publicAddress6 = uplink.ipv6;
    this.meshAddress = meshSide.ipv4;
    this.stateDir = join(folder, options.name);
    mkdirSync(this.stateDir, { recursive: true, mode: 0o700 });
  }

  /** Public WireGuard endpoint. */
  get endpoint(): string {
    return `${this.publicAddress4}:${WIREGUARD_PORT}`;
  }

  get metricsUrl(): string {
    return `http://${this.meshAddress}:${METRICS_PORT}/metrics`;
  }

  async powerOn(): Promise<void> {
    await this.create();
    await plug(this, this.#options.port, this.#options.wiring, this.#inet, this.#mesh);
  }

  /** Makes it a node of the fleet. The token travels in the environment, never on the command line. */
  async enroll(controllerUrl: string, joinToken: string): Promise<void> {
    const args = ['enroll', '--controller', controllerUrl, '--state-dir', this.stateDir];
    const env = { ...this.#options.agentEnv, KATAFRACT_JOIN_TOKEN: joinToken };
    await this.exec(process.execPath, [AGENT, ...args], { env, timeoutMs: 60_000 });
  }

  /** Command line of the agent after `run` or any other of its verbs. */
  agentArguments(verb: string): string[] {
    const place = ['--state-dir', this.stateDir, '--interface', this.tunnel];
    if (verb !== 'run') return [this.agentBundle, verb, ...place];
    const listen = ['--uplink', 'eth0', '--metrics-listen', `${this.meshAddress}:${METRICS_PORT}`];
    return [this.agentBundle, 'run', ...place, ...listen, ...this.#options.agentArgs];
  }

  startAgent(): Program {
    if (this.#agent?.running) throw new Error(`the agent on ${this.name} runs already`);
    this.#agent = this.start('agent', process.execPath, this.agentArguments('run'), this.#options.agentEnv);
    return this.#agent;
  }

  /** Ends the agent and waits for its end; tunnels stay up. */
  async stopAgent(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    await this.agent.stop(signal);
  }

  get agent(): Program {
    if (!this.#agent) throw new Error(`no agent was started on ${this.name}`);
    return this.#agent;
  }

  get agentPid(): number {
    return this.agent.pid;
  }

  /** Ends the agent and then WireGuard itself, without a word: what a kernel panic leaves of an exit. */
  async crash(): Promise<void> {
    await this.stopAgent('SIGKILL');
    const daemon = await this.wireguardPid();
    if (daemon === null) await this.exec('ip', ['link', 'delete', this.tunnel]);
    else process.kill(daemon, 'SIGKILL');
  }

  /** The daemon behind the tunnel; null where the kernel has WireGuard. */
  async wireguardPid(): Promise<number | null> {
    const pids = (await exec('ip', ['netns', 'pids', this.namespace])).split('\n').filter(Boolean);
    const wanted = `wireguard-go ${this.tunnel}`;
    const line = (pid: string) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
    const daemon = pids.find((pid) => existsSync(`/proc/${pid}`) && line(pid) === wanted);
    return daemon === undefined ? null : Number(daemon);
  }

  /** Pulls the cable to the internet out at its far end, or puts it back. */
  async plugged(is: boolean): Promise<void> {
    await this.#inet.exec('ip', ['link', 'set', this.#options.port, is ? 'up' : 'down']);
  }

  /** A power cut: processes, interfaces, rules and settings are gone, only the state directory stays. */
  async powerOff(): Promise<void> {
    await unplug(this.#options.port, this.#options.wiring, this.#inet, this.#mesh);
    await this.destroy();
    this.#agent = undefined;
  }

  /** Power cut and start. The agent is for the caller to start, as systemd would. */
  async reboot(): Promise<void> {
    await this.powerOff();
    await this.powerOn();
  }

  /** The kernel's peers on an interface; empty where there is none. */
  async peers(tunnel: string = this.tunnel): Promise<KernelPeer[]> {
    const { code, stdout } = await this.run('wg', ['show', tunnel, 'dump']);
    if (code !== 0) return [];
    const rows = stdout.trimEnd().split('\n').slice(1);
    return rows.map((row) => {
      const [publicKey = '', , endpoint = '', allowedIps = '', handshake = ''] = row.split('\t');
      return { publicKey, endpoint, allowedIps, latestHandshake: Number(handshake) };
    });
  }

  /** Adds, changes or removes peers behind the agent's back. */
  async wgSet(...args: string[]): Promise<void> {
    await this.exec('wg', ['set', this.tunnel, ...args]);
  }

  /** Text of the agent's metrics, read over the mesh from the host itself. */
  metrics(): Promise<string> {
    return this.httpGet(this.metricsUrl);
  }

  /** One sample of the agent's metrics; labels as they stand in the text, e.g. `name{kind="rogue"}`. */
  async metric(sample: string): Promise<number> {
    return sampleOf(await this.metrics(), sample);
  }

  /** All firewall rules as text that two looks can be compared by: without counters. */
  async firewall(): Promise<string> {
    const [v4, v6] = await Promise.all(['iptables-save', 'ip6tables-save'].map((tool) => this.exec(tool)));
    return `${v4}${v6}`.replace(/^#.*\n/gm, '').replace(/\[\d+:\d+\]/g, '[0:0]');
  }
}

/** Value of one sample in the text format of Prometheus; NaN where it is not there. */
export function sampleOf(text: string, sample: string): number {
  const line = text.split('\n').find((candidate) => candidate.startsWith(`${sample} `));
  return Number(line?.slice(sample.length + 1) ?? Number.NaN);
}
