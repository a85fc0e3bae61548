/**
 * Reboots: who wants one (operators, and systems that say so in their heartbeats), the leases by which they go, and the
 * windows in which systems take security updates. Like a rollout's, each pass is one transaction that reads everything,
 * asks the rules (reboot-rules.ts) and writes their steps down.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { NodeId } from '@katafract/shared/units';
import { Gauge } from 'prom-client';
import type { AuditAction } from '../../audit/audit.ts';
import type { Sql, Tx } from '../../platform/db.ts';
import { uuidv7 } from '../../platform/ids.ts';
import { type Asked, onceOnly, uuidOf } from '../../platform/once.ts';
import { nodeUnknown } from '../log.ts';
import { rebootTelling } from './effects-rules.ts';
import { updatesWindow } from './graph-rules.ts';
import {
  AGAIN_MS,
  obstacles,
  type RebootFacts,
  type RebootLook,
  type RebootStep,
  stepReboots,
  stopped,
} from './reboot-rules.ts';
import type { UpkeepDeps } from './rollouts.ts';
import { Graphs, lockUpkeep, readNodes, tellNodes } from './store.ts';
import type { RebootState } from './tables.ts';

const EVERY_MS = 2_000;
/** Nodes that are told another window in one pass. */
const WINDOWS_A_PASS = 500;

interface Stored {
  id: string;
  node: NodeId;
  state: RebootState;
  wantedBy: string;
  anyTime: boolean;
  wantedAt: string;
  leasedAt: string | null;
  until: string | null;
  endedAt: string | null;
  reason: string | null;
  clearedAt: string | null;
}

export interface RebootView extends Stored {
  /** Why it waits, in plain words; null where it does not. */
  waitsFor: string | null;
}

const columns = (sql: Sql) => sql`
  b.id, b.node_id as node, b.state, b.wanted_by as "wantedBy", b.any_time as "anyTime", b.wanted_at as "wantedAt",
  b.leased_at as "leasedAt", b.until, b.ended_at as "endedAt", b.reason, b.cleared_at as "clearedAt"`;

/** What the rules look at: open ones, those that ended lately, and failures nobody has seen to. */
function readReboots(sql: Sql, now: number): Promise<Stored[]> {
  return sql<Stored[]>`
    select ${columns(sql)} from reboots b
    where b.ended_at is null or b.ended_at > ${new Date(now - AGAIN_MS)} or (b.state = 'failed' and b.cleared_at is null)
    order by b.wanted_at, b.id`;
}

const at = (time: string | null) => (time === null ? null : Date.parse(time));
const factsOf = (row: Stored): RebootFacts => ({
  ...row,
  wantedAt: Date.parse(row.wantedAt),
  leasedAt: at(row.leasedAt),
  until: at(row.until),
  endedAt: at(row.endedAt),
  cleared: row.clearedAt !== null,
});

export class Reboots {
  readonly #deps: UpkeepDeps;
  readonly #graphs = new Graphs();
  readonly #count: Gauge<'state'>;
  readonly #stopped: Gauge;
  #open = false;

