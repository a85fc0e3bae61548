/**
 * Watches the fleet: each second every node is judged (health.ts) by what the database has of it, so that it makes no
 * difference which controller it speaks to; what changes is written down, audited and shown to placement everywhere.
 *
 *   node_reports (written in batches by whoever hears a node) ──► judge ──► node_health ──► roster of every controller
 *                                                                                    └────► peers.evacuate
 */
import type { Clock } from '@katafract/shared/clock';
import type { Digest, NodeId } from '@katafract/shared/units';
import type { PartState } from '@katafract/shared/uplink';
import { Gauge, type Registry } from 'prom-client';
import type { Audit } from '../audit/audit.ts';
import { bitsToDigest } from '../platform/columns.ts';
import type { Database, Sql } from '../platform/db.ts';
import type { Logger } from '../platform/log.ts';
import type { Fleet } from './fleet.ts';
import {
  HEALTH_STATES,
  type HealthReason,
  type HealthState,
  hearingSince,
  implausible,
  isQuiet,
  judge,
  recall,
  type Seen,
  shouldAsk,
  UNWATCHED_MS,
  type Verdict,
} from './health.ts';

export interface WatchDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly log: Logger;
  readonly registry: Registry;
  readonly audit: Audit;
  readonly fleet: Fleet;
}

/** What the database has of a node. */
interface Row {
  readonly node: NodeId;
  readonly state: HealthState | null;
  readonly reason: HealthReason;
  readonly since: string;
  readonly flaps: number;
  readonly seenAt: string | null;
  readonly left: boolean;
  readonly head: string;
  readonly applied: string | null;
  readonly digest: string;
  readonly beat: number | null;
  readonly beatHead: string | null;
  readonly beatDigest: Digest | null;
  readonly rules: PartState | null;
  readonly dns: PartState | null;
}

interface Judged {
  readonly node: NodeId;
  readonly was: Verdict;
  readonly quiet: boolean;
  readonly verdict: Verdict;
}

/** A verdict that nothing was heard since to change, and what it was passed on. */
interface Settled {
  readonly row: Row;
  readonly heard: number | null;
  readonly seen: Seen;
  readonly verdict: ReturnType<typeof judge>;
}

const hasChanged = ({ was, verdict }: Judged) => verdict.state !== was.state || verdict.reason !== was.reason;

/** How often the same alarm is logged, in ms. */
const ALARM_MS = 60_000;
/** How often everything is read, whatever was said to have changed, in ms. */
const READ_ALL_MS = 60_000;

export class Watch {
  readonly #deps: WatchDeps;
  /** As last read; read again for each node that something new is known of. */
  #rows = new Map<NodeId, Row>();
  readonly #verdicts = new Map<NodeId, Verdict>();
  readonly #settled = new Map<NodeId, Settled>();
  readonly #asked = new Map<NodeId, number>();
  readonly #gauge: Gauge<'state'>;
  readonly #implausible: Gauge;
  #hearingSince = 0;
  #lastLook = 0;
  #lastRead = 0;
  #lastDoubt = 0;

