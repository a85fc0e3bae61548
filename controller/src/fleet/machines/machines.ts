/**
 * Machines: the fleet looks at what its regions need, asks providers for machines, sees them become exits, and gives
 * back what is no longer needed.
 *
 *   demand_samples ─┐
 *   nodes, health ──┼─► facts.ts ──► capacity.ts ──► wishes ──► life.ts ──► provider ──► a machine ──► a node
 *   machines ───────┘              (pure decisions)  (store.ts)      └── drains, retirement
 */
import type { Clock } from '@katafract/shared/clock';
import type { JoinToken } from '@katafract/shared/enroll';
import { KatafractError } from '@katafract/shared/errors';
import type { NodeId, RegionId } from '@katafract/shared/units';
import { type Audit, actorOf } from '../../audit/audit.ts';
import type { Database, Tx } from '../../platform/db.ts';
import type { Keyring } from '../../platform/keyring.ts';
import type { Logger } from '../../platform/log.ts';
import type { Metrics } from '../../platform/metrics.ts';
import { type Asked, onceOnly, type Seed, uuidOf } from '../../platform/once.ts';
import type { Bus } from '../bus.ts';
import type { Fleet } from '../fleet.ts';
import { nodeUnknown } from '../log.ts';
import { type Assessment, assess, type Decision } from './capacity.ts';
import { type History, readFacts, readHistory, SAMPLE_MS, sample } from './facts.ts';
import type { Limits, RegionFacts } from './forecast.ts';
import { advance, type LifeDeps } from './life.ts';
import { createMachineMetrics, type MachineMetrics } from './metrics.ts';
import { Orphans } from './orphans.ts';
import type { Growth, Provider, ProviderName } from './provider.ts';
import type { MachineRow } from './store.ts';
import * as store from './store.ts';
import { mintFor, tokenSeed } from './tokens.ts';

export interface MachinesDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly audit: Audit;
  readonly keyring: Keyring;
  readonly fleet: Fleet;
  readonly bus: Pick<Bus, 'evict'>;
  readonly providers: readonly Provider[];
  readonly limits: Limits & { readonly bootMs: number };
  /** What the join tokens of machines and repeated requests follow from. */
  readonly seedSecret: Uint8Array;
  /** What a machine is told. @throws KatafractError where that is not configured */
  readonly userData: (machine: MachineRow, token: JoinToken) => string;
}

/** Names of the jobs, to wake them by. */
export const DECIDE = 'machines.decide';
export const STEP = 'machines.step';

/** Steps taken at the same time, and in one pass: each may wait for a provider. */
const STEPS_AT_ONCE = 16;
/** Of a machine that a person sets up, where the region does not say. */
const DEFAULT_CAPACITY = 20_000;

export class Machines {
  readonly #deps: MachinesDeps;
  readonly #providers: ReadonlyMap<ProviderName, Provider>;
  readonly #metrics: MachineMetrics;
  readonly #life: LifeDeps;
  readonly #orphans: Orphans;
  readonly #seed: Seed;
  readonly #alerts = new Map<RegionId, string>();
  #history: { readonly at: number; readonly is: History } | null = null;
  #wake: (job: string) => void = () => undefined;

