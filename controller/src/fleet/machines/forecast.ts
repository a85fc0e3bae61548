/**
 * What is to be expected of a region. Pure: samples of its demand, its exits and the time give a forecast, in numbers
 * and in one sentence.
 *
 *   peers      what the region's exits carry, primaries and standbys alike: both take room, so both can fill it
 *   room       what its exits that are well may carry (a suspect one counts, one that is down does not)
 *   trend      peers an hour: the median of the slopes between all pairs of samples of the last two hours (Theil 1950,
 *              Sen 1968), which a quarter of wild samples does not move; never below 0, since an exit that was not
 *              bought in the afternoon is missing in the evening
 *   expected   peers + trend × (the time a machine takes + 5 minutes, the age a sample may have)
 */
import type { NodeId, RegionId } from '@katafract/shared/units';
import type { HealthState } from '../health.ts';
import type { NodeState } from '../tables.ts';
import type { Growth } from './provider.ts';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

/** Every threshold in one place; what operators may set themselves is in `Limits`. */
export const THRESHOLDS = {
  /** Share of the room in use from which a region grows. */
  grow: 0.8,
  /** Share of what would be left that may be in use for a machine to go, and what is put on top of the peak first. */
  shrink: 0.6,
  margin: 1.2,
  trendMs: 2 * HOUR,
  /** A trend needs this many samples over that long; before, there is none. */
  trendSamples: 4,
  trendSpanMs: 15 * MINUTE,
  /** How old the newest sample may be. */
  sampleMs: 5 * MINUTE,
  peakMs: 24 * HOUR,
  /** After anything that changed a region's exits, nothing is taken away for so long. */
  shrinkCooldownMs: 6 * HOUR,
  /** An exit that went down may be rebooting: for so long nobody buys another for it. */
  patienceMs: 3 * MINUTE,
  /** The longest pause after machines that failed, however many. */
  longestCooldownMs: 12 * HOUR,
} as const;

/** Of the whole fleet; see config-providers.ts. Times in ms. */
export interface Limits {
  readonly mostAtOnce: number;
  readonly mostADay: number;
  readonly leadMs: number;
  readonly cooldownMs: number;
  readonly replaceAfterMs: number;
}

export interface Sample {
  /** Milliseconds since the epoch, here and below. */
  readonly at: number;
  readonly peers: number;
}

/** A node of the region that is not retired. */
export interface ExitFacts {
  readonly node: NodeId;
  readonly state: NodeState;
  readonly health: HealthState;
  /** Since when it is in that health. */
  readonly since: number;
  readonly capacity: number;
  /** Those that are leaving it and are elsewhere already not counted. */
  readonly peers: number;
  /** The machine of ours behind it that could be given back; null where it is somebody else's. */
  readonly machine: string | null;
  /** It is being updated or rebooted. */
  readonly busy: boolean;
  /** A machine that takes its place is on its way, or there already. */
  readonly replaced: boolean;
}

/** A machine that is wanted and is no active exit yet. */
export interface ComingFacts {
  readonly capacity: number;
  readonly automatic: boolean;
  /** The exit whose place it takes. */
  readonly replaces: NodeId | null;
}

export interface RegionFacts {
  readonly region: RegionId;
  readonly minExits: number;
  readonly growth: Growth | null;
  /** Whether the growth's provider makes machines by itself; null where it is off, or there is no growth. */
  readonly automatic: boolean | null;
  readonly exits: readonly ExitFacts[];
  readonly coming: readonly ComingFacts[];
  /** Of the last `trendMs` at least, in order. */
  readonly samples: readonly Sample[];
  /** The most within `peakMs`; null where samples do not go back that far. */
  readonly peak: number | null;
  /** When a machine was last wanted for it by the fleet itself, and when its exits last became more or fewer. */
  readonly wantedAt: number | null;
  readonly changedAt: number | null;
  /** Machines in a row that came to nothing, when the last one did, and its code. */
  readonly failures: number;
  readonly failedAt: number | null;
  readonly problem: string | null;
}

export interface FleetFacts {
  readonly regions: readonly RegionFacts[];
  /** Automatic machines on their way. */
  readonly open: number;
  /** Machines that the fleet wanted by itself within 24 hours. */
  readonly today: number;
}

