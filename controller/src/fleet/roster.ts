/**
 * The fleet as this process sees it: nodes, regions, loads and signs of life, in memory, so that placement costs no
 * query. Loads follow every commit of this process and every notification of another's; the rest is read again when
 * something says that it changed, and now and then anyway.
 */
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import type { Endpoint, NodeId, PublicKey, RegionId } from '@katafract/shared/units';
import type { Heartbeat } from '@katafract/shared/uplink';
import type { Database } from '../platform/db.ts';
import type { HealthState } from './health.ts';
import { nodeUnknown } from './log.ts';
import { type Choice, type Displaced, Placement, type Settled } from './placement.ts';
import { type Candidate, isAvailable } from './rules.ts';
import type { NodeState } from './tables.ts';

export interface RegionRow {
  readonly id: RegionId;
  readonly name: string;
  readonly country: string;
  readonly latitude: number;
  readonly longitude: number;
}

export interface RosterNode extends Candidate {
  /** What its line carries, in Mbit/s; null where nobody said. */
  readonly bandwidthMbit: number | null;
  /** Of its first tunnel interface; the others answer on the ports after it. */
  readonly endpoint: Endpoint;
  readonly tunnels: number;
  readonly publicKey: PublicKey;
  /** It updates or reboots, and may be silent until then, in milliseconds since the epoch; null where it does not. */
  readonly maintenanceUntil: number | null;
}

/** What a heartbeat tells of how busy a node is. */
interface Busy {
  readonly at: number;
  readonly bytes: number;
  readonly cpu: number;
  /** Bits a second since the heartbeat before. */
  readonly rate: number;
}

interface NodeRow {
  id: NodeId;
  region: RegionId;
  state: NodeState;
  health: HealthState;
  provider: string | null;
  endpoint: Endpoint;
  tunnels: number;
  publicKey: PublicKey;
  capacity: number;
  bandwidthMbit: number | null;
  peerCount: number;
  maintenanceUntil: string | null;
  lastSeen: string | null;
}

/** Kept up to date in place: a heartbeat costs no copy, and who holds one sees what became of it. */
type Live = { -readonly [Field in keyof RosterNode]: RosterNode[Field] };

export class Roster {
  readonly #db: Database;
  readonly #clock: Clock;
  #regions = new Map<RegionId, RegionRow>();
  #nodes = new Map<NodeId, Live>();
  #placement = new Placement([]);
  /** Heard here or by notice; the database may have newer of a node that speaks to another controller, or older. */
  readonly #heard = new Map<NodeId, number>();
  readonly #busy = new Map<NodeId, Busy>();

