/**
 * What must hold at every moment, checked from outside: the agent's and the publisher's own word counts for nothing
 * here, only what is in the kernel, on the disk and in the log's history.
 */
import type { AgentStatus } from '@katafract/agent/agent';
import { sameConfig } from '@katafract/agent/desired/receive';
import { type Recovery, recover } from '@katafract/agent/desired/record';
import type { PeerBatch } from '@katafract/agent/ports';
import { allowedIps } from '@katafract/shared/digest';
import type { NodeId, PublicKey } from '@katafract/shared/units';
import type { Applied } from '@katafract/shared/uplink';
import type { Disk } from './disk.ts';
import type { Kernel } from './kernel.ts';
import { comesFrom, type LogModel, NOWHERE, type Position, type State, stateKey } from './log-model.ts';

export class Violation extends Error {}

/** A commit that somebody waits for. */
interface Waiting {
  readonly commit: State;
  readonly keys: Set<string>;
  kernel: boolean;
  /** In the kernel and on the disk, with the host in order, at one moment in one life of the agent. */
  proven: boolean;
}

export interface OracleView {
  readonly node: NodeId;
  readonly log: LogModel;
  readonly kernel: Kernel;
  readonly disk: Disk;
  /** null while the agent does not run, or has not read its disk. */
  status(): AgentStatus | null;
}

function order(a: Position, b: Position): number {
  return a.lineage - b.lineage || a.generation - b.generation;
}

