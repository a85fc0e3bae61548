/**
 * The only door of Sigils: minting and issuing them, binding them to devices, checking and revoking them. A Sigil that
 * an operator mints lives long and is for whoever bears it, unless it names a device; one that an app claims is bound
 * to a device, lives for minutes, and is exchanged for the next one by a proof of that device.
 */
import { randomUUID } from 'node:crypto';
import type { BoundDevice, IssuedSigil } from '@katafract/shared/api';
import type { Clock } from '@katafract/shared/clock';
import type { Jkt } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { type SigilRequest, TIERS, type Tier } from '@katafract/shared/sigil';
import type { Audit, AuditEntry } from '../audit/audit.ts';
import type { SigilIdentity } from '../platform/api.ts';
import { type AfterCommit, type Database, type Tx, uniqueViolation } from '../platform/db.ts';
import type { Keyring } from '../platform/keyring.ts';
import { sha256 } from '../platform/secrets.ts';
import { Admission, type AdmissionDeps, type ProofCheck } from './admission.ts';
import { boundExpiry, checkExpiry, EXCHANGED_MS, mayBind, renew } from './rules.ts';
import { issueSigil, signSigil } from './sign.ts';
import * as store from './store.ts';

export type { SigilRow } from './store.ts';

export interface SigilDeps extends AdmissionDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly keyring: Keyring;
  readonly audit: Audit;
  /** The life of a Sigil that is bound to a device, in ms. */
  readonly boundMs: number;
  /** The longest life of a Sigil that an operator mints, in days. */
  readonly maxDays: number;
  /** Age at which the signing key is replaced, in days. */
  readonly rotateDays: number;
  /** How long after its expiry a subscription keeps its peers, in ms: a renewal may be a little late. */
  readonly lapseGraceMs: number;
  /** Removes what a subscription holds, in the transaction that ends it. */
  readonly onEnded: (tx: Tx, subscriptionId: string) => Promise<AfterCommit>;
  /** Removes what one device of a subscription holds, in the transaction that ends it. */
  readonly onUnbound: (tx: Tx, subscriptionId: string, jkt: Jkt) => Promise<AfterCommit>;
}

/** A device of a subscription. */
export interface DeviceOf {
  readonly subscriptionId: string;
  readonly jkt: Jkt;
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
   * @throws KatafractError `subscription_unknown` (404), `subscription_revoked`, `subscription_over`, `device_limit`
   * (409), `device_revoked` (403)
   */
  issue(to: DeviceOf, actor: string): Promise<IssuedSigil> {
    return this.#deps.db.transaction((tx) => this.issueIn(tx, to, actor));
  }

  /** The same in a transaction of the caller's. */
  async issueIn(tx: Tx, to: DeviceOf, actor: string): Promise<IssuedSigil> {
    const { id, ...issued } = await this.#issue(tx, to, actor);
    const detail = { subscription: to.subscriptionId, tier: issued.tier, expiresAt: issued.expiresAt };
    await this.#deps.audit.record(tx, [{ actor, action: 'sigil.issued', subject: `sigil:${id}`, detail }]);
    return issued;
  }

