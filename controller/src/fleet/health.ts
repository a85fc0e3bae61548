/**
 * Whether a node is well, judged from what it has said and for how long it has not. Pure: a state of mind (`Verdict`)
 * and what is seen now give the next one. This is apart from the life that operators give a node (see tables.ts).
 *
 *            silent 22.5 s, or its last will, or a lasting fault             silent 28 s
 *      ok ──────────────────────────────────────────────────► suspect ──────────────────► down
 *       ▲                                                       │  ▲                       │
 *       └── several good heartbeats in a row, more if it flaps ─┘  └───── heard again ─────┘
 *
 * Why these numbers: heartbeats come every 9 to 11 s. Down must come within 30 s, and two of them lost in a row leave a
 * gap of 27 to 33 s: with 5 % of them lost, silence alone would cry wolf about every hour and node. So a node that is
 * late (12 s: more than any one interval) is asked, every 3 s, and answers at once: six further chances before 28 s.
 * All of it lost: 0.05² × (1 - 0.95²)⁶ = 2 in 10⁹ heartbeats. The 2 s left of the 30 are for the job that judges.
 */
import type { PartState } from '@katafract/shared/uplink';

export const HEALTH_STATES = ['ok', 'suspect', 'down'] as const;
export type HealthState = (typeof HEALTH_STATES)[number];

export const HEALTH_REASONS = [
  'well',
  /** Nothing was heard of it. */
  'silent',
  /** Its last will: the connection to the broker broke, or the agent ended. */
  'left',
  /** Its firewall is not in place. */
  'rules',
  'dns',
  /** Its kernel holds another table than it should. */
  'digest',
  /** It does not carry out what it is told. */
  'behind',
  /** It was down and is heard again; what it says is not believed for good yet. */
  'returned',
] as const;
export type HealthReason = (typeof HEALTH_REASONS)[number];

/** In milliseconds; see above. */
const LATE_MS = 12_000;
const ASK_EVERY_MS = 3_000;
/** A node that was late and did not answer when asked: what befell it may befall others a few seconds later. */
const QUIET_MS = LATE_MS + ASK_EVERY_MS;
export const SUSPECT_MS = 22_500;
export const DOWN_MS = 28_000;
/** A node that has not answered for this long is left in peace until it speaks. */
const ASK_UNTIL_MS = 60_000;
/** Good heartbeats in a row that make a node well again: doubled for each flap within the hour, up to the most. */
const GOOD_FIRST = 3;
const GOOD_MOST = 48;
const FLAP_WINDOW_MS = 3_600_000;
/** How long a fault must last, in milliseconds: a heartbeat that repairs what it reports is no reason. */
const PATIENCE = { left: 0, rules: 15_000, digest: 25_000, dns: 25_000, behind: 60_000 } as const;
type Fault = keyof typeof PATIENCE;

/** What is known of a node at this moment. Times in milliseconds since the epoch. */
export interface Seen {
  /** It was told to update or to reboot: until then its silence is expected, and says nothing. */
  readonly expectedUntil?: number | null;
  /** Its last sign of life; null where there never was one. */
  readonly heardAt: number | null;
  /** It has left by its last will, and was not heard since. */
  readonly left: boolean;
  /** Tells its last heartbeat from the one before; null before the first. */
  readonly beat: number | null;
  /** Position its kernel is known to have; another one than before is progress. */
  readonly applied: string;
  /** That position is not the newest. */
  readonly behind: boolean;
  /** Its last heartbeat observed another table than it should have at the newest generation. */
  readonly mismatch: boolean;
  readonly rules: PartState | null;
  readonly dns: PartState | null;
}

export interface Verdict {
  readonly state: HealthState;
  readonly reason: HealthReason;
  /** When this state began. */
  readonly since: number;
  /** Times in a row that it stopped being well within an hour of having become so. */
  readonly flaps: number;
  /** The rest is remembered from look to look; lost with the process, which only makes it more patient. */
  readonly fault: { readonly kind: Fault; readonly since: number } | null;
  readonly good: number;
  readonly beat: number | null;
  readonly applied: string;
}

/** What a process that begins to judge knows of a node: the state that was written down. */
export function recall(was: Pick<Verdict, 'state' | 'reason' | 'since' | 'flaps'>): Verdict {
  return { ...was, fault: null, good: 0, beat: null, applied: '' };
}

/**
 * Judges a node.
 * @param hearingSince since when nodes could be heard at all: while the controller, its database or the broker was
 * away, silence means nothing
 * @returns the next verdict, and when it could change with nothing new heard (infinity: never)
 */
