/** Decisions about Sigils: values in, values out. Times are milliseconds since the epoch. */
import type { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { SigilIdentity } from '../platform/api.ts';

const DAY = 86_400_000;
const refuse = (status: number, code: string, message: string) =>
  new KatafractError(code, message, { status });

/**
 * The expiry as it will stand in the token: whole seconds.
 * @throws KatafractError `expiry_past`, `expiry_too_far` (422): keys are kept just as long as a Sigil may live
 */
export function checkExpiry(expiresAt: number, now: number, maxDays: number): number {
  const whole = Math.floor(expiresAt / 1000) * 1000;
  if (whole <= now) throw refuse(422, 'expiry_past', 'expiresAt is in the past');
  if (whole > now + maxDays * DAY)
    throw refuse(422, 'expiry_too_far', `a Sigil lives at most ${maxDays} days`);
  return whole;
}

export interface SubscriptionState {
  readonly tier: Tier;
  readonly expiresAt: number;
  readonly revoked: boolean;
}

/**
 * What a new Sigil does to the subscription it is for: its tier becomes the subscription's, its expiry may prolong but
 * never shorten it (to end one early, revoke it).
 * @throws KatafractError `subscription_revoked` (409)
 */
export function renew(
  present: SubscriptionState,
  wish: { tier: Tier; expiresAt: number },
): { tier: Tier; expiresAt: number; changed: boolean } {
  if (present.revoked) throw refuse(409, 'subscription_revoked', 'the subscription was revoked');
  const expiresAt = Math.max(present.expiresAt, wish.expiresAt);
  return {
    tier: wish.tier,
    expiresAt,
    changed: wish.tier !== present.tier || expiresAt !== present.expiresAt,
  };
}

/** A Sigil as the database has it. */
export interface SigilState {
  readonly sigilId: string;
  readonly subscriptionId: string;
  readonly expiresAt: number;
  readonly revoked: boolean;
  /** What it is bound to. */
  readonly device: Jkt | null;
  readonly subscription: SubscriptionState;
}

/**
 * Whether a Sigil with a good signature is good now. The tier is the subscription's present one, so that a change of
 * plan needs no new token.
 * @throws KatafractError `sigil_invalid`, `sigil_revoked`, `sigil_expired` (401)
 */
export function admit(state: SigilState | null, now: number): SigilIdentity {
  if (!state) throw refuse(401, 'sigil_invalid', 'the Sigil is not valid');
  if (state.revoked || state.subscription.revoked)
    throw refuse(401, 'sigil_revoked', 'the Sigil was revoked');
  if (state.expiresAt <= now || state.subscription.expiresAt <= now)
    throw refuse(401, 'sigil_expired', 'the Sigil has expired');
  const { sigilId, subscriptionId, expiresAt, device } = state;
  return { sigilId, subscriptionId, expiresAt, device, tier: state.subscription.tier };
}

/**
 * Whether a Sigil with a good signature, though it may have expired, can be exchanged for a fresh one.
 * @throws KatafractError (401) `sigil_invalid`, `sigil_revoked`, `sigil_unbound`; `sigil_expired` after REFRESH_MS
 */
export function exchangeable(state: SigilState | null, now: number): SigilIdentity & { device: Jkt } {
  if (!state) throw refuse(401, 'sigil_invalid', 'the Sigil is not valid');
  const { sigilId, subscriptionId, expiresAt, device, revoked, subscription } = state;
  if (revoked) throw refuse(401, 'sigil_revoked', 'the Sigil was revoked');
  if (device === null) throw refuse(401, 'sigil_unbound', 'the Sigil is bound to no device');
  if (expiresAt + REFRESH_MS <= now) throw refuse(401, 'sigil_expired', 'the Sigil expired too long ago');
  return { sigilId, subscriptionId, expiresAt, device, tier: subscription.tier };
}

/** For how long after its end a Sigil may still be exchanged for a fresh one; then the device claims again. */
export const REFRESH_MS = 30 * DAY;
/** How long those a device has exchanged are kept: a revocation must find those that may still be in use. */
export const EXCHANGED_MS = DAY;

/**
 * When a Sigil that is bound to a device ends: soon, for it is refreshed, and not later than its subscription.
 * @returns whole seconds, in ms since the epoch
 * @throws KatafractError `subscription_revoked`, `subscription_over` (409)
 */
export function boundExpiry(subscription: SubscriptionState, now: number, lifeMs: number): number {
  if (subscription.revoked) throw refuse(409, 'subscription_revoked', 'the subscription was revoked');
  const expiresAt = Math.floor(Math.min(now + lifeMs, subscription.expiresAt) / 1000) * 1000;
  if (expiresAt <= now) throw refuse(409, 'subscription_over', 'the subscription has expired');
  return expiresAt;
}

/** What the database says of a device and those beside it, read under the subscription's lock. */
export interface BindingFacts {
  /** Null where it is not bound. */
  readonly own: { readonly revoked: boolean } | null;
  /** Devices bound now. */
  readonly bound: number;
  /** Those of them that were bound before this one. */
  readonly ahead: number;
}

/**
 * Whether a device may have a Sigil, and whether it must be bound first. Where a plan has shrunk, those bound first stay.
 * @throws KatafractError `device_revoked` (403), `device_limit` (409)
 */
export function mayBind({ own, bound, ahead }: BindingFacts, tier: Tier): { bind: boolean } {
  if (own?.revoked) throw refuse(403, 'device_revoked', 'this device was shut out');
  const { devices: limit } = TIERS[tier];
  if ((own ? ahead : bound) >= limit)
    throw new KatafractError('device_limit', `this tier allows ${limit} devices`, {
      status: 409,
      detail: { limit },
    });
  return { bind: own === null };
}