  constructor(db: Database, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** Reads everything anew, or these nodes. */
  async refresh(only?: readonly NodeId[]): Promise<void> {
    const { sql } = this.#db;
    const [regions, rows] = await Promise.all([
      sql<RegionRow[]>`select id, name, country, latitude, longitude from regions order by id`,
      sql<NodeRow[]>`
        select n.id, n.region_id as region, n.state, coalesce(h.state, 'ok') as health, n.provider, n.endpoint,
               n.tunnels, n.public_key as "publicKey", n.capacity, n.bandwidth_mbit as "bandwidthMbit",
               n.peer_count as "peerCount", n.maintenance_until as "maintenanceUntil", r.last_seen_at as "lastSeen"
        from nodes n left join node_reports r on r.node_id = n.id left join node_health h on h.node_id = n.id
        ${only ? sql`where n.id = any(${only as readonly string[] as string[]}::text[])` : sql``}
        order by n.id`,
    ]);
    this.#regions = new Map(regions.map((region) => [region.id, region]));
    const nodes = rows.map((row) => this.#live(row));
    // who is there, and where, seldom changes
    const known = nodes.every(({ id, region }) => this.#nodes.get(id)?.region === region);
    if (only && known) for (const node of nodes) this.#update(node.id, node);
    else {
      const all = new Map([...(only ? this.#nodes : []), ...nodes.map((node) => [node.id, node] as const)]);
      this.#nodes = new Map([...all].sort(([a], [b]) => (a < b ? -1 : 1)));
      this.#placement = new Placement(this.#nodes.values(), this.#placement);
    }
  }

  #live({ lastSeen: reported, maintenanceUntil: until, ...row }: NodeRow): Live {
    const region = this.#regions.get(row.region);
    const place = { latitude: region?.latitude ?? 0, longitude: region?.longitude ?? 0 };
    const seen = reported === null ? null : Date.parse(reported);
    const heard = this.#heard.get(row.id);
    const lastSeen = heard === undefined || seen === null ? (heard ?? seen) : Math.max(heard, seen);
    const maintenanceUntil = until === null ? null : Date.parse(until);
    // to placement a node that is about to be silent is one in doubt: only where nothing else is to be had
    const health = row.health === 'ok' && until !== null ? 'suspect' : row.health;
    return { ...row, health, place, lastSeen, maintenanceUntil, ...this.#load(row) };
  }

  /** A sign of life. */
  touch(id: NodeId): void {
    const now = this.#clock.now();
    this.#heard.set(id, now);
    this.#update(id, { lastSeen: now });
  }

  /** How busy a node is by its heartbeat. */
  observe(id: NodeId, { at, rxBytes, txBytes, cpu }: Heartbeat): void {
    const before = this.#busy.get(id);
    const bytes = rxBytes + txBytes;
    // its counters begin anew with its agent; its own clock measures the interval
    const rate =
      before && at > before.at && bytes >= before.bytes
        ? ((bytes - before.bytes) * 8000) / (at - before.at)
        : 0;
    this.#busy.set(id, { at, bytes, cpu, rate });
    const node = this.#nodes.get(id);
    if (node) this.#update(id, this.#load(node));
  }

  #load({ id, bandwidthMbit }: Pick<NodeRow, 'id' | 'bandwidthMbit'>): { cpu: number; bandwidth: number } {
    const { cpu = 0, rate = 0 } = this.#busy.get(id) ?? {};
    return { cpu, bandwidth: bandwidthMbit === null ? 0 : rate / (bandwidthMbit * 1e6) };
  }

  /** When a node last gave a sign of life to any controller that could tell this one. */
  heard(id: NodeId): number | null {
    return this.#heard.get(id) ?? this.#nodes.get(id)?.lastSeen ?? null;
  }

  /** The node's load after a commit. */
  load(id: NodeId, peerCount: number): void {
    this.#update(id, { peerCount });
  }

  #update(id: NodeId, change: Partial<Live>): void {
    const node = this.#nodes.get(id);
    if (node) Object.assign(node, change);
  }

  /** @throws KatafractError `node_unknown` (404) */
  node(id: NodeId): RosterNode {
    const node = this.#nodes.get(id);
    if (!node) throw nodeUnknown(id);
    return node;
  }

  has(id: NodeId): boolean {
    return this.#nodes.has(id);
  }

  /** @throws KatafractError `region_unknown` (422) */
  region(id: RegionId): RegionRow {
    const region = this.#regions.get(id);
    if (!region) throw new KatafractError('region_unknown', `no such region: ${id}`, { status: 422 });
    return region;
  }

  /** Every node, those that are retired as well. */
  nodes(): Iterable<RosterNode> {
    return this.#nodes.values();
  }

  regions(): { region: RegionRow; nodes: RosterNode[]; available: boolean }[] {
    const now = this.#clock.now();
    const present = new Map([...this.#regions.keys()].map((id) => [id, [] as RosterNode[]]));
    for (const node of this.#nodes.values()) {
      if (node.state !== 'retired') present.get(node.region)?.push(node);
    }
    return [...this.#regions.values()].map((region) => {
      const nodes = present.get(region.id) ?? [];
      return { region, nodes, available: nodes.some((node) => isAvailable(node, now)) };
    });
  }

  /**
   * Chooses exits for several peers at once, each choice counting for the next.
   * @returns for each wish its nodes, the primary first, or the error that wish met
   * @see Placement.place for the errors
   */
  place(wishes: readonly { region: RegionId; standbys: number }[]): (NodeId[] | KatafractError)[] {
    const now = this.#clock.now();
    const choose = (wish: { region: RegionId; standbys: number }) => {
      try {
        this.region(wish.region);
        return this.#placement.place({ ...wish, now }).map(({ node }) => node);
      } catch (error) {
        if (error instanceof KatafractError) return error;
        throw error;
      }
    };
    return this.#each(wishes, choose, (found) => (Array.isArray(found) ? found : []));
  }

  /** Chooses anew for several peers that must leave a node, each choice counting for the next. @see Placement.replace */
  replace(displaced: readonly Omit<Displaced, 'now'>[]): Choice[][] {
    const now = this.#clock.now();
    return this.#each(
      displaced,
      (wish) => this.#placement.replace({ ...wish, now }),
      (found, { present }) => found.map(({ node }) => node).filter((node) => !present.includes(node)),
    );
  }

  /** What would be better for several peers that are in no need, each choice counting for the next. @see Placement.improve */
  improve(settled: readonly Omit<Settled, 'now'>[]): (Choice[] | null)[] {
    const now = this.#clock.now();
    return this.#each(
      settled,
      (wish) => this.#placement.improve({ ...wish, now }),
      (found, { present }) => (found ?? []).map(({ node }) => node).filter((node) => !present.includes(node)),
    );
  }

  /** Nodes that take peers. */
  available(): NodeId[] {
    const now = this.#clock.now();
    return [...this.#nodes.values()].filter((node) => isAvailable(node, now)).map(({ id }) => id);
  }

  /**
   * Nothing is chosen for good before it is committed: the loads are as they were when this returns.
   * @param added nodes whose load grows by what was found
   */
  #each<Wish, Found>(
    wishes: readonly Wish[],
    choose: (wish: Wish) => Found,
    added: (found: Found, wish: Wish) => readonly NodeId[],
  ): Found[] {
    const grown: Live[] = [];
    try {
      return wishes.map((wish) => {
        const found = choose(wish);
        for (const id of added(found, wish)) {
          const node = this.#nodes.get(id);
          if (!node) continue;
          node.peerCount += 1;
          grown.push(node);
        }
        return found;
      });
    } finally {
      for (const node of grown) node.peerCount -= 1;
    }
  }
}
