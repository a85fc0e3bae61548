/**
 * Where a peer goes. Pure: nodes and `now` are given. What is asked of ten nodes and of ten thousand is the same, so the
 * nodes are kept by region, and each region knows the others by their distance: standbys are looked for outwards, and
 * the search ends where no region further away could be better any more.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { NodeId, RegionId } from '@katafract/shared/units';
import { type Candidate, distanceKm, isAvailable, loadOf, type Place } from './rules.ts';

/** Fuller than this, a standby is rather looked for further away; kilometres that a full node, or one provider, costs. */
const FULL = 0.9;
const FULL_KM = 1000;
const SAME_PROVIDER_KM = 500;

/** Why a peer is where it is: stable words for the audit log. */
export type PlacementReason =
  /** Least loaded of the region. */
  | 'region'
  /** Nearest to the primary that has room, on another provider if that is not much further. */
  | 'nearest'
  /** It had the peer before, and nothing speaks against it. */
  | 'kept'
  /** It had the peer as a standby, and the primary goes. */
  | 'promoted'
  /** In the peer's own region, which has room again. */
  | 'home'
  /** Nothing better than a node whose health is in doubt. */
  | 'last_resort';

export interface Choice {
  readonly node: NodeId;
  readonly reason: PlacementReason;
}

export interface Wanted {
  readonly region: RegionId;
  readonly standbys: number;
  readonly now: number;
}

export interface Displaced {
  readonly region: RegionId;
  /** Where the peer is now, in the order its device tries them. */
  readonly present: readonly NodeId[];
  /** Exits it should have, if there are as many. */
  readonly exits: number;
  /** It must leave at once: whatever already has the peer takes over. Otherwise a better primary may be told first. */
  readonly hurry: boolean;
  readonly now: number;
}

export interface Settled {
  readonly region: RegionId;
  /** Where the peer is, in the order its device tries them. */
  readonly present: readonly NodeId[];
  /** Exits it should have, if there are as many. */
  readonly exits: number;
  readonly now: number;
}

interface Picked {
  readonly node: Candidate;
  readonly reason: PlacementReason;
}

/** Nodes in doubt come last of all. */
const doubt = (node: Candidate) => (node.health === 'suspect' ? 1 : 0);
const chosen = (node: Candidate, reason: PlacementReason) => (doubt(node) ? 'last_resort' : reason);

/** Whether a node may keep the peers that it has. */
const stays = (node: Candidate | undefined): node is Candidate =>
  node !== undefined && node.health !== 'down' && (node.state === 'active' || node.state === 'cordoned');

/** A node that is being compared, and what counts, the first thing first; the id settles what is left. */
interface Rated {
  readonly node: Candidate;
  readonly doubt: number;
  readonly cost: number;
  readonly load: number;
}

function better(one: Rated, than: Rated | undefined): boolean {
  if (!than) return true;
  const order = one.doubt - than.doubt || one.cost - than.cost || one.load - than.load;
  return order !== 0 ? order < 0 : one.node.id < than.node.id;
}

interface Region {
  /** All nodes of a region are where it is. */
  readonly place: Place;
  readonly nodes: Candidate[];
}

interface Distant {
  readonly region: RegionId;
  readonly km: number;
}

/** The nodes by region. It looks at them anew for each answer, so they may change; which there are, and where, may not. */
export class Placement {
  readonly #nodes = new Map<NodeId, Candidate>();
  readonly #regions = new Map<RegionId, Region>();
  /** The regions by their distance from one of them, each list made when it is first asked for. */
  readonly #outwards: Map<RegionId, readonly Distant[]>;

  /** @param before of other nodes: its distances are taken over where it has the same regions */
  constructor(nodes: Iterable<Candidate>, before?: Placement) {
    for (const node of nodes) {
      this.#nodes.set(node.id, node);
      const region = this.#regions.get(node.region);
      if (region) region.nodes.push(node);
      else this.#regions.set(node.region, { place: node.place, nodes: [node] });
    }
    this.#outwards = before && this.#isLaidOutLike(before) ? before.#outwards : new Map();
  }

