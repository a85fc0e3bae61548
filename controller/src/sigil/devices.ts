/**
 * Devices of a subscription: bound as they get their first Sigil, unbound by the subscription itself, shut out by an
 * operator. All of it under the subscription's row lock, so that the limit of the tier holds however many come at once.
 */
import type { IssuedSigil } from '@katafract/shared/api';
import type { Clock } from '@katafract/shared/clock';
import type { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { TIERS, type Tier } from '@katafract/shared/sigil';
import type { Audit } from '../audit/audit.ts';
import type { AfterCommit, Tx } from '../platform/db.ts';
import type { Keyring } from '../platform/keyring.ts';
import { boundExpiry, EXCHANGED_MS, mayBind } from './rules.ts';
import { issueSigil } from './sign.ts';
import * as store from './store.ts';
import { locked } from './subscriptions.ts';

/** A device of a subscription. */
export interface DeviceOf {
  readonly subscriptionId: string;
  readonly jkt: Jkt;
}

export interface DeviceDeps {
  readonly clock: Clock;
  readonly keyring: Keyring;
  readonly audit: Audit;
  /** The `iss` of every Sigil: the controller's public URL. */
  readonly issuer: string;
  /** The life of a Sigil that is bound to a device, in ms. */
  readonly boundMs: number;
  /** Removes what one device of a subscription holds, in the transaction that ends it. */
  readonly onUnbound: (tx: Tx, subscriptionId: string, jkt: Jkt) => Promise<AfterCommit>;
}

/**
 * A fresh Sigil for a device.
 * @param by who asked, for the audit log; or the Sigil that it is exchanged for, and then the device must be bound
 * already. An exchange is not audited: the log would say when a device was in use.
 * @throws KatafractError `subscription_unknown` (404), `subscription_revoked`, `subscription_over`, `device_limit`
 * (409), `device_revoked` (403), `sigil_revoked` (401)
 */
export async function issueBound(
  deps: DeviceDeps,
  tx: Tx,
  to: DeviceOf,
  by: { actor: string } | { exchanged: string },
): Promise<IssuedSigil> {
  const { clock, keyring, audit, issuer, boundMs } = deps;
  const { subscriptionId, jkt } = to;
  const now = clock.now();
  const subscription = await locked(tx, subscriptionId);
  const expiresAt = boundExpiry(subscription, now, boundMs);
  const { tier } = subscription;
  const exchanged = 'exchanged' in by ? by.exchanged : null;
  if (exchanged !== null) await stillGood(tx, to, exchanged);
  const actor = 'actor' in by ? by.actor : 'system';
  const { bound, others } = await bind(deps, tx, to, tier, actor);
  const wish = { subscriptionId, tier, issuer, device: jkt, expiresAt, others };
  const { id, sigil } = await issueSigil(tx, keyring, now, wish);
  await store.forgetExchanged(tx, to, new Date(now - EXCHANGED_MS), exchanged);
  const until = new Date(expiresAt).toISOString();
  if (exchanged === null) {
    const detail = { subscription: subscriptionId, tier, expiresAt: until };
    await audit.record(tx, [{ actor, action: 'sigil.issued', subject: `sigil:${id}`, detail }]);
  }
  const devices = { bound, limit: TIERS[tier].devices };
  return { sigil, subscription: subscriptionId, tier, expiresAt: until, devices };
}

/** Looks again under the lock: it may have been revoked, or its device unbound, since the request was let in. */
async function stillGood(tx: Tx, { subscriptionId, jkt }: DeviceOf, sigilId: string): Promise<void> {
  const row = await store.findSigil(tx, sigilId);
  const { own } = await store.bindingFacts(tx, subscriptionId, jkt);
  if (!row || row.revokedAt || !own)
    throw new KatafractError('sigil_revoked', 'the Sigil was revoked', { status: 401 });
}

/**
 * Binds a device where it is not bound yet; the caller holds the subscription's lock.
 * @throws KatafractError `device_revoked` (403), `device_limit` (409)
 */
export async function bind(
  { audit, clock }: DeviceDeps,
  tx: Tx,
  { subscriptionId, jkt }: DeviceOf,
  tier: Tier,
  actor: string,
): Promise<{ bound: number; others: Jkt[] }> {
  const facts = await store.bindingFacts(tx, subscriptionId, jkt);
  const { bound, others } = facts;
  if (!mayBind(facts, tier).bind) return { bound, others };
  await store.insertDevice(tx, { subscriptionId, jkt, boundAt: new Date(clock.now()) });
  const subject = `subscription:${subscriptionId}`;
  await audit.record(tx, [{ actor, action: 'device.bound', subject, detail: { device: jkt } }]);
  return { bound: bound + 1, others };
}

/**
 * Lets go of a device: its Sigils and its peers end with it, and its place is free.
 * @param asking the device that asks, which gets its Sigil anew
 * @throws KatafractError `device_unknown` (404), and of issueBound
 */
export async function unbind(
  deps: DeviceDeps,
  tx: Tx,
  { subscriptionId, jkt }: DeviceOf,
  asking: { device: Jkt | null; sigilId: string; actor: string },
): Promise<{ reissued: IssuedSigil | null; afterCommit: AfterCommit }> {
  const now = new Date(deps.clock.now());
  await locked(tx, subscriptionId);
  if (!(await store.deleteDevice(tx, subscriptionId, jkt))) throw deviceUnknown();
  await store.markDeviceSigilsRevoked(tx, subscriptionId, jkt, now);
  await audited(deps, tx, 'device.unbound', { subscriptionId, jkt }, asking.actor);
  const reissued =
    asking.device === null || asking.device === jkt
      ? null
      : await issueBound(deps, tx, { subscriptionId, jkt: asking.device }, { exchanged: asking.sigilId });
  // last, as it locks the nodes
  return { reissued, afterCommit: await deps.onUnbound(tx, subscriptionId, jkt) };
}

/**
 * Shuts a device out for good: as `unbind`, and the same key is never bound to this subscription again. Repeating it
 * changes nothing.
 * @throws KatafractError `subscription_unknown`, `device_unknown` (404)
 */
export async function shutOut(
  deps: DeviceDeps,
  tx: Tx,
  device: DeviceOf,
  actor: string,
): Promise<AfterCommit> {
  const { subscriptionId, jkt } = device;
  const now = new Date(deps.clock.now());
  await locked(tx, subscriptionId);
  if (!(await store.markDeviceRevoked(tx, subscriptionId, jkt, now))) {
    const { own } = await store.bindingFacts(tx, subscriptionId, jkt);
    if (!own) throw deviceUnknown();
    return () => undefined;
  }
  await store.markDeviceSigilsRevoked(tx, subscriptionId, jkt, now);
  await audited(deps, tx, 'device.revoked', device, actor);
  return deps.onUnbound(tx, subscriptionId, jkt);
}

function audited(
  { audit }: DeviceDeps,
  tx: Tx,
  action: 'device.unbound' | 'device.revoked',
  { subscriptionId, jkt }: DeviceOf,
  actor: string,
): Promise<void> {
  const subject = `subscription:${subscriptionId}`;
  return audit.record(tx, [{ actor, action, subject, detail: { device: jkt } }]);
}

const deviceUnknown = () => new KatafractError('device_unknown', 'no such device', { status: 404 });
