/**
 * Releases of the agent: what operators ask for, and the pass that carries the open one on. Each pass is one
 * transaction under the rollout's lock that reads everything, asks the rules (rollout-rules.ts) and writes their steps
 * down, so it goes on after any crash and takes no step twice. What nodes are told reaches them as desired state.
 */
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import type { NodeId } from '@katafract/shared/units';
import { Gauge, type Registry } from 'prom-client';
import type { Audit, AuditAction, AuditEntry } from '../../audit/audit.ts';
import { type Database, type Sql, type Tx, uniqueViolation } from '../../platform/db.ts';
import type { Logger } from '../../platform/log.ts';
import { type Asked, onceOnly, uuidOf } from '../../platform/once.ts';
import { type Effect, effectOf } from './effects-rules.ts';
import { isUnwell, type NodeFacts } from './facts.ts';
import { type RolloutFacts, type RolloutStep, stepRollout } from './rollout-rules.ts';
import { endMaintenance, Graphs, lockUpkeep, readNodes, tellNodes } from './store.ts';
import { ROLLOUT_NODE_STATES, type RolloutNodeState, type RolloutState } from './tables.ts';
import { planWaves } from './waves-rules.ts';

export interface UpkeepDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly log: Logger;
  readonly registry: Registry;
  readonly audit: Audit;
  readonly fleet: { changed(only?: readonly NodeId[]): Promise<void> };
  /** What the ids of repeated requests follow from; see platform/once.ts. */
  readonly seedSecret: Uint8Array;
}

const EVERY_MS = 1_000;

export interface RolloutRequest {
  readonly version: string;
  readonly soakSeconds: number;
  readonly timeoutSeconds: number;
  readonly maxFailures?: number | undefined;
}

interface Stored {
  id: string;
  version: string;
  state: RolloutState;
  wave: number;
  waves: number;
  waveSince: string;
  soakSeconds: number;
  timeoutSeconds: number;
  maxFailures: number;
  unwell: number;
  wantedBy: string;
  reason: string | null;
  startedAt: string;
  endedAt: string | null;
}

export interface RolloutView extends Omit<Stored, 'unwell'> {
  /** Where it stands, in plain words. */
  standing: string;
  counts: Partial<Record<RolloutNodeState, number>>;
}

export interface RolloutNodeView {
  node: NodeId;
  wave: number;
  state: RolloutNodeState;
  before: string | null;
  since: string;
  reason: string | null;
}

const columns = (sql: Sql) => sql`
  r.id, r.version, r.state, r.wave, r.waves, r.wave_since as "waveSince", r.soak_seconds as "soakSeconds",
  r.timeout_seconds as "timeoutSeconds", r.max_failures as "maxFailures", r.unwell, r.wanted_by as "wantedBy", r.reason,
  r.started_at as "startedAt", r.ended_at as "endedAt"`;

const STEPS = {
  pause: { from: ['running'], to: 'paused', action: 'rollout.paused' },
  resume: { from: ['paused'], to: 'running', action: 'rollout.resumed' },
  cancel: { from: ['running', 'paused'], to: 'cancelled', action: 'rollout.cancelled' },
  rollback: { from: ['running', 'paused'], to: 'rolling_back', action: 'rollout.rolling_back' },
} as const;
export type RolloutCommand = keyof typeof STEPS;

export class Rollouts {
  readonly #deps: UpkeepDeps;
  readonly #graphs = new Graphs();
  readonly #nodes: Gauge<'state'>;
  readonly #open: Gauge<'state'>;
  #isOpen = false;
  /** The last look found something to do, and so may the next. */
  #moving = false;

