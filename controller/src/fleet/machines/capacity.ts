/**
 * When a region needs more exits, and when it can do with fewer. Pure: what is known of the whole fleet and the time
 * give a decision for each region, with its reason.
 *
 * A region grows when more than 80 % of its room is expected to be used, machines on the way counted as there, or when
 * it has fewer exits than its minimum. It shrinks when the most it carried within 24 hours, and a fifth on top, fits
 * into 60 % of what would be left. So at a constant load it does not swing: it grows above 80 % of the room that it
 * had, and gives that machine back only where half of the very same room would do.
 */
import type { NodeId } from '@katafract/shared/units';
import { implausible } from '../health.ts';
import {
  count,
  type ExitFacts,
  type FleetFacts,
  type Forecast,
  forecast,
  type Limits,
  percent,
  type RegionFacts,
  roomOf,
  serves,
  sum,
  THRESHOLDS,
} from './forecast.ts';

const MINUTE = 60_000;

/** Why a region that needs capacity gets none by itself. */
export const ALERTS = [
  'no_automatic_growth',
  'provider_off',
  'waiting_for_person',
  'at_maximum',
  'machines_fail',
  'limit_reached',
  'fleet_implausible',
] as const;
export type AlertCode = (typeof ALERTS)[number];

export type Decision =
  | { readonly do: 'none'; readonly why: string }
  | {
      readonly do: 'grow';
      readonly why: 'capacity' | 'minimum';
      readonly count: number;
      readonly reason: string;
    }
  | { readonly do: 'replace'; readonly node: NodeId; readonly reason: string }
  | { readonly do: 'shrink'; readonly machine: string; readonly node: NodeId; readonly reason: string }
  | { readonly do: 'alert'; readonly code: AlertCode; readonly reason: string };

export interface Assessment {
  readonly forecast: Forecast;
  readonly decision: Decision;
}

/** Judges every region once, the fullest first, so that what the whole fleet may do goes where it is needed most. */
export function assess(fleet: FleetFacts, limits: Limits, now: number): Assessment[] {
  const nodes = fleet.regions.flatMap(({ exits }) => exits).filter(({ state }) => state !== 'joining');
  const doubtful = implausible(nodes.filter(({ health }) => health === 'down').length, nodes.length);
  let left = Math.max(0, Math.min(limits.mostAtOnce - fleet.open, limits.mostADay - fleet.today));
  const judged = fleet.regions
    .map((facts) => ({ facts, forecast: forecast(facts, limits, now) }))
    .sort((a, b) => b.forecast.expectedUsed - a.forecast.expectedUsed || compare(a.facts, b.facts));
  return judged.map(({ facts, forecast }) => {
    const wish = decide(facts, forecast, limits, now);
    const decision = allowed(wish, facts, left, doubtful);
    if (facts.automatic && decision.do === 'grow') left -= decision.count;
    if (facts.automatic && decision.do === 'replace') left -= 1;
    return { forecast, decision };
  });
}

const compare = (a: RegionFacts, b: RegionFacts) => (a.region < b.region ? -1 : a.region > b.region ? 1 : 0);

/** What the fleet as a whole has to say to it. */
function allowed(wish: Decision, facts: RegionFacts, left: number, doubtful: boolean): Decision {
  if (wish.do === 'none' || wish.do === 'alert') return wish;
  if (doubtful) {
    const reason =
      'more than half of the fleet looks down: probably the controller cannot hear it, so nothing is bought or given back';
    return { do: 'alert', code: 'fleet_implausible', reason };
  }
  if (wish.do === 'shrink' || !facts.automatic) return wish;
  if (left <= 0) {
    const reason = `${wish.reason}; but the fleet may ask for no further machine at the moment`;
    return { do: 'alert', code: 'limit_reached', reason };
  }
  return wish.do === 'grow' ? { ...wish, count: Math.min(wish.count, left) } : wish;
}

interface Need {
  readonly why: 'capacity' | 'minimum';
  readonly count: number;
  readonly reason: string;
}

/** What a region would do if it were alone. */
function decide(facts: RegionFacts, at: Forecast, limits: Limits, now: number): Decision {
  const dead = facts.automatic ? toReplace(facts, limits, now) : undefined;
  const need = needOf(facts, at, limits, now);
  if (need === null && dead === undefined) return shrinkOf(facts, at, now);
  const reason = need?.reason ?? `${dead?.node} is down for good`;
  const off = unableTo(facts, reason);
  if (off) return off;
  const full = need && dead === undefined ? atMaximum(facts, need) : null;
  if (full) return full;
  const pausedUntil = cooldownEnd(facts, dead || !need ? 'minimum' : need.why, limits);
  if (pausedUntil > now) {
    const minutes = Math.ceil((pausedUntil - now) / MINUTE);
    if (facts.failures === 0)
      return { do: 'none', why: `${reason}; waits ${minutes} min for the last decision to show` };
    const failed = `${count(facts.failures, 'machine')} in a row came to nothing (${facts.problem}), next try in ${minutes} min`;
    return { do: 'alert', code: 'machines_fail', reason: `${reason}; ${failed}` };
  }
  if (dead) return { do: 'replace', node: dead.node, reason: replaceReason(dead, now) };
  if (need === null) return { do: 'none', why: at.explained };
  return { do: 'grow', ...need, count: Math.min(need.count, placesLeft(facts)) };
}