  async #issue(
    tx: Tx,
    { subscriptionId, jkt }: DeviceOf,
    actor: string,
    exchanged: string | null = null,
  ): Promise<IssuedSigil & { id: string }> {
    const { clock, keyring, issuer, boundMs } = this.#deps;
    const now = clock.now();
    const subscription = await store.lockSubscription(tx, subscriptionId);
    if (!subscription) throw unknown('subscription_unknown', 'no such subscription');
    const expiresAt = boundExpiry(subscription, now, boundMs);
    const { tier } = subscription;
    const { bound, others } = await this.#bind(tx, { subscriptionId, jkt }, tier, actor);
    const wish = { subscriptionId, tier, issuer, device: jkt, expiresAt, others };
    const { id, sigil } = await issueSigil(tx, keyring, now, wish);
    await store.forgetExchanged(tx, { subscriptionId, jkt }, new Date(now - EXCHANGED_MS), exchanged);
    const devices = { bound, limit: TIERS[tier].devices };
    return { id, sigil, subscription: subscriptionId, tier, expiresAt: isoOf(expiresAt), devices };
  }

  /** Binds a device where it is not bound yet; the caller holds the subscription's lock. */
  async #bind(
    tx: Tx,
    { subscriptionId, jkt }: DeviceOf,
    tier: Tier,
    actor: string,
  ): Promise<{ bound: number; others: Jkt[] }> {
    const facts = await store.bindingFacts(tx, subscriptionId, jkt);
    const { others } = facts;
    if (!mayBind(facts, tier).bind) return { bound: facts.bound, others };
    await store.insertDevice(tx, { subscriptionId, jkt, boundAt: new Date(this.#deps.clock.now()) });
    const subject = `subscription:${subscriptionId}`;
    await this.#deps.audit.record(tx, [{ actor, action: 'device.bound', subject, detail: { device: jkt } }]);
    return { bound: facts.bound + 1, others };
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
    const { subscriptionId, entries } = await this.#subscribe(tx, { tier, expiresAt }, actor);
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
    const present = await store.lockSubscription(tx, id);
    if (!present) throw unknown('subscription_unknown', 'no such subscription');
    if (present.revoked) throw conflict('subscription_revoked', 'the subscription was revoked');
    await store.changeSubscription(tx, id, next);
    if (present.tier === next.tier && present.expiresAt === next.expiresAt) return;
    await this.#deps.audit.record(tx, [changed(id, present, next, actor)]);
  }

  /**
   * Mints a Sigil, for a new subscription or for one that is there. The same Idempotency-Key with the same request
   * returns the very same token: Ed25519 signs deterministically, so it is made again rather than kept.
   * @throws KatafractError `expiry_past`, `expiry_too_far` (422), `subscription_unknown` (404),
   * `subscription_revoked`, `idempotency_expired` (409), `idempotency_key_reused` (422)
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
    const { subscriptionId, entries } = await this.#subscribe(tx, { ...request, expiresAt }, actor);
    const { others } =
      device === null ? { others: [] } : await this.#bind(tx, { subscriptionId, jkt: device }, tier, actor);
    const wish = { subscriptionId, tier, issuer, device, expiresAt, others, ...idempotency };
    const { id, sigil } = await issueSigil(tx, keyring, now, wish);
    const detail = { subscription: subscriptionId, tier, expiresAt: isoOf(expiresAt) };
    await audit.record(tx, [...entries, { actor, action: 'sigil.issued', subject: `sigil:${id}`, detail }]);
    return { id, subscription: subscriptionId, sigil };
  }

  /** The subscription a new Sigil is for: made, or brought up to what the Sigil says. */
  async #subscribe(
    tx: Tx,
    { subscription, tier, expiresAt }: MintRequest,
    actor: string,
  ): Promise<{ subscriptionId: string; entries: AuditEntry[] }> {
    const until = isoOf(expiresAt);
    if (subscription === undefined) {
      const id = randomUUID();
      await store.insertSubscription(tx, { id, tier, expiresAt });
      const subject = `subscription:${id}`;
      const created = { actor, action: 'subscription.created', subject, detail: { tier, expiresAt: until } };
      return { subscriptionId: id, entries: [created as AuditEntry] };
    }
    const present = await store.lockSubscription(tx, subscription);
    if (!present) throw unknown('subscription_unknown', 'no such subscription');
    const next = renew(present, { tier, expiresAt });
    if (!next.changed) return { subscriptionId: subscription, entries: [] };
    await store.changeSubscription(tx, subscription, next);
    return { subscriptionId: subscription, entries: [changed(subscription, present, next, actor)] };
  }

  /**
   * Revokes one Sigil. If it was the subscription's last live one, nobody can manage its peers any more, so they go.
   * Repeating it changes nothing.
   * @throws KatafractError `sigil_unknown` (404)
   */
  async revoke(id: string, actor: string): Promise<store.SigilRow> {
    const { clock, audit, db } = this.#deps;
    const known = await store.findSigil(db, id);
    if (!known) throw unknown('sigil_unknown', 'no such Sigil');
    await this.#ending(async (tx) => {
      await store.lockSubscription(tx, known.subscriptionId);
      const row = await store.findSigil(tx, id);
      if (!row || row.revokedAt) return null;
      const now = new Date(clock.now());
      await store.markSigilRevoked(tx, id, now);
      const last = !(await store.hasLiveSigil(tx, row.subscriptionId, now));
      const detail = { subscription: row.subscriptionId, last };
      await audit.record(tx, [{ actor, action: 'sigil.revoked', subject: `sigil:${id}`, detail }]);
      return last ? row.subscriptionId : null;
    });
    return (await store.findSigil(db, id)) ?? known;
  }

  /**
   * Revokes a subscription with every Sigil of it and removes its peers. Repeating it changes nothing.
   * @throws KatafractError `subscription_unknown` (404)
   */
  async revokeSubscription(id: string, actor: string): Promise<void> {
    const { clock, audit } = this.#deps;
    await this.#ending(async (tx) => {
      const present = await store.lockSubscription(tx, id);
      if (!present) throw unknown('subscription_unknown', 'no such subscription');
      if (present.revoked) return null;
      await store.markSubscriptionRevoked(tx, id, new Date(clock.now()));
      const detail = { tier: present.tier, peers: present.peerCount };
      await audit.record(tx, [
        { actor, action: 'subscription.revoked', subject: `subscription:${id}`, detail },
      ]);
      return id;
    });
  }

  /** Removes the peers of subscriptions that have run out. @returns how many subscriptions */
  async endLapsed(): Promise<number> {
    const { clock, audit, db, lapseGraceMs } = this.#deps;
    const before = new Date(clock.now() - lapseGraceMs);
    const due = await store.lapsedSubscriptions(db, before, 100);
    for (const id of due) {
      await this.#ending(async (tx) => {
        const present = await store.lockSubscription(tx, id);
        // renewed since it was listed
        if (!present || present.revoked || present.expiresAt > before.getTime()) return null;
        await store.markLapsed(tx, id, new Date(clock.now()));
        const detail = { peers: present.peerCount };
        await audit.record(tx, [
          { actor: 'system', action: 'subscription.lapsed', subject: `subscription:${id}`, detail },
        ]);
        return id;
      });
    }
    return due.length;
  }

  /** Replaces the signing key once it is old enough. The old one verifies as long as a Sigil signed by it may live. */
  rotateKey(): Promise<boolean> {
    const { clock, keyring, audit, maxDays, rotateDays } = this.#deps;
    return keyring.rotateSigil(clock.now(), maxDays * DAY_MS, {
      minAgeMs: rotateDays * DAY_MS,
      record: (tx, { from, to }) =>
        audit.record(tx, [
          { actor: 'system', action: 'signing_key.rotated', subject: `signing_key:${to}`, detail: { from } },
        ]),
    });
  }

  /** Runs a transaction that may end a subscription, and tells the exits once that is committed. */
  async #ending(work: (tx: Tx) => Promise<string | null>): Promise<void> {
    const afterCommit = await this.#deps.db.transaction(async (tx): Promise<AfterCommit> => {
      const ended = await work(tx);
      return ended === null ? () => undefined : this.#deps.onEnded(tx, ended);
    });
    afterCommit();
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

  devicesUsed(subscriptionId: string): Promise<number> {
    return store.countPeers(this.#deps.db, subscriptionId);
  }
}

const isoOf = (ms: number) => new Date(ms).toISOString();

type Terms = { tier: Tier; expiresAt: number };
function changed(id: string, from: Terms, to: Terms, actor: string): AuditEntry {
  const shown = ({ tier, expiresAt }: Terms) => ({ tier, expiresAt: isoOf(expiresAt) });
  const detail = { from: shown(from), to: shown(to) };
  return { actor, action: 'subscription.changed', subject: `subscription:${id}`, detail };
}