  constructor(deps: UpkeepDeps) {
    this.#deps = deps;
    const registers = [deps.registry];
    const labelNames = ['state'] as const;
    this.#nodes = new Gauge({
      name: 'katafract_rollout_nodes',
      help: 'Nodes of the rollout that is open, by how far they are',
      labelNames,
      registers,
    });
    this.#open = new Gauge({
      name: 'katafract_rollouts_open',
      help: 'The rollout that is open, by its state; rolling_back and paused want a look',
      labelNames,
      registers,
    });
  }

  /**
   * Begins to roll a version out. Repeated with its Idempotency-Key it gives the same rollout.
   * @throws KatafractError `rollout_open` (409), `idempotency_key_reused` (422)
   */
  async start(request: RolloutRequest, asked: Asked): Promise<RolloutView> {
    const { db, seedSecret } = this.#deps;
    const once = onceOnly(seedSecret, 'rollouts', request, asked);
    const id = uuidOf(once.seed, 'rollout');
    try {
      await db.transaction(async (tx) => {
        if ((await once.seen(tx)) !== null) return;
        await lockUpkeep(tx);
        await this.#insert(tx, id, request, asked.operator);
        await once.remember(tx, id, new Date(this.#deps.clock.now()));
      });
    } catch (error) {
      if (uniqueViolation(error) !== 'rollouts_open') throw error;
      throw new KatafractError('rollout_open', 'another rollout is open', { status: 409 });
    }
    return this.read(id);
  }

  async #insert(tx: Tx, id: string, request: RolloutRequest, operator: string): Promise<void> {
    const { clock, audit } = this.#deps;
    const now = new Date(clock.now());
    const { version, soakSeconds, timeoutSeconds } = request;
    const graph = await this.#graphs.read(tx.sql);
    const nodes = await readNodes(tx.sql, null, clock.now());
    const waves = planWaves(graph, nodes);
    const maxFailures = request.maxFailures ?? Math.max(1, Math.floor(nodes.length / 100));
    const count = Math.max(1, ...new Set([...waves.values()].map((wave) => wave + 1)));
    await tx.sql`
      insert into rollouts (id, version, state, waves, wave_since, soak_seconds, timeout_seconds, max_failures, unwell,
                            wanted_by, started_at)
      values (${id}, ${version}, 'running', ${count}, ${now}, ${soakSeconds}, ${timeoutSeconds}, ${maxFailures},
              ${nodes.filter(isUnwell).length}, ${operator}, ${now})`;
    await tx.sql`
      insert into rollout_nodes (rollout_id, node_id, wave, since)
      select ${id}, node, wave, ${now}
      from jsonb_to_recordset(${tx.sql.json([...waves].map(([node, wave]) => ({ node, wave })))}) as w(node text, wave int)`;
    const detail = { version, waves: count, nodes: nodes.length };
    await audit.record(tx, [
      { actor: `operator:${operator}`, action: 'rollout.started', subject: `rollout:${id}`, detail },
    ]);
  }

  /**
   * Pauses, resumes, cancels a rollout or has it go back; to do what is done already changes nothing. Cancelled, nodes
   * keep the version they have been told.
   * @throws KatafractError `rollout_unknown` (404), `rollout_over` (409)
   */
  async command(id: string, command: RolloutCommand, operator: string): Promise<RolloutView> {
    const { db, clock, audit } = this.#deps;
    const { from, to, action } = STEPS[command];
    await db.transaction(async (tx) => {
      await lockUpkeep(tx);
      const row = await lockRollout(tx.sql, id);
      if (!row) throw unknownRollout();
      if (row.state === to) return;
      if (!(from as readonly RolloutState[]).includes(row.state)) {
        const text = `the rollout is ${row.state}, and cannot be told to ${command}`;
        throw new KatafractError('rollout_over', text, { status: 409 });
      }
      const now = new Date(clock.now());
      // what has happened meanwhile an operator has seen: the wave begins from here
      const nodes = await readNodes(tx.sql, id, clock.now());
      const reason = command === 'rollback' ? `asked for by ${operator}` : null;
      await tx.sql`
        update rollouts set state = ${to}, reason = ${reason}, unwell = ${nodes.filter(isUnwell).length},
          wave_since = case when ${to === 'running'} then ${now} else wave_since end,
          ended_at = ${to === 'cancelled' ? now : null}
        where id = ${id}`;
      await audit.record(tx, [
        { actor: `operator:${operator}`, action, subject: `rollout:${id}`, detail: { version: row.version } },
      ]);
    });
    return this.read(id);
  }

  /** Carries the open rollout on by one look. */
  async pass(): Promise<void> {
    const { db, clock, fleet, log } = this.#deps;
    const told = await db.transaction(async (tx) => {
      const [open] = await tx.sql<{ id: string }[]>`select id from rollouts where ended_at is null`;
      this.#isOpen = open !== undefined;
      this.#open.reset();
      this.#nodes.reset();
      if (!open) return [];
      await lockUpkeep(tx);
      const row = await lockRollout(tx.sql, open.id);
      if (!row || row.endedAt !== null) return [];
      const nodes = await readNodes(tx.sql, row.id, clock.now());
      this.#measure(row, nodes);
      const graph = await this.#graphs.read(tx.sql);
      const steps = stepRollout({ rollout: factsOf(row), graph, nodes, now: clock.now() });
      for (const step of steps) logStep(log, row, step);
      this.#moving = steps.length > 0;
      return this.#take(tx, row, nodes, steps);
    });
    const changed = [...told, ...(await endMaintenance(db.sql, new Date(clock.now())))];
    if (changed.length > 0) await fleet.changed(changed);
  }

  /** When the open rollout wants another look; null where none is. */
  async next(): Promise<number | null> {
    return this.#isOpen ? this.#deps.clock.now() + (this.#moving ? 0 : EVERY_MS) : null;
  }

  #measure(row: Stored, nodes: readonly NodeFacts[]): void {
    this.#open.set({ state: row.state }, 1);
    for (const state of ROLLOUT_NODE_STATES) {
      this.#nodes.set({ state }, nodes.filter(({ part }) => part?.state === state).length);
    }
  }

  /** Writes steps down. @returns the nodes whose rows changed */
  async #take(
    tx: Tx,
    row: Stored,
    nodes: readonly NodeFacts[],
    steps: readonly RolloutStep[],
  ): Promise<NodeId[]> {
    const now = this.#deps.clock.now();
    const byId = new Map(nodes.map((node) => [node.id, node]));
    const joins = steps.filter((step) => step.do === 'join');
    await tx.sql`
      insert into rollout_nodes (rollout_id, node_id, wave, since)
      select ${row.id}, unnest(${joins.map(({ node }) => node as string)}::text[]), ${row.waves - 1}, ${new Date(now)}
      on conflict do nothing`;
    const effects = steps.flatMap((step) => effectOf(row, step, byId, now) ?? []);
    await writeParts(tx.sql, row.id, effects, new Date(now));
    await tellNodes(
      tx,
      effects.map(({ telling }) => telling),
    );
    for (const step of steps) await this.#move(tx, row, step, new Date(now));
    await this.#deps.audit.record(tx, [
      ...effects.map((effect) =>
        entry('rollout.node_changed', row, { ...effect.part, version: row.version }),
      ),
    ]);
    return effects.map(({ part }) => part.node);
  }

  /** Steps of the rollout itself. */
  async #move(tx: Tx, row: Stored, step: RolloutStep, now: Date): Promise<void> {
    const { sql } = tx;
    const { audit } = this.#deps;
    if (step.do === 'wave') {
      const { wave, unwell } = step;
      await sql`update rollouts set wave = ${wave}, wave_since = ${now}, unwell = ${unwell} where id = ${row.id}`;
      await audit.record(tx, [entry('rollout.wave_began', row, { wave })]);
    } else if (step.do === 'pause' || step.do === 'roll_back') {
      const { reason } = step;
      const state: RolloutState = step.do === 'pause' ? 'paused' : 'rolling_back';
      await sql`update rollouts set state = ${state}, reason = ${reason} where id = ${row.id}`;
      const action = step.do === 'pause' ? 'rollout.paused' : 'rollout.rolling_back';
      await audit.record(tx, [entry(action, row, { reason })]);
    } else if (step.do === 'end') {
      await sql`update rollouts set state = ${step.state}, ended_at = ${now} where id = ${row.id}`;
      await audit.record(tx, [entry('rollout.finished', row, { state: step.state, reason: row.reason })]);
    }
  }

  /** Newest first. */
  async list(limit = 50): Promise<RolloutView[]> {
    const { sql } = this.#deps.db;
    const rows = await sql<Stored[]>`
      select ${columns(sql)} from rollouts r order by r.started_at desc, r.id limit ${limit}`;
    const counts = await countNodes(sql, rows);
    return rows.map((row) => this.#view(row, counts.get(row.id) ?? {}));
  }

  /** @throws KatafractError `rollout_unknown` (404) */
  async read(id: string): Promise<RolloutView & { nodes: RolloutNodeView[] }> {
    const { sql } = this.#deps.db;
    const [row] = await sql<Stored[]>`select ${columns(sql)} from rollouts r where r.id = ${id}`;
    if (!row) throw unknownRollout();
    const nodes = await sql<RolloutNodeView[]>`
      select node_id as node, wave, state, before, since, reason from rollout_nodes where rollout_id = ${id}
      order by wave, node_id`;
    const counts = await countNodes(sql, [row]);
    return {
      ...this.#view(row, counts.get(id) ?? {}),
      nodes: nodes.map((node) => ({ ...node, since: new Date(node.since).toISOString() })),
    };
  }

  #view(row: Stored, counts: RolloutView['counts']): RolloutView {
    const { unwell: _, ...view } = row;
    const iso = (at: string) => new Date(at).toISOString();
    return {
      ...view,
      counts,
      standing: standing(row, counts),
      waveSince: iso(row.waveSince),
      startedAt: iso(row.startedAt),
      endedAt: row.endedAt === null ? null : iso(row.endedAt),
    };
  }
}

