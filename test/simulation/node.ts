/**
 * A node of the simulated fleet: what an exit says and answers, as objects of the wire contract, without a kernel. Most
 * believe the digest of what they are sent; those with a `table` keep every row and work it out.
 */
import type { Desired } from '@katafract/shared/desired';
import { EMPTY_DIGEST, entryDigest, type PeerEntry, xorDigest } from '@katafract/shared/digest';
import type { UpLeaf } from '@katafract/shared/topics';
import type { Digest, Generation, Lineage, NodeId, PublicKey, RegionId } from '@katafract/shared/units';
import type { Applied, Heartbeat, Hello } from '@katafract/shared/uplink';

const VERSION = '0.1.0';

export interface Holding {
  readonly lineage: Lineage;
  readonly generation: Generation;
  readonly digest: Digest;
}

/** A time in which it was away, in milliseconds since the epoch. */
export interface Absence {
  readonly from: number;
  /** When it was last heard before. */
  readonly heard: number;
  until: number | null;
  /** It had leave to reboot. */
  readonly leased: boolean;
}

export type Word = { readonly leaf: UpLeaf; readonly body: object };

export class SimulatedNode {
  readonly id: NodeId;
  readonly region: RegionId;
  readonly table: Map<PublicKey, PeerEntry> | null;
  readonly absences: Absence[] = [];
  /** What an honest controller never causes. */
  readonly faults: string[] = [];
  holds: Holding;
  rebootNeeded = false;
  /** When the controller last heard it, in milliseconds since the epoch. */
  heard = 0;
  #boot = 1;
  #staged: Desired[] = [];
  #lease: { readonly lease: string; readonly until: number } | null = null;
  #usedLease: string | undefined;

  constructor(id: NodeId, region: RegionId, holds: Holding, table: Map<PublicKey, PeerEntry> | null) {
    this.id = id;
    this.region = region;
    this.holds = holds;
    this.table = table;
  }

  get alive(): boolean {
    return this.absences.at(-1)?.until !== null;
  }

  leave(now: number, leased = false): void {
    if (this.alive) this.absences.push({ from: now, heard: this.heard, until: null, leased });
  }

  /** It is back, as after a reboot: it holds what it held. */
  come(now: number): void {
    const last = this.absences.at(-1);
    if (!last || last.until !== null) return;
    last.until = now;
    this.#boot++;
    this.#staged = [];
  }

  /** Leave to reboot that it has not used; using it is one step. */
  takeLease(now: number): boolean {
    const lease = this.#lease;
    if (!lease || lease.lease === this.#usedLease || now > lease.until) return false;
    this.#usedLease = lease.lease;
    this.rebootNeeded = false;
    return true;
  }

  hello(): Word {
    const boot = `simulated-${this.#boot}`;
    const body: Hello = { v: 1, boot, version: VERSION, ...this.holds, want: 'delta' };
    return { leaf: 'hello', body };
  }

  heartbeat(now: number): Word {
    const load = { cpu: 0.1, memoryUsed: 1, memoryTotal: 2, load: 0.1, uptimeSeconds: 1 };
    const body: Heartbeat = {
      ...{ v: 1, boot: `simulated-${this.#boot}`, version: VERSION, at: now, ...this.holds },
      ...{ peers: this.table?.size ?? 0, peersRecent: 0, rxBytes: 0, txBytes: 0, ...load },
      ...{ rules: 'ok', dns: 'ok', repairs: 0, refused: {} },
      upkeep: { rebootNeeded: this.rebootNeeded, ...(this.#usedLease ? { lease: this.#usedLease } : {}) },
    };
    return { leaf: 'heartbeat', body };
  }

  /** Takes a message in. @returns what it says to that */
  take(message: Desired): Word | null {
    const { lineage, to } = message;
    const { holds } = this;
    if (lineage < holds.lineage || (lineage === holds.lineage && to <= holds.generation))
      return this.#applied();
    if (message.kind === 'delta' && (lineage !== holds.lineage || message.from !== holds.generation)) {
      return this.hello();
    }
    if (message.part === 1) this.#staged = [];
    this.#staged.push(message);
    if (this.#staged.length < message.parts) return null;
    const digest = this.table ? this.#fill(message.kind === 'snapshot') : message.digest;
    if (digest !== message.digest) this.faults.push(`digest of ${message.kind} to ${to}`);
    this.holds = { lineage, generation: to, digest };
    for (const { config } of this.#staged) if (config) this.#lease = config.upkeep?.reboot ?? null;
    return this.#applied();
  }

  #fill(anew: boolean): Digest {
    const { table } = this;
    if (!table) return EMPTY_DIGEST;
    let digest = anew ? EMPTY_DIGEST : this.holds.digest;
    if (anew) table.clear();
    const drop = (key: PublicKey) => {
      const old = table.get(key);
      if (old) digest = xorDigest(digest, entryDigest(old));
      table.delete(key);
    };
    for (const part of this.#staged) {
      if (part.kind === 'delta') for (const key of part.del) drop(key);
      for (const [publicKey, ipv4, ipv6] of part.set) {
        drop(publicKey);
        const entry = { publicKey, ipv4, ipv6 };
        table.set(publicKey, entry);
        digest = xorDigest(digest, entryDigest(entry));
      }
    }
    return digest;
  }

  #applied(): Word {
    const body: Applied = { v: 1, ...this.holds };
    return { leaf: 'applied', body };
  }
}