export function judge(
  was: Verdict,
  seen: Seen,
  { now, hearingSince }: { now: number; hearingSince: number },
): Verdict & { nextLookAt: number } {
  const quietSince = Math.max(seen.heardAt ?? 0, hearingSince);
  const expected = isExpected(seen, now);
  const silence = expected ? 0 : now - quietSince;
  const fault = faultOf(was, expected ? { ...seen, left: false, behind: false } : seen, now);
  const ripeAt = fault ? fault.since + PATIENCE[fault.kind] : Number.POSITIVE_INFINITY;
  const fresh = seen.beat !== null && seen.beat !== was.beat && (was.beat !== null || was.state === 'ok');
  const good = fault || silence >= SUSPECT_MS ? 0 : was.good + (fresh ? 1 : 0);
  const memory = { fault, good, beat: seen.beat, applied: seen.applied };
  const next = (state: HealthState, reason: HealthReason): Verdict => {
    const same = state === was.state;
    const flaps =
      was.state !== 'ok' || same ? was.flaps : now - was.since > FLAP_WINDOW_MS ? 1 : was.flaps + 1;
    return { state, reason, since: same ? was.since : now, flaps, ...memory };
  };
  const verdict = decide();
  const turns = [quietSince + SUSPECT_MS, quietSince + DOWN_MS, ripeAt, seen.expectedUntil ?? 0];
  const looks = turns.filter((at) => at > now);
  return { ...verdict, nextLookAt: Math.min(...looks, Number.POSITIVE_INFINITY) };

  function decide(): Verdict {
    if (silence >= DOWN_MS) return next('down', 'silent');
    // what was silent stays so until it speaks, whatever became of those who listen
    if (was.state === 'down' && (seen.heardAt ?? 0) <= was.since) return next('down', was.reason);
    if (fault && now >= ripeAt) return next('suspect', fault.kind);
    if (silence >= SUSPECT_MS) return next('suspect', 'silent');
    if (was.state === 'down') return next('suspect', 'returned');
    if (was.state === 'suspect' && good < goodNeeded(was.flaps)) return next('suspect', was.reason);
    return next('ok', 'well');
  }
}

/** How many good heartbeats in a row a node with that many flaps has to show. */
export function goodNeeded(flaps: number): number {
  return Math.min(GOOD_MOST, GOOD_FIRST * 2 ** Math.min(Math.max(flaps, 1) - 1, 10));
}

const isExpected = ({ expectedUntil }: Seen, now: number) => now < (expectedUntil ?? 0);

/** The worst that is seen, and since when. A node that is behind but makes progress begins anew. */
function faultOf(was: Verdict, seen: Seen, now: number): Verdict['fault'] {
  const kind = kindOf(seen);
  if (kind === null) return null;
  const progress = kind === 'behind' && seen.applied !== was.applied;
  return was.fault?.kind === kind && !progress ? was.fault : { kind, since: now };
}

function kindOf({ left, rules, dns, mismatch, behind }: Seen): Fault | null {
  if (left) return 'left';
  if (rules === 'failed') return 'rules';
  if (mismatch) return 'digest';
  if (behind) return 'behind';
  return dns === 'failed' ? 'dns' : null;
}

/** Whether a node is to be asked for a sign of life. @param askedAt when it last was */
export function shouldAsk(heardAt: number | null, askedAt: number, now: number): boolean {
  if (heardAt === null || now - askedAt < ASK_EVERY_MS) return false;
  return now - heardAt >= LATE_MS && now - heardAt < ASK_UNTIL_MS;
}

/** Whether nothing comes from a node, though it is too early to say that it is down. */
export function isQuiet(seen: Seen, { now, hearingSince }: { now: number; hearingSince: number }): boolean {
  return !isExpected(seen, now) && now - Math.max(seen.heardAt ?? 0, hearingSince) >= QUIET_MS;
}

/**
 * More than half of the fleet gone at once: then it is more likely that this controller cannot hear, and nothing
 * should be done about it but to say so.
 * @param down those that are down or quiet: they do not all fall silent at the same second
 */
export function implausible(down: number, nodes: number): boolean {
  return down * 2 > nodes;
}

/** Since when this controller could hear: from now on, where the broker was away or nobody looked for a while. */
export function hearingSince(was: number, look: { now: number; lastLook: number; broker: boolean }): number {
  return !look.broker || look.now - look.lastLook > UNWATCHED_MS ? look.now : was;
}

/** A pause between two looks after which signs of life may have been missed (a suspended machine, a lost database). */
export const UNWATCHED_MS = 5_000;