  #isLaidOutLike(before: Placement): boolean {
    const others = before.#regions;
    const same = ([id, { place }]: [RegionId, Region]) => {
      const other = others.get(id)?.place;
      return other?.latitude === place.latitude && other.longitude === place.longitude;
    };
    return others.size === this.#regions.size && [...this.#regions].every(same);
  }

  #nodesOf(region: RegionId): readonly Candidate[] {
    return this.#regions.get(region)?.nodes ?? [];
  }

  /**
   * Chooses the exits of a new peer: the primary is the least loaded node of the region, the standbys are the nearest
   * other nodes, the less loaded first among equals. The same inputs give the same exits.
   * @throws KatafractError `region_unavailable` (503) where no node of the region takes peers.
   */
  place(wish: Wanted): Choice[] {
    const primary = this.#bestOfRegion(wish.region, [], wish.now);
    if (!primary) {
      throw new KatafractError('region_unavailable', `no exit in region ${wish.region} takes new peers now`, {
        status: 503,
        retryAfter: 10,
      });
    }
    const first = { node: primary, reason: chosen(primary, 'region') };
    return this.#addStandbys([first], [], wish.standbys + 1, wish.now);
  }

  /**
   * Chooses anew for a peer whose exits may not all keep it: those of `present` that are down, draining or gone are
   * left, every other one is kept. A standby takes a lost primary's place; without hurry one of the peer's region, even
   * a new one, comes before a standby abroad.
   * @returns the exits, the primary first; none where no node at all could take the peer
   */
  replace(wish: Displaced): Choice[] {
    const { present, now } = wish;
    const kept = present.map((id) => this.#nodes.get(id)).filter(stays);
    const was = kept.find((node) => node.id === present[0]);
    // sure ones first, otherwise in the order that the device knows
    const heirs = [...kept].sort((a, b) => doubt(a) - doubt(b));
    const heir = was ?? heirs.find((node) => node.region === wish.region && !doubt(node));
    const newcomer = heir || wish.hurry ? undefined : this.#bestOfRegion(wish.region, present, now);
    const primary = heir ?? newcomer ?? heirs[0] ?? this.#nearestToHome(wish);
    if (!primary) return [];
    const reason = was
      ? 'kept'
      : kept.includes(primary)
        ? 'promoted'
        : primary.region === wish.region
          ? 'region'
          : 'nearest';
    const rest = kept.filter((node) => node !== primary).slice(0, Math.max(0, wish.exits - 1));
    const choices: Picked[] = [
      { node: primary, reason: kept.includes(primary) ? reason : chosen(primary, reason) },
    ];
    for (const node of rest) choices.push({ node, reason: 'kept' });
    return this.#addStandbys(choices, present, wish.exits, now);
  }

  /**
   * What would be better for a peer that nothing forces to move: a primary in its own region, where misfortune has led
   * it abroad, and as many exits as it should have. Only what is beyond doubt is better than what a peer has.
   * @returns null where there is nothing to gain, and where an exit of it goes: that is for `replace`
   */
  improve({ region, present, exits, now }: Settled): Choice[] | null {
    const kept = present.map((id) => this.#nodes.get(id)).filter(stays);
    const [first] = kept;
    if (!first || kept.length < present.length) return null;
    const fit = (node: Candidate | undefined) =>
      node?.region === region && node.state === 'active' && !doubt(node) && loadOf(node) <= FULL;
    const newcomer = () => [this.#bestOfRegion(region, present, now)].find(fit);
    const home = first.region === region ? undefined : (kept.find(fit) ?? newcomer());
    const rest = kept.filter((node) => node !== home).map((node) => ({ node, reason: 'kept' as const }));
    const picked = home ? [{ node: home, reason: 'home' as const }, ...rest] : rest;
    const choices = this.#addStandbys(picked.slice(0, Math.max(1, exits)), present, exits, now);
    const sure = choices.filter(({ reason }) => reason !== 'last_resort');
    return home || sure.length > present.length ? sure : null;
  }

  #bestOfRegion(region: RegionId, except: readonly NodeId[], now: number): Candidate | undefined {
    let best: Rated | undefined;
    for (const node of this.#nodesOf(region)) {
      if (!isAvailable(node, now) || except.includes(node.id)) continue;
      const rated = { node, doubt: doubt(node), cost: 0, load: loadOf(node) };
      if (better(rated, best)) best = rated;
    }
    return best?.node;
  }

  /** Where the region has nothing to offer: seen from it, or from where the peer was. */
  #nearestToHome({ region, present, now }: Displaced): Candidate | undefined {
    const [first] = present;
    const home = this.#regions.has(region) || !first ? region : this.#nodes.get(first)?.region;
    return home === undefined ? undefined : this.#nearest(home, [], present, now);
  }

  /** Fills the exits up to `count`, one after the other, since each choice counts for the providers of the next. */
  #addStandbys(choices: readonly Picked[], except: readonly NodeId[], count: number, now: number): Choice[] {
    const picked = [...choices];
    const [first] = picked;
    while (first && picked.length < count) {
      const beside = picked.map(({ node }) => node);
      const next = this.#nearest(first.node.region, beside, except, now);
      if (!next) break;
      picked.push({ node: next, reason: chosen(next, 'nearest') });
    }
    return picked.map(({ node, reason }) => ({ node: node.id, reason }));
  }

  /** The nearest node that takes peers and is neither `beside` nor among `except`. */
  #nearest(
    from: RegionId,
    beside: readonly Candidate[],
    except: readonly NodeId[],
    now: number,
  ): Candidate | undefined {
    let best: Rated | undefined;
    for (const { region, km } of this.#byDistance(from)) {
      // whatever it has would cost as much as the way there at least
      if (best && best.doubt === 0 && km > best.cost) break;
      for (const node of this.#nodesOf(region)) {
        if (!isAvailable(node, now) || beside.includes(node) || except.includes(node.id)) continue;
        const load = loadOf(node);
        const shared = node.provider !== null && beside.some(({ provider }) => provider === node.provider);
        const cost = km + ((shared ? SAME_PROVIDER_KM : 0) + (load > FULL ? FULL_KM : 0));
        const rated = { node, doubt: doubt(node), cost, load };
        if (better(rated, best)) best = rated;
      }
    }
    return best?.node;
  }

  #byDistance(from: RegionId): readonly Distant[] {
    const known = this.#outwards.get(from);
    if (known) return known;
    const origin = this.#regions.get(from);
    if (!origin) return [];
    const list = [...this.#regions]
      .map(([region, { place }]) => ({ region, km: distanceKm(origin.place, place) }))
      .sort((a, b) => a.km - b.km);
    this.#outwards.set(from, list);
    return list;
  }
}