  constructor(deps: MachinesDeps) {
    this.#deps = deps;
    this.#providers = new Map(deps.providers.map((provider) => [provider.name, provider]));
    this.#seed = tokenSeed(deps.seedSecret);
    this.#metrics = createMachineMetrics(deps.metrics.registry);
    const now = () => deps.clock.now();
    this.#life = {
      ...deps,
      now,
      seed: this.#seed,
      providers: this.#providers,
      bootMs: deps.limits.bootMs,
      onFailure: (code) => this.#metrics.failures.inc({ code }),
    };
    this.#orphans = new Orphans({ ...deps, now, metrics: this.#metrics });
  }

  /** @param wake has a job run at once */
  start(wake: (job: string) => void): void {
    this.#wake = wake;
  }

  /** Whether a provider makes machines by itself; null where it is off. */
  automatic(provider: ProviderName): boolean | null {
    return this.#providers.get(provider)?.automatic ?? null;
  }

  /** Writes down what every region carries. */
  async sample(): Promise<void> {
    await sample(this.#deps.db.sql, this.#deps.clock.now());
    this.#history = null;
  }

  /** What every region is expected to need, and what would be done about it now. */
  async assess(): Promise<{ facts: RegionFacts; assessment: Assessment }[]> {
    return this.#assess(this.#deps.db, await this.#recent());
  }

  async #assess({ sql }: Pick<Tx, 'sql'>, history: History) {
    const { limits, clock } = this.#deps;
    const now = clock.now();
    const facts = await readFacts(sql, now, history, (provider) => this.automatic(provider));
    const byRegion = new Map(facts.regions.map((region) => [region.region, region]));
    return assess(facts, limits, now).flatMap((assessment) => {
      const of = byRegion.get(assessment.forecast.region);
      return of ? [{ facts: of, assessment }] : [];
    });
  }

  async #recent(): Promise<History> {
    const { db, clock } = this.#deps;
    const now = clock.now();
    if (this.#history === null || now - this.#history.at > SAMPLE_MS) {
      this.#history = { at: now, is: await readHistory(db.sql, now) };
    }
    return this.#history.is;
  }

  /** Looks at every region once, and does what that comes to. */
  async decide(): Promise<void> {
    const { db, clock } = this.#deps;
    const history = await this.#recent();
    const { judged, wished } = await db.transaction(async (tx) => {
      await store.lockWishes(tx);
      const judged = await this.#assess(tx, history);
      let wished = false;
      for (const { facts, assessment } of judged) {
        const done = await this.#carryOut(tx, facts, assessment.decision);
        wished ||= done;
      }
      return { judged, wished };
    });
    const retired = await store.wakeRetired(db.sql, clock.now());
    this.#metrics.forecasts(judged.map(({ assessment }) => assessment));
    this.#metrics.machines(await store.countMachines(db.sql), clock.now());
    for (const { assessment } of judged) await this.#alert(assessment);
    if (wished || retired > 0) this.#wake(STEP);
  }

  /** @returns whether machines have something to do now */
  async #carryOut(tx: Tx, { region, growth }: RegionFacts, decision: Decision): Promise<boolean> {
    const { audit, clock, log } = this.#deps;
    const now = clock.now();
    if (decision.do === 'shrink') {
      const machine = await store.readMachine(tx.sql, decision.machine);
      if (machine?.state !== 'serving') return false;
      log.info({ region, node: decision.node, reason: decision.reason }, 'a machine is given back');
      const detail = { reason: decision.reason };
      return store.move(tx, audit, machine, { to: 'leaving', action: 'machine.leaving', detail }, now);
    }
    if ((decision.do !== 'grow' && decision.do !== 'replace') || growth === null) return false;
    const { reason } = decision;
    const wish = { region, growth, reason, wantedBy: 'system' };
    const count = decision.do === 'grow' ? decision.count : 1;
    const replaces = decision.do === 'replace' ? { replaces: decision.node } : {};
    log.info({ region, count, reason }, 'machines are wanted');
    for (let each = 0; each < count; each++) await store.insertWish(tx, audit, { ...wish, ...replaces }, now);
    return true;
  }

  /** Says once that a region needs what it does not get by itself, and once that this is over. */
  async #alert({ forecast: { region }, decision }: Assessment): Promise<void> {
    const { db, audit, log } = this.#deps;
    const code = decision.do === 'alert' ? decision.code : '';
    if ((this.#alerts.get(region) ?? '') === code) return;
    const subject = `region:${region}`;
    const said = await lastAlert(db, subject);
    if (decision.do === 'alert') {
      log.warn(
        { region, code, reason: decision.reason },
        'a region needs capacity that it does not get by itself',
      );
    }
    if (said !== code) {
      const action = decision.do === 'alert' ? 'region.needs_capacity' : 'region.has_capacity';
      const detail = decision.do === 'alert' ? { code, reason: decision.reason } : {};
      await db.transaction((tx) => audit.record(tx, [{ actor: 'system', action, subject, detail }]));
    }
    this.#alerts.set(region, code);
  }

  /** Takes every machine that has something to do as far as it gets. */
  async step(): Promise<void> {
    const { db, clock } = this.#deps;
    const due = await store.dueMachines(db.sql, clock.now(), STEPS_AT_ONCE);
    await Promise.all(due.map(({ id }) => advance(this.#life, id)));
  }

  /** When a machine has something to do next. */
  nextStep(): Promise<number | null> {
    return store.nextDue(this.#deps.db.sql);
  }

  /** Holds what providers have against what is known here. */
  sweep(): Promise<void> {
    return this.#orphans.sweep();
  }

  /**
   * An operator wants a machine in a region, or one in the place of a node.
   * @throws KatafractError `region_unknown` (422), `node_unknown` (404), `node_retired`, `node_replaced` (409),
   * `provider_off` (422), and of `onceOnly`
   */
  async wish(what: { region: RegionId } | { replaces: NodeId }, asked: Asked): Promise<MachineRow> {
    const { db, audit, clock, seedSecret } = this.#deps;
    const once = onceOnly(seedSecret, 'replaces' in what ? 'replacements' : 'machines', what, asked);
    const id = await db.transaction(async (tx) => {
      const before = await once.seen(tx);
      if (before !== null) return before;
      await store.lockWishes(tx);
      const wantedBy = actorOf(asked.operator);
      const place = 'replaces' in what ? await placeOf(tx, what.replaces) : await regionOf(tx, what.region);
      if (this.automatic(place.growth.provider) === null) throw providerOff(place.growth.provider);
      const reason = 'replaces' in what ? `replace: ${what.replaces}, wanted by an operator` : 'operator';
      const replaces = 'replaces' in what ? { replaces: what.replaces } : {};
      const now = clock.now();
      const id = await store.insertWish(
        tx,
        audit,
        { ...place, reason, wantedBy, ...replaces },
        now,
        uuidOf(once.seed, 'id of machine'),
      );
      await once.remember(tx, id, new Date(now));
      return id;
    });
    this.#wake(STEP);
    return this.read(id);
  }

  /** @throws KatafractError `machine_unknown` (404) */
  async read(id: string): Promise<MachineRow> {
    const machine = await store.readMachine(this.#deps.db.sql, id);
    if (!machine) throw new KatafractError('machine_unknown', 'no such machine', { status: 404 });
    return machine;
  }

  list(listing: store.Listing): Promise<MachineRow[]> {
    return store.listMachines(this.#deps.db.sql, listing);
  }

  /** Gives a machine back, its node drained first. One that is going or gone already changes nothing. */
  async giveBack(id: string, operator: string): Promise<MachineRow> {
    const { db, audit, clock } = this.#deps;
    const machine = await this.read(id);
    const serves = machine.state === 'serving';
    const going = machine.endedAt !== null || machine.state === 'leaving' || machine.state === 'removing';
    if (!going) {
      const step: store.Move = {
        to: serves ? 'leaving' : 'removing',
        action: 'machine.leaving',
        actor: actorOf(operator),
        problem: null,
        detail: { reason: 'operator' },
      };
      const moved = await db.transaction((tx) => store.move(tx, audit, machine, step, clock.now()));
      // it took a step just now: then from there
      if (!moved) return this.giveBack(id, operator);
      this.#wake(STEP);
    }
    return this.read(id);
  }

  /**
   * What a person gives a host so that it becomes this machine's node: a secret, and good for an hour. Those made
   * before are good no longer.
   * @throws KatafractError `machine_unknown` (404), `machine_not_manual`, `machine_over` (409)
   */
  async cloudInit(id: string, operator: string): Promise<string> {
    const { db, audit, keyring, clock, userData } = this.#deps;
    const machine = await this.read(id);
    if (machine.provider !== 'manual') {
      throw new KatafractError('machine_not_manual', 'the machine comes by itself', { status: 409 });
    }
    return db.transaction(async (tx) => {
      const [open] = await tx.sql`
        select 1 from machines where id = ${id} and state in ('wanted', 'creating', 'booting') for update`;
      if (!open)
        throw new KatafractError('machine_over', 'the machine is an exit already, or going', { status: 409 });
      const now = clock.now();
      await store.endTokens(tx.sql, machine.node, now);
      const token = await mintFor(
        tx,
        { audit, keyring, seed: this.#seed },
        machine,
        now,
        crypto.randomUUID(),
      );
      const subject = `machine:${id}`;
      const detail = { node: machine.node };
      await audit.record(tx, [{ actor: actorOf(operator), action: 'machine.prepared', subject, detail }]);
      return userData(machine, token);
    });
  }
}

const providerOff = (provider: string) =>
  new KatafractError('provider_off', `the provider ${provider} is not configured`, { status: 422 });

/** What the audit log last said of a region's capacity: a code, or nothing. */
async function lastAlert({ sql }: Database, subject: string): Promise<string> {
  const [row] = await sql<{ code: string | null }[]>`
    select detail ->> 'code' as code from audit_log
    where subject = ${subject} and action in ('region.needs_capacity', 'region.has_capacity')
    order by id desc limit 1`;
  return row?.code ?? '';
}

interface Place {
  readonly region: RegionId;
  readonly growth: Growth;
}

/** A person sets up what a region without growth is to get. */
const byHand = (like: Pick<Growth, 'capacity' | 'bandwidthMbit' | 'tunnels'>): Growth => {
  const { capacity, bandwidthMbit, tunnels = 1 } = like;
  return { provider: 'manual', location: '', size: '', maxExits: 0, capacity, bandwidthMbit, tunnels };
};

async function regionOf({ sql }: Tx, region: RegionId): Promise<Place> {
  const [row] = await sql<{ growth: Growth | null }[]>`select growth from regions where id = ${region}`;
  if (!row) throw new KatafractError('region_unknown', `no such region: ${region}`, { status: 422 });
  return { region, growth: row.growth ?? byHand({ capacity: DEFAULT_CAPACITY, bandwidthMbit: null }) };
}

async function placeOf({ sql }: Tx, node: NodeId): Promise<Place> {
  const [row] = await sql<
    (Place & {
      state: string;
      capacity: number;
      bandwidthMbit: number | null;
      tunnels: number;
      taken: boolean;
    })[]
  >`
    select n.region_id as region, r.growth, n.state, n.capacity, n.bandwidth_mbit as "bandwidthMbit", n.tunnels,
           exists (select 1 from machines m where m.replaces = n.id and m.ended_at is null) as taken
    from nodes n join regions r on r.id = n.region_id where n.id = ${node}`;
  if (!row) throw nodeUnknown(node);
  if (row.state === 'retired')
    throw new KatafractError('node_retired', `${node} is retired`, { status: 409 });
  if (row.taken)
    throw new KatafractError('node_replaced', `${node} is being replaced already`, { status: 409 });
  return { region: row.region, growth: row.growth ?? byHand(row) };
}
