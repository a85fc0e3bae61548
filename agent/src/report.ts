/** What the node says of itself, and the counts it keeps for that: aggregates only. */

import { EMPTY_DIGEST } from '@katafract/shared/digest';
import { PROTOCOL } from '@katafract/shared/topics';
import type { Digest, Generation, Lineage } from '@katafract/shared/units';
import type { Heartbeat, Hello, PartState } from '@katafract/shared/uplink';
import type { Held } from './desired/table.ts';
import type { Telemetry } from './ports.ts';
import type { Pass } from './reconcile.ts';

/** Who is speaking. */
export interface Speaker {
  /** Random per start of the agent. */
  readonly boot: string;
  readonly version: string;
  /** Lineage the node was enrolled under; spoken of while nothing is held. */
  readonly enrolledLineage: Lineage;
}

export interface Position {
  readonly lineage: Lineage;
  readonly generation: Generation;
  /** Of the held set. */
  readonly digest: Digest;
}

/** Where the node stands; before anything was received: generation 0 of the lineage it was enrolled under. */
export function position(held: Held | null, speaker: Speaker): Position {
  if (!held) return { lineage: speaker.enrolledLineage, generation: 0 as Generation, digest: EMPTY_DIGEST };
  return { lineage: held.lineage, generation: held.generation, digest: held.digest };
}

export function hello(speaker: Speaker, held: Held | null, wantSnapshot: boolean): Hello {
  return {
    v: PROTOCOL,
    boot: speaker.boot,
    version: speaker.version,
    ...position(held, speaker),
    want: held && !wantSnapshot ? 'delta' : 'snapshot',
  };
}

/** Counts since the agent started. */
export class Counts {
  repairs = 0;
  failures = 0;
  forgotten = 0;
  /** Worst state of the rules since the last heartbeat: a repair in between must show. */
  rules: PartState = 'ok';
  /** As above, of the DNS filter. */
  dns: PartState = 'off';
  readonly refused: Record<string, number> = {};

  add(pass: Pass): void {
    this.repairs += pass.repairs;
    this.failures += pass.failures;
    this.forgotten += pass.forgotten;
    if (pass.rules !== 'ok') this.rules = pass.rules;
    const dns = dnsOf(pass);
    if (dns !== 'ok' || this.dns === 'off') this.dns = dns;
  }

  /** A heartbeat went out: what was put right is forgotten, what is wrong still is. */
  said(pass: Pass): void {
    this.rules = pass.rules === 'failed' ? 'failed' : 'ok';
    const dns = dnsOf(pass);
    this.dns = dns === 'repaired' ? 'ok' : dns;
  }

  /** @returns whether this is the first refusal of its kind since `forget` */
  refuse(reason: string): boolean {
    this.refused[reason] = (this.refused[reason] ?? 0) + 1;
    const first = !this.#told.has(reason);
    this.#told.add(reason);
    return first;
  }

  /** Lets each reason be logged once more. */
  forget(): void {
    this.#told.clear();
  }

  readonly #told = new Set<string>();
}

function dnsOf({ haven: { state, repairs } }: Pass): PartState {
  if (state === 'off' || (state === 'ok' && repairs === 0)) return state;
  return repairs > 0 ? 'repaired' : 'failed';
}

/** null where the pass could not read the kernel: then there is nothing true to say. */
export function heartbeat(
  speaker: Speaker,
  held: Held | null,
  pass: Pass,
  telemetry: Telemetry,
  counts: Counts,
  now: number,
): Heartbeat | null {
  if (!pass.kernel) return null;
  const { lineage, generation } = position(held, speaker);
  return {
    v: PROTOCOL,
    boot: speaker.boot,
    version: speaker.version,
    at: now,
    lineage,
    generation,
    digest: pass.kernel.digest,
    peers: pass.kernel.peers,
    peersRecent: pass.recent,
    ...telemetry,
    rules: counts.rules,
    dns: counts.dns,
    repairs: counts.repairs,
    refused: { ...counts.refused },
  };
}
