/** Undoing one provisioning action from what its audit entry says. */
import { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { PeerId, PublicKey, RegionId } from '@katafract/shared/units';
import { z } from 'zod';
import type { Database, Tx } from '../platform/db.ts';
import type { Actor, Peers } from './peers.ts';

export interface RollbackDeps {
  readonly db: Database;
  readonly peers: Peers;
}

const Removed = z.object({
  id: PeerId,
  subscriptionId: z.string(),
  publicKey: PublicKey,
  addressIndex: z.number().int(),
  region: RegionId,
  device: Jkt.nullable().default(null),
  createdAt: z.string(),
});
const Rotated = z.object({ from: PublicKey });
const Moved = z.object({ from: RegionId });

/**
 * Undoes the action of one audit entry, and records that in the same transaction.
 * @returns the action that was undone
 * @throws KatafractError `audit_entry_unknown` (404), `not_reversible` (422), `already_rolled_back` (409), and what the
 * reverse action throws, e.g. `peer_unknown` (404) where the peer is gone by now
 */
export async function rollback(deps: RollbackDeps, entry: number, operator: string): Promise<string> {
  const { db, peers } = deps;
  const [row] = await db.sql<{ action: string; subject: string; detail: unknown }[]>`
    select action, subject, detail from audit_log where id = ${entry}`;
  if (!row) throw new KatafractError('audit_entry_unknown', 'no such audit entry', { status: 404 });
  const actor: Actor = {
    name: `operator:${operator}`,
    subscriptionId: null,
    note: {
      actor: `operator:${operator}`,
      action: 'peer.rolled_back',
      subject: row.subject,
      detail: { entry, action: row.action },
    },
    guard: (tx) => refuseSecond(tx, entry),
  };
  const id = PeerId.safeParse(row.subject.slice('peer:'.length));
  if (!id.success) throw notReversible(row.action);
  if (row.action === 'peer.provisioned') await peers.remove(actor, id.data);
  else if (row.action === 'peer.removed') await peers.restore(actor, Removed.parse(row.detail));
  else if (row.action === 'peer.key_rotated')
    await peers.rotate(actor, id.data, Rotated.parse(row.detail).from);
  else if (row.action === 'peer.moved') await peers.move(actor, id.data, Moved.parse(row.detail).from);
  else throw notReversible(row.action);
  return row.action;
}

/** Under the entry's row lock, so that of several at once the first one is alone. */
async function refuseSecond({ sql }: Tx, entry: number): Promise<void> {
  await sql`select 1 from audit_log where id = ${entry} for update`;
  const [undone] = await sql`
    select 1 from audit_log a join audit_log u on u.subject = a.subject and u.action = 'peer.rolled_back'
    where a.id = ${entry} and (u.detail ->> 'entry')::bigint = a.id`;
  if (undone) {
    throw new KatafractError('already_rolled_back', 'this action was rolled back before', { status: 409 });
  }
}

function notReversible(action: string): KatafractError {
  return new KatafractError('not_reversible', `there is no undoing ${action}`, { status: 422 });
}
