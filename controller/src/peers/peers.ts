/**
 * The only door of the peers domain. Every operation is one transaction that writes the rows, the nodes' logs and the
 * audit entry together, and afterwards waits for the exits to say that their kernels have it.
 */
import { type AddressPlan, addressesAt, endpointAfter, tunnelOf } from '@katafract/shared/addresses';
import type { Peer, RemovedPeer } from '@katafract/shared/api';
import type { Clock } from '@katafract/shared/clock';
import type { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { PeerId, PublicKey, RegionId } from '@katafract/shared/units';
import { renderWgQuick } from '@katafract/shared/wg-quick';
import type { Audit, AuditEntry } from '../audit/audit.ts';
import type { Fleet, RowChange } from '../fleet/fleet.ts';
import { type AfterCommit, type Database, type Tx, uniqueViolation } from '../platform/db.ts';
import { initPool, reclaimIndex, restIndexes } from './addresses.ts';
import { Batcher } from './batch.ts';
import { Evacuation } from './evacuate.ts';
import { Mending } from './mend.ts';
import { type Committed, type Provisioned, provisionBatch } from './provision.ts';
import { releaseLeft } from './release.ts';
import { places, removeRow, setRow } from './rows.ts';
import { deviceLimit, type ProvisionWish, planMove, publicKeyInUse, roleOf } from './rules.ts';
import * as store from './store.ts';
import { forget, forgetStale, remember, resume, waitingSubscriptions } from './suspend.ts';

export interface PeersDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly fleet: Fleet;
  readonly audit: Audit;
  readonly plan: AddressPlan;
  /** How long a freed address rests, in ms. */
  readonly restMs: number;
  /** How long a caller is kept waiting for an exit's answer, in ms. */
  readonly ackMs: number;
  /** How long an exit that a peer moved away from still answers it, in ms. */
  readonly moveGraceMs: number;
}

/** Requests that share one transaction, at most. */
const BATCH = 128;

/** Who does it, for the audit log, and whose peers he may touch (null: anyone's). */
export interface Actor {
  readonly name: string;
  readonly subscriptionId: string | null;
  /** A further audit entry, to be written in the same transaction. */
  readonly note?: AuditEntry;
  /** Runs first in that transaction, before any lock of a subscription; where it rejects, nothing is done. */
  readonly guard?: (tx: Tx) => Promise<void>;
}

/** How long a suspended peer is remembered. */
const SUSPENDED_MS = 30 * 86_400_000;

const SYSTEM: Actor = { name: 'system', subscriptionId: null };

export class Peers {
  readonly #deps: PeersDeps;
  readonly #provision: Batcher<ProvisionWish, Provisioned>;
  readonly #evacuation: Evacuation;
  readonly #mending: Mending;

  constructor(deps: PeersDeps) {
    this.#deps = deps;
    const provisionDeps = { ...deps, now: () => deps.clock.now() };
    this.#evacuation = new Evacuation(provisionDeps);
    this.#mending = new Mending(provisionDeps);
    this.#provision = new Batcher((wishes) => provisionBatch(provisionDeps, wishes), BATCH, deps.clock);
  }

  start(): Promise<void> {
    return initPool(this.#deps.db.sql, this.#deps.plan);
  }

  /** Resolves when nothing that was submitted is without its outcome. */
  drain(): Promise<void> {
    return this.#provision.idle();
  }

  /**
   * Makes a peer, and waits until its primary's kernel has it (then `active`) or patience ends (`pending`).
   * @throws KatafractError see rules.decideBatch, and `region_unknown` (422), `region_unavailable`,
   * `addresses_exhausted`, `broker_unavailable` (503)
   */
  async provision(wish: ProvisionWish): Promise<{ peer: Peer; made: boolean }> {
    this.#deps.fleet.assertReachable();
    const result = await this.#provision.submit(wish).catch((error: unknown) => {
      throw uniqueViolation(error) === 'peers_public_key_unique' ? publicKeyInUse() : error;
    });
    if (!result.made) return { peer: await this.get(wish.subscriptionId, result.id), made: false };
    await this.#primaryAnswers(result.peer, result.committed);
    return { peer: this.#view(result.peer), made: true };
  }

