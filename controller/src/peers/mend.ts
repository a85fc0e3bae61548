/**
 * Peers that misfortune has left with less than they should have get it back: standbys that nobody could give when
 * they were lost, and a primary in their own region once that has room again. Make before break, like a drain.
 *
 * Nothing marks such peers; the tables show them. All of them are gone through, page by page, each time a node begins
 * to take peers, and once an hour for whatever else may have changed, such as a subscription's tier.
 */
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { NodeId, PeerId, RegionId } from '@katafract/shared/units';
import type { EvacuationDeps } from './evacuate.ts';
import { relocate, stayingOf, writeRelocations } from './relocate.ts';
import { lockPeers } from './store.ts';

/** Peers that are looked at in one pass, and those of them that are moved in one transaction at most. */
const PAGE = 1000;
const BATCH = 250;
const EVERY_MS = 3_600_000;
/** After all were gone through there is a rest of so many times its length. */
const REST = 9;
/** Between two looks at who takes peers, in ms: a little less than the timer's. */
const LOOK_MS = 900;
const FIRST = '00000000-0000-0000-0000-000000000000';

interface Seen {
  readonly id: PeerId;
  readonly region: RegionId;
  readonly tier: Tier;
  readonly present: readonly NodeId[];
}

const exitsOf = (tier: Tier) => 1 + TIERS[tier].standbys;

export class Mending {
  readonly #deps: EvacuationDeps;
  /** The last peer that was looked at on the way through all of them; null between two times. */
  #after: string | null = null;
  #again = true;
  #nextAt = 0;
  #beganAt = 0;
  #restUntil = 0;
  #available: ReadonlySet<NodeId> = new Set();
  #lookedAt = 0;

  constructor(deps: EvacuationDeps) {
    this.#deps = deps;
  }

  /** Looks at one page. @returns whether there is another one at once */
  async pass(): Promise<boolean> {
    const { now } = this.#deps;
    this.#again ||= now() >= this.#nextAt || this.#somebodyNew();
    if (this.#after === null) {
      if (!this.#again || now() < this.#restUntil) return false;
      this.#again = false;
      this.#after = FIRST;
      this.#beganAt = now();
      this.#nextAt = now() + EVERY_MS;
    }
    const page = await this.#page(this.#after);
    const ids = this.#promising(page);
    for (let at = 0; at < ids.length; at += BATCH) await this.#mend(ids.slice(at, at + BATCH));
    this.#after = page.length === PAGE ? (page.at(-1)?.id ?? null) : null;
    // in a large fleet some node is always new: a tenth of the time is enough for this
    if (this.#after === null) this.#restUntil = now() + REST * (now() - this.#beganAt);
    return this.#after !== null;
  }

  /** Whether a node takes peers that did not before; looked at each second, however short the passes. */
  #somebodyNew(): boolean {
    const { fleet, now } = this.#deps;
    if (now() < this.#lookedAt + LOOK_MS) return false;
    this.#lookedAt = now();
    const available = new Set(fleet.roster.available());
    const found = [...available].some((node) => !this.#available.has(node));
    this.#available = available;
    return found;
  }

  #page(after: string): Promise<Seen[]> {
    return this.#deps.db.sql<Seen[]>`
      select p.id, p.region_id as region, s.tier,
             (select coalesce(jsonb_agg(x.node_id order by x.rank, x.node_id), '[]') from placements x
              where x.peer_id = p.id and x.role <> 'leaving') as present
      from (select id, region_id, subscription_id from peers where id > ${after} order by id limit ${PAGE}) p
      join subscriptions s on s.id = p.subscription_id order by p.id`;
  }

  /** Those who would gain something, without a lock: mostly none. */
  #promising(page: readonly Seen[]): PeerId[] {
    const { roster } = this.#deps.fleet;
    const short = page.filter(({ tier, region, present: [first, ...rest] }) => {
      if (first === undefined) return false;
      return rest.length + 1 < exitsOf(tier) || roster.node(first).region !== region;
    });
    const found = roster.improve(short.map(({ tier, ...one }) => ({ ...one, exits: exitsOf(tier) })));
    return short.filter((_, at) => found[at] !== null).map(({ id }) => id);
  }

  async #mend(ids: readonly PeerId[]): Promise<void> {
    const { db, fleet, audit, now, moveGraceMs } = this.#deps;
    const announce = await db.transaction(async (tx) => {
      const peers = await lockPeers(tx.sql, ids);
      const found = fleet.roster.improve(
        peers.map((peer) => ({
          region: peer.region,
          present: stayingOf(peer),
          exits: exitsOf(peer.tier),
        })),
      );
      const releaseAt = new Date(now() + moveGraceMs);
      const relocations = peers.flatMap((peer, at) => {
        const choices = found[at];
        return choices ? [relocate(this.#deps, peer, choices, releaseAt)] : [];
      });
      await audit.record(
        tx,
        relocations.map(({ peer, was, choices }) => ({
          actor: 'system',
          action: 'peer.replaced',
          subject: `peer:${peer.id}`,
          detail: { why: 'mended', from: was, to: choices },
        })),
      );
      return writeRelocations(fleet, tx, relocations);
    });
    announce();
  }
}