  constructor(deps: WatchDeps) {
    this.#deps = deps;
    const registers = [deps.registry];
    this.#gauge = new Gauge({
      name: 'katafract_nodes_health',
      help: 'Nodes by how they were last judged, as the controller that judges sees them',
      labelNames: ['state'],
      registers,
    });
    this.#implausible = new Gauge({
      name: 'katafract_fleet_implausible',
      help: '1 while more than half of the fleet looks down, so that this controller does nothing about it',
      registers,
    });
  }

  /** Asks nodes that are late for a sign of life. On every controller: a node may be connected to any. */
  async ask(): Promise<void> {
    const { fleet, clock } = this.#deps;
    const now = clock.now();
    for (const { id, state } of [...fleet.roster.nodes()]) {
      if (state === 'retired') continue;
      if (!shouldAsk(fleet.roster.heard(id), this.#asked.get(id) ?? 0, now)) continue;
      this.#asked.set(id, now);
      await fleet.ask(id);
    }
  }

  /** Judges every node once. */
  async look(): Promise<void> {
    const { clock, fleet } = this.#deps;
    await this.#read();
    const now = clock.now();
    const since = hearingSince(this.#hearingSince, { now, lastLook: this.#lastLook, broker: fleet.hears });
    if (since !== this.#hearingSince) this.#settled.clear();
    this.#hearingSince = since;
    this.#lastLook = now;
    const judged = this.#doubt(
      [...this.#rows.values()].filter(serves(fleet)).map((row) => this.#judge(row, now)),
      now,
    );
    for (const { node, verdict } of judged) this.#verdicts.set(node, verdict);
    for (const state of HEALTH_STATES) {
      this.#gauge.set({ state }, judged.filter(({ verdict }) => verdict.state === state).length);
    }
    const changed = judged.filter(hasChanged);
    if (changed.length > 0) await this.#write(changed);
  }

  /** What changed since the last look; everything where that cannot be told, or others may have judged meanwhile. */
  async #read(): Promise<void> {
    const { db, clock, fleet } = this.#deps;
    const now = clock.now();
    const changed = fleet.takeReported();
    const all = changed === null || now - this.#lastLook > UNWATCHED_MS || now - this.#lastRead > READ_ALL_MS;
    if (!all && changed.length === 0) return;
    const lastRead = all ? now : this.#lastRead;
    // should it fail, what had changed is not known any more
    this.#lastRead = 0;
    const rows = await readRows(db.sql, all ? null : changed);
    this.#lastRead = lastRead;
    if (all) this.#rows = new Map();
    for (const row of rows) this.#rows.set(row.node, row);
  }

  #judge(row: Row, now: number): Judged {
    const { roster } = this.#deps.fleet;
    const heard = roster.heard(row.node);
    const expectedUntil = roster.has(row.node) ? roster.node(row.node).maintenanceUntil : null;
    const settled = this.#settled.get(row.node);
    if (settled?.row === row && settled.heard === heard && settled.seen.expectedUntil === expectedUntil) {
      const { seen, verdict } = settled;
      const quiet = isQuiet(seen, { now, hearingSince: this.#hearingSince });
      if (now < verdict.nextLookAt) return { node: row.node, was: verdict, quiet, verdict };
    }
    const remembered = this.#verdicts.get(row.node);
    const was = row.state === null ? (remembered ?? newcomer(now)) : upToDate(row, row.state, remembered);
    const seen = { ...seenOf(row, heard), expectedUntil };
    const at = { now, hearingSince: this.#hearingSince };
    const verdict = judge(was, seen, at);
    const judged = { node: row.node, was, quiet: isQuiet(seen, at), verdict };
    // what is still to be written down is judged again until it is
    if (hasChanged(judged)) this.#settled.delete(row.node);
    else this.#settled.set(row.node, { row, heard, seen, verdict });
    return judged;
  }

  /** Where more than half of the fleet would be down, this controller is more likely the one that is ill. */
  #doubt(judged: Judged[], now: number): Judged[] {
    const gone = judged.filter(({ verdict, quiet }) => quiet || verdict.state === 'down');
    const doubted = implausible(gone.length, judged.length);
    if (doubted && this.#lastDoubt + ALARM_MS < now) {
      this.#lastDoubt = now;
      this.#deps.log.error(
        { count: gone.length },
        'more than half of the fleet looks down: probably this controller cannot hear it, so nothing is done',
      );
    }
    this.#implausible.set(doubted ? 1 : 0);
    if (!doubted) return judged;
    this.#settled.clear();
    return judged.map((one) => {
      if (one.verdict.state !== 'down' || one.was.state === 'down') return one;
      const state = 'suspect' as const;
      const since = one.was.state === state ? one.was.since : now;
      return { ...one, verdict: { ...one.verdict, state, since } };
    });
  }

  async #write(changed: readonly Judged[]): Promise<void> {
    const { db, audit, fleet, log } = this.#deps;
    const rows = changed.map(({ node, verdict: { state, reason, since, flaps } }) => ({
      node,
      state,
      reason,
      since: new Date(since).toISOString(),
      flaps,
    }));
    const passed = changed.filter(({ was, verdict }) => verdict.state !== was.state);
    await db.transaction(async (tx) => {
      await tx.sql`
        insert into node_health as h (node_id, state, reason, since, flaps)
        select node, state, reason, since, flaps
        from jsonb_to_recordset(${tx.sql.json(rows)}) as r(node text, state text, reason text, since timestamptz, flaps int)
        on conflict (node_id) do update
          set state = excluded.state, reason = excluded.reason, since = excluded.since, flaps = excluded.flaps`;
      await audit.record(
        tx,
        passed.map(({ node, was, verdict: { state, reason } }) => ({
          actor: 'system',
          action: 'node.health_changed',
          subject: `node:${node}`,
          detail: { from: was.state, to: state, reason },
        })),
      );
    });
    for (const { since, ...row } of rows) {
      const known = this.#rows.get(row.node);
      if (known) this.#rows.set(row.node, { ...known, ...row, since });
    }
    for (const { node, verdict } of passed) {
      const line = { node, reason: `${verdict.state}: ${verdict.reason}` };
      if (verdict.state === 'ok') log.info(line, 'a node is well again');
      else log.warn(line, 'a node is not well');
    }
    if (passed.length > 0) await fleet.changed(passed.map(({ node }) => node));
  }
}

const newcomer = (now: number) => recall({ state: 'ok', reason: 'well', since: now, flaps: 0 });

/** What this process remembers of a node, unless another one has judged it meanwhile. */
function upToDate(row: Row, state: HealthState, remembered: Verdict | undefined): Verdict {
  const since = Date.parse(row.since);
  if (remembered?.state === state && remembered.since === since) return { ...remembered, reason: row.reason };
  return recall({ state, reason: row.reason, since, flaps: row.flaps });
}

/** Whether a node is one to be judged: since it was read it may have been retired. */
const serves =
  ({ roster }: Fleet) =>
  ({ node }: Row) =>
    roster.has(node) && !['joining', 'retired'].includes(roster.node(node).state);

/** One read of what is known of the nodes that were ever heard of: all, or these. */
function readRows(sql: Sql, only: readonly NodeId[] | null): Promise<Row[]> {
  return sql<Row[]>`
    select n.id as node, h.state, h.reason, h.since, h.flaps, r.last_seen_at as "seenAt",
           r.left_at is not null as left, n.lineage || ' ' || n.generation as head, n.digest::text as digest,
           r.applied_lineage || ' ' || r.applied_generation as applied, (r.health ->> 'at')::float8 as beat,
           (r.health ->> 'lineage') || ' ' || (r.health ->> 'generation') as "beatHead",
           r.health ->> 'digest' as "beatDigest", r.health ->> 'rules' as rules, r.health ->> 'dns' as dns
    from nodes n join node_reports r on r.node_id = n.id left join node_health h on h.node_id = n.id
    where n.state not in ('joining', 'retired') and r.last_seen_at is not null
      ${only ? sql`and n.id = any(${only as readonly string[] as string[]}::text[])` : sql``}
    order by n.id`;
}

function seenOf(row: Row, heard: number | null): Seen {
  const reported = row.seenAt === null ? null : Date.parse(row.seenAt);
  return {
    heardAt: heard === null || reported === null ? (heard ?? reported) : Math.max(heard, reported),
    left: row.left,
    beat: row.beat,
    applied: row.applied ?? '',
    // before its first change a node has nothing to apply
    behind: row.applied !== row.head && !row.head.endsWith(' 0'),
    mismatch: row.beatHead === row.head && row.beatDigest !== bitsToDigest(row.digest),
    rules: row.rules,
    dns: row.dns,
  };
}