  /** @throws KatafractError `peer_unknown` (404) */
  async get(subscriptionId: string, id: PeerId): Promise<Peer> {
    const row = await store.readPeer(this.#deps.db.sql, subscriptionId, id);
    if (!row) throw peerUnknown();
    return this.#view(row);
  }

  /** One more than `limit` where there is another page. */
  async list(subscriptionId: string, page: { after?: string | undefined; limit: number }): Promise<Peer[]> {
    return (await store.listPeers(this.#deps.db.sql, subscriptionId, page)).map((row) => this.#view(row));
  }

  /** Removes a peer from every exit. @throws KatafractError `peer_unknown` (404) */
  async remove(actor: Actor, id: PeerId): Promise<RemovedPeer> {
    const committed = await this.#transact(actor, async (tx) => {
      const peer = await store.lockPeer(tx.sql, id, actor.subscriptionId);
      if (!peer) throw peerUnknown();
      return this.#removeAll(tx, [peer], actor.name);
    });
    const gone = await Promise.all(committed.map((at) => this.#answers(at)));
    return { id, status: gone.every(Boolean) ? 'removed' : 'pending' };
  }

  /**
   * Removes every peer of a subscription for good in the caller's transaction, as when it is revoked.
   * @returns what to run after the commit
   */
  async removeOfSubscription(tx: Tx, subscriptionId: string, actor = 'system'): Promise<AfterCommit> {
    const { announce } = await this.#removeAll(tx, await store.lockPeersOf(tx.sql, subscriptionId), actor);
    await forget(tx.sql, subscriptionId);
    return announce;
  }

  /**
   * Takes every peer of a subscription off its exits in the caller's transaction, as when it lapses, and remembers it.
   * @returns what to run after the commit
   */
  async suspendOfSubscription(tx: Tx, subscriptionId: string): Promise<AfterCommit> {
    const peers = await store.lockPeersOf(tx.sql, subscriptionId);
    await remember(tx.sql, subscriptionId, new Date(this.#deps.clock.now()));
    const { announce } = await this.#removeAll(tx, peers, SYSTEM.name, 'peer.suspended');
    return announce;
  }

  /** Puts suspended peers of a subscription back, in the caller's transaction. @returns what to run after the commit */
  resumeOfSubscription(tx: Tx, subscriptionId: string): Promise<AfterCommit> {
    return resume({ ...this.#deps, now: () => this.#deps.clock.now() }, tx, subscriptionId);
  }

  /**
   * Takes the peers that a smaller tier has no room for off their exits, in the caller's transaction; those made first
   * stay, as with devices.
   * @returns what to run after the commit
   */
  async fitToTier(tx: Tx, subscriptionId: string, tier: Tier): Promise<AfterCommit> {
    // by id, which is by age
    const peers = await store.lockPeersOf(tx.sql, subscriptionId);
    return (await this.#removeAll(tx, peers.slice(TIERS[tier].devices), SYSTEM.name)).announce;
  }

  /** Puts suspended peers back that could not come back with their subscription. */
  async resumeLeft(): Promise<number> {
    const { db, clock } = this.#deps;
    const left = await waitingSubscriptions(db.sql, new Date(clock.now()));
    for (const id of left) {
      const announce = await db.transaction((tx) => this.resumeOfSubscription(tx, id));
      announce();
    }
    return left.length;
  }

  /** Forgets suspended peers that cannot come back any more, or have waited for a month. */
  forgetSuspended(): Promise<number> {
    const { db, clock } = this.#deps;
    return forgetStale(db.sql, new Date(clock.now() - SUSPENDED_MS));
  }

  /** The same for the peers that one device of the subscription asked for. */
  async removeOfDevice(tx: Tx, subscriptionId: string, device: Jkt, actor = 'system'): Promise<AfterCommit> {
    const peers = await store.lockPeersOf(tx.sql, subscriptionId, device);
    await forget(tx.sql, subscriptionId, device);
    return (await this.#removeAll(tx, peers, actor)).announce;
  }

  /**
   * Gives a peer another key under the same addresses, on every exit.
   * @throws KatafractError `peer_unknown` (404), `public_key_in_use` (409)
   */
  async rotate(actor: Actor, id: PeerId, publicKey: PublicKey): Promise<Peer> {
    return this.#change(actor, id, async (tx, peer, now) => {
      if (peer.publicKey === publicKey) return [];
      await tx.sql`update peers set public_key = ${publicKey}, provisioned_at = ${now} where id = ${id}`;
      const detail = { from: peer.publicKey, to: publicKey, exits: peer.placements.map(({ node }) => node) };
      await this.#deps.audit.record(tx, [
        { actor: actor.name, action: 'peer.key_rotated', subject: `peer:${id}`, detail },
      ]);
      return peer.placements.flatMap((at) => [
        removeRow(this.#deps.plan, peer, at),
        setRow(this.#deps.plan, { ...peer, publicKey }, at),
      ]);
    });
  }

  /**
   * Moves a peer to another region, make before break: its new exits are told at once, those it leaves answer for a
   * while longer. Nothing changes where it is in that region already.
   * @throws KatafractError `peer_unknown` (404), `region_unknown` (422), `region_unavailable` (503)
   */
  async move(actor: Actor, id: PeerId, region: RegionId): Promise<Peer> {
    return this.#change(actor, id, async (tx, peer, now) => {
      if (peer.region === region) return [];
      const stay = peer.placements.filter(({ role }) => role !== 'leaving').map(({ node }) => node);
      const [wanted] = this.#deps.fleet.roster.place([{ region, standbys: Math.max(0, stay.length - 1) }]);
      if (!Array.isArray(wanted)) throw wanted;
      const plan = planMove(
        peer.placements.map(({ node }) => node),
        wanted,
      );
      await tx.sql`update peers set region_id = ${region}, provisioned_at = ${now} where id = ${id}`;
      const releaseAt = new Date(now.getTime() + this.#deps.moveGraceMs);
      for (const { node, rank } of plan.keep) {
        await tx.sql`
          update placements set role = ${roleOf(rank)}, rank = ${rank}, release_at = null
          where node_id = ${node} and peer_id = ${id}`;
      }
      await tx.sql`
        update placements set role = 'leaving', rank = 100, release_at = ${releaseAt}
        where peer_id = ${id} and node_id = any(${plan.leave as string[]})`;
      const detail = { from: peer.region, to: region, left: plan.leave, exits: wanted };
      await this.#deps.audit.record(tx, [
        { actor: actor.name, action: 'peer.moved', subject: `peer:${id}`, detail },
      ]);
      return plan.add.map(({ node, rank }) =>
        setRow(this.#deps.plan, peer, { node, rank, role: roleOf(rank) }),
      );
    });
  }

  /** Forgets Idempotency-Keys that are older than a day: nobody repeats a request for longer. */
  async forgetKeys(): Promise<number> {
    const before = new Date(this.#deps.clock.now() - 86_400_000);
    const rows = await this.#deps.db
      .sql`delete from idempotency_keys where created_at < ${before} returning 1`;
    return rows.length;
  }

  /** Takes peers off the exits they left, where their new ones answer and their time to switch is over. */
  releaseLeft(): Promise<number> {
    return releaseLeft({ ...this.#deps, now: () => this.#deps.clock.now() });
  }

  /** Gives peers of nodes that are drained or down other exits. @returns whether there is more to do at once */
  async evacuate(): Promise<boolean> {
    const { more, moved } = await this.#evacuation.pass();
    // what is ready to let go need not wait for the timer
    return more || moved > 0;
  }

  /** Gives peers back what they lost when nobody could replace it. @returns whether there is more to do at once */
  mend(): Promise<boolean> {
    return this.#mending.pass();
  }

  /**
   * Restores a removed peer with its old key and addresses, on exits chosen anew.
   * @throws KatafractError `peer_exists`, `address_gone`, `public_key_in_use`, `device_limit`, `device_unbound`,
   * `subscription_over` (409)
   */
  async restore(actor: Actor, was: RemovedDetail): Promise<Peer> {
    const { db, clock, fleet, audit } = this.#deps;
    const now = new Date(clock.now());
    const peer = { ...was, provisionedAt: now.toISOString(), placements: [] };
    const committed = await this.#transact(actor, async (tx) => {
      const [owner] = await tx.sql<{ tier: Tier; peerCount: number; over: boolean }[]>`
        select tier, peer_count as "peerCount", revoked_at is not null or expires_at <= ${now} as over
        from subscriptions where id = ${was.subscriptionId} for update`;
      if (!owner || owner.over) throw conflict('subscription_over', 'its subscription is over');
      if (was.device !== null) await this.#stillBound(tx, was.subscriptionId, was.device);
      const limit = TIERS[owner.tier];
      if (owner.peerCount >= limit.devices) throw deviceLimit(limit.devices);
      const [wanted] = fleet.roster.place([{ region: was.region, standbys: limit.standbys }]);
      if (!Array.isArray(wanted)) throw wanted;
      if (!(await reclaimIndex(tx.sql, was.addressIndex))) {
        throw conflict('address_gone', 'its addresses have gone to another peer');
      }
      await tx.sql`
        insert into peers (id, subscription_id, public_key, address_index, region_id, device, created_at, provisioned_at)
        values (${was.id}, ${was.subscriptionId}, ${was.publicKey}, ${was.addressIndex}, ${was.region},
                ${was.device}, ${was.createdAt}, ${now})`;
      await tx.sql`update subscriptions set peer_count = peer_count + 1 where id = ${was.subscriptionId}`;
      const detail = {
        publicKey: was.publicKey,
        region: was.region,
        addressIndex: was.addressIndex,
        exits: wanted,
      };
      await audit.record(tx, [
        { actor: actor.name, action: 'peer.provisioned', subject: `peer:${was.id}`, detail },
      ]);
      return fleet.commit(
        tx,
        places(wanted).map((at) => setRow(this.#deps.plan, peer, at)),
      );
    });
    const row = await store.readPeer(db.sql, was.subscriptionId, was.id);
    if (!row) throw peerUnknown();
    await this.#primaryAnswers(row, committed);
    return this.#view(row);
  }

  /** A device that was unbound must not get its peers back: it could not give them up again. */
  async #stillBound({ sql }: Tx, subscriptionId: string, device: Jkt): Promise<void> {
    const [bound] = await sql`
      select 1 from devices where subscription_id = ${subscriptionId} and jkt = ${device} and revoked_at is null`;
    if (!bound) throw conflict('device_unbound', 'its device is no longer bound to the subscription');
  }

  async #change(
    actor: Actor,
    id: PeerId,
    work: (tx: Tx, peer: store.PeerRow, now: Date) => Promise<RowChange[]>,
  ): Promise<Peer> {
    const now = new Date(this.#deps.clock.now());
    let owner = '';
    const committed = await this.#transact(actor, async (tx) => {
      const peer = await store.lockPeer(tx.sql, id, actor.subscriptionId);
      if (!peer) throw peerUnknown();
      owner = peer.subscriptionId;
      return this.#deps.fleet.commit(tx, await work(tx, peer, now));
    });
    const row = await store.readPeer(this.#deps.db.sql, owner, id);
    if (!row) throw peerUnknown();
    await this.#primaryAnswers(row, committed);
    return this.#view(row);
  }

  async #removeAll(
    tx: Tx,
    peers: readonly store.PeerRow[],
    actor: string,
    action: AuditEntry['action'] = 'peer.removed',
  ) {
    const { fleet, audit, clock, plan } = this.#deps;
    const [first] = peers;
    if (!first) return fleet.commit(tx, []);
    await tx.sql`delete from peers where id = any(${peers.map(({ id }) => id as string)}::uuid[])`;
    await tx.sql`
      update subscriptions set peer_count = peer_count - ${peers.length} where id = ${first.subscriptionId}`;
    await restIndexes(
      tx.sql,
      peers.map(({ addressIndex }) => addressIndex),
      new Date(clock.now()),
    );
    await audit.record(
      tx,
      peers.map(({ placements, provisionedAt: _, ...was }) => ({
        actor,
        action,
        subject: `peer:${was.id}`,
        detail: { ...was, exits: placements.map(({ node }) => node) },
      })),
    );
    return fleet.commit(
      tx,
      peers.flatMap((peer) => peer.placements.map((at) => removeRow(plan, peer, at))),
    );
  }

  /** Runs one transaction and announces what it did once it has committed. */
  async #transact(
    actor: Actor,
    work: (tx: Tx) => Promise<{ advances: readonly Committed[]; announce: AfterCommit }>,
  ): Promise<readonly Committed[]> {
    try {
      const { advances, announce } = await this.#deps.db.transaction(async (tx) => {
        await actor.guard?.(tx);
        const done = await work(tx);
        if (actor.note) await this.#deps.audit.record(tx, [actor.note]);
        return done;
      });
      announce();
      return advances;
    } catch (error) {
      const constraint = uniqueViolation(error);
      if (constraint === 'peers_public_key_unique') throw publicKeyInUse();
      if (constraint === 'peers_pkey') throw conflict('peer_exists', 'the peer is there already');
      throw error;
    }
  }

  #answers(at: Committed): Promise<boolean> {
    return this.#deps.fleet.waitFor(at, this.#deps.ackMs);
  }

  async #primaryAnswers(peer: store.PeerRow, committed: readonly Committed[]): Promise<void> {
    const primary = peer.placements.find(({ role }) => role === 'primary');
    const at = committed.find(({ node }) => node === primary?.node);
    if (at) await this.#answers(at);
  }

