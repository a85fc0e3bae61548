/**
 * The test bed: one Postgres for the whole run, and fleets on the lab, one after the other, each on a database of its
 * own with the controller and the agents as they ship.
 */
import { mkdirSync } from 'node:fs';
import { type AddressPlan, addressPlan } from '@katafract/shared/addresses';
import { Cidr4, Cidr6, type NodeId } from '@katafract/shared/units';
import { type Database, openDatabase } from '../../controller/src/platform/db.ts';
import { createLogger } from '../../controller/src/platform/log.ts';
import type { Exit } from '../lab/exit.ts';
import type { Host } from '../lab/host.ts';
import { Lab, type LabOptions } from '../lab/lab.ts';
import { waitFor } from '../lab/wait.ts';
import type { TestDatabase, TestPostgres } from '../postgres.ts';
import { loadPeers } from './load.ts';
import { Place } from './place.ts';
import type { WorkerOperations } from './worker.ts';

/** The controller's defaults. */
const POOL = ['10.64.0.0/10', 'fd4b:6174:6166::/64'] as const;
const CAPACITY = 100_000;

export interface NodeView {
  readonly id: string;
  readonly generation: number;
  readonly applied: number;
  readonly connected: boolean;
}

export type Worker = Place<WorkerOperations>;

export interface Subscription {
  readonly id: string;
  readonly sigil: string;
}

export type FleetOptions = Required<Pick<LabOptions, 'regions' | 'exits' | 'onStep'>> & {
  /** Where CPU profiles of the programs under test go; null for none. */
  readonly profiles: string | null;
  /** Of the controller, beside what the bench sets. */
  readonly controllerEnv?: NodeJS.ProcessEnv;
  /** One where absent. */
  readonly devices?: number;
};

/** Environment of a program that is to be profiled. */
export function profiling(folder: string | null): NodeJS.ProcessEnv {
  if (folder === null) return {};
  mkdirSync(folder, { recursive: true });
  const profiler = new URL('profiler.mjs', import.meta.url).href;
  return { KATAFRACT_BENCH_PROFILES: folder, NODE_OPTIONS: `--import=${profiler}` };
}

/** A fleet that is up, and places on its hosts where the bench can work. */
export class Fleet {
  readonly lab: Lab;
  readonly db: Database;
  readonly databaseUrl: string;
  readonly #plan: AddressPlan = addressPlan(Cidr4.parse(POOL[0]), Cidr6.parse(POOL[1]));
  readonly #database: TestDatabase;
  readonly #places = new Map<string, Promise<Worker>>();

  private constructor(lab: Lab, database: TestDatabase, db: Database) {
    this.lab = lab;
    this.#database = database;
    this.databaseUrl = database.url;
    this.db = db;
  }

  static async up(postgres: TestPostgres, options: FleetOptions): Promise<Fleet> {
    const database = await postgres.createDatabase();
    const log = createLogger('warn', { write: (line) => process.stderr.write(line) });
    const db = await openDatabase(database.url, log, { max: 2, name: 'bench' });
    const exits = options.exits.map((exit) => ({ ...exit, capacity: CAPACITY }));
    const env = profiling(options.profiles);
    const controllerEnv = { ...options.controllerEnv, ...env };
    const programs = { controllerEnv, agentEnv: env, database: database.url };
    const { regions, onStep, devices = 1 } = options;
    const lab = await Lab.up({ regions, exits, devices, onStep, ...programs });
    return new Fleet(lab, database, db);
  }

  /** The API as a device reaches it: through the internet. */
  get api(): string {
    return this.lab.controller.publicUrl;
  }

  exit(name: string): Exit {
    return this.lab.exit(name);
  }

  place(host: Host): Promise<Worker> {
    const there = this.#places.get(host.name) ?? Place.worker(host);
    this.#places.set(host.name, there);
    return there;
  }

  get device(): Promise<Worker> {
    const [device] = this.lab.devices;
    if (!device) throw new Error('the bench has one device');
    return this.place(device);
  }

  async subscribe(tier: string): Promise<Subscription> {
    const expiresAt = new Date(Date.now() + 30 * 86_400_000).toISOString();
    const minted = await this.lab.controller.operate<{ subscription: string; sigil: string }>(
      'POST',
      '/v1/admin/sigils',
      { tier, expiresAt },
    );
    return { id: minted.subscription, sigil: minted.sigil };
  }

  async nodes(): Promise<Map<string, NodeView>> {
    const { items } = await this.lab.controller.operate<{ items: NodeView[] }>('GET', '/v1/admin/nodes');
    return new Map(items.map((node) => [node.id, node]));
  }

  /** Commits peers to a node's table, and to those of their standbys, behind the controller's back. */
  async commitPeers(exit: Exit, count: number, standbys: readonly NodeId[] = []): Promise<void> {
    const { id } = await this.subscribe('ops');
    const target = { node: exit.name as NodeId, standbys, region: exit.region, subscription: id };
    await loadPeers(this.db, this.#plan, target, count);
  }

  /** Waits until an exit has applied its newest generation, and looks into the kernel whether that is so. */
  async converged(exit: Exit, peers: number): Promise<void> {
    const options = { deadlineMs: 120_000, everyMs: 200 };
    await waitFor(
      `${exit.name} to apply`,
      async () => {
        const node = (await this.nodes()).get(exit.name);
        return node !== undefined && node.applied === node.generation;
      },
      options,
    );
    const place = await this.place(exit);
    const table = await place.do('kernelTable', { name: exit.tunnel });
    const found = Object.keys(table).length;
    if (found !== peers) throw new Error(`${exit.name} has ${found} peers in its kernel, not ${peers}`);
  }

  async close(): Promise<void> {
    for (const place of this.#places.values()) await (await place).end();
    for (const exit of this.lab.exits) await exit.stopAgent();
    await this.lab.controller.stop();
    await this.lab.close();
    await this.db.close();
    const leaks = await this.#database.drop();
    if (leaks.length > 0) console.error(`connections were left open:\n${leaks.join('\n')}`);
  }
}
