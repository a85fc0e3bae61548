/**
 * Peers leave nodes that are drained or down: they get other exits, batch by batch, each batch one transaction.
 *
 *   drained   new placements on the targets; the old one stays as `leaving` until they answer and the device has had
 *             time to switch (release.ts)
 *   down      new placements, the nearest standby first; the old one ends at once, as a tombstone in the dead node's log,
 *             which is the first thing it hears of when it comes back
 *
 * What is left to do is what the tables say, so after a crash anywhere the next pass goes on, and nothing is done twice:
 * a peer that has left does not have to leave any more.
 */
import type { AddressPlan } from '@katafract/shared/addresses';
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { NodeId, PeerId } from '@katafract/shared/units';
import type { Audit } from '../audit/audit.ts';
import type { Fleet } from '../fleet/fleet.ts';
import { type Emptying, nodesToEmpty } from '../fleet/jobs.ts';
import type { AfterCommit, Database, Sql, Tx } from '../platform/db.ts';
import { relocate, stayingOf, writeRelocations } from './relocate.ts';
import { lockPeers, type PeerRow } from './store.ts';

export interface EvacuationDeps {
  readonly db: Database;
  readonly fleet: Fleet;
  readonly audit: Audit;
  readonly plan: AddressPlan;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
  /** How long an exit that a peer moved away from still answers it, in ms. */
  readonly moveGraceMs: number;
}

/** Peers in one transaction, and of one node in one pass, so that other work gets its turn. */
const BATCH = 250;
const MOST_A_PASS = 2000;
/** A node whose peers nobody could take is tried again after this time, in ms. */
const STRANDED_MS = 10_000;

type Locked = PeerRow & { readonly tier: Tier };

interface Batch {
  readonly moved: number;
  readonly stranded: number;
  /** The last peer looked at; null where there was none. */
  readonly last: PeerId | null;
  /** The drain was paused or cancelled meanwhile. */
  readonly halted: boolean;
}

export class Evacuation {
  readonly #deps: EvacuationDeps;
  readonly #notBefore = new Map<NodeId, number>();

  constructor(deps: EvacuationDeps) {
    this.#deps = deps;
  }

  /** @returns how many peers were given other exits, and whether there are more */
  async pass(): Promise<{ moved: number; more: boolean }> {
    const { db, fleet, now } = this.#deps;
    const due = (await nodesToEmpty(db.sql)).filter(({ node }) => (this.#notBefore.get(node) ?? 0) <= now());
    // what makes a node leave may have been written by another controller a moment ago
    if (due.length > 0) await fleet.roster.refresh(due.map(({ node }) => node));
    let moved = 0;
    let more = false;
    for (const emptying of due) {
      const done = await this.#node(emptying);
      moved += done.moved;
      more ||= done.more;
    }
    return { moved, more };
  }

  async #node(emptying: Emptying): Promise<{ moved: number; more: boolean }> {
    const { db, now } = this.#deps;
    let after = '00000000-0000-0000-0000-000000000000';
    let [moved, stranded] = [0, 0];
    while (moved < MOST_A_PASS) {
      const batch = await this.#batch(emptying, after);
      moved += batch.moved;
      stranded += batch.stranded;
      if (batch.halted) return { moved, more: false };
      if (batch.last === null) {
        if (emptying.why === 'drain') await noteStranded(db.sql, emptying.node, stranded);
        if (stranded > 0) this.#notBefore.set(emptying.node, now() + STRANDED_MS);
        return { moved, more: false };
      }
      after = batch.last;
    }
    return { moved, more: true };
  }

  async #batch(emptying: Emptying, after: string): Promise<Batch> {
    const { db } = this.#deps;
    const { announce, ...batch } = await db.transaction(async (tx) => {
      if (!(await stillWanted(tx.sql, emptying))) {
        return { moved: 0, stranded: 0, last: null, halted: true, announce: () => undefined };
      }
      const ids = await peersOn(tx.sql, emptying, after);
      const peers = await lockPeers(tx.sql, ids);
      return { ...(await this.#move(tx, emptying, peers)), last: ids.at(-1) ?? null, halted: false };
    });
    announce();
    return batch;
  }

  async #move(tx: Tx, emptying: Emptying, peers: readonly Locked[]) {
    const { fleet, audit, now, moveGraceMs } = this.#deps;
    const displaced = peers.filter((peer) => peer.placements.some(({ node }) => node === emptying.node));
    const found = fleet.roster.replace(
      displaced.map((peer) => ({
        region: peer.region,
        present: stayingOf(peer),
        exits: Math.max(stayingOf(peer).length, 1 + TIERS[peer.tier].standbys),
        hurry: emptying.why === 'down',
      })),
    );
    const latest = now() + moveGraceMs;
    const releaseAt = new Date(Math.min(latest, emptying.deadline?.getTime() ?? latest));
    const steps = displaced.flatMap((peer, at) => {
      const choices = found[at] ?? [];
      const stays = choices.some(({ node }) => node === emptying.node);
      return choices.length === 0 || stays ? [] : [relocate(this.#deps, peer, choices, releaseAt)];
    });
    const given = steps.filter(({ was }) => was.includes(emptying.node));
    await audit.record(
      tx,
      given.map(({ peer, was, choices }) => ({
        actor: 'system',
        action: 'peer.replaced',
        subject: `peer:${peer.id}`,
        detail: { why: emptying.why, node: emptying.node, from: was, to: choices },
      })),
    );
    if (emptying.why === 'drain' && given.length > 0) {
      await tx.sql`
        update drains set moved = moved + ${given.length} where node_id = ${emptying.node} and state = 'running'`;
    }
    const announce: AfterCommit = await writeRelocations(fleet, tx, steps);
    return { moved: steps.length, stranded: displaced.length - steps.length, announce };
  }
}

/** Under the drain's lock until the batch has committed: whoever pauses it is answered after that. */
async function stillWanted(sql: Sql, { node, why }: Emptying): Promise<boolean> {
  if (why === 'down') {
    const [down] = await sql`select 1 from node_health where node_id = ${node} and state = 'down'`;
    return down !== undefined;
  }
  const [open] = await sql<{ state: string }[]>`
    select state from drains where node_id = ${node} order by started_at desc limit 1 for update`;
  return open?.state === 'running' || open?.state === 'done';
}

/** Peers that still have to leave the node, in id order. A drained one keeps those that are leaving already. */
async function peersOn(sql: Sql, { node, why }: Emptying, after: string): Promise<PeerId[]> {
  const rows = await sql<{ id: PeerId }[]>`
    select peer_id as id from placements
    where node_id = ${node} and peer_id > ${after} ${why === 'drain' ? sql`and role <> 'leaving'` : sql``}
    order by peer_id limit ${BATCH}`;
  return rows.map(({ id }) => id);
}

async function noteStranded(sql: Sql, node: NodeId, count: number): Promise<void> {
  await sql`
    update drains set stranded = ${count} where node_id = ${node} and state = 'running' and stranded <> ${count}`;
}
