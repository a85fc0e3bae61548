/**
 * The controller's generation log as plain data: what controller/src/fleet/log.ts says in SQL, said once more in the
 * plainest way there is. log.test.ts holds the two together, so that what is proved over this one holds for Postgres.
 *
 * It also remembers every state there ever was, with the one it came from, also those that a restore took back: that
 * is what the world asks "was this ever the controller's word?".
 */

import type { Advance, Update } from '@katafract/controller/fleet/changes';
import type { Head } from '@katafract/controller/fleet/rules';
import type { NodeConfig, PeerTuple } from '@katafract/shared/desired';
import { EMPTY_DIGEST, setDigest } from '@katafract/shared/digest';
import type { Digest, Generation, Lineage, NodeId, PublicKey } from '@katafract/shared/units';

/** What one commit does to one node's table; a key is named at most once. */
export interface TableChange {
  readonly node: NodeId;
  readonly set: readonly PeerTuple[];
  readonly del: readonly PublicKey[];
}

export interface Position {
  readonly lineage: Lineage;
  readonly generation: Generation;
}

/** One state the log was in. */
export interface State extends Position {
  readonly digest: Digest;
  readonly rows: ReadonlyMap<PublicKey, PeerTuple>;
  readonly config: NodeConfig;
  readonly parent: State | null;
}

interface LogRow {
  readonly tuple: PeerTuple;
  readonly generation: number;
  readonly removed: boolean;
}

interface NodeLog {
  state: State;
  rows: Map<PublicKey, LogRow>;
  configGeneration: number;
  swept: Generation;
  allowShrink: boolean;
  applied: Position;
}

export type Copy = ReadonlyMap<NodeId, NodeLog>;

export const NOWHERE: Position = { lineage: 0 as Lineage, generation: 0 as Generation };

export function stateKey(at: Position & { digest: Digest }): string {
  return `${at.lineage} ${at.generation} ${at.digest}`;
}

export function comesFrom(state: State, ancestor: State): boolean {
  for (let at: State | null = state; at; at = at.parent) if (at === ancestor) return true;
  return false;
}

function entries(rows: Iterable<PeerTuple>) {
  return Array.from(rows, ([publicKey, ipv4, ipv6]) => ({ publicKey, ipv4, ipv6 }));
}

export class LogModel {
  #nodes = new Map<NodeId, NodeLog>();
  /** Every state that ever was, by node and then by stateKey; more than one where histories meet. */
  readonly #history = new Map<NodeId, Map<string, State[]>>();
  #configured = false;
  #restored = false;

