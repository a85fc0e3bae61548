/**
 * Draining nodes: what operators ask for, and what is left to do. The peers themselves are moved by peers/evacuate.ts;
 * here is who wants which node empty. Locks are taken in this order: drain, (peers,) node.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { NodeId } from '@katafract/shared/units';
import { Gauge, type Registry } from 'prom-client';
import { type Audit, actorOf } from '../audit/audit.ts';
import { type Database, type Sql, type Tx, uniqueViolation } from '../platform/db.ts';
import { uuidv7 } from '../platform/ids.ts';
import { readTogether } from '../platform/metrics.ts';
import { implausible } from './health.ts';
import { nodeUnknown } from './log.ts';
import type { DrainState, NodeState } from './tables.ts';

export interface DrainDeps {
  readonly db: Database;
  readonly audit: Audit;
  readonly fleet: { changed(only?: readonly NodeId[]): Promise<void> };
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

export interface DrainView {
  node: NodeId;
  state: DrainState;
  wantedBy: string;
  startedAt: string;
  endedAt: string | null;
  /** When the node should be empty. */
  deadline: string | null;
  /** Whether that is over, and it is not. */
  overdue: boolean;
  /** Peers the node had at the start. */
  total: number;
  /** Peers that were given other exits. */
  moved: number;
  /** Peers still waiting for that. */
  waiting: number;
  /** Peers with other exits that this one still answers, until their devices have had time to switch. */
  leaving: number;
  /** Of those waiting, peers that no other exit could take at the last look. */
  stranded: number;
}

interface Stored extends Omit<DrainView, 'overdue' | 'startedAt' | 'endedAt' | 'deadline'> {
  id: string;
  before: NodeState;
  startedAt: string;
  endedAt: string | null;
  deadline: string | null;
}

/** What a caller does first in the same transaction; again, where that has to begin anew. */
export type First = (tx: Tx) => Promise<void>;

/**
 * Begins to drain a node, or gives the drain that is under way another deadline.
 * @param operator null where the system itself wants it
 * @throws KatafractError `node_unknown` (404), `node_retired` (409)
 */
export async function startDrain(
  deps: DrainDeps,
  node: NodeId,
  deadline: Date | undefined,
  operator: string | null,
  first?: First,
): Promise<DrainView> {
  const begin = () =>
    deps.db.transaction(async (tx) => {
      await first?.(tx);
      await startOnce(deps, tx, node, deadline, operator);
    });
  await begin().catch((error: unknown) => {
    // of two at once the later one finds the drain of the earlier one
    if (uniqueViolation(error) === 'drains_open') return begin();
    throw error;
  });
  await deps.fleet.changed([node]);
  return readDrain(deps, node);
}

async function startOnce(
  { audit, now }: DrainDeps,
  tx: Tx,
  node: NodeId,
  deadline: Date | undefined,
  operator: string | null,
): Promise<void> {
  const { sql } = tx;
  const [open] = await sql<{ id: string }[]>`
    select id from drains where node_id = ${node} and state in ('running', 'paused') for update`;
  const [row] = await sql<{ state: NodeState; peers: number }[]>`
    select state, peer_count as peers from nodes where id = ${node} for update`;
  if (!row) throw nodeUnknown(node);
  if (row.state === 'retired')
    throw new KatafractError('node_retired', `${node} is retired`, { status: 409 });
  if (open) {
    if (deadline) await sql`update drains set deadline = ${deadline} where id = ${open.id}`;
    if (deadline) await releaseBy(sql, node, deadline);
    return;
  }
  if (row.state === 'drained' && row.peers === 0) return;
  const before = row.state === 'drained' ? 'cordoned' : row.state;
  await sql`
    insert into drains (id, node_id, state, wanted_by, before, deadline, total, started_at)
    values (${uuidv7(now())}, ${node}, 'running', ${operator ?? 'system'}, ${before}, ${deadline ?? null}, ${row.peers},
            ${new Date(now())})`;
  await sql`update nodes set state = 'draining' where id = ${node}`;
  const detail = { peers: row.peers, deadline: deadline?.toISOString() ?? null };
  await audit.record(tx, [
    { actor: actorOf(operator), action: 'drain.started', subject: `node:${node}`, detail },
  ]);
}