export interface Forecast {
  readonly region: RegionId;
  readonly exits: number;
  readonly peers: number;
  readonly room: number;
  /** Machines on their way, and what they will add. */
  readonly coming: number;
  readonly comingRoom: number;
  /** Share of the room that is used; 1 where there is none. */
  readonly used: number;
  /** Peers an hour. */
  readonly trend: number;
  readonly expected: number;
  readonly expectedUsed: number;
  /** Peers that fit beside those expected; below 0, what is missing. */
  readonly headroom: number;
  /** All of it in one sentence. */
  readonly explained: string;
}

export const serves = ({ state }: ExitFacts) => state === 'active' || state === 'cordoned';
/** What an exit may carry: a cordoned one what it has, one that goes or is down nothing. */
export function roomOf(exit: ExitFacts): number {
  if (exit.health === 'down' || !serves(exit)) return 0;
  return exit.state === 'cordoned' ? Math.min(exit.peers, exit.capacity) : exit.capacity;
}
export const sum = (list: readonly number[]) => list.reduce((total, one) => total + one, 0);
export const count = (n: number, what: string) => `${n.toLocaleString('en')} ${what}${n === 1 ? '' : 's'}`;
export const percent = (share: number) => `${Math.round(share * 100)} %`;

/** Peers an hour, never below 0: see above. @param samples in order */
export function trendOf(samples: readonly Sample[], now: number): number {
  const recent = samples.filter(({ at }) => at >= now - THRESHOLDS.trendMs && at <= now);
  const [first] = recent;
  const last = recent.at(-1);
  if (!first || !last || recent.length < THRESHOLDS.trendSamples) return 0;
  if (last.at - first.at < THRESHOLDS.trendSpanMs) return 0;
  const slopes: number[] = [];
  for (const [index, one] of recent.entries()) {
    for (const other of recent.slice(index + 1)) {
      if (other.at > one.at) slopes.push(((other.peers - one.peers) * HOUR) / (other.at - one.at));
    }
  }
  slopes.sort((a, b) => a - b);
  return Math.max(0, slopes[Math.floor(slopes.length / 2)] ?? 0);
}

/** What is to be expected of a region by the time that a machine asked for now would serve. */
export function forecast(facts: RegionFacts, limits: Limits, now: number): Forecast {
  const exits = facts.exits.filter((exit) => serves(exit) && exit.health !== 'down').length;
  const peers = sum(facts.exits.map((exit) => exit.peers));
  const room = sum(facts.exits.map(roomOf));
  const comingRoom = sum(facts.coming.map(({ capacity }) => capacity));
  const trend = trendOf(facts.samples, now);
  const aheadMs = limits.leadMs + THRESHOLDS.sampleMs;
  const expected = Math.ceil(peers + (trend * aheadMs) / HOUR);
  const share = (of: number) => (room > 0 ? of / room : of > 0 || facts.exits.length > 0 ? 1 : 0);
  const numbers = {
    region: facts.region,
    exits,
    peers,
    room,
    coming: facts.coming.length,
    comingRoom,
    used: share(peers),
    trend: Math.round(trend * 10) / 10,
    expected,
    expectedUsed: share(expected),
    headroom: room - expected,
  };
  return { ...numbers, explained: explain(numbers, aheadMs) };
}

function explain(at: Omit<Forecast, 'explained'>, aheadMs: number): string {
  const growing =
    at.trend > 0 ? `${at.trend.toLocaleString('en')} more an hour` : 'not growing over the last 2 hours';
  const coming =
    at.coming === 0 ? '' : `, and ${count(at.coming, 'machine')} with room for ${at.comingRoom} on the way`;
  return (
    `${at.region}: ${count(at.peers, 'peer')} on ${count(at.exits, 'exit')} with room for ` +
    `${at.room.toLocaleString('en')} (${percent(at.used)} used), ${growing}: ` +
    `${at.expected.toLocaleString('en')} expected in ${Math.round(aheadMs / MINUTE)} min, ` +
    `${percent(at.expectedUsed)} of the room${coming}`
  );
}
