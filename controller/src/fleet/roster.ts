/**
 * The fleet as this process sees it: nodes, regions, loads and signs of life, in memory, so that placement costs no
 * query. Loads follow every commit of this process and every notification of another's; the rest is read again when
 * something says that it changed, and now and then anyway.
 */
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import type { Endpoint, NodeId, PublicKey, RegionId } from '@katafract/shared/units';
import type { Database } from '../platform/db.ts';
import { nodeUnknown } from './log.ts';
import { type Candidate, isAvailable, placePeer } from './rules.ts';
import type { NodeState } from './tables.ts';

export interface RegionRow {
  readonly id: RegionId;
  readonly name: string;
  readonly country: string;
  readonly latitude: number;
  readonly longitude: number;
}

export interface RosterNode extends Candidate {
  readonly endpoint: Endpoint;
  readonly publicKey: PublicKey;
}

interface NodeRow {
  id: NodeId;
  region: RegionId;
  state: NodeState;
  endpoint: Endpoint;
  publicKey: PublicKey;
  capacity: number;
  peerCount: number;
  lastSeen: string | null;
}

export class Roster {
  readonly #db: Database;
  readonly #clock: Clock;
  #regions = new Map<RegionId, RegionRow>();
  #nodes = new Map<NodeId, RosterNode>();
  /** Heard here or by notice; the database may have newer of a node that speaks to another controller, or older. */
  readonly #heard = new Map<NodeId, number>();

  constructor(db: Database, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** Reads everything anew. */
  async refresh(): Promise<void> {
    const { sql } = this.#db;
    const [regions, nodes] = await Promise.all([
      sql<RegionRow[]>`select id, name, country, latitude, longitude from regions order by id`,
      sql<NodeRow[]>`
        select n.id, n.region_id as region, n.state, n.endpoint, n.public_key as "publicKey", n.capacity,
               n.peer_count as "peerCount", r.last_seen_at as "lastSeen"
        from nodes n left join node_reports r on r.node_id = n.id order by n.id`,
    ]);
    this.#regions = new Map(regions.map((region) => [region.id, region]));
    this.#nodes = new Map(
      nodes.map(({ lastSeen: reported, ...row }) => {
        const region = this.#regions.get(row.region);
        const place = { latitude: region?.latitude ?? 0, longitude: region?.longitude ?? 0 };
        const seen = reported === null ? null : Date.parse(reported);
        const heard = this.#heard.get(row.id);
        const lastSeen = heard === undefined || seen === null ? (heard ?? seen) : Math.max(heard, seen);
        return [row.id, { ...row, place, lastSeen }];
      }),
    );
  }

  /** A sign of life. */
  touch(id: NodeId): void {
    const now = this.#clock.now();
    this.#heard.set(id, now);
    this.#update(id, { lastSeen: now });
  }

  /** The node's load after a commit. */
  load(id: NodeId, peerCount: number): void {
    this.#update(id, { peerCount });
  }

  #update(id: NodeId, change: Partial<RosterNode>): void {
    const node = this.#nodes.get(id);
    if (node) this.#nodes.set(id, { ...node, ...change });
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

  regions(): { region: RegionRow; nodes: RosterNode[]; available: boolean }[] {
    const now = this.#clock.now();
    return [...this.#regions.values()].map((region) => {
      const nodes = [...this.#nodes.values()].filter(
        (node) => node.region === region.id && node.state !== 'retired',
      );
      return { region, nodes, available: nodes.some((node) => isAvailable(node, now)) };
    });
  }

  /**
   * Chooses exits for several peers at once, each choice counting for the next.
   * @returns for each wish its nodes, the primary first, or the error that wish met
   * @see placePeer for the errors
   */
  place(wishes: readonly { region: RegionId; standbys: number }[]): (NodeId[] | KatafractError)[] {
    const now = this.#clock.now();
    const nodes = new Map([...this.#nodes].map(([id, node]) => [id, { ...node }]));
    const list = [...nodes.values()];
    return wishes.map((wish) => {
      try {
        this.region(wish.region);
        const chosen = placePeer(list, { ...wish, now });
        for (const id of chosen) {
          const node = nodes.get(id);
          if (node) node.peerCount += 1;
        }
        return chosen;
      } catch (error) {
        if (error instanceof KatafractError) return error;
        throw error;
      }
    });
  }
}