/** Peers that have left already go by the new deadline at the latest. */
async function releaseBy(sql: Sql, node: NodeId, deadline: Date): Promise<void> {
  await sql`
    update placements set release_at = least(release_at, ${deadline})
    where node_id = ${node} and release_at is not null`;
}

const STEPS = {
  pause: { to: 'paused', action: 'drain.paused' },
  resume: { to: 'running', action: 'drain.resumed' },
  cancel: { to: 'cancelled', action: 'drain.cancelled' },
} as const;
export type DrainStep = keyof typeof STEPS;

/**
 * Pauses, resumes or cancels a drain; to do what is done already changes nothing. When it returns, no batch is under
 * way that began before. What has been moved stays where it is.
 * @throws KatafractError `node_unknown`, `drain_unknown` (404), `drain_over` (409)
 */
export async function stepDrain(
  deps: DrainDeps,
  node: NodeId,
  step: DrainStep,
  operator: string,
  first?: First,
): Promise<DrainView> {
  const { to, action } = STEPS[step];
  await deps.db.transaction(async (tx) => {
    await first?.(tx);
    const { sql } = tx;
    const [last] = await sql<{ id: string; state: DrainState; before: NodeState }[]>`
      select id, state, before from drains where node_id = ${node} order by started_at desc limit 1 for update`;
    if (!last) throw await noDrain(sql, node);
    if (last.state === to) return;
    if (last.state === 'done' || last.state === 'cancelled') {
      throw new KatafractError('drain_over', `the last drain of ${node} is over`, { status: 409 });
    }
    const endedAt = to === 'cancelled' ? new Date(deps.now()) : null;
    await sql`update drains set state = ${to}, ended_at = ${endedAt} where id = ${last.id}`;
    if (to === 'cancelled') {
      await sql`update nodes set state = ${last.before} where id = ${node} and state = 'draining'`;
    }
    await deps.audit.record(tx, [
      { actor: `operator:${operator}`, action, subject: `node:${node}`, detail: {} },
    ]);
  });
  await deps.fleet.changed([node]);
  return readDrain(deps, node);
}

async function noDrain(sql: Sql, node: NodeId): Promise<KatafractError> {
  const [known] = await sql`select 1 from nodes where id = ${node}`;
  if (!known) return nodeUnknown(node);
  return new KatafractError('drain_unknown', `${node} was never drained`, { status: 404 });
}

/** The node's last drain. @throws KatafractError `node_unknown`, `drain_unknown` (404) */
export async function readDrain({ db, now }: DrainDeps, node: NodeId): Promise<DrainView> {
  const [row] = await db.sql<Stored[]>`
    select d.id, d.node_id as node, d.state, d.before, d.wanted_by as "wantedBy", d.deadline, d.total, d.moved,
           d.stranded, d.started_at as "startedAt", d.ended_at as "endedAt",
           (select count(*)::int from placements p
            where p.node_id = d.node_id and not p.removed and p.role <> 'leaving') as waiting,
           (select count(*)::int from placements p
            where p.node_id = d.node_id and not p.removed and p.role = 'leaving') as leaving
    from drains d where d.node_id = ${node} order by d.started_at desc limit 1`;
  if (!row) throw await noDrain(db.sql, node);
  const { id: _, before: __, ...view } = row;
  const iso = (at: string | null) => (at === null ? null : new Date(at).toISOString());
  const open = row.state === 'running' || row.state === 'paused';
  return {
    ...view,
    startedAt: new Date(row.startedAt).toISOString(),
    endedAt: iso(row.endedAt),
    deadline: iso(row.deadline),
    overdue: open && row.deadline !== null && Date.parse(row.deadline) < now(),
  };
}

