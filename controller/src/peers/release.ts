/**
 * The break of make before break: peers are taken off the exits they left (by a move, or because that exit is drained)
 * when their time to switch is over and their new exits are known to have them.
 */
import type { AddressPlan } from '@katafract/shared/addresses';
import type { PeerId } from '@katafract/shared/units';
import type { Fleet } from '../fleet/fleet.ts';
import type { Database } from '../platform/db.ts';
import { removeRow } from './rows.ts';
import { lockPeers, type PeerRow, type PlacementRow } from './store.ts';

export interface ReleaseDeps {
  readonly db: Database;
  readonly fleet: Fleet;
  readonly plan: AddressPlan;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

/** Peers in one transaction, and in one pass. */
const BATCH = 250;
const BATCHES = 40;

/** @returns the number of placements that ended */
export async function releaseLeft(deps: ReleaseDeps): Promise<number> {
  let released = 0;
  let after = '00000000-0000-0000-0000-000000000000';
  for (let batch = 0; batch < BATCHES; batch++) {
    const due = await deps.db.sql<{ id: PeerId }[]>`
      select distinct peer_id as id from placements
      where release_at <= ${new Date(deps.now())} and peer_id > ${after} order by 1 limit ${BATCH}`;
    if (due.length === 0) break;
    after = due.at(-1)?.id ?? after;
    released += await releaseBatch(
      deps,
      due.map(({ id }) => id),
    );
  }
  return released;
}

async function releaseBatch(deps: ReleaseDeps, ids: readonly PeerId[]): Promise<number> {
  const { count, announce } = await deps.db.transaction(async (tx) => {
    const now = deps.now();
    const changes = (await lockPeers(tx.sql, ids)).flatMap((peer) =>
      arrived(deps.fleet, peer) ? dueOf(peer, now).map((at) => removeRow(deps.plan, peer, at)) : [],
    );
    const { announce } = await deps.fleet.commit(tx, changes);
    return { count: changes.length, announce };
  });
  announce();
  return count;
}

/** Its primary answers, and so do those standbys that are well: one that is not must not hold an exit for ever. */
function arrived(fleet: Fleet, { placements }: PeerRow): boolean {
  const stay = placements.filter(({ role }) => role !== 'leaving');
  return (
    stay.some(({ role }) => role === 'primary') &&
    stay.every(
      ({ node, role, generation }) =>
        fleet.holds(node, generation) || (role === 'standby' && fleet.roster.node(node).health !== 'ok'),
    )
  );
}

function dueOf({ placements }: PeerRow, now: number): PlacementRow[] {
  const due = (at: string | null | undefined) => at !== null && at !== undefined && Date.parse(at) <= now;
  return placements.filter(({ role, releaseAt }) => role === 'leaving' && due(releaseAt));
}