export class Oracle {
  readonly #view: OracleView;
  /** Highest that this run of the agent held. */
  #held: Position = NOWHERE;
  /** Highest that was acknowledged since the disk was last wiped. */
  #acknowledged: Position = NOWHERE;
  readonly #waiting = new Set<Waiting>();
  /** Commits that were seen to be in force, by their numbers and digest: a lost one may be made again, just the same. */
  readonly #proven = new Set<string>();
  #meddled = false;
  /** What was last read from the disk; reading it costs more than most checks. */
  #read: { snapshot: string | null; journal: string; held: Recovery['held'] } = {
    snapshot: null,
    journal: '',
    held: null,
  };

  constructor(view: OracleView) {
    this.#view = view;
  }

  /** A new run of the agent on the same disk. */
  restarted(): void {
    this.#held = this.#acknowledged;
    this.#view.kernel.ready = false;
    for (const one of this.#waiting) one.kernel = false;
  }

  wiped(): void {
    this.#held = NOWHERE;
    this.#acknowledged = NOWHERE;
  }

  /** Somebody else changed the kernel's table: what the agent has just put there it cannot vouch for. */
  meddled(...keys: readonly string[]): void {
    this.#meddled = true;
    for (const one of this.#waiting) for (const key of keys) one.keys.delete(key);
  }

  wait(commit: State, keys: readonly PublicKey[]): Waiting {
    const one: Waiting = {
      commit,
      keys: new Set(keys),
      kernel: false,
      proven: this.#proven.has(stateKey(commit)),
    };
    this.#waiting.add(one);
    return one;
  }

  /** A wait is over: `applied` is what the caller of the API is told. */
  waited(one: Waiting, applied: boolean): void {
    this.#waiting.delete(one);
    if (applied && !one.proven) {
      const { lineage, generation } = one.commit;
      throw new Violation(
        `generation ${generation} of lineage ${lineage} was acknowledged before the kernel and the disk had it`,
      );
    }
  }

  /** After every event. */
  observe(): void {
    const status = this.#view.status();
    if (!status?.received) return;
    const { position } = status;
    if (order(position, this.#held) < 0) {
      throw new Violation(`the node fell from ${text(this.#held)} to ${text(position)}`);
    }
    this.#held = position;
    const [state] = this.#past(status);
    if (state?.rows.size !== status.heldPeers) {
      throw new Violation(`the node holds ${status.heldPeers} peers at ${text(position)}`);
    }
    this.evidence();
  }

  #past({ position }: AgentStatus): readonly State[] {
    const past = this.#view.log.past(this.#view.node, position);
    if (past.length === 0) throw new Violation(`the node holds what never was: ${text(position)}`);
    return past;
  }

  /** Before the kernel is told anything. */
  told(batch: PeerBatch): void {
    if (batch.remove.length + batch.set.length === 0) return;
    const status = this.#view.status();
    if (!status?.received) throw new Violation('the kernel was told something before anything was received');
    const [state] = this.#past(status);
    const wrong =
      batch.remove.some((key) => state?.rows.has(key as PublicKey)) ||
      batch.set.some(({ publicKey, ipv4, ipv6 }) => {
        const row = state?.rows.get(publicKey);
        return row?.[1] !== ipv4 || row?.[2] !== ipv6;
      });
    if (wrong) throw new Violation(`the kernel was told another table than that of ${text(status.position)}`);
  }

  /** The agent says so. */
  applied(body: Applied): void {
    const disk = this.#onDisk();
    if (!disk || order(disk, body) < 0) {
      throw new Violation(`${text(body)} was acknowledged, the disk has ${disk ? text(disk) : 'nothing'}`);
    }
    const [state] = this.#view.log.past(this.#view.node, body);
    if (!this.#meddled && state && !this.#kernelIs(state)) {
      throw new Violation(`${text(body)} was acknowledged, the kernel has another table`);
    }
    if (order(body, this.#acknowledged) > 0) this.#acknowledged = body;
  }

  #onDisk(): State | null {
    const { node, disk, log } = this.#view;
    const { snapshot, journal } = disk;
    if (this.#read.snapshot !== snapshot || this.#read.journal !== journal) {
      this.#read = { snapshot, journal, held: recover(snapshot, journal, node).held };
    }
    const { held } = this.#read;
    if (!held) return null;
    const [state] = log.past(node, held);
    if (!state) throw new Violation(`the disk has what never was: ${text(held)}`);
    return state;
  }

  #kernelIs(state: State): boolean {
    const { kernel } = this.#view;
    return (
      kernel.keys().length === state.rows.size &&
      [...state.rows.keys()].every((key) => this.#agrees(key, state))
    );
  }

  #agrees(key: string, state: State): boolean {
    const row = state.rows.get(key as PublicKey);
    const wanted = row && allowedIps({ ipv4: row[1], ipv6: row[2] });
    return this.#view.kernel.allowed(key) === wanted;
  }

  /** Looks whether what somebody waits for is there by now. */
  evidence(): void {
    const open = [...this.#waiting].filter((one) => !one.proven);
    if (open.length === 0) return;
    const status = this.#view.status();
    const held = status?.received ? this.#past(status) : [];
    const disk = this.#onDisk();
    const onDisk = disk ? this.#view.log.past(this.#view.node, disk) : [];
    for (const one of open) {
      one.kernel ||= held.some(
        (state) => comesFrom(state, one.commit) && [...one.keys].every((key) => this.#agrees(key, state)),
      );
      one.proven =
        one.kernel && this.#view.kernel.ready && onDisk.some((state) => comesFrom(state, one.commit));
      if (one.proven) this.#proven.add(stateKey(one.commit));
    }
  }

  /** What still keeps the node from being what the log says; null when nothing does. */
  difference(acked: readonly Position[]): string | null {
    const { log, node, kernel } = this.#view;
    const wanted = log.state(node);
    const status = this.#view.status();
    if (!status?.received) return 'the node holds nothing';
    if (order(status.position, wanted) !== 0 || status.position.digest !== wanted.digest) {
      return `the node holds ${text(status.position)}, the log is at ${text(wanted)}`;
    }
    if (!this.#kernelIs(wanted)) return 'the kernel has another table';
    if (!log.configUnsure && !(kernel.config && sameConfig(kernel.config, wanted.config))) {
      return 'the interface has another configuration';
    }
    const behind = acked.find((at) => order(at, wanted) !== 0);
    if (behind) return `acknowledged is ${text(behind)}, the log is at ${text(wanted)}`;
    if (acked.length === 0) return 'the node is connected to nobody';
    const disk = this.#onDisk();
    if (!disk || order(disk, wanted) !== 0) return 'the disk has another state';
    return null;
  }
}

function text(at: Position): string {
  return `${at.lineage}/${at.generation}`;
}
