/** A peer's rows in the tables of nodes: the one place that knows what stands in them. */
import { type AddressPlan, addressesAt } from '@katafract/shared/addresses';
import type { NodeId, PeerId, PublicKey } from '@katafract/shared/units';
import type { RowChange } from '../fleet/fleet.ts';
import { roleOf } from './rules.ts';

type Keyed = { readonly publicKey: PublicKey; readonly addressIndex: number };
type Place = Pick<RowChange, 'node' | 'role' | 'rank'>;

/** Sets the row of a peer where it is placed. */
export function setRow(plan: AddressPlan, peer: Keyed & { readonly id: PeerId }, at: Place): RowChange {
  return row(plan, peer, at, peer.id);
}

/** Takes the row of a peer away, and leaves a tombstone. */
export function removeRow(plan: AddressPlan, peer: Keyed, at: Place): RowChange {
  return row(plan, peer, at, null);
}

/** Exits in the order in which the device tries them, as places. */
export function places(exits: readonly NodeId[]): Place[] {
  return exits.map((node, rank) => ({ node, rank, role: roleOf(rank) }));
}

function row(plan: AddressPlan, peer: Keyed, { node, role, rank }: Place, holder: PeerId | null): RowChange {
  const { publicKey, addressIndex } = peer;
  return { node, publicKey, ...addressesAt(plan, addressIndex), peer: holder, role, rank };
}