/** A node that peers have to leave. */
export interface Emptying {
  readonly node: NodeId;
  /** `down`: without its help and at once; `drain`: make before break. */
  readonly why: 'down' | 'drain';
  /** Of a drain, when it should be empty. */
  readonly deadline: Date | null;
}

/** Nodes that peers have to leave now: those that are down, unless too many are, and those that are being drained. */
export async function nodesToEmpty(sql: Sql): Promise<Emptying[]> {
  const rows = await sql<
    { node: NodeId; down: boolean; deadline: string | null; dead: number; nodes: number }[]
  >`
    select node, down, deadline, dead, nodes from (
      select n.id as node, n.peer_count as peers, coalesce(h.state = 'down', false) as down,
             n.state = 'drained' or (n.state = 'draining' and d.state = 'running') as draining, d.deadline,
             (count(*) filter (where h.state = 'down') over ())::int as dead, (count(*) over ())::int as nodes
      from nodes n left join node_health h on h.node_id = n.id
      left join drains d on d.node_id = n.id and d.state in ('running', 'paused')
      where n.state not in ('joining', 'retired')
    ) x where peers > 0 and (down or draining) order by node`;
  return rows
    .filter(({ down, dead, nodes }) => !down || !implausible(dead, nodes))
    .map(({ node, down, deadline }) => ({
      node,
      why: down ? 'down' : 'drain',
      deadline: deadline === null ? null : new Date(deadline),
    }));
}

/** Ends the drains of nodes that are empty. */
export async function finishDrains(deps: DrainDeps): Promise<number> {
  const empty = await deps.db.sql<{ id: string; node: NodeId }[]>`
    select d.id, n.id as node from drains d join nodes n on n.id = d.node_id
    where d.state = 'running' and n.peer_count = 0 order by n.id`;
  let finished = 0;
  for (const { id, node } of empty) {
    await deps.db.transaction(async (tx) => {
      const [drain] = await tx.sql<{ total: number; moved: number }[]>`
        select total, moved from drains where id = ${id} and state = 'running' for update`;
      const [row] = await tx.sql`
        select 1 from nodes where id = ${node} and peer_count = 0 and state = 'draining' for update`;
      if (!drain || !row) return;
      await tx.sql`update drains set state = 'done', stranded = 0, ended_at = ${new Date(deps.now())} where id = ${id}`;
      await tx.sql`update nodes set state = 'drained' where id = ${node}`;
      await deps.audit.record(tx, [
        { actor: 'system', action: 'drain.finished', subject: `node:${node}`, detail: { ...drain } },
      ]);
      finished++;
    });
  }
  if (finished > 0) await deps.fleet.changed(empty.map(({ node }) => node));
  return finished;
}

/** What operators are alerted by: drains that do not get on. */
export function createDrainMetrics(
  registry: Registry,
  { db, now, failed }: Pick<DrainDeps, 'db' | 'now'> & { readonly failed: (error: unknown) => void },
): void {
  const gauge = (name: string, help: string) =>
    new Gauge({
      name: `katafract_drain_${name}`,
      help,
      labelNames: ['node'],
      registers: [registry],
      collect: () => collect(),
    });
  const peers = gauge('peers', 'Peers on nodes that are being drained');
  const stranded = gauge('stranded_peers', 'Peers of a drained node that no other exit can take');
  const overdue = gauge('overdue', 'Whether a node is not empty though its deadline is over');
  const collect = readTogether(async () => {
    const open = await db.sql<{ node: NodeId; peers: number; stranded: number; deadline: string | null }[]>`
      select d.node_id as node, n.peer_count as peers, d.stranded, d.deadline
      from drains d join nodes n on n.id = d.node_id where d.state in ('running', 'paused')`;
    for (const one of [peers, stranded, overdue]) one.reset();
    for (const { node, ...drain } of open) {
      peers.set({ node }, drain.peers);
      stranded.set({ node }, drain.stranded);
      overdue.set({ node }, drain.deadline !== null && Date.parse(drain.deadline) < now() ? 1 : 0);
    }
  }, failed);
}
