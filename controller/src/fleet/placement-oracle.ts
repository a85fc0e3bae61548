/**
 * What placement.ts must answer, said as plainly as possible: each choice compares every node there is. The property
 * test in placement.test.ts holds the two side by side.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { RegionId } from '@katafract/shared/units';
import type { Choice, Displaced, PlacementReason, Wanted } from './placement.ts';
import { type Candidate, distanceKm, isAvailable, loadOf } from './rules.ts';

const FULL = 0.9;
const FULL_KM = 1000;
const SAME_PROVIDER_KM = 500;

const byId = (a: Candidate, b: Candidate) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
/** Nodes in doubt come last of all. */
const doubt = (node: Candidate) => (node.health === 'suspect' ? 1 : 0);

/**
 * Chooses the exits of a new peer: the primary is the least loaded node of the region, the standbys are the nearest other
 * nodes, the less loaded first among equals. The id settles what is left, so the same inputs give the same exits.
 * @throws KatafractError `region_unavailable` (503) where no node of the region takes peers.
 */
export function placePeer(nodes: readonly Candidate[], wish: Wanted): Choice[] {
  const usable = nodes.filter((node) => isAvailable(node, wish.now));
  const primary = bestOfRegion(usable, wish.region);
  if (!primary) {
    throw new KatafractError('region_unavailable', `no exit in region ${wish.region} takes new peers now`, {
      status: 503,
      retryAfter: 10,
    });
  }
  return addStandbys(usable, [{ node: primary, reason: chosen(primary, 'region') }], wish.standbys + 1);
}

/**
 * Chooses anew for a peer whose exits may not all keep it: those of `present` that are down, draining or gone are left,
 * every other one is kept. A standby takes a lost primary's place; without hurry one of the peer's region, even a new
 * one, comes before a standby abroad.
 * @returns the exits, the primary first; none where no node at all could take the peer
 */
export function replacePeer(nodes: readonly Candidate[], wish: Displaced): Choice[] {
  const known = new Map(nodes.map((node) => [node.id, node]));
  const stays = (node: Candidate | undefined): node is Candidate =>
    node !== undefined && node.health !== 'down' && (node.state === 'active' || node.state === 'cordoned');
  const kept = wish.present.map((id) => known.get(id)).filter(stays);
  const usable = nodes.filter((node) => isAvailable(node, wish.now) && !wish.present.includes(node.id));
  const was = kept.find((node) => node.id === wish.present[0]);
  // sure ones first, otherwise in the order that the device knows
  const heirs = [...kept].sort((a, b) => doubt(a) - doubt(b));
  const heir = was ?? heirs.find((node) => node.region === wish.region && !doubt(node));
  const newcomer = heir || wish.hurry ? undefined : bestOfRegion(usable, wish.region);
  const primary = heir ?? newcomer ?? heirs[0] ?? nearestTo(nodes, usable, wish);
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
  return addStandbys(
    usable.filter((node) => node !== primary),
    choices,
    wish.exits,
  );
}

interface Picked {
  readonly node: Candidate;
  readonly reason: PlacementReason;
}

const chosen = (node: Candidate, reason: PlacementReason) => (doubt(node) ? 'last_resort' : reason);

function bestOfRegion(usable: readonly Candidate[], region: RegionId): Candidate | undefined {
  const there = usable.filter((node) => node.region === region);
  return least(there, (a, b) => doubt(a) - doubt(b) || loadOf(a) - loadOf(b) || byId(a, b));
}

/** Where the region has nothing to offer: seen from any of its nodes, or from where the peer was. */
function nearestTo(nodes: readonly Candidate[], usable: readonly Candidate[], wish: Displaced) {
  const home =
    nodes.find(({ region }) => region === wish.region) ?? nodes.find(({ id }) => id === wish.present[0]);
  return home ? nearest(usable, home, []) : undefined;
}

function nearest(usable: readonly Candidate[], from: Candidate, beside: readonly Candidate[]) {
  const providers = new Set(beside.map(({ provider }) => provider));
  const cost = new Map(
    usable.map((node) => {
      const shared = node.provider !== null && providers.has(node.provider);
      const further = (shared ? SAME_PROVIDER_KM : 0) + (loadOf(node) > FULL ? FULL_KM : 0);
      return [node.id, distanceKm(from.place, node.place) + further];
    }),
  );
  const costOf = ({ id }: Candidate) => cost.get(id) ?? 0;
  return least(
    usable,
    (a, b) => doubt(a) - doubt(b) || costOf(a) - costOf(b) || loadOf(a) - loadOf(b) || byId(a, b),
  );
}

function least<T>(list: readonly T[], order: (a: T, b: T) => number): T | undefined {
  return list.reduce<T | undefined>(
    (best, one) => (best === undefined || order(one, best) < 0 ? one : best),
    undefined,
  );
}

/** Fills the exits up to `count`, one after the other, since each choice counts for the providers of the next. */
function addStandbys(usable: readonly Candidate[], choices: readonly Picked[], count: number): Choice[] {
  const picked = [...choices];
  const [first] = picked;
  while (first && picked.length < count) {
    const beside = picked.map(({ node }) => node);
    const rest = usable.filter((node) => !beside.includes(node));
    const next = nearest(rest, first.node, beside);
    if (!next) break;
    picked.push({ node: next, reason: chosen(next, 'nearest') });
  }
  return picked.map(({ node, reason }) => ({ node: node.id, reason }));
}
