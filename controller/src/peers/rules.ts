/** Pure decisions about peers: which requests of a batch are granted, and how a peer's exits change on a move. */
import type { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { NodeId, PeerId, PublicKey, RegionId } from '@katafract/shared/units';

export interface ProvisionWish {
  readonly subscriptionId: string;
  readonly sigilId: string;
  /** The device that proved itself, if the Sigil is bound to one. */
  readonly device?: Jkt | null | undefined;
  readonly tier: Tier;
  readonly publicKey: PublicKey;
  readonly region: RegionId;
  readonly idempotency?: { readonly key: string; readonly requestHash: string } | undefined;
}

/** What the database says, read under the subscriptions' row locks. */
export interface BatchFacts {
  readonly subscriptions: ReadonlyMap<
    string,
    { tier: Tier; expiresAt: number; revoked: boolean; peerCount: number }
  >;
  readonly revokedSigils: ReadonlySet<string>;
  /** Keys that some peer has. */
  readonly keysInUse: ReadonlySet<PublicKey>;
  /** By idempotencyId. */
  readonly seen: ReadonlyMap<string, { requestHash: string; resourceId: PeerId }>;
}

export type Decision =
  | { do: 'create' }
  /** Made before by this same request. */
  | { do: 'replay'; peer: PeerId }
  /** Being made by an earlier request of this batch. */
  | { do: 'same_as'; index: number }
  | { do: 'refuse'; error: KatafractError };

export function idempotencyId(wish: ProvisionWish): string | null {
  return wish.idempotency ? `${wish.subscriptionId} ${wish.idempotency.key}` : null;
}

const conflict = (code: string, message: string, status = 409) =>
  new KatafractError(code, message, { status });

export const publicKeyInUse = () => conflict('public_key_in_use', 'another peer has this public key');
const keyReused = () =>
  conflict('idempotency_key_reused', 'this Idempotency-Key came with another request before', 422);

/**
 * Decides a batch in order, each granted request counting for those behind it.
 * Errors: `sigil_revoked`, `sigil_expired` (401), `device_limit` (409), `public_key_in_use` (409),
 * `idempotency_key_reused` (422).
 * @param now milliseconds since the epoch
 */
export function decideBatch(wishes: readonly ProvisionWish[], facts: BatchFacts, now: number): Decision[] {
  const granted = new Map<string, number>();
  const keys = new Set(facts.keysInUse);
  const firstWith = new Map<string, number>();
  return wishes.map((wish, index): Decision => {
    const access = checkAccess(wish, facts, now);
    if (access) return { do: 'refuse', error: access };
    const id = idempotencyId(wish);
    const repeated = id === null ? null : repeatOf(id, wish, wishes, facts, firstWith);
    if (repeated) return repeated;
    if (keys.has(wish.publicKey)) return { do: 'refuse', error: publicKeyInUse() };
    const subscription = facts.subscriptions.get(wish.subscriptionId);
    const limit = TIERS[subscription?.tier ?? wish.tier].devices;
    const used = (subscription?.peerCount ?? 0) + (granted.get(wish.subscriptionId) ?? 0);
    if (used >= limit) return { do: 'refuse', error: deviceLimit(limit) };
    granted.set(wish.subscriptionId, (granted.get(wish.subscriptionId) ?? 0) + 1);
    keys.add(wish.publicKey);
    if (id !== null) firstWith.set(id, index);
    return { do: 'create' };
  });
}

/** Why the bearer may not have peers now; null where he may. */
function checkAccess(wish: ProvisionWish, facts: BatchFacts, now: number): KatafractError | null {
  const subscription = facts.subscriptions.get(wish.subscriptionId);
  if (!subscription || subscription.revoked || facts.revokedSigils.has(wish.sigilId)) {
    return conflict('sigil_revoked', 'the Sigil has been revoked', 401);
  }
  if (subscription.expiresAt <= now) return conflict('sigil_expired', 'the subscription has expired', 401);
  return null;
}

function repeatOf(
  id: string,
  wish: ProvisionWish,
  wishes: readonly ProvisionWish[],
  facts: BatchFacts,
  firstWith: ReadonlyMap<string, number>,
): Decision | null {
  const hash = wish.idempotency?.requestHash;
  const before = facts.seen.get(id);
  if (before) {
    if (before.requestHash !== hash) return { do: 'refuse', error: keyReused() };
    return { do: 'replay', peer: before.resourceId };
  }
  const earlier = firstWith.get(id);
  if (earlier === undefined) return null;
  if (wishes[earlier]?.idempotency?.requestHash !== hash) return { do: 'refuse', error: keyReused() };
  return { do: 'same_as', index: earlier };
}

export function deviceLimit(limit: number): KatafractError {
  return new KatafractError('device_limit', `this tier allows ${limit} devices`, {
    status: 409,
    detail: { limit },
  });
}

export interface MovePlan {
  /** Exits the peer gets that it did not have. */
  readonly add: { node: NodeId; rank: number }[];
  /** Exits it keeps, under another rank perhaps. */
  readonly keep: { node: NodeId; rank: number }[];
  /** Exits it leaves, after the new ones answer and the device has had time to switch. */
  readonly leave: NodeId[];
}

/** How a peer's exits change from one ordered list to another: make before break. */
export function planMove(present: readonly NodeId[], wanted: readonly NodeId[]): MovePlan {
  const has = new Set(present);
  const ranked = wanted.map((node, rank) => ({ node, rank }));
  return {
    add: ranked.filter(({ node }) => !has.has(node)),
    keep: ranked.filter(({ node }) => has.has(node)),
    leave: present.filter((node) => !wanted.includes(node)),
  };
}

export const roleOf = (rank: number) => (rank === 0 ? 'primary' : 'standby');