  constructor(deps: UpkeepDeps) {
    this.#deps = deps;
    const registers = [deps.registry];
    this.#count = new Gauge({
      name: 'katafract_reboots',
      help: 'Reboots that are wanted or leased, and failed ones that nobody has seen to',
      labelNames: ['state'],
      registers,
    });
    this.#stopped = new Gauge({
      name: 'katafract_reboots_stopped',
      help: '1 while no reboot is leased, since one failed or too many exits are not well',
      registers,
    });
  }

  /**
   * Wants a node to reboot; one that is wanted already is given. @param anyTime do not wait for the night
   * @throws KatafractError `node_unknown` (404), `node_retired` (409), `idempotency_key_reused` (422)
   */
  async want(node: NodeId, anyTime: boolean, asked: Asked): Promise<RebootView> {
    const { db, seedSecret } = this.#deps;
    const once = onceOnly(seedSecret, 'reboots', { node, anyTime }, asked);
    const id = await db.transaction(async (tx) => {
      const before = await once.seen(tx);
      if (before !== null) return before;
      await lockUpkeep(tx);
      const made = await this.#insert(tx, uuidOf(once.seed, 'reboot'), node, anyTime, asked.operator);
      await once.remember(tx, made, new Date(this.#deps.clock.now()));
      return made;
    });
    return this.read(id);
  }

  async #insert(tx: Tx, id: string, node: NodeId, anyTime: boolean, operator: string): Promise<string> {
    const { sql } = tx;
    const [known] = await sql<{ state: string }[]>`select state from nodes where id = ${node}`;
    if (!known) throw nodeUnknown(node);
    if (known.state === 'retired') {
      throw new KatafractError('node_retired', `${node} is retired`, { status: 409 });
    }
    const [open] = await sql<{ id: string }[]>`
      update reboots set any_time = any_time or ${anyTime} where node_id = ${node} and ended_at is null returning id`;
    if (open) return open.id;
    const now = new Date(this.#deps.clock.now());
    await sql`
      insert into reboots (id, node_id, state, wanted_by, any_time, wanted_at)
      values (${id}, ${node}, 'wanted', ${`operator:${operator}`}, ${anyTime}, ${now})`;
    await this.#record(tx, 'reboot.wanted', `operator:${operator}`, node, { reboot: id, anyTime });
    return id;
  }

  /** Calls a reboot off that is not leased yet. @throws KatafractError `reboot_unknown` (404), `reboot_over` (409) */
  cancel(id: string, operator: string): Promise<RebootView> {
    return this.#change(id, 'reboot.cancelled', operator, async (tx, row, now) => {
      if (row.state === 'cancelled') return false;
      if (row.state !== 'wanted') {
        throw new KatafractError('reboot_over', `the reboot is ${row.state}`, { status: 409 });
      }
      await tx.sql`update reboots set state = 'cancelled', ended_at = ${now} where id = ${id}`;
      return true;
    });
  }

  /** An operator has seen to a failed reboot: others may go again. @throws KatafractError `reboot_unknown` (404) */
  clear(id: string, operator: string): Promise<RebootView> {
    return this.#change(id, 'reboot.cleared', operator, async (tx, row, now) => {
      if (row.state !== 'failed' || row.clearedAt !== null) return false;
      await tx.sql`update reboots set cleared_at = ${now} where id = ${id}`;
      return true;
    });
  }

  async #change(
    id: string,
    action: AuditAction,
    operator: string,
    change: (tx: Tx, row: Stored, now: Date) => Promise<boolean>,
  ): Promise<RebootView> {
    await this.#deps.db.transaction(async (tx) => {
      await lockUpkeep(tx);
      const [row] = await tx.sql<Stored[]>`
        select ${columns(tx.sql)} from reboots b where b.id = ${id} for update`;
      if (!row) throw unknownReboot();
      if (!(await change(tx, row, new Date(this.#deps.clock.now())))) return;
      await this.#record(tx, action, `operator:${operator}`, row.node, { reboot: id });
    });
    return this.read(id);
  }

  /** One look at who wants to reboot, who may, and what became of it. */
  async pass(): Promise<void> {
    const { db, clock, fleet } = this.#deps;
    if (!(await this.#wanted())) return;
    const told = await db.transaction(async (tx) => {
      await lockUpkeep(tx);
      const look = await this.#look(tx.sql);
      const open = look.reboots.filter(({ endedAt }) => endedAt === null);
      this.#open = open.length > 0;
      this.#measure(look);
      return this.#take(tx, stepReboots(look), clock.now());
    });
    if (told.length > 0) await fleet.changed(told);
  }

  /** Whether there is anything to look at: on most days there is not. */
  async #wanted(): Promise<boolean> {
    if (this.#open) return true;
    const [row] = await this.#deps.db.sql<{ some: boolean }[]>`
      select exists (select 1 from reboots where ended_at is null or (state = 'failed' and cleared_at is null))
        or exists (select 1 from node_reports where health -> 'upkeep' ->> 'rebootNeeded' = 'true') as some`;
    return row?.some === true;
  }

  /** When another look is wanted; null where nothing is open. */
  async next(): Promise<number | null> {
    return this.#open ? this.#deps.clock.now() + EVERY_MS : null;
  }

  async #look(sql: Sql): Promise<RebootLook> {
    const now = this.#deps.clock.now();
    const [rollout] = await sql<{ id: string }[]>`select id from rollouts where ended_at is null`;
    const nodes = await readNodes(sql, rollout?.id ?? null, now);
    const reboots = (await readReboots(sql, now)).map(factsOf);
    return { graph: await this.#graphs.read(sql), nodes, reboots, now };
  }

  #measure(look: RebootLook): void {
    const of = (state: RebootState) =>
      look.reboots.filter((reboot) => reboot.state === state && !reboot.cleared).length;
    for (const state of ['wanted', 'leased', 'failed'] as const) this.#count.set({ state }, of(state));
    this.#stopped.set(stopped(look) === null ? 0 : 1);
  }

  async #take(tx: Tx, steps: readonly RebootStep[], now: number): Promise<NodeId[]> {
    for (const step of steps) await this.#write(tx, step, new Date(now));
    const tellings = steps.flatMap((step) => rebootTelling(step, now) ?? []);
    await tellNodes(tx, tellings);
    return tellings.map(({ node }) => node);
  }

  async #write(tx: Tx, step: RebootStep, now: Date): Promise<void> {
    const { sql } = tx;
    const { log } = this.#deps;
    const { node } = step;
    if (step.do === 'want') {
      const id = uuidv7(now.getTime());
      await sql`
        insert into reboots (id, node_id, state, wanted_by, wanted_at)
        values (${id}, ${node}, 'wanted', 'system', ${now}) on conflict do nothing`;
      return this.#record(tx, 'reboot.wanted', `node:${node}`, node, { reboot: id });
    }
    const { id } = step;
    if (step.do === 'lease') {
      await sql`
        update reboots set state = 'leased', leased_at = ${now}, until = ${new Date(step.until)} where id = ${id}`;
      log.info({ node }, 'a node may reboot');
      return this.#record(tx, 'reboot.leased', 'system', node, { reboot: id });
    }
    if (step.do === 'done') {
      await sql`update reboots set state = 'done', ended_at = ${now} where id = ${id}`;
      log.info({ node }, 'a node has rebooted');
      return this.#record(tx, 'reboot.finished', 'system', node, { reboot: id });
    }
    const { reason } = step;
    const clearedAt = reason === 'unused' ? now : null;
    await sql`
      update reboots set state = 'failed', reason = ${reason}, ended_at = ${now}, cleared_at = ${clearedAt}
      where id = ${id}`;
    log.error({ node, reason }, 'a reboot failed');
    return this.#record(tx, 'reboot.failed', 'system', node, { reboot: id, reason });
  }

  #record(tx: Tx, action: AuditAction, actor: string, node: NodeId, detail: object): Promise<void> {
    return this.#deps.audit.record(tx, [{ actor, action, subject: `node:${node}`, detail: { ...detail } }]);
  }

  /** Tells nodes when their systems may take updates, where that is not what they were told: the clocks change. */
  async tellWindows(): Promise<void> {
    const { db, clock, fleet } = this.#deps;
    const told = await db.transaction(async (tx) => {
      await lockUpkeep(tx);
      const graph = await this.#graphs.read(tx.sql);
      const rows = await tx.sql<
        { node: NodeId; region: string; from: number | null; minutes: number | null }[]
      >`
        select id as node, region_id as region, (upkeep -> 'updates' ->> 'fromMinute')::int as from,
               (upkeep -> 'updates' ->> 'minutes')::int as minutes
        from nodes where state <> 'retired' order by id`;
      const windows = new Map(
        [...graph.regions.values()].map((region) => [
          region.id as string,
          updatesWindow(graph, region, clock.now()),
        ]),
      );
      const tellings = rows.flatMap(({ node, region, from, minutes }) => {
        const updates = windows.get(region);
        if (!updates || (updates.fromMinute === from && updates.minutes === minutes)) return [];
        return [{ node, upkeep: { updates } }];
      });
      const some = tellings.slice(0, WINDOWS_A_PASS);
      await tellNodes(tx, some);
      return some.map(({ node }) => node);
    });
    if (told.length > 0) await fleet.changed(told);
  }

  /** Open ones, those that ended lately and those that stop the others: in the order they were wanted. */
  async list(): Promise<{ stopped: string | null; items: RebootView[] }> {
    const { db, clock } = this.#deps;
    const rows = await readReboots(db.sql, clock.now());
    const look = await this.#look(db.sql);
    const why = obstacles(look);
    return { stopped: stopped(look), items: rows.map((row) => viewOf(row, why.get(row.id) ?? null)) };
  }

  /** @throws KatafractError `reboot_unknown` (404) */
  async read(id: string): Promise<RebootView> {
    const { sql } = this.#deps.db;
    const [row] = await sql<Stored[]>`select ${columns(sql)} from reboots b where b.id = ${id}`;
    if (!row) throw unknownReboot();
    const why = row.state === 'wanted' ? obstacles(await this.#look(sql)).get(id) : null;
    return viewOf(row, why ?? null);
  }
}

const unknownReboot = () => new KatafractError('reboot_unknown', 'no such reboot', { status: 404 });

function viewOf(row: Stored, waitsFor: string | null): RebootView {
  const iso = (time: string | null) => (time === null ? null : new Date(time).toISOString());
  return {
    ...row,
    wantedAt: new Date(row.wantedAt).toISOString(),
    leasedAt: iso(row.leasedAt),
    until: iso(row.until),
    endedAt: iso(row.endedAt),
    clearedAt: iso(row.clearedAt),
    waitsFor,
  };
}
