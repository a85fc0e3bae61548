/**
 * When a device leaves its exit, for which other, and when it goes home again. Pure: what was seen and the time come
 * in, what to do and when to look again come out; manager.ts looks and does.
 *
 * Home is the first exit in the order that provisioning returned (and that is not being drained). An exit in use is
 * dead once three probes in a row went unanswered while nothing at all was received from it. Then each other exit is
 * tried once; where none answers it is the device that is cut off, and it goes home and waits, longer each time.
 */

export interface ExitSeen {
  readonly node: string;
  /** It is being drained, or a move has replaced it: nothing new goes there. */
  readonly leaving: boolean;
  /** Milliseconds since the epoch; null since its peer was made. WireGuard tells whole seconds. */
  readonly handshakeAt: number | null;
  /** Round trip beside the tunnel in milliseconds, where it was measured. */
  readonly rttMs?: number | undefined;
}

export interface Observation {
  /** In the order of provisioning. */
  readonly exits: readonly ExitSeen[];
  /** The device has a carrier and a route to its exits. */
  readonly link: boolean;
  /** Of the exit in use: whether its gateway answered, through the tunnel, within the time the probe was given. */
  readonly answered: boolean;
  /** Something came from the exit in use since the last look. */
  readonly received: boolean;
  /** In [0, 1), anew for each look. */
  readonly random: number;
}

export type Reason = 'start' | 'dead' | 'leaving' | 'gone' | 'home';

interface Punishment {
  readonly until: number;
  readonly times: number;
}

export interface FailoverState {
  /** Node in use, since when and why. */
  readonly exit: string;
  readonly since: number;
  readonly reason: Reason;
  /** No sign of life since the switch. */
  readonly trying: boolean;
  /** From when on the time of a trial counts: the switch, or the return of the device's own link. */
  readonly triedFrom: number;
  /** Probes in a row that were not answered. */
  readonly lost: number;
  /** Exits that gave no answer since the last sign of life. */
  readonly round: readonly string[];
  /** Rounds in a row in which no exit answered. */
  readonly backOffs: number;
  readonly waitUntil: number | null;
  /** Exits found dead lately come last. */
  readonly punished: Readonly<Record<string, Punishment>>;
  /** A peer that was made anew, without routes, to see whether its exit shakes hands. */
  readonly knock: { readonly node: string; readonly at: number } | null;
  /** Since when home has answered each knock. */
  readonly homeWellSince: number | null;
  /** Times in a row that home died soon after a return. */
  readonly bounces: number;
  readonly returnedAt: number | null;
  /** Of the last minute. */
  readonly switches: readonly number[];
}

export type Action =
  | { readonly kind: 'stay' }
  /** Make the exit's peer anew, without routes: its handshake shows whether it lives. */
  | { readonly kind: 'knock'; readonly at: string }
  /** `gently`: it has answered a knock, so its peer is kept as it is. */
  | { readonly kind: 'switch'; readonly to: string; readonly reason: Reason; readonly gently: boolean }
  | { readonly kind: 'wait'; readonly reason: 'offline' | 'no exit answers' | 'too many switches' };

export interface Decision {
  readonly state: FailoverState;
  readonly action: Action;
  /** When to look again, in milliseconds since the epoch. */
  readonly lookAt: number;
}

/** All in milliseconds. Tests and the impatient shorten `homeWell`; nothing else need be set. */
export interface Patience {
  /** Home must be well for so long; doubles with each bounce. */
  readonly homeWell: number;
}
export const PATIENCE: Patience = { homeWell: 60_000 };

const SECOND = 1000;
const MINUTE = 60_000;
export const RULES = {
  probeEvery: SECOND,
  probeWait: SECOND,
  /** Of an exit just switched to: it is looked at more often. */
  trialProbeWait: 250,
  lostIsDead: 3,
  trial: 2 * SECOND,
  homeWellAtMost: 30 * MINUTE,
  /** A home that lasts for so long after a return has not bounced. */
  settled: 30 * MINUTE,
  knockEvery: 15 * SECOND,
  /** WireGuard repeats a handshake after 5 s: one lost packet must not count. */
  knockWait: 7 * SECOND,
  punishment: 30 * SECOND,
  punishmentAtMost: 10 * MINUTE,
  backOff: 2 * SECOND,
  backOffAtMost: MINUTE,
  switchesPerMinute: 10,
  /** Of round-trip times: what is less than this apart is equally near. */
  nearer: 20,
} as const;

/** @param now milliseconds since the epoch */
export function initialState(exit: string, now: number): FailoverState {
  return {
    exit,
    since: now,
    reason: 'start',
    trying: true,
    triedFrom: now,
    lost: 0,
    round: [],
    backOffs: 0,
    waitUntil: null,
    punished: {},
    knock: null,
    homeWellSince: null,
    bounces: 0,
    returnedAt: null,
    switches: [],
  };
}

