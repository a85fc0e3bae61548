/**
 * Peers that get other exits than they have: which rows of nodes' tables come and go, and which only change their place
 * in the peer's list. Exits that are left keep the peer as `leaving` until release.ts lets go of it; only one that is
 * down loses it at once, as a tombstone in its log, which is the first thing it hears of when it comes back.
 */
import type { AddressPlan } from '@katafract/shared/addresses';
import type { NodeId, PeerId } from '@katafract/shared/units';
import type { Choice, Fleet, RowChange } from '../fleet/fleet.ts';
import type { Sql, Tx } from '../platform/db.ts';
import { removeRow, setRow } from './rows.ts';
import { planMove, roleOf } from './rules.ts';
import type { PeerRow } from './store.ts';

export interface Relocation {
  readonly peer: PeerRow;
  /** The exits it had. */
  readonly was: readonly NodeId[];
  readonly choices: readonly Choice[];
  readonly changes: readonly RowChange[];
  readonly ranks: readonly Rank[];
}

interface Rank {
  readonly peer: PeerId;
  readonly node: NodeId;
  readonly role: 'primary' | 'standby' | 'leaving';
  readonly rank: number;
  readonly releaseAt: string | null;
}

/** Exits of a peer in the order in which its device tries them, without those that it is leaving. */
export const stayingOf = (peer: PeerRow): NodeId[] =>
  peer.placements.filter(({ role }) => role !== 'leaving').map(({ node }) => node);

/** What becomes of one peer. @param releaseAt until when the exits it leaves still answer it */
export function relocate(
  { fleet, plan }: { fleet: Fleet; plan: AddressPlan },
  peer: PeerRow,
  choices: readonly Choice[],
  releaseAt: Date,
): Relocation {
  const { add, keep, leave } = planMove(
    peer.placements.map(({ node }) => node),
    choices.map(({ node }) => node),
  );
  const changes = add.map(({ node, rank }) => setRow(plan, peer, { node, rank, role: roleOf(rank) }));
  const ranks: Rank[] = keep.map(({ node, rank }) => ({
    peer: peer.id,
    node,
    role: roleOf(rank),
    rank,
    releaseAt: null,
  }));
  for (const at of peer.placements.filter(({ node }) => leave.includes(node))) {
    if (fleet.roster.node(at.node).health === 'down') changes.push(removeRow(plan, peer, at));
    else if (at.role !== 'leaving') {
      const until = releaseAt.toISOString();
      ranks.push({ peer: peer.id, node: at.node, role: 'leaving', rank: 100, releaseAt: until });
    }
  }
  return { peer, was: stayingOf(peer), choices, changes, ranks };
}

/** Writes relocations of peers that the caller has locked. @returns what to run after the commit */
export async function writeRelocations(fleet: Fleet, tx: Tx, relocations: readonly Relocation[]) {
  await rerank(
    tx.sql,
    relocations.flatMap(({ ranks }) => ranks),
  );
  const { announce } = await fleet.commit(
    tx,
    relocations.flatMap(({ changes }) => changes),
  );
  return announce;
}

/** Nothing of this is in the nodes' tables, so their generations stay. */
async function rerank(sql: Sql, ranks: readonly Rank[]): Promise<void> {
  if (ranks.length === 0) return;
  await sql`
    update placements x set role = r.role, rank = r.rank, release_at = r."releaseAt"
    from jsonb_to_recordset(${sql.json(ranks as readonly object[] as never)}) as r(
      peer uuid, node text, role text, rank int, "releaseAt" timestamptz)
    where x.peer_id = r.peer and x.node_id = r.node`;
}
