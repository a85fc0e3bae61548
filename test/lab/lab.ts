/**
 * The lab: a whole fleet on one machine, every host a network namespace with veth cables. Tests, demo and bench run on
 * it. The machine's own network namespace is left alone: nothing is made in it, and what the lab makes is gone when
 * its owner closes it, ends, crashes or is killed (janitor.sh).
 *
 *    your shell ── 127.0.0.1:… ──(handed-over sockets)──┐
 *                                                       │
 *        ┌──────────────────────────────────────────── artemis ── eth0 203.0.113.2 ─────────┐
 *        │ mesh0 100.64.0.1                    controller, broker, Postgres                  │
 *        │                                                                                  │
 *   ╔════╧════╗        ┌───────── exit 1 ─────────┐                                 ╔═══════╧════════╗
 *   ║  mesh   ╟────────┤ mesh0 100.64.0.11        │        203.0.113.11  eth0 ──────╢ inet           ║
 *   ║         ║        │        wg0 10.64.0.1     ├─────────────────────────────────╢  bridge exits  ║
 *   ║ bridge, ║        └──────────────────────────┘                                 ║ 203.0.113.0/24 ║
 *   ║  no way ║        ┌───────── exit N ─────────┐                                 ║                ║
 *   ║  out    ╟────────┤ mesh0 100.64.0.10+N      │      203.0.113.10+N  eth0 ──────╢  routes        ║
 *   ║         ║        │        wg0 10.64.0.1     ├─────────────────────────────────╢                ║
 *   ╚═════════╝        └──────────────────────────┘                                 ║  web server    ║
 *   100.64.0.0/10                                                                   ║ 198.51.100.80  ║
 *                      ┌──────── device 1 ────────┐                                 ║                ║
 *                      │ wg0 10.64.x.y            │          192.0.2.11  eth0 ──────╢ bridge devices ║
 *                      └──────────────────────────┘                                 ║  192.0.2.0/24  ║
 *                      ┌──────── device M ────────┐                                 ║                ║
 *                      │ wg0 10.64.x.y            │        192.0.2.10+M  eth0 ──────╢                ║
 *                      └──────────────────────────┘                                 ╚════════════════╝
 *
 *   IPv6 beside it:  exits 2001:db8:113::/64   devices 2001:db8:2::/64   web server 2001:db8:51::80
 *                    mesh fd7a:115c:a1e0::/48  (the last group counts as in IPv4)
 */
import { join } from 'node:path';
import { Peer } from '@katafract/shared/api';
import { prepareMosquitto } from '../mosquitto.ts';
import { Cloud } from './cloud.ts';
import { Controller, expectOk, MQTT_PORT } from './controller.ts';
import { Device, type KeyPair, makeKeys } from './device.ts';
import { Exit } from './exit.ts';
import { Host } from './host.ts';
import { cables, createInternet, createMesh, INTERNET, plug } from './network.ts';
import { type Claim, claim } from './registry.ts';
import type { Listener } from './resident.ts';
import { waitFor } from './wait.ts';

export interface RegionSpec {
  readonly id: string;
  readonly name: string;
  readonly country: string;
  readonly latitude: number;
  readonly longitude: number;
}

export interface LabOptions {
  readonly regions?: readonly RegionSpec[];
  readonly exits: readonly {
    readonly name: string;
    readonly region: string;
    readonly capacity?: number;
    /** WireGuard interfaces; one where absent. */
    readonly tunnels?: number;
  }[];
  readonly devices: number;
  /** Postgres for the controller; its own embedded one where absent. */
  readonly database?: string;
  /** `embedded` where absent. */
  readonly broker?: 'embedded' | 'mosquitto';
  readonly controllerEnv?: NodeJS.ProcessEnv;
  /** The controller may have machines from the lab. */
  readonly cloud?: boolean;
  readonly agentArgs?: readonly string[];
  readonly agentEnv?: NodeJS.ProcessEnv;
  /** What happened, as it happens. */
  readonly onStep?: (step: string) => void;
}