  #view(row: store.PeerRow): Peer {
    const { fleet, plan } = this.#deps;
    const addresses = addressesAt(plan, row.addressIndex);
    const exits = row.placements.map(({ node: id, role, generation }) => {
      const { region, endpoint, tunnels, publicKey } = fleet.roster.node(id);
      const status = fleet.holds(id, generation) ? ('active' as const) : ('pending' as const);
      const at = endpointAfter(endpoint, tunnelOf(plan, row.addressIndex, tunnels));
      return { node: id, region, endpoint: at, publicKey, role, status };
    });
    const { ipv4, ipv6 } = fleet.gateway;
    const [primary] = exits;
    return {
      id: row.id,
      publicKey: row.publicKey,
      region: row.region,
      addresses,
      dns: [ipv4, ipv6],
      exits,
      config: primary ? renderWgQuick({ addresses, dns: [ipv4, ipv6], exit: primary }) : '',
      status: primary?.status ?? 'pending',
      createdAt: new Date(row.createdAt).toISOString(),
      provisionedAt: new Date(row.provisionedAt).toISOString(),
    };
  }
}

/** What the audit log keeps of a removed peer: enough to restore it. */
export interface RemovedDetail {
  readonly id: PeerId;
  readonly subscriptionId: string;
  readonly publicKey: PublicKey;
  readonly addressIndex: number;
  readonly region: RegionId;
  readonly device: Jkt | null;
  readonly createdAt: string;
}

const conflict = (code: string, message: string) => new KatafractError(code, message, { status: 409 });

export function peerUnknown(): KatafractError {
  return new KatafractError('peer_unknown', 'no such peer', { status: 404 });
}