async function writeParts(sql: Sql, id: string, effects: readonly Effect[], now: Date): Promise<void> {
  if (effects.length === 0) return;
  await sql`
    update rollout_nodes p set state = e.state, before = e.before, reason = e.reason, since = ${now}
    from jsonb_to_recordset(${sql.json(effects.map(({ part }) => part))}) as e(
      node text, state text, before text, reason text)
    where p.rollout_id = ${id} and p.node_id = e.node`;
}

async function lockRollout(sql: Sql, id: string): Promise<Stored | undefined> {
  const [row] = await sql<Stored[]>`select ${columns(sql)} from rollouts r where r.id = ${id} for update`;
  return row;
}

async function countNodes(sql: Sql, rows: readonly Stored[]): Promise<Map<string, RolloutView['counts']>> {
  const counted = await sql<{ id: string; state: RolloutNodeState; count: number }[]>`
    select rollout_id as id, state, count(*)::int as count from rollout_nodes
    where rollout_id = any(${rows.map(({ id }) => id)}::uuid[]) group by 1, 2`;
  const counts = new Map<string, RolloutView['counts']>();
  for (const { id, state, count } of counted) counts.set(id, { ...counts.get(id), [state]: count });
  return counts;
}

const factsOf = (row: Stored): RolloutFacts => ({
  ...row,
  waveSince: Date.parse(row.waveSince),
  soakMs: row.soakSeconds * 1000,
  timeoutMs: row.timeoutSeconds * 1000,
});