/** How long the next probe may wait for its answer, in milliseconds. */
export function probeWait({ trying }: FailoverState): number {
  return trying ? RULES.trialProbeWait : RULES.probeWait;
}

/** Where the device belongs: the first exit that stays; undefined where none does. */
export function homeOf(exits: readonly ExitSeen[]): ExitSeen | undefined {
  return exits.find(({ leaving }) => !leaving);
}

/** What to do after a look. @param now milliseconds since the epoch */
export function decide(
  before: FailoverState,
  seen: Observation,
  now: number,
  patience: Patience = PATIENCE,
): Decision {
  const state = noted(before, seen, now);
  if (!seen.link && !alive(before, seen)) return offline(state, now);
  const inUse = seen.exits.find(({ node }) => node === state.exit);
  if (isDead(state, now)) return leaveDead(state, seen, now);
  if (inUse === undefined || inUse.leaving) return leaveGently(state, seen, now, inUse ? 'leaving' : 'gone');
  return goHome(state, seen, now, patience);
}

/** A handshake since the exit's peer was made (at the switch) is as good an answer as any, once. */
function alive(state: FailoverState, seen: Observation): boolean {
  const inUse = seen.exits.find(({ node }) => node === state.exit);
  return seen.answered || seen.received || (state.trying && shookSince(inUse, state.since));
}

function shookSince(exit: ExitSeen | undefined, at: number): boolean {
  return exit?.handshakeAt != null && exit.handshakeAt > at - SECOND;
}

function noted(before: FailoverState, seen: Observation, now: number): FailoverState {
  const switches = before.switches.filter((at) => at > now - MINUTE);
  if (alive(before, seen)) {
    // an exit that shakes hands and leads nowhere must not have the list walked without end
    const proven = seen.answered || now - before.since > MINUTE;
    const rested = proven || !before.trying ? { waitUntil: null } : {};
    const sound = proven ? { round: [], backOffs: 0 } : {};
    return { ...before, ...rested, ...sound, trying: false, lost: 0, switches };
  }
  return { ...before, switches, lost: before.trying ? 0 : before.lost + 1 };
}

/** Nothing can be said of any exit: everything starts over when the link is back. */
function offline(state: FailoverState, now: number): Decision {
  const fresh = { lost: 0, triedFrom: now, round: [], backOffs: 0, waitUntil: null };
  return {
    state: { ...state, ...fresh, knock: null, homeWellSince: null },
    action: { kind: 'wait', reason: 'offline' },
    lookAt: now + RULES.probeEvery,
  };
}

function isDead({ trying, triedFrom, lost, waitUntil }: FailoverState, now: number): boolean {
  if (waitUntil !== null) return true;
  return trying ? now - triedFrom >= RULES.trial : lost >= RULES.lostIsDead;
}

function leaveDead(state: FailoverState, seen: Observation, now: number): Decision {
  if (state.waitUntil !== null && now < state.waitUntil) return waiting(state, now);
  if (isBusy(state)) return tooMany(state, now);
  const after = punish(state, state.exit, now);
  const round = [...new Set([...state.round, state.exit])];
  const [next] = candidates(after, seen, now).filter(({ node }) => !round.includes(node));
  if (next === undefined) return backOff(after, seen, now);
  return switchTo({ ...after, round, waitUntil: null }, next.node, 'dead', now);
}

/** Every exit was tried: home, and a longer pause each time. */
function backOff(state: FailoverState, seen: Observation, now: number): Decision {
  const pause = Math.min(RULES.backOffAtMost, RULES.backOff * 2 ** state.backOffs);
  // jittered, so that devices which lost the same network do not come back together
  const waitUntil = now + pause * (0.75 + seen.random / 2);
  const resting = { ...state, round: [], backOffs: Math.min(state.backOffs + 1, 10), waitUntil };
  const home = homeOf(seen.exits)?.node ?? state.exit;
  if (home === state.exit) return waiting(resting, now);
  return switchTo(resting, home, 'dead', now);
}

function waiting(state: FailoverState, now: number): Decision {
  const lookAt = Math.min(state.waitUntil ?? now, now + RULES.probeEvery);
  return { state, action: { kind: 'wait', reason: 'no exit answers' }, lookAt };
}

/** Others than the exit in use: the well ones first, home before standbys, near before far. */
function candidates(state: FailoverState, { exits }: Observation, now: number): ExitSeen[] {
  const home = homeOf(exits)?.node;
  const shunned = ({ node }: ExitSeen) => Math.max(0, (state.punished[node]?.until ?? 0) - now);
  // in coarse steps: the order of provisioning must not give way to noise
  const distance = ({ node, rttMs = Number.MAX_SAFE_INTEGER }: ExitSeen) =>
    node === home ? -1 : Math.floor(rttMs / RULES.nearer);
  return exits
    .filter(({ node }) => node !== state.exit)
    .sort((a, b) => {
      // an exit on its way out still is better than none
      const leaving = Number(a.leaving) - Number(b.leaving);
      return leaving || shunned(a) - shunned(b) || distance(a) - distance(b);
    });
}

