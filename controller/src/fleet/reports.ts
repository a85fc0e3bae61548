/**
 * What nodes say of themselves, written in batches and without waiting for the disk: a lost report costs nothing, the
 * node repeats it within ten seconds. Other controllers are told by NOTIFY, so a caller there who waits for this
 * node's answer hears of it.
 */
import type { Clock } from '@katafract/shared/clock';
import type { Generation, Lineage, NodeId } from '@katafract/shared/units';
import type { Heartbeat } from '@katafract/shared/uplink';
import type { Database } from '../platform/db.ts';

export interface Report {
  appliedLineage?: Lineage;
  appliedGeneration?: Generation;
  agentVersion?: string;
  health?: Heartbeat;
}

/** What is to be written of a node; `at` and `leftAt` in milliseconds since the epoch. */
interface Pending extends Report {
  /** The last sign of life. */
  at?: number;
  /** The last will, where it came after that. */
  leftAt?: number;
}

export interface ReportRow {
  node: NodeId;
  lineage: Lineage;
  generation: Generation;
}

/** What other controllers are told. */
export interface ReportNotice {
  readonly instance: string;
  /** Nodes that gave a sign of life. */
  readonly seen: readonly NodeId[];
  /** Those that did not: their last will came. */
  readonly left: readonly NodeId[];
  readonly applied: readonly ReportRow[];
}

interface ReportEvents {
  /** What these nodes said is in the database now. */
  written(nodes: readonly NodeId[]): void;
  failed(error: unknown): void;
}

export const REPORTS_CHANNEL = 'kf_reports';
const FLUSH_MS = 200;
/** Nodes in one notification, each at most 130 bytes of it. */
const PER_NOTICE = 50;

export class Reports {
  readonly #db: Database;
  readonly #clock: Clock;
  readonly #instance: string;
  readonly #on: ReportEvents;
  #pending = new Map<NodeId, Pending>();
  #cancel: (() => void) | null = null;
  #flushing: Promise<void> = Promise.resolve();

  constructor(db: Database, clock: Clock, instance: string, on: ReportEvents) {
    this.#db = db;
    this.#clock = clock;
    this.#instance = instance;
    this.#on = on;
  }

  /** A sign of life. */
  add(node: NodeId, report: Report): void {
    const { leftAt: _, ...pending } = this.#pending.get(node) ?? {};
    this.#set(node, { ...pending, ...report, at: this.#clock.now() });
  }

  /** The broker says that it is gone. */
  left(node: NodeId): void {
    this.#set(node, { ...this.#pending.get(node), leftAt: this.#clock.now() });
  }

  #set(node: NodeId, pending: Pending): void {
    this.#pending.set(node, pending);
    this.#cancel ??= this.#clock.after(FLUSH_MS, () => {
      this.#cancel = null;
      this.#flushing = this.#flushing.then(() => this.flush().catch(this.#on.failed));
    });
  }

  /** Writes what has gathered. */
  async flush(): Promise<void> {
    const iso = (at: number | undefined) => (at === undefined ? null : new Date(at).toISOString());
    const rows = [...this.#pending].map(([node, report]) => ({
      node,
      ...report,
      at: iso(report.at),
      leftAt: iso(report.leftAt),
    }));
    this.#pending = new Map();
    if (rows.length === 0) return;
    await this.#db.transaction(async ({ sql }) => {
      await Promise.all([
        sql`set local synchronous_commit = off`,
        sql`
          insert into node_reports as r
            (node_id, applied_lineage, applied_generation, agent_version, last_seen_at, left_at, health)
          select n.id, coalesce(j."appliedLineage", 0), coalesce(j."appliedGeneration", 0), j."agentVersion", j.at,
                 j."leftAt", j.health
          from jsonb_to_recordset(${sql.json(rows as never)}) as j(
            node text, "appliedLineage" bigint, "appliedGeneration" bigint, "agentVersion" text, at timestamptz,
            "leftAt" timestamptz, health jsonb)
          join nodes n on n.id = j.node
          order by n.id
          on conflict (node_id) do update set
            applied_lineage = case when excluded.applied_lineage > 0 then excluded.applied_lineage else r.applied_lineage end,
            applied_generation =
              case when excluded.applied_lineage > 0 then excluded.applied_generation else r.applied_generation end,
            agent_version = coalesce(excluded.agent_version, r.agent_version),
            last_seen_at = coalesce(excluded.last_seen_at, r.last_seen_at),
            left_at = case
              when excluded.left_at is not null or excluded.last_seen_at is not null then excluded.left_at
              else r.left_at end,
            health = coalesce(excluded.health, r.health)`,
        ...this.#notices(rows).map((text) => sql`select pg_notify(${REPORTS_CHANNEL}, ${text})`),
      ]);
    });
    this.#on.written(rows.map(({ node }) => node));
  }

  /** Who spoke, and what was applied. NOTIFY carries at most 8000 bytes, so there may be several. */
  #notices(rows: readonly (Report & { node: NodeId; at: string | null })[]): string[] {
    const cuts = Array.from({ length: Math.ceil(rows.length / PER_NOTICE) }, (_, at) =>
      rows.slice(at * PER_NOTICE, (at + 1) * PER_NOTICE),
    );
    return cuts.map((cut) => {
      const seen = cut.filter(({ at }) => at !== null).map(({ node }) => node);
      const left = cut.filter(({ at }) => at === null).map(({ node }) => node);
      const applied = cut
        .filter((row) => row.appliedLineage !== undefined)
        .map((row) => ({ node: row.node, lineage: row.appliedLineage, generation: row.appliedGeneration }));
      return JSON.stringify({ instance: this.#instance, seen, left, applied });
    });
  }

  async stop(): Promise<void> {
    this.#cancel?.();
    this.#cancel = null;
    await this.#flushing;
    await this.flush();
  }
}