  add(node: NodeId, lineage: Lineage, config: NodeConfig): void {
    const origin = { lineage, generation: 0 as Generation, digest: EMPTY_DIGEST };
    const state: State = { ...origin, rows: new Map(), config, parent: null };
    this.#nodes.set(node, {
      state,
      rows: new Map(),
      configGeneration: 0,
      swept: 0 as Generation,
      allowShrink: false,
      applied: NOWHERE,
    });
    this.#history.set(node, new Map());
    this.#enter(node, state);
  }

  #node(node: NodeId): NodeLog {
    const found = this.#nodes.get(node);
    if (!found) throw new Error(`the model has no node ${node}`);
    return found;
  }

  #enter(node: NodeId, state: State): void {
    this.#node(node).state = state;
    const history = this.#history.get(node);
    const key = stateKey(state);
    history?.set(key, [...(history.get(key) ?? []), state]);
  }

  /** The states that were ever known by these numbers and this digest. */
  past(node: NodeId, at: Position & { digest: Digest }): readonly State[] {
    return this.#history.get(node)?.get(stateKey(at)) ?? [];
  }

  state(node: NodeId): State {
    return this.#node(node).state;
  }

  commit(changes: readonly TableChange[]): Advance[] {
    return changes.map(({ node, set, del }) => {
      const log = this.#node(node);
      const { lineage, generation: from } = log.state;
      const to = (from + 1) as Generation;
      const rows = new Map(log.state.rows);
      for (const key of del) {
        const tuple = rows.get(key);
        if (!tuple) throw new Error('a removal of a row that is not there');
        rows.delete(key);
        log.rows.set(key, { tuple, generation: to, removed: true });
      }
      for (const tuple of set) {
        if (rows.has(tuple[0])) throw new Error('a row that is there already');
        rows.set(tuple[0], tuple);
        log.rows.set(tuple[0], { tuple, generation: to, removed: false });
      }
      const digest = setDigest(entries(rows.values()));
      this.#enter(node, { ...log.state, generation: to, digest, rows, parent: log.state });
      return { node, lineage, from, to, digest, peerCount: rows.size, set, del };
    });
  }

  /**
   * Whether numbers and digest need not tell which configuration is meant: the digest covers peers only. Where
   * transactions were lost and others took their numbers, a node may hold the right peers under the right numbers and
   * yet a configuration of the other history, and nobody would notice. A known gap of the protocol.
   */
  get configUnsure(): boolean {
    return this.#configured && this.#restored;
  }

  configure(node: NodeId, change: Partial<NodeConfig>): void {
    this.#configured = true;
    const log = this.#node(node);
    const generation = (log.state.generation + 1) as Generation;
    log.configGeneration = generation;
    const config = { ...log.state.config, ...change };
    this.#enter(node, { ...log.state, generation, config, parent: log.state });
  }

  allowShrink(node: NodeId): void {
    this.#node(node).allowShrink = true;
  }

  head(node: NodeId): Head {
    const { state, swept } = this.#node(node);
    return { lineage: state.lineage, generation: state.generation, digest: state.digest, swept };
  }

  delta(node: NodeId, from: Generation): Update | null {
    const log = this.#node(node);
    if (from < log.swept) return null;
    const rows = [...log.rows].filter(([, row]) => row.generation > from);
    return {
      kind: 'delta',
      node,
      ...this.head(node),
      from,
      to: log.state.generation,
      set: rows.filter(([, row]) => !row.removed).map(([, row]) => row.tuple),
      del: rows.filter(([, row]) => row.removed).map(([key]) => key),
      ...(log.configGeneration > from ? { config: log.state.config } : {}),
    };
  }

  snapshot(node: NodeId): Update {
    const { state, allowShrink, rows } = this.#node(node);
    const tombstones = [...rows.values()].filter(({ removed }) => removed).length;
    return {
      kind: 'snapshot',
      node,
      ...this.head(node),
      from: 0 as Generation,
      to: state.generation,
      set: [...state.rows.values()],
      del: [],
      config: state.config,
      // known removals account for it
      allowShrink: allowShrink || tombstones >= Math.max(1, state.rows.size),
    };
  }

  raiseLineage(node: NodeId, above: Lineage): Head {
    const { state } = this.#node(node);
    const lineage = (Math.max(state.lineage, above) + 1) as Lineage;
    this.#enter(node, { ...state, lineage, parent: state });
    return this.head(node);
  }

  /** What the node was last heard to have applied. */
  report(node: NodeId, applied: Position): void {
    this.#node(node).applied = applied;
  }

  applied(node: NodeId): Position {
    return this.#node(node).applied;
  }

  /** @returns how many tombstones went */
  sweep(): number {
    let gone = 0;
    for (const log of this.#nodes.values()) {
      const { lineage, generation } = log.applied;
      if (lineage !== log.state.lineage || generation <= log.swept) continue;
      log.swept = generation;
      for (const [key, row] of log.rows) {
        if (!row.removed || row.generation > generation) continue;
        log.rows.delete(key);
        gone++;
      }
    }
    return gone;
  }

  /** The database as a backup, or a standby that has fallen behind, would have it. */
  copy(): Copy {
    return new Map([...this.#nodes].map(([id, log]) => [id, { ...log, rows: new Map(log.rows) }]));
  }

  /** Goes on from an older copy: everything committed since is lost. */
  restore(copy: Copy): void {
    this.#restored = true;
    this.#nodes = new Map([...copy].map(([id, log]) => [id, { ...log, rows: new Map(log.rows) }]));
  }
}