const unknownRollout = () => new KatafractError('rollout_unknown', 'no such rollout', { status: 404 });

function entry(action: AuditAction, row: Stored, detail: Record<string, unknown>): AuditEntry {
  return { actor: 'system', action, subject: `rollout:${row.id}`, detail };
}

function logStep(log: Logger, { version }: Stored, step: RolloutStep): void {
  if (step.do === 'failed') {
    log.warn({ node: step.node, version, reason: step.reason }, 'a release failed on a node');
  } else if (step.do === 'roll_back' || step.do === 'pause') {
    log.error({ version, reason: step.reason }, 'a release is halted');
  } else if (step.do === 'wave' || step.do === 'end') {
    log.info({ version, reason: step.do === 'wave' ? `wave ${step.wave}` : step.state }, 'a release goes on');
  }
}

/** Where a rollout stands, for people. */
function standing(row: Stored, counts: RolloutView['counts']): string {
  const { version, wave, waves, reason, soakSeconds } = row;
  const because = reason === null ? '' : `: ${reason}`;
  const parts = ROLLOUT_NODE_STATES.filter((state) => counts[state]).map(
    (state) => `${counts[state]} ${state}`,
  );
  const nodes = parts.length === 0 ? 'no nodes' : parts.join(', ');
  switch (row.state) {
    case 'running':
      return `${version}: wave ${wave + 1} of ${waves}, each to be well for ${soakSeconds} s; nodes: ${nodes}`;
    case 'paused':
      return `${version} is paused in wave ${wave + 1} of ${waves}${because}; nodes: ${nodes}`;
    case 'rolling_back':
      return `${version} goes back${because}; nodes: ${nodes}`;
    case 'rolled_back':
      return `${version} went back${because}; nodes: ${nodes}`;
    case 'cancelled':
      return `${version} was cancelled in wave ${wave + 1} of ${waves}, nodes keep what they have; nodes: ${nodes}`;
    case 'done':
      return `${version} is out; nodes: ${nodes}`;
  }
}
