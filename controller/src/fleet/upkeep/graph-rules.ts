/**
 * Which regions stand in for one another, and when it is night there. Pure. Clients of an exit that is away go to the
 * next nearest region, so two regions that are near each other are never worked on together: they are neighbours in a
 * graph, and the graph is coloured, so that regions of one colour may go at the same time.
 */
import type { RegionId } from '@katafract/shared/units';
import { distanceKm, type Place } from '../rules.ts';

export interface RegionFacts extends Place {
  readonly id: RegionId;
  /** IANA name; null where nobody said. */
  readonly timeZone: string | null;
  /** Exits that must stay well while others are worked on. */
  readonly minExits: number;
}

/** Regions nearer than this are neighbours, and so is each one's nearest, however far. In kilometres. */
const NEAR_KM = 800;

export interface RegionGraph {
  readonly regions: ReadonlyMap<RegionId, RegionFacts>;
  neighbours(region: RegionId): ReadonlySet<RegionId>;
  /** From 0 on; neighbours differ. */
  colour(region: RegionId): number;
  readonly colours: number;
}

/** The same regions give the same graph and the same colours, in whatever order they come. */
export function regionGraph(regions: readonly RegionFacts[]): RegionGraph {
  const sorted = [...regions].sort((a, b) => (a.id < b.id ? -1 : 1));
  const edges = new Map<RegionId, Set<RegionId>>(sorted.map(({ id }) => [id, new Set()]));
  const link = (a: RegionId, b: RegionId) => {
    edges.get(a)?.add(b);
    edges.get(b)?.add(a);
  };
  for (const one of sorted) {
    const others = sorted
      .filter((other) => other !== one)
      .map((other) => ({ id: other.id, km: distanceKm(one, other) }))
      .sort((a, b) => a.km - b.km);
    const [nearest] = others;
    if (nearest) link(one.id, nearest.id);
    for (const { id, km } of others) if (km < NEAR_KM) link(one.id, id);
  }
  const colours = paint(edges);
  const none: ReadonlySet<RegionId> = new Set();
  return {
    regions: new Map(sorted.map((region) => [region.id, region])),
    neighbours: (region) => edges.get(region) ?? none,
    colour: (region) => colours.get(region) ?? 0,
    colours: Math.max(0, ...colours.values()) + 1,
  };
}

/** Greedily, those with the most neighbours first (Welsh and Powell 1967): at most one colour more than neighbours. */
function paint(edges: ReadonlyMap<RegionId, ReadonlySet<RegionId>>): Map<RegionId, number> {
  const colours = new Map<RegionId, number>();
  for (const [region, near] of [...edges].sort(([, a], [, b]) => b.size - a.size)) {
    const taken = new Set([...near].map((other) => colours.get(other)));
    let colour = 0;
    while (taken.has(colour)) colour++;
    colours.set(region, colour);
  }
  return colours;
}

const DAY_MINUTES = 1440;
/** Local night, in minutes after midnight: when the fewest watch. */
const NIGHT = { from: 120, to: 300 };
/** No window for updates is shorter, in minutes. */
const SHORTEST = 30;

const modulo = (value: number, by: number) => ((value % by) + by) % by;
const formats = new Map<string, Intl.DateTimeFormat>();

/** Minutes that a region's clocks are ahead of UTC at a moment; by longitude, 4 minutes a degree, without a time zone. */
export function offsetMinutes({ timeZone, longitude }: RegionFacts, now: number): number {
  const bySun = Math.round(longitude / 15) * 60;
  if (timeZone === null) return bySun;
  try {
    const known = formats.get(timeZone);
    const format =
      known ?? new Intl.DateTimeFormat('en-GB', { timeZone, hour: '2-digit', minute: '2-digit' });
    formats.set(timeZone, format);
    const [hours = 0, minutes = 0] = format.format(now).split(':').map(Number);
    const utc = modulo(Math.floor(now / 60_000), DAY_MINUTES);
    return modulo(hours * 60 + minutes - utc + DAY_MINUTES / 2, DAY_MINUTES) - DAY_MINUTES / 2;
  } catch (error) {
    if (error instanceof RangeError) return bySun; // no such time zone in this system's tables
    throw error;
  }
}

export function isNight(region: RegionFacts, now: number): boolean {
  const local = modulo(Math.floor(now / 60_000) + offsetMinutes(region, now), DAY_MINUTES);
  return local >= NIGHT.from && local < NIGHT.to;
}

/** When a region's systems take security updates: a part of its night, which no neighbour shares where nights do. */
export function updatesWindow(
  graph: RegionGraph,
  region: RegionFacts,
  now: number,
): { fromMinute: number; minutes: number } {
  const length = NIGHT.to - NIGHT.from;
  const parts = Math.min(graph.colours, Math.floor(length / SHORTEST));
  const minutes = Math.floor(length / parts);
  const local = NIGHT.from + (graph.colour(region.id) % parts) * minutes;
  return { fromMinute: modulo(local - offsetMinutes(region, now), DAY_MINUTES), minutes };
}
