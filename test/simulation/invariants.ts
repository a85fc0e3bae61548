/**
 * What must hold whatever happens, looked at in the tables and at the simulated nodes, by nothing of what is under test.
 */
import type { Sql } from '@katafract/controller/platform/db';
import { EMPTY_DIGEST, entryDigest, type PeerEntry } from '@katafract/shared/digest';
import type { NodeId, RegionId } from '@katafract/shared/units';
import type { SimulatedFleet } from './fleet.ts';
import type { Absence, SimulatedNode } from './node.ts';

/** Within so many ms of a node's last word its peers have other primaries. */
export const BOUND_MS = 60_000;
/** The goal: down within this time of silence, in ms. */
const DOWN_WITHIN_MS = 30_000;
/** A verdict may come so much later than what it was passed on, in ms. */
const LATE_MS = 3000;
/** Two regions that are neighbours never reboot within this time of one another, in ms. */
const APART_MS = 60_000;
/** Nearer than this, in km, regions are neighbours in any case. */
const NEAR_KM = 800;

export interface Watched {
  readonly violations: string[];
  /** Of each node that went down, ms from its last word to the verdict. */
  readonly verdictMs: number[];
  readonly checks: { down: number; primaries: number; recounts: number };
}

export class Invariants {
  readonly #sql: Sql;
  readonly #fleet: SimulatedFleet;
  readonly #judged = new Set<string>();
  readonly found: Watched = {
    violations: [],
    verdictMs: [],
    checks: { down: 0, primaries: 0, recounts: 0 },
  };

  constructor(sql: Sql, fleet: SimulatedFleet) {
    this.#sql = sql;
    this.#fleet = fleet;
  }

  #broken(what: string): void {
    if (this.found.violations.length < 20) this.found.violations.push(what);
  }

  /** No node is down that was heard; those that are were judged in time. */
  async verdicts(): Promise<void> {
    const down = await this.#sql<{ node: NodeId; since: number }[]>`
      select node_id as node, extract(epoch from since)::float8 * 1000 as since from node_health where state = 'down'`;
    this.found.checks.down++;
    for (const { node, since } of down) {
      const key = `${node} ${since}`;
      if (this.#judged.has(key)) continue;
      this.#judged.add(key);
      const absence = this.#fleet.nodes.get(node)?.absences.find((one) => explains(one, since));
      if (!absence)
        this.#broken(`${node} was declared down at ${new Date(since).toISOString()} though it lived`);
      else if (!absence.leased) this.#inTime(node, since - absence.heard);
    }
  }

  #inTime(node: NodeId, took: number): void {
    this.found.verdictMs.push(took);
    if (took > DOWN_WITHIN_MS) this.#broken(`${node} was declared down only after ${took} ms`);
  }

  /** Every peer has a primary that lives, or died so lately that its bound is not over. */
  async primaries(now: number): Promise<void> {
    this.found.checks.primaries++;
    const dead = [...this.#fleet.nodes.values()].filter((node) => isLongDead(node, now)).map(({ id }) => id);
    const left = await this.#sql<{ node: NodeId; count: number }[]>`
      select node_id as node, count(*)::int as count from placements
      where node_id = any(${dead as string[]}::text[]) and role = 'primary' and not removed group by 1`;
    for (const { node, count } of left)
      this.#broken(`${count} peers have their primary on ${node}, which is dead`);
    const full = await this.#sql<{ id: NodeId; peers: number; capacity: number }[]>`
      select id, peer_count as peers, capacity from nodes where peer_count > capacity`;
    for (const { id, peers, capacity } of full)
      this.#broken(`${id} has ${peers} peers, and room for ${capacity}`);
  }

  /** What is counted along the way equals what a count finds. Reads every row. */
  async recount(): Promise<void> {
    const { found } = this;
    found.checks.recounts++;
    const nodes = await this.#sql<{ id: NodeId; said: number; rows: number }[]>`
      select n.id, n.peer_count as said, coalesce(p.count, 0)::int as rows
      from nodes n left join (select node_id, count(*) from placements where not removed group by 1) p on p.node_id = n.id
      where n.peer_count <> coalesce(p.count, 0)`;
    for (const { id, said, rows } of nodes) this.#broken(`${id} counts ${said} peers and has ${rows} rows`);
    const [primaries] = await this.#sql<{ peers: number; placed: number; twice: number }[]>`
      select (select count(*)::int from peers) as peers, count(*)::int as placed,
             (count(*) filter (where primaries <> 1))::int as twice
      from (select count(*) filter (where role = 'primary') as primaries from placements where not removed group by peer_id) x`;
    if (!primaries || primaries.placed !== primaries.peers || primaries.twice > 0) {
      this.#broken(`primaries: ${JSON.stringify(primaries)}`);
    }
    for (const node of this.#fleet.nodes.values()) if (node.table) await this.#digest(node);
  }

  async #digest(node: SimulatedNode): Promise<void> {
    const rows = await this.#sql<PeerEntry[]>`
      select public_key as "publicKey", ipv4, ipv6 from placements where node_id = ${node.id} and not removed`;
    const [head] = await this.#sql<{ digest: string; generation: number }[]>`
      select digest::text, generation::float8 from nodes where id = ${node.id}`;
    const sum = rows.reduce((digest, row) => digest ^ BigInt(`0x${entryDigest(row)}`), 0n);
    if (head?.digest !== sum.toString(2).padStart(EMPTY_DIGEST.length * 4, '0')) {
      this.#broken(`the digest of ${node.id} is not that of its rows`);
    }
    for (const fault of node.faults) this.#broken(`${node.id}: ${fault}`);
    const current = node.alive && node.holds.generation === head?.generation;
    if (current && node.table?.size !== rows.length) {
      this.#broken(`${node.id} holds ${node.table?.size} rows of ${rows.length}`);
    }
  }

  /** No two neighbours go in the same minute, nor two nodes of a region at once. */
  async reboots(distance: (a: RegionId, b: RegionId) => number): Promise<number> {
    const rows = await this.#sql<{ node: NodeId; region: RegionId; leasedAt: Date; endedAt: Date | null }[]>`
      select b.node_id as node, n.region_id as region, b.leased_at as "leasedAt", b.ended_at as "endedAt"
      from reboots b join nodes n on n.id = b.node_id where b.leased_at is not null`;
    for (const [at, one] of rows.entries()) {
      for (const other of rows.slice(at + 1)) {
        const near = one.region === other.region || distance(one.region, other.region) < NEAR_KM;
        if (near && overlap(one, other))
          this.#broken(`${one.node} and ${other.node} had leave to reboot at once`);
      }
    }
    return rows.length;
  }
}

const explains = ({ from, until }: Absence, at: number) =>
  from <= at && (until === null || until > at - LATE_MS);

function isLongDead(node: SimulatedNode, now: number): boolean {
  const last = node.absences.at(-1);
  return last !== undefined && last.until === null && !last.leased && now - last.from > BOUND_MS;
}

interface Lease {
  readonly leasedAt: Date;
  readonly endedAt: Date | null;
}

function overlap(one: Lease, other: Lease): boolean {
  const span = ({ leasedAt, endedAt }: Lease) =>
    [leasedAt.getTime(), endedAt?.getTime() ?? Number.POSITIVE_INFINITY] as const;
  const [from, to] = span(one);
  const [otherFrom, otherTo] = span(other);
  return from < otherTo + APART_MS && otherFrom < to + APART_MS;
}
