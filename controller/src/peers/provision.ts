/**
 * Provisioning a batch of peers in one transaction:
 *
 *   place (memory) → lock subscriptions and the pool, read facts → decide (rules.ts) → insert everything, raise the
 *   nodes' generations → commit → announce
 *
 * Statements that do not need one another's results go out together, so a batch costs four round trips, whatever
 * its size.
 */
import type { AddressPlan } from '@katafract/shared/addresses';
import type { KatafractError } from '@katafract/shared/errors';
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { Generation, Lineage, NodeId, PeerId, PublicKey } from '@katafract/shared/units';
import type { Audit } from '../audit/audit.ts';
import type { Fleet, RowChange } from '../fleet/fleet.ts';
import type { Database, Sql, Tx } from '../platform/db.ts';
import { uuidv7 } from '../platform/ids.ts';
import { addressesExhausted, lockPool, takeIndexes } from './addresses.ts';
import type { Outcome } from './batch.ts';
import { places, setRow } from './rows.ts';
import { type BatchFacts, type Decision, decideBatch, type ProvisionWish, roleOf } from './rules.ts';
import type { PeerRow } from './store.ts';

export interface ProvisionDeps {
  readonly db: Database;
  readonly fleet: Fleet;
  readonly audit: Audit;
  readonly plan: AddressPlan;
  readonly now: () => number;
  readonly restMs: number;
}

/** Where the change is in each node's log: what a caller waits for. */
export interface Committed {
  readonly node: NodeId;
  readonly lineage: Lineage;
  readonly to: Generation;
}

export type Provisioned =
  | { made: true; peer: PeerRow; committed: readonly Committed[] }
  /** An Idempotency-Key came again: the peer it made. */
  | { made: false; id: PeerId };

interface Grant {
  readonly wish: ProvisionWish;
  readonly id: PeerId;
  readonly index: number;
  readonly exits: readonly NodeId[];
}

type Placed = NodeId[] | KatafractError;

export async function provisionBatch(
  deps: ProvisionDeps,
  wishes: readonly ProvisionWish[],
): Promise<Outcome<Provisioned>[]> {
  const placed = deps.fleet.roster.place(
    wishes.map(({ region, tier }) => ({ region, standbys: TIERS[tier].standbys })),
  );
  const { outcomes, announce } = await deps.db.transaction(async (tx) => {
    const [facts, pool] = await Promise.all([readFacts(tx.sql, wishes), lockPool(tx.sql)]);
    const decisions = decideBatch(wishes, facts, deps.now());
    const wanted = decisions.map(({ do: what }, at) => what === 'create' && Array.isArray(placed[at]));
    const rested = new Date(deps.now() - deps.restMs);
    const taken = await takeIndexes(tx.sql, deps.plan, pool, wanted.filter(Boolean).length, rested);
    const grants = grant(deps, wishes, wanted, placed, taken.indexes);
    const now = new Date(deps.now());
    const given = grants.filter((one): one is Grant => one !== null);
    // the peers first: a key that a rotation is taking at the same time is waited for before any node is locked,
    // as everywhere (see store.lockPeer), or the two could wait for each other
    const inserted = Promise.all(insert(deps, tx, given, taken.drawn, now));
    const [{ advances, announce }] = await Promise.all([
      deps.fleet.commit(
        tx,
        given.flatMap((one) => rowsOf(deps.plan, one)),
      ),
      inserted,
    ]);
    const committed = new Map(advances.map(({ node, lineage, to }) => [node, { node, lineage, to }]));
    const outcomes = conclude(wishes, decisions, placed, grants, (one) => provisioned(one, committed, now));
    return { outcomes, announce };
  });
  announce();
  return outcomes;
}

/** Whose Idempotency-Keys a request's key is one of. */
const scopeOf = (wish: ProvisionWish) => ({ scope: `subscription:${wish.subscriptionId}` });

/**
 * Locks the subscriptions in id order and reads whatever the decision needs, in one round trip. What is looked up by
 * key is looked up row by row (`lateral`, `limit 1`): left free, the planner reads a young table from end to end.
 */
async function readFacts(sql: Sql, wishes: readonly ProvisionWish[]): Promise<BatchFacts> {
  const ids = [...new Set(wishes.map((wish) => wish.subscriptionId))];
  const keyed = wishes.flatMap((wish) =>
    wish.idempotency ? [{ ...scopeOf(wish), key: wish.idempotency.key }] : [],
  );
  const [subscriptions, revoked, keys, seen] = await Promise.all([
    sql<{ id: string; tier: Tier; expiresAt: string; revokedAt: string | null; peerCount: number }[]>`
      select id, tier, expires_at as "expiresAt", revoked_at as "revokedAt", peer_count as "peerCount"
      from subscriptions where id = any(${ids}::uuid[]) order by id for update`,
    sql<{ id: string }[]>`
      select id from sigils where id = any(${wishes.map((wish) => wish.sigilId)}::uuid[]) and revoked_at is not null`,
    sql<{ key: PublicKey }[]>`
      select p.key from unnest(${wishes.map((wish) => wish.publicKey as string)}::text[]) as w(key)
      cross join lateral (select public_key as key from peers where public_key = w.key limit 1) p`,
    keyed.length === 0
      ? []
      : sql<{ scope: string; key: string; requestHash: string; resourceId: PeerId }[]>`
          select k.* from jsonb_to_recordset(${sql.json(keyed)}) as w(scope text, key text)
          cross join lateral (
            select scope, key, request_hash as "requestHash", resource_id as "resourceId"
            from idempotency_keys where scope = w.scope and key = w.key limit 1
          ) k`,
  ]);
  return {
    subscriptions: new Map(
      subscriptions.map(({ id, expiresAt, revokedAt, ...row }) => [
        id,
        { ...row, expiresAt: Date.parse(expiresAt), revoked: revokedAt !== null },
      ]),
    ),
    revokedSigils: new Set(revoked.map((row) => row.id)),
    keysInUse: new Set(keys.map((row) => row.key)),
    seen: new Map(seen.map((row) => [`${row.scope.slice('subscription:'.length)} ${row.key}`, row])),
  };
}