function punish(state: FailoverState, node: string, now: number): FailoverState {
  const last = state.punished[node];
  const recent = last !== undefined && now - last.until < RULES.punishmentAtMost;
  const times = recent ? Math.min(last.times + 1, 10) : 0;
  const span = Math.min(RULES.punishmentAtMost, RULES.punishment * 2 ** times);
  return { ...state, punished: { ...state.punished, [node]: { until: now + span, times } } };
}

/** Make before break: the next exit must shake hands before anything goes there. */
function leaveGently(
  state: FailoverState,
  seen: Observation,
  now: number,
  reason: 'leaving' | 'gone',
): Decision {
  const { knock } = state;
  const wanted = (from: FailoverState) => candidates(from, seen, now).find(({ leaving }) => !leaving);
  const target = seen.exits.find(({ node, leaving }) => node === knock?.node && !leaving);
  if (knock && target && target.node !== state.exit) {
    if (shookSince(target, knock.at)) return switchTo(state, target.node, reason, now, true);
    if (now - knock.at < RULES.trial) return stay(state, now, RULES.trialProbeWait);
    const after = punish({ ...state, knock: null }, target.node, now);
    return knockAt(after, wanted(after), now);
  }
  return knockAt(state, wanted(state), now);
}

function knockAt(state: FailoverState, exit: ExitSeen | undefined, now: number): Decision {
  if (exit === undefined) return stay(state, now);
  return {
    state: { ...state, knock: { node: exit.node, at: now } },
    action: { kind: 'knock', at: exit.node },
    lookAt: now + RULES.trialProbeWait,
  };
}

/** Away from home: whether it is well again, and has been for long enough. */
function goHome(before: FailoverState, seen: Observation, now: number, patience: Patience): Decision {
  const home = homeOf(seen.exits);
  if (home === undefined || home.node === before.exit) {
    return stay({ ...before, knock: null, homeWellSince: null }, now);
  }
  // a lost probe here says that something else is wrong now
  if (before.trying || before.lost > 0) return stay(before, now);
  const knock = before.knock?.node === home.node ? before.knock : null;
  const since = knock && before.homeWellSince;
  if (knock === null) return knockAt({ ...before, homeWellSince: null }, home, now);
  const shook = shookSince(home, knock.at);
  const homeWellSince = shook ? (since ?? now) : now - knock.at < RULES.knockWait ? since : null;
  const state = { ...before, homeWellSince };
  const needed = Math.min(RULES.homeWellAtMost, patience.homeWell * 2 ** state.bounces);
  if (shook && homeWellSince !== null && now - homeWellSince >= needed) {
    return switchTo(state, home.node, 'home', now, true);
  }
  return now - knock.at >= RULES.knockEvery ? knockAt(state, home, now) : stay(state, now);
}

/** The switches of the last minute are as many as there may be, whatever happens. */
const isBusy = ({ switches }: FailoverState) => switches.length >= RULES.switchesPerMinute;

function tooMany(state: FailoverState, now: number): Decision {
  return { state, action: { kind: 'wait', reason: 'too many switches' }, lookAt: now + RULES.probeEvery };
}

function switchTo(state: FailoverState, to: string, reason: Reason, now: number, gently = false): Decision {
  if (isBusy(state)) return tooMany(state, now);
  // what came from it since the knock was an answer, but its gateway has yet to give one
  const trial = { trying: true, triedFrom: now, lost: 0, knock: null, homeWellSince: null };
  const next: FailoverState = {
    ...state,
    ...trial,
    ...bounced(state, reason, now),
    exit: to,
    since: now,
    reason,
    switches: [...state.switches, now],
  };
  return { state: next, action: { kind: 'switch', to, reason, gently }, lookAt: now };
}

/** Each return that does not last makes the next one wait twice as long. */
function bounced(state: FailoverState, reason: Reason, now: number): Partial<FailoverState> {
  if (reason === 'home') return { returnedAt: now };
  if (state.returnedAt === null) return {};
  const again = reason === 'dead' && now - state.returnedAt < RULES.settled;
  return { returnedAt: null, bounces: again ? Math.min(state.bounces + 1, 10) : 0 };
}

/** After a lost probe, which took its time, the next one goes out at once. */
function stay(state: FailoverState, now: number, within?: number): Decision {
  const pause = state.trying || state.lost > 0 ? 0 : RULES.probeEvery;
  return { state, action: { kind: 'stay' }, lookAt: now + Math.min(pause, within ?? pause) };
}
