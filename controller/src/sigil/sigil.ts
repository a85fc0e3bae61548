/**
 * The only door of Sigils: minting and issuing them, binding them to devices, checking and revoking them. A Sigil that
 * an operator mints lives long and is for whoever bears it, unless it names a device; one that an app claims is bound
 * to a device, lives for minutes, and is exchanged for the next one by a proof of that device.
 */
import type { BoundDevice, IssuedSigil, UnboundDevice } from '@katafract/shared/api';
import type { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import type { SigilRequest, Tier } from '@katafract/shared/sigil';
import type { SigilIdentity } from '../platform/api.ts';
import { type AfterCommit, type Tx, uniqueViolation } from '../platform/db.ts';
import { sha256 } from '../platform/secrets.ts';
import { Admission, type AdmissionDeps, type ProofCheck } from './admission.ts';
import { bind, type DeviceDeps, type DeviceOf, issueBound, shutOut, unbind } from './devices.ts';
import { checkExpiry, REFRESH_MS } from './rules.ts';
import { issueSigil, signSigil } from './sign.ts';
import * as store from './store.ts';
import * as subscriptions from './subscriptions.ts';

export type { DeviceOf } from './devices.ts';
export { type DeviceRow, ENDS_CHANNEL, type SigilRow } from './store.ts';

export interface SigilDeps extends AdmissionDeps, DeviceDeps {
  /** The longest life of a Sigil that an operator mints, in days. */
  readonly maxDays: number;
  /** Age at which the signing key is replaced, in days. */
  readonly rotateDays: number;
  /** Removes what a subscription holds, in the transaction that ends it. */
  readonly onEnded: (tx: Tx, subscriptionId: string) => Promise<AfterCommit>;
}

export interface MintRequest {
  readonly tier: Tier;
  /** Milliseconds since the epoch. */
  readonly expiresAt: number;
  /** A subscription that exists already; a new one where absent. */
  readonly subscription?: string | undefined;
  /** The device to bind it to; it is then bound to the subscription as well. */
  readonly device?: Jkt | undefined;
}

export interface Minted {
  readonly id: string;
  readonly subscription: string;
  /** The token itself: shown here and kept nowhere. */
  readonly sigil: string;
}

const DAY_MS = 86_400_000;
/** How long a key is published before it signs: many times what a verifier may keep the JWKS for (see http.ts). */
const PUBLISH_MS = 3_600_000;

const conflict = (code: string, message: string) => new KatafractError(code, message, { status: 409 });
const unknown = (code: string, message: string) => new KatafractError(code, message, { status: 404 });

export class Sigils {
  readonly #deps: SigilDeps;
  readonly #admission: Admission;

  constructor(deps: SigilDeps) {
    this.#deps = deps;
    this.#admission = new Admission(deps);
  }

  /**
   * Whom a request acts for.
   * @throws KatafractError (401) of `verifySigilRequest`, and `sigil_revoked`
   */
  authenticate(request: SigilRequest): Promise<SigilIdentity> {
    return this.#admission.authenticate(request);
  }

  /**
   * Checks the proof of a device that has no Sigil yet; it is good once.
   * @throws KatafractError (401) `dpop_required`, `dpop_invalid`, `dpop_stale`, `dpop_replayed`
   */
  checkProof(request: ProofCheck): Promise<{ jkt: Jkt }> {
    return this.#admission.proof(request);
  }

  /**
   * A fresh Sigil for a device of a subscription, which is bound where it is not yet. Asked again for the same device
   * it gives another Sigil and binds nothing.
   * @param actor for the audit log
   * @throws KatafractError of issueBound
   */
  issue(to: DeviceOf, actor: string): Promise<IssuedSigil> {
    return this.#deps.db.transaction((tx) => this.issueIn(tx, to, actor));
  }

  /** The same in a transaction of the caller's. */
  issueIn(tx: Tx, to: DeviceOf, actor: string): Promise<IssuedSigil> {
    return issueBound(this.#deps, tx, to, { actor });
  }

  /**
   * Whose Sigil is to be exchanged: as `authenticate`, but it may have expired, and must be bound to a device.
   * @throws KatafractError (401) of `verifySigilRequest`, `sigil_revoked`
   */
  presented(request: SigilRequest): Promise<SigilIdentity & { device: Jkt }> {
    return this.#admission.presented(request);
  }

  /**
   * Exchanges a Sigil for a fresh one of the same device; the old one stays good until its own end.
   * @throws KatafractError of issueBound
   */
  refresh({ subscriptionId, sigilId, device }: SigilIdentity & { device: Jkt }): Promise<IssuedSigil> {
    const to = { subscriptionId, jkt: device };
    return this.#deps.db.transaction((tx) => issueBound(this.#deps, tx, to, { exchanged: sigilId }));
  }

  /**
   * Lets go of a device of the bearer's subscription, its own perhaps.
   * @throws KatafractError `device_unknown` (404), and of issueBound
   */
  async unbind(bearer: SigilIdentity, jkt: Jkt): Promise<UnboundDevice> {
    const { subscriptionId, device, sigilId } = bearer;
    const asking = { device, sigilId, actor: `subscription:${subscriptionId}` };
    const { reissued, afterCommit } = await this.#deps.db.transaction((tx) =>
      unbind(this.#deps, tx, { subscriptionId, jkt }, asking),
    );
    afterCommit();
    return { jkt, reissued };
  }

  /**
   * Shuts a device out of its subscription for good, with its Sigils and its peers. Repeating it changes nothing.
   * @throws KatafractError `subscription_unknown`, `device_unknown` (404)
   */
  async revokeDevice(device: DeviceOf, actor: string): Promise<void> {
    const afterCommit = await this.#deps.db.transaction((tx) => shutOut(this.#deps, tx, device, actor));
    afterCommit();
  }

  /**
   * Makes a subscription without any Sigil: who holds its claim gets one.
   * @param expiresAt milliseconds since the epoch
   * @returns its pseudonym
   */
  async openSubscription(
    tx: Tx,
    { tier, expiresAt }: { tier: Tier; expiresAt: number },
    actor = 'system',
  ): Promise<string> {
    const { subscriptionId, entries } = await subscriptions.open(tx, { tier, expiresAt }, actor);
    await this.#deps.audit.record(tx, entries);
    return subscriptionId;
  }

  /**
   * Gives a subscription another tier or expiry, an earlier one too; one that had lapsed is then no longer lapsed.
   * Its present Sigils speak for it at once.
   * @throws KatafractError `subscription_unknown` (404), `subscription_revoked` (409): that is final
   */
  async setSubscription(
    tx: Tx,
    id: string,
    next: { tier: Tier; expiresAt: number },
    actor = 'system',
  ): Promise<void> {
    const { entries } = await subscriptions.set(tx, id, next, actor);
    await this.#deps.audit.record(tx, entries);
  }

  /**
   * Mints a Sigil, for a new subscription or for one that is there. The same Idempotency-Key with the same request
   * returns the very same token: Ed25519 signs deterministically, so it is made again rather than kept.
   * @throws KatafractError `expiry_past`, `expiry_too_far` (422), `subscription_unknown` (404),
   * `subscription_revoked`, `idempotency_expired`, `device_limit` (409), `device_revoked` (403),
   * `idempotency_key_reused` (422)
   */
  async mint(request: MintRequest, actor: string, idempotencyKey?: string): Promise<Minted> {
    const key = idempotencyKey === undefined ? undefined : `${actor} ${idempotencyKey}`;
    const { tier, expiresAt, subscription = null, device } = request;
    const asked = [tier, expiresAt, subscription, ...(device === undefined ? [] : [device])];
    const requestHash = sha256(JSON.stringify(asked)).toString('hex');
    const replay = key === undefined ? null : await this.#replay(key, requestHash);
    if (replay) return replay;
    try {
      return await this.#deps.db.transaction((tx) =>
        this.#mint(tx, request, actor, key === undefined ? {} : { idempotencyKey: key, requestHash }),
      );
    } catch (error) {
      // two requests with one key at once: the other one won
      const won = key !== undefined && uniqueViolation(error) === 'sigils_idempotency_key_unique';
      const replay = won ? await this.#replay(key, requestHash) : null;
      if (replay) return replay;
      throw error;
    }
  }

  async #replay(key: string, requestHash: string): Promise<Minted | null> {
    const row = await store.findByIdempotencyKey(this.#deps.db, key);
    if (!row) return null;
    if (row.requestHash !== requestHash)
      throw new KatafractError(
        'idempotency_key_reused',
        'this Idempotency-Key came with another request before',
        { status: 422 },
      );
    const signer = this.#deps.keyring.sigilByKid(row.kid);
    const sigil = signer ? await signSigil(signer, row) : '';
    if (sha256(sigil).toString('hex') !== row.tokenHash)
      throw conflict('idempotency_expired', 'what this Idempotency-Key made cannot be shown again');
    return { id: row.id, subscription: row.subscriptionId, sigil };
  }

  async #mint(
    tx: Tx,
    request: MintRequest,
    actor: string,
    idempotency: { idempotencyKey?: string; requestHash?: string },
  ): Promise<Minted> {
    const { clock, keyring, audit, issuer, maxDays } = this.#deps;
    const now = clock.now();
    const expiresAt = checkExpiry(request.expiresAt, now, maxDays);
    const { tier, device = null } = request;
    const terms = { tier, expiresAt };
    const { subscriptionId, entries } = await (request.subscription === undefined
      ? subscriptions.open(tx, terms, actor)
      : subscriptions.prolong(tx, request.subscription, terms, actor));
    const { others } =
      device === null
        ? { others: [] }
        : await bind(this.#deps, tx, { subscriptionId, jkt: device }, tier, actor);
    const wish = { subscriptionId, tier, issuer, device, expiresAt, others, ...idempotency };
    const { id, sigil } = await issueSigil(tx, keyring, now, wish);
    const detail = { subscription: subscriptionId, tier, expiresAt: new Date(expiresAt).toISOString() };
    await audit.record(tx, [...entries, { actor, action: 'sigil.issued', subject: `sigil:${id}`, detail }]);
    return { id, subscription: subscriptionId, sigil };
  }

  /**
   * Revokes one Sigil. If it was bound to a device, every Sigil of that device ends with it, or it could be exchanged,
   * and its peers go; the device may claim again. If it was the last of a subscription without devices, nobody can
   * manage its peers any more, so they go. Repeating it changes nothing.
   * @throws KatafractError `sigil_unknown` (404)
   */
  async revoke(id: string, actor: string): Promise<store.SigilRow> {
    const { clock, audit, db, onEnded, onUnbound } = this.#deps;
    const known = await store.findSigil(db, id);
    if (!known) throw unknown('sigil_unknown', 'no such Sigil');
    const { subscriptionId, device } = known;
    await this.#ending(async (tx) => {
      await store.lockSubscription(tx, subscriptionId);
      if ((await store.findSigil(tx, id))?.revokedAt !== null) return null;
      const now = new Date(clock.now());
      await (device === null
        ? store.markSigilRevoked(tx, id, now)
        : store.markDeviceSigilsRevoked(tx, subscriptionId, device, now));
      const last = !(await store.isUsable(tx, subscriptionId, now));
      const detail = { subscription: subscriptionId, last, ...(device === null ? {} : { device }) };
      await audit.record(tx, [{ actor, action: 'sigil.revoked', subject: `sigil:${id}`, detail }]);
      if (last) return onEnded(tx, subscriptionId);
      return device === null ? null : onUnbound(tx, subscriptionId, device);
    });
    return (await store.findSigil(db, id)) ?? known;
  }

  /**
   * Revokes a subscription with every Sigil of it and removes its peers. Repeating it changes nothing.
   * @throws KatafractError `subscription_unknown` (404)
   */
  async revokeSubscription(id: string, actor: string): Promise<void> {
    const { clock, audit, onEnded } = this.#deps;
    await this.#ending(async (tx) => {
      const present = await subscriptions.locked(tx, id);
      if (present.revoked) return null;
      await store.markSubscriptionRevoked(tx, id, new Date(clock.now()));
      const detail = { tier: present.tier, peers: present.peerCount };
      await audit.record(tx, [
        { actor, action: 'subscription.revoked', subject: `subscription:${id}`, detail },
      ]);
      return onEnded(tx, id);
    });
  }

  /** Replaces the signing key once it is old enough. The old one verifies as long as a Sigil signed by it may live. */
  rotateKey(): Promise<boolean> {
    const { clock, keyring, audit, maxDays, rotateDays } = this.#deps;
    return keyring.rotateSigil(clock.now(), maxDays * DAY_MS, {
      minAgeMs: rotateDays * DAY_MS,
      leadMs: PUBLISH_MS,
      record: (tx, { from, to }) =>
        audit.record(tx, [
          { actor: 'system', action: 'signing_key.rotated', subject: `signing_key:${to}`, detail: { from } },
        ]),
    });
  }

  /** Runs a transaction that may end something, and tells the exits once that is committed. */
  async #ending(work: (tx: Tx) => Promise<AfterCommit | null>): Promise<void> {
    const afterCommit = await this.#deps.db.transaction(work);
    afterCommit?.();
  }

  /** Forgets Sigils that can neither be used nor exchanged any more. @returns how many */
  forgetExpired(): Promise<number> {
    const { db, clock } = this.#deps;
    return store.forgetSigils(db, new Date(clock.now() - REFRESH_MS), 10_000);
  }

  /** Newest first; one more than `limit` where there is another page. */
  list(filter: Parameters<typeof store.listSigils>[1]): Promise<store.SigilRow[]> {
    return store.listSigils(this.#deps.db, filter);
  }

  /** Devices that are bound, newest first. @param current the one that asks */
  async bindings(subscriptionId: string, current: Jkt | null): Promise<BoundDevice[]> {
    const rows = await store.listDevices(this.#deps.db, subscriptionId, 100);
    return rows.map(({ jkt, boundAt }) => ({
      jkt,
      boundAt: boundAt.toISOString(),
      current: jkt === current,
    }));
  }

  /** Every device there was, by thumbprint; one more than `limit` where there is another page. */
  devices(subscriptionId: string, at: Parameters<typeof store.pageDevices>[2]): Promise<store.DeviceRow[]> {
    return store.pageDevices(this.#deps.db, subscriptionId, at);
  }

  devicesUsed(subscriptionId: string): Promise<number> {
    return store.countPeers(this.#deps.db, subscriptionId);
  }
}