/** Gives each request that is to be created its exits and addresses; null for all others, and where addresses ran out. */
function grant(
  deps: ProvisionDeps,
  wishes: readonly ProvisionWish[],
  wanted: readonly boolean[],
  placed: readonly Placed[],
  indexes: readonly number[],
): (Grant | null)[] {
  const left = [...indexes];
  return wishes.map((wish, at) => {
    const exits = placed[at];
    const index = wanted[at] ? left.shift() : undefined;
    if (index === undefined || !Array.isArray(exits)) return null;
    return { wish, id: uuidv7(deps.now()) as PeerId, index, exits };
  });
}

function rowsOf(plan: AddressPlan, { wish, id, index, exits }: Grant): RowChange[] {
  const peer = { id, publicKey: wish.publicKey, addressIndex: index };
  return places(exits).map((at) => setRow(plan, peer, at));
}

/**
 * Rows travel as one JSON parameter: a statement with a parameter a row would be planned anew for every batch size.
 * @param drawn how far the address pool is used now
 */
function insert(
  deps: ProvisionDeps,
  tx: Tx,
  grants: readonly Grant[],
  drawn: number,
  now: Date,
): Promise<unknown>[] {
  if (grants.length === 0) return [];
  const { sql } = tx;
  const rows = grants.map(({ wish, id, index }) => ({
    id,
    subscription: wish.subscriptionId,
    key: wish.publicKey,
    index,
    region: wish.region,
    device: wish.device ?? null,
    ...(wish.idempotency ? { ...scopeOf(wish), repeat: wish.idempotency } : {}),
  }));
  return [
    sql`
      with granted as (
        select * from jsonb_to_recordset(${sql.json(rows)}) as r(
          id uuid, subscription uuid, key text, index int, region text, device text, scope text, repeat jsonb)
      ), made as (
        insert into peers (id, subscription_id, public_key, address_index, region_id, device, created_at, provisioned_at)
        select id, subscription, key, index, region, device, ${now}, ${now} from granted
      ), counted as (
        update subscriptions s set peer_count = s.peer_count + g.count
        from (select subscription as id, count(*)::int as count from granted group by 1) g where s.id = g.id
      ), moved as (
        update address_pool set drawn = ${drawn} where id = 1
      )
      insert into idempotency_keys (scope, key, request_hash, resource_id, created_at)
      select scope, repeat->>'key', repeat->>'requestHash', id, ${now} from granted where scope is not null`,
    deps.audit.record(
      tx,
      grants.map(({ wish, id, index, exits }) => ({
        actor: `subscription:${wish.subscriptionId}`,
        action: 'peer.provisioned',
        subject: `peer:${id}`,
        detail: { publicKey: wish.publicKey, region: wish.region, addressIndex: index, exits: [...exits] },
      })),
    ),
  ];
}

function provisioned(grant: Grant, committed: ReadonlyMap<NodeId, Committed>, now: Date): Provisioned {
  const { wish, id, index, exits } = grant;
  const at = exits.map((node) => committed.get(node)).filter((one) => one !== undefined);
  return {
    made: true,
    committed: at,
    peer: {
      id,
      subscriptionId: wish.subscriptionId,
      publicKey: wish.publicKey,
      addressIndex: index,
      region: wish.region,
      device: wish.device ?? null,
      createdAt: now.toISOString(),
      provisionedAt: now.toISOString(),
      placements: at.map(({ node, to }, rank) => ({ node, role: roleOf(rank), rank, generation: to })),
    },
  };
}

/** One outcome a request: what it got, or why not. */
function conclude(
  wishes: readonly ProvisionWish[],
  decisions: readonly Decision[],
  placed: readonly Placed[],
  grants: readonly (Grant | null)[],
  result: (grant: Grant) => Provisioned,
): Outcome<Provisioned>[] {
  const outcomeOf = (at: number): Outcome<Provisioned> => {
    const decision = decisions[at];
    const granted = grants[at];
    const exits = placed[at];
    if (decision?.do === 'refuse') return { ok: false, error: decision.error };
    if (decision?.do === 'replay') return { ok: true, value: { made: false, id: decision.peer } };
    if (decision?.do === 'same_as') {
      const first = outcomeOf(decision.index);
      return first.ok && first.value.made
        ? { ok: true, value: { made: false, id: first.value.peer.id } }
        : first;
    }
    if (granted) return { ok: true, value: result(granted) };
    return { ok: false, error: Array.isArray(exits) ? addressesExhausted() : exits };
  };
  return wishes.map((_, at) => outcomeOf(at));
}