/** The exit that is longest down, of those that are not being replaced yet. */
function toReplace({ exits }: RegionFacts, { replaceAfterMs }: Limits, now: number): ExitFacts | undefined {
  const gone = exits.filter(
    (exit) => exit.health === 'down' && serves(exit) && !exit.replaced && now - exit.since >= replaceAfterMs,
  );
  return gone.sort((a, b) => a.since - b.since || (a.node < b.node ? -1 : 1))[0];
}

const replaceReason = ({ node, since }: ExitFacts, now: number) =>
  `replace: ${node} has been down for ${Math.round((now - since) / MINUTE)} min`;

/** Whether the region lacks anything, machines on the way counted as there. */
function needOf(facts: RegionFacts, at: Forecast, limits: Limits, now: number): Need | null {
  const { exits, coming, growth } = facts;
  const down = exits.filter((exit) => exit.health === 'down' && serves(exit));
  // a machine that takes another's place is one exit with it
  const left = new Set(coming.map(({ replaces }) => replaces));
  const more = coming.filter(({ replaces }) => replaces === null).length;
  // one that went down may be back before a machine is there; after that it is replaced, which is not growth
  const awaited = down.filter(({ node, since }) => left.has(node) || now - since < limits.replaceAfterMs);
  const there = at.exits + awaited.length + more;
  const joining = exits.filter(({ state }) => state === 'joining').length;
  const least = Math.max(facts.minExits, growth === null ? 0 : 1);
  const missing = least - there - joining;
  if (missing > 0) {
    const reason = `minimum: ${facts.region} should have ${count(least, 'exit')} and has ${there}. ${at.explained}`;
    return { why: 'minimum', count: missing, reason };
  }
  const leaving = sum(exits.filter(({ node }) => left.has(node)).map(roomOf));
  const room = at.room + at.comingRoom - leaving;
  if (at.expected <= THRESHOLDS.grow * room) return null;
  // nobody is asked for help where nothing was promised and nothing is carried
  if (at.expected === 0) return null;
  if (down.some((exit) => now - exit.since < THRESHOLDS.patienceMs)) return null;
  const size = growth?.capacity ?? 0;
  const lacking = at.expected / THRESHOLDS.grow - room;
  const machines = size > 0 ? Math.max(1, Math.ceil(lacking / size)) : 1;
  const reason = `capacity: ${at.explained}; above ${percent(THRESHOLDS.grow)}`;
  return { why: 'capacity', count: machines, reason };
}

function unableTo(facts: RegionFacts, reason: string): Decision | null {
  const { growth, automatic } = facts;
  if (growth === null) {
    return {
      do: 'alert',
      code: 'no_automatic_growth',
      reason: `${reason}; the region does not grow by itself`,
    };
  }
  if (automatic === null) {
    return { do: 'alert', code: 'provider_off', reason: `${reason}; ${growth.provider} is not configured` };
  }
  return null;
}

/** Until when nothing is asked for: a decision needs time to show, and what fails again and again must not cost. */
function cooldownEnd(facts: RegionFacts, why: Need['why'], { cooldownMs }: Limits): number {
  const { failures, failedAt, wantedAt } = facts;
  const pause = Math.max(cooldownMs, MINUTE) * 2 ** Math.min(Math.max(failures - 1, 0), 20);
  const afterFailure =
    failedAt === null || failures === 0 ? 0 : failedAt + Math.min(pause, THRESHOLDS.longestCooldownMs);
  const afterWish = why === 'minimum' || wantedAt === null ? 0 : wantedAt + cooldownMs;
  return Math.max(afterFailure, afterWish);
}

/** Exits that may be added; a machine that replaces one adds none. */
const placesLeft = ({ growth, exits, coming }: RegionFacts): number =>
  (growth?.maxExits ?? 0) - exits.length - coming.filter(({ replaces }) => replaces === null).length;

function atMaximum(facts: RegionFacts, { reason }: Need): Decision | null {
  if (placesLeft(facts) > 0) return null;
  const most = count(facts.growth?.maxExits ?? 0, 'exit');
  return { do: 'alert', code: 'at_maximum', reason: `${reason}; but it may have no more than ${most}` };
}

/** The machine with the least to do goes, where the rest has room for the busiest hour of the day and to spare. */
function shrinkOf(facts: RegionFacts, at: Forecast, now: number): Decision {
  const waiting = facts.coming.find(({ automatic }) => !automatic);
  const { exits, peak, changedAt } = facts;
  if (waiting) {
    const reason = `${at.explained}; a person has to set the machine up`;
    return { do: 'alert', code: 'waiting_for_person', reason };
  }
  const none: Decision = { do: 'none', why: at.explained };
  const settled = exits.every(({ state, health, busy }) => state === 'active' && health === 'ok' && !busy);
  if (!facts.automatic || !settled || facts.coming.length > 0 || peak === null) return none;
  if (changedAt !== null && now - changedAt < THRESHOLDS.shrinkCooldownMs) return none;
  if (exits.length - 1 < Math.max(facts.minExits, 1)) return none;
  const ours = exits.filter((exit) => exit.machine !== null && !exit.replaced);
  const [least] = [...ours].sort((a, b) => a.peers - b.peers || (a.node < b.node ? 1 : -1));
  if (!least?.machine) return none;
  const most = Math.max(peak, at.expected) * THRESHOLDS.margin;
  const rest = at.room - least.capacity;
  if (most > THRESHOLDS.shrink * rest) return none;
  const reason =
    `capacity: ${at.explained}; at most ${count(peak, 'peer')} within 24 h, ` +
    `of which ${percent(peak / rest)} of the room without ${least.node} would be used`;
  return { do: 'shrink', machine: least.machine, node: least.node, reason };
}
