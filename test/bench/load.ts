/**
 * Fills a node's table with peers that nobody provisioned one by one: straight into the database, through the very
 * function that every change goes through, so that generation, digest and log are what they would be.
 */
import type { AddressPlan } from '@katafract/shared/addresses';
import { addressesAt } from '@katafract/shared/addresses';
import type { NodeId, PeerId, PublicKey } from '@katafract/shared/units';
import { commitChanges } from '../../controller/src/fleet/log.ts';
import { draw, lockPool } from '../../controller/src/peers/addresses.ts';
import type { Database, Tx } from '../../controller/src/platform/db.ts';
import { uuidv7 } from '../../controller/src/platform/ids.ts';
import { randomKey } from './work/exit.ts';

/** Peers in one transaction. */
const CHUNK = 5000;

export interface LoadTarget {
  readonly node: NodeId;
  readonly standbys: readonly NodeId[];
  readonly region: string;
  /** Whose peers they are: a subscription made for it, without regard to its device limit. */
  readonly subscription: string;
}

/** Adds `count` peers to a node; the controller is told as another controller would tell it. */
export async function loadPeers(
  db: Database,
  plan: AddressPlan,
  target: LoadTarget,
  count: number,
): Promise<void> {
  for (let left = count; left > 0; left -= CHUNK) {
    await db.transaction((tx) => loadChunk(tx, plan, target, Math.min(CHUNK, left)));
  }
}

async function loadChunk(tx: Tx, plan: AddressPlan, target: LoadTarget, count: number): Promise<void> {
  const { sql } = tx;
  const { node, standbys, region, subscription } = target;
  const { indexes, drawn } = draw(plan, await lockPool(sql), count);
  await sql`update address_pool set drawn = ${drawn} where id = 1`;
  const now = Date.now();
  const peers = indexes.map((index) => ({
    id: uuidv7(now) as PeerId,
    publicKey: randomKey() as PublicKey,
    index,
  }));
  await sql`
    insert into peers (id, subscription_id, public_key, address_index, region_id)
    select r.id, ${subscription}, r."publicKey", r.index, ${region}
    from jsonb_to_recordset(${sql.json(peers)}) as r(id uuid, "publicKey" text, index int)`;
  await sql`update subscriptions set peer_count = peer_count + ${count} where id = ${subscription}`;
  const exits = [node, ...standbys];
  const changes = peers.flatMap(({ id, publicKey, index }) =>
    exits.map((at, rank) => ({
      node: at,
      publicKey,
      ...addressesAt(plan, index),
      peer: id,
      role: rank === 0 ? ('primary' as const) : ('standby' as const),
      rank,
    })),
  );
  await commitChanges(tx, changes);
  await sql`select pg_notify('kf_commits', ${`bench ${exits.join(' ')}`})`;
}