export const REGIONS: readonly RegionSpec[] = [
  { id: 'fra', name: 'Frankfurt', country: 'DE', latitude: 50.11, longitude: 8.68 },
  { id: 'hel', name: 'Helsinki', country: 'FI', latitude: 60.17, longitude: 24.94 },
  { id: 'sin', name: 'Singapore', country: 'SG', latitude: 1.35, longitude: 103.82 },
  { id: 'ash', name: 'Ashburn', country: 'US', latitude: 39.04, longitude: -77.49 },
  { id: 'hil', name: 'Hillsboro', country: 'US', latitude: 45.52, longitude: -122.99 },
];

/** The wires of a lab without the programs on it: hosts that can reach each other as drawn. */
export class Network {
  readonly id: string;
  readonly folder: string;
  readonly inet: Host;
  readonly mesh: Host;
  readonly artemis: Host;
  readonly exits: Exit[] = [];
  readonly devices: Device[] = [];
  readonly #claim: Claim;
  #made = 0;
  #web4: Listener | undefined;
  #web6: Listener | undefined;

  protected constructor(owned: Claim) {
    this.#claim = owned;
    this.id = owned.id;
    this.folder = owned.folder;
    this.inet = new Host(owned.id, 'inet', owned.folder);
    this.mesh = new Host(owned.id, 'mesh', owned.folder);
    this.artemis = new Host(owned.id, 'artemis', owned.folder);
  }

  /** Makes the hosts and plugs them in; resolves when every cable carries packets both ways. */
  protected async build(options: LabOptions): Promise<void> {
    await Promise.all([createInternet(this.inet), createMesh(this.mesh)]);
    for (const { name, region } of options.exits) this.#newExit(name, region, options);
    for (let index = 0; index < options.devices; index++) {
      const [cable] = cables.device(index);
      if (!cable) throw new Error('a device has a cable');
      this.devices.push(new Device(this.id, `device-${index + 1}`, this.folder, cable));
    }
    await Promise.all([
      this.artemis.create().then(() => plug(this.artemis, 'artemis', cables.artemis(), this.inet, this.mesh)),
      ...this.exits.map((exit) => exit.powerOn()),
      ...this.devices.map(async (device, index) => {
        await device.create();
        await plug(device, `d${index + 1}`, cables.device(index), this.inet, this.mesh);
      }),
    ]);
    this.#web4 = await this.inet.listen({ port: 80, address: INTERNET.ipv4, reply: 'peer' });
    this.#web6 = await this.inet.listen({ port: 80, address: INTERNET.ipv6, reply: 'peer' });
    await Promise.all([this.artemis, ...this.exits, ...this.devices].map((host) => this.#carries(host)));
  }

  #newExit(name: string, region: string, { agentArgs = [], agentEnv = {} }: LabOptions): Exit {
    const index = this.#made++;
    const spec = { name, region, wiring: cables.exit(index), port: `x${index + 1}`, agentArgs, agentEnv };
    const exit = new Exit(this.id, this.folder, spec, this.inet, this.mesh);
    this.exits.push(exit);
    return exit;
  }

  /** One more host with the cables of an exit, switched on; addresses are not used twice. */
  protected async addExit(name: string, region: string, options: LabOptions): Promise<Exit> {
    const exit = this.#newExit(name, region, options);
    await exit.powerOn();
    await this.#carries(exit);
    return exit;
  }

  /** Takes an exit out of the lab for good. */
  protected async removeExit(exit: Exit): Promise<void> {
    this.exits.splice(this.exits.indexOf(exit), 1);
    await exit.powerOff();
  }

  /** A port of a bridge forwards only a moment after it is up; a first packet may be lost to that. */
  async #carries(host: Host): Promise<void> {
    const [artemis4, artemis6] = cables.artemis().map((cable) => [cable.ipv4, cable.ipv6])[1] ?? [];
    const targets = [INTERNET.ipv4, INTERNET.ipv6, ...(host instanceof Exit ? [artemis4, artemis6] : [])];
    for (const target of targets) {
      if (target)
        await waitFor(`${host.name} to reach ${target}`, () => host.ping(target, { timeoutMs: 500 }));
    }
  }

