/**
 * What providers have, held against what is known here: machines that are ours by their label and stand behind no open
 * row cost money for nobody and are removed; rows whose machine is not there any more wait for nothing. Either is acted
 * on only when it was seen twice, some time apart: lists of providers lag behind, and a machine may be made just now.
 */
import type { Audit } from '../../audit/audit.ts';
import type { Database } from '../../platform/db.ts';
import type { Logger } from '../../platform/log.ts';
import type { MachineMetrics } from './metrics.ts';
import type { Provider, ProviderName } from './provider.ts';
import * as store from './store.ts';

export interface OrphansDeps {
  readonly db: Database;
  readonly audit: Audit;
  readonly log: Logger;
  readonly providers: readonly Provider[];
  readonly metrics: MachineMetrics;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

/**
 * More at once are not what a failed step left: rather this database has lost history, and they carry clients. Then a
 * person has to look.
 */
const MOST_ORPHANS = 2;
/** Between the two looks, in ms. */
export const TWICE_MS = 10 * 60_000;
const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export class Orphans {
  readonly #deps: OrphansDeps;
  /** When something was first seen to be wrong; forgotten with the process, which only makes it wait longer. */
  readonly #since = new Map<string, number>();

  constructor(deps: OrphansDeps) {
    this.#deps = deps;
  }

  async sweep(): Promise<void> {
    for (const provider of this.#deps.providers) {
      if (!provider.automatic) continue;
      try {
        await this.#sweep(provider);
      } catch (err) {
        this.#deps.metrics.failures.inc({ code: 'sweep_failed' });
        this.#deps.log.warn(
          { err, reason: provider.name },
          "a provider's machines could not be looked through",
        );
      }
    }
  }

  async #sweep(provider: Provider): Promise<void> {
    const { db } = this.#deps;
    // the list first: whatever is wanted while it is on its way is then known below
    const there = new Set((await provider.list()).map(({ machine }) => machine));
    const open = await store.openOf(db.sql, provider.name);
    const known = new Set(open.map(({ id }) => id));
    const orphans = [...there].filter((id) => !known.has(id));
    const vanished = open.filter(
      ({ id, state }) => !there.has(id) && (state === 'booting' || state === 'serving'),
    );
    const wrong = new Set(
      [...orphans, ...vanished.map(({ id }) => id)].map((id) => `${provider.name} ${id}`),
    );
    for (const key of this.#since.keys()) {
      if (key.startsWith(`${provider.name} `) && !wrong.has(key)) this.#since.delete(key);
    }
    if (orphans.length > MOST_ORPHANS) this.#tooMany(provider, orphans.length);
    else for (const id of orphans) if (this.#again(provider.name, id)) await this.#remove(provider, id);
    for (const machine of vanished) if (this.#again(provider.name, machine.id)) await this.#missing(machine);
  }

  /** Whether it was seen before, long enough ago. */
  #again(provider: ProviderName, id: string): boolean {
    const key = `${provider} ${id}`;
    const first = this.#since.get(key);
    if (first === undefined) this.#since.set(key, this.#deps.now());
    return first !== undefined && this.#deps.now() - first >= TWICE_MS;
  }

  #tooMany(provider: Provider, count: number): void {
    this.#deps.metrics.failures.inc({ code: 'orphans_doubted' });
    this.#deps.log.error(
      { reason: provider.name, count },
      'many machines that nobody knows of: none is removed, since more likely this database has lost history',
    );
  }

  async #remove(provider: Provider, id: string): Promise<void> {
    const { db, audit, log, metrics } = this.#deps;
    await provider.remove(id);
    this.#since.delete(`${provider.name} ${id}`);
    metrics.orphans.inc();
    log.error({ reason: provider.name }, 'a machine that nobody knew of was removed');
    const subject = `machine:${UUID.test(id) ? id : 'unknown'}`;
    const detail = { provider: provider.name };
    await db.transaction((tx) =>
      audit.record(tx, [{ actor: 'system', action: 'machine.orphan_removed', subject, detail }]),
    );
  }

  /** One that was to come is given up; one that serves goes down by itself, and is replaced where that is wanted. */
  async #missing(machine: store.MachineRow): Promise<void> {
    const { db, audit, log, metrics, now } = this.#deps;
    if (machine.problem === VANISHED) return;
    metrics.failures.inc({ code: VANISHED });
    log.error({ node: machine.node, code: VANISHED }, 'a machine is not at its provider any more');
    const to = machine.state === 'serving' ? 'serving' : 'removing';
    await db.transaction((tx) =>
      store.move(tx, audit, machine, { to, action: 'machine.vanished', problem: VANISHED }, now()),
    );
  }
}

const VANISHED = 'machine_vanished';
