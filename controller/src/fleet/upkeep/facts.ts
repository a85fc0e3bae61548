/** What the rules of upkeep know of a node, and how many exits a region can spare. Pure. */
import type { NodeId, RegionId } from '@katafract/shared/units';
import type { HealthState } from '../health.ts';
import type { NodeState } from '../tables.ts';
import type { RegionGraph } from './graph-rules.ts';
import type { RolloutNodeState } from './tables.ts';

export interface NodeFacts {
  readonly id: NodeId;
  readonly region: RegionId;
  readonly lifecycle: NodeState;
  readonly health: HealthState;
  /** Peers by capacity. */
  readonly load: number;
  /** It updates or reboots just now, and its silence is expected. */
  readonly maintained: boolean;
  /** A reboot lease is out to it. */
  readonly leased: boolean;
  /** The version it last said it runs. */
  readonly runs: string | null;
  /**
   * What it said since it holds the config that it was last given; null where it has not said anything since. Read only
   * of nodes that something is done to or that want to reboot.
   */
  readonly said: {
    readonly version: string;
    /** Rules, resolver and table were as they should be. */
    readonly sound: boolean;
    readonly updateFailed: boolean;
    readonly rebootNeeded: boolean;
    /** The last lease it rebooted by. */
    readonly lease: string | null;
    /** Its clock against this one, in ms. */
    readonly skew: number;
  } | null;
  /** Its part in the rollout that is open. */
  readonly part: RolloutPart | null;
}

export interface RolloutPart {
  readonly wave: number;
  readonly state: RolloutNodeState;
  readonly before: string | null;
  /** When that state began, in milliseconds since the epoch. */
  readonly since: number;
  readonly reason: string | null;
}

/** Whether a rollout does something to it just now. */
export const inWork = ({ part }: NodeFacts) => part?.state === 'updating' || part?.state === 'reverting';

/** Whether it serves, and nothing is being done to it. */
export const isWell = (node: NodeFacts) =>
  node.lifecycle === 'active' && node.health === 'ok' && !node.maintained && !node.leased && !inWork(node);

/** Whether something is wrong with a node that should serve, and not because of what is being done to it. */
export const isUnwell = (node: NodeFacts) =>
  (node.lifecycle === 'active' || node.lifecycle === 'cordoned') && node.health !== 'ok' && !node.maintained;

/** Regions as they stand, with what a pass has decided already. */
export class Regions {
  readonly #graph: RegionGraph;
  readonly #well = new Map<RegionId, number>();
  readonly #exits = new Map<RegionId, number>();
  readonly #working = new Map<RegionId, number>();

  constructor(graph: RegionGraph, nodes: Iterable<NodeFacts>) {
    this.#graph = graph;
    for (const node of nodes) {
      if (node.lifecycle === 'active') add(this.#exits, node.region, 1);
      if (isWell(node)) add(this.#well, node.region, 1);
      if (inWork(node) || node.leased || node.maintained) add(this.#working, node.region, 1);
    }
  }

  /** Exits of the region that are well. */
  well(region: RegionId): number {
    return this.#well.get(region) ?? 0;
  }

  /** Nodes of the region that something is done to. */
  working(region: RegionId): number {
    return this.#working.get(region) ?? 0;
  }

  /** No neighbour of the region is being worked on. */
  neighboursRest(region: RegionId): boolean {
    return [...this.#graph.neighbours(region)].every((near) => this.working(near) === 0);
  }

  /** Some neighbour could serve the region's clients; true where it has none. */
  neighboursServe(region: RegionId): boolean {
    const near = [...this.#graph.neighbours(region)];
    return near.length === 0 || near.some((one) => this.well(one) > 0);
  }

  /** Without this node the region would still have as many well exits as it must. */
  spares(node: NodeFacts): boolean {
    const rest = this.well(node.region) - (isWell(node) ? 1 : 0);
    return rest >= (this.#graph.regions.get(node.region)?.minExits ?? 0) || !isWell(node);
  }

  /** Half of a region's exits, at least one, may be worked on at once. */
  roomy(region: RegionId): boolean {
    return this.working(region) < Math.max(1, Math.floor((this.#exits.get(region) ?? 0) / 2));
  }

  /** Something is now done to this node. */
  take(node: NodeFacts): void {
    if (isWell(node)) add(this.#well, node.region, -1);
    add(this.#working, node.region, 1);
  }
}

function add(to: Map<RegionId, number>, region: RegionId, count: number): void {
  to.set(region, (to.get(region) ?? 0) + count);
}