  /** Requests that the internet's web server has seen, with the addresses they came from. */
  async webRequests(
    options: { reset?: boolean } = {},
  ): Promise<{ ipv4: readonly string[]; ipv6: readonly string[] }> {
    const [v4, v6] = await Promise.all([this.#web4?.received(options), this.#web6?.received(options)]);
    return { ipv4: v4?.peers ?? [], ipv6: v6?.peers ?? [] };
  }

  exit(name: string): Exit {
    const found = this.exits.find((exit) => exit.name === name);
    if (!found) throw new Error(`no exit ${name}`);
    return found;
  }

  /** Removes everything. Throws where something would stay behind. */
  close(): Promise<void> {
    return this.#claim.release();
  }

  /** Hosts and cables only. */
  static async start(options: LabOptions): Promise<Network> {
    const network = new Network(await claim());
    try {
      await network.build(options);
      return network;
    } catch (error) {
      await network.close();
      throw error;
    }
  }
}

/** A broker that is a process of its own. */
export interface ForeignBroker {
  kill(): Promise<unknown>;
  start(): void;
}

export class Lab extends Network {
  #controller: Controller | undefined;
  #broker: ForeignBroker | undefined;
  #cloud: Cloud | undefined;

  get controller(): Controller {
    if (!this.#controller) throw new Error('the lab is not up');
    return this.#controller;
  }

  get cloud(): Cloud {
    if (!this.#cloud) throw new Error('the lab gives no machines');
    return this.#cloud;
  }

  override async close(): Promise<void> {
    await this.#cloud?.close();
    await super.close();
  }

  get broker(): ForeignBroker {
    if (!this.#broker) throw new Error('the broker is part of the controller');
    return this.#broker;
  }

  /** Base URL of the API with all of its routes, reachable from the machine itself. */
  get api(): string {
    return this.controller.api;
  }

  get operatorToken(): string {
    return this.controller.operatorToken;
  }

  /** A fleet that is up: controller ready, every exit enrolled, its agent connected. */
  static async up(options: LabOptions): Promise<Lab> {
    const lab = new Lab(await claim());
    try {
      await lab.#bringUp(options);
      return lab;
    } catch (error) {
      const logs = lab.logTails();
      await lab.close();
      throw new Error(`the lab did not come up: ${error}\n${logs}`, { cause: error });
    }
  }

  async #bringUp(options: LabOptions): Promise<void> {
    const { onStep = () => undefined, regions = REGIONS } = options;
    await this.build(options);
    onStep(`network: ${options.exits.length} exits, ${options.devices} devices, internet, mesh`);
    const [wan, mesh] = cables.artemis();
    if (!wan || !mesh) throw new Error('artemis has two cables');
    this.#controller = new Controller({
      host: this.artemis,
      address: wan.ipv4,
      meshAddress: mesh.ipv4,
      folder: this.folder,
      ...(options.database === undefined ? {} : { database: options.database }),
      env: {
        ...(await this.#startBroker(options.broker)),
        ...(await this.#openCloud(options)),
        ...options.controllerEnv,
      },
    });
    await this.controller.connect();
    await this.controller.start();
    onStep(`controller ready at ${this.api}`);
    for (const region of regions) await this.controller.operate('POST', '/v1/admin/regions', region);
    await Promise.all(options.exits.map((spec) => this.#join(spec)));
    onStep(`${options.exits.length} exits enrolled`);
    for (const exit of this.exits) exit.startAgent();
    await this.nodesOnline();
    onStep('all agents connected');
  }

  /** @returns what the controller must be told of it */
  async #startBroker(kind: LabOptions['broker'] = 'embedded'): Promise<NodeJS.ProcessEnv> {
    if (kind === 'embedded') return {};
    const [, mesh] = cables.artemis();
    const prepared = await prepareMosquitto(join(this.folder, 'mosquitto'), mesh?.ipv4 ?? '', MQTT_PORT);
    const start = () => this.artemis.start('mosquitto', prepared.command, prepared.args);
    let program = start();
    this.#broker = {
      kill: () => program.stop('SIGKILL'),
      start: () => {
        program = start();
      },
    };
    return {
      KATAFRACT_MQTT_URL: prepared.url,
      KATAFRACT_MQTT_PUBLIC_URL: prepared.url,
      KATAFRACT_MQTT_USERNAME: prepared.username,
      KATAFRACT_MQTT_PASSWORD_FILE: prepared.passwordFile,
    };
  }

  /** @returns what the controller must be told of it */
  async #openCloud(options: LabOptions): Promise<NodeJS.ProcessEnv> {
    if (options.cloud !== true) return {};
    this.#cloud = await Cloud.open({
      add: (name, region) => this.addExit(name, region, options),
      remove: (exit) => this.removeExit(exit),
    });
    await this.artemis.expose(this.#cloud.port);
    return this.#cloud.env;
  }

  async #join(spec: LabOptions['exits'][number]): Promise<void> {
    const exit = this.exit(spec.name);
    const { token } = await this.controller.operate<{ token: string }>('POST', '/v1/admin/join-tokens', {
      region: spec.region,
      node: spec.name,
      endpoint: exit.endpoint,
      ...(spec.capacity === undefined ? {} : { capacity: spec.capacity }),
      ...(spec.tunnels === undefined ? {} : { tunnels: spec.tunnels }),
    });
    await exit.enroll(this.controller.meshUrl, token);
  }

  /** Waits until every node that is not retired has said hello. */
  async nodesOnline(): Promise<void> {
    await waitFor('all nodes online', async () => {
      const { items } = await this.controller.operate<{ items: NodeView[] }>('GET', '/v1/admin/nodes');
      const [retired, open] = [true, false].map((is) =>
        items.filter(({ state }) => (state === 'retired') === is),
      );
      const there = this.exits.filter(({ name }) => !retired?.some(({ id }) => id === name));
      return open?.length === there.length && open.every((node) => node.state === 'active' && node.connected);
    });
  }

  /** A Sigil of a new subscription. */
  async mintSigil(tier = 'pro', days = 30): Promise<string> {
    const expiresAt = new Date(Date.now() + days * 86_400_000).toISOString();
    return (await this.controller.operate<{ sigil: string }>('POST', '/v1/admin/sigils', { tier, expiresAt }))
      .sigil;
  }

  /** Provisions a key, which must succeed. */
  async provision(sigil: string, publicKey: string, region: string): Promise<Peer> {
    const answer = await this.controller.app('POST', '/v1/peers', sigil, { publicKey, region });
    return Peer.parse(expectOk(answer, 'POST /v1/peers'));
  }

  /** Gives a device a key of its own, provisions it, and brings its tunnel up as far as the first handshake. */
  async connectDevice(device: Device, sigil: string, region: string): Promise<{ peer: Peer; keys: KeyPair }> {
    const keys = makeKeys();
    const peer = await this.provision(sigil, keys.publicKey, region);
    await device.up(peer.config, keys.privateKey);
    await device.handshake();
    return { peer, keys };
  }

  /** The end of every log, for whoever has to find out why something failed. */
  logTails(lines = 20): string {
    const programs = [
      ['controller', this.#controller && (() => this.controller.log)],
      ...this.exits.map((exit) => [exit.name, () => exit.agent.log] as const),
    ] as const;
    return programs.map(([name, log]) => `── ${name}\n${tailOf(log, lines)}`).join('\n');
  }
}

function tailOf(log: (() => { tail(lines: number): string }) | undefined, lines: number): string {
  try {
    return log?.().tail(lines) ?? '(not started)';
  } catch {
    return '(not started)';
  }
}

interface NodeView {
  readonly id: string;
  readonly state: string;
  readonly connected: boolean;
}

/** Starts a lab with a fleet on it; see LabOptions. */
export const startLab = (options: LabOptions): Promise<Lab> => Lab.up(options);
