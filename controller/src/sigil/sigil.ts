/**
 * The only door of Sigils: minting, checking and revoking them.
 *
 * A request is let in by three checks in this order: the signature (remembered per token, so that a hot token costs
 * one hash), the expiry by the clock, and the database, which alone knows of revocation and of the present tier. So a
 * revocation takes effect on the next request, on every controller.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { SIGIL_TYP, type SigilClaims, type Tier, verifySigil } from '@katafract/shared/sigil';
import { SignJWT } from 'jose';
import type { Audit, AuditEntry } from '../audit/audit.ts';
import type { SigilIdentity } from '../platform/api.ts';
import { type AfterCommit, type Database, type Tx, uniqueViolation } from '../platform/db.ts';
import { uuidv7 } from '../platform/ids.ts';
import type { Keyring, SigningKey } from '../platform/keyring.ts';
import { bearerToken, sha256 } from '../platform/secrets.ts';
import { admit, checkExpiry, renew } from './rules.ts';
import * as store from './store.ts';

export type { SigilRow } from './store.ts';

export interface SigilDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly keyring: Keyring;
  readonly audit: Audit;
  /** The `iss` of every Sigil: the controller's public URL. */
  readonly issuer: string;
  /** The longest life of a Sigil, in days. */
  readonly maxDays: number;
  /** Age at which the signing key is replaced, in days. */
  readonly rotateDays: number;
  /** How long after its expiry a subscription keeps its peers, in ms: a renewal may be a little late. */
  readonly lapseGraceMs: number;
  /** Removes what a subscription holds, in the transaction that ends it. */
  readonly onEnded: (tx: Tx, subscriptionId: string) => Promise<AfterCommit>;
}

export interface MintRequest {
  readonly tier: Tier;
  /** Milliseconds since the epoch. */
  readonly expiresAt: number;
  /** A subscription that exists already; a new one where absent. */
  readonly subscription?: string | undefined;
}

export interface Minted {
  readonly id: string;
  readonly subscription: string;
  /** The token itself: shown here and kept nowhere. */
  readonly sigil: string;
}

/** Tokens whose signature was checked lately: enough for the hot ones, about 5 MB. */
const REMEMBERED = 10_000;
const LONGEST_TOKEN = 2048;
const DAY_MS = 86_400_000;

const conflict = (code: string, message: string) => new KatafractError(code, message, { status: 409 });
const unknown = (code: string, message: string) => new KatafractError(code, message, { status: 404 });

export class Sigils {
  readonly #deps: SigilDeps;
  readonly #lookUp: ReturnType<typeof store.sigilLookup>;
  /** Claims by token hash, in order of last use. */
  readonly #verified = new Map<string, SigilClaims>();

  constructor(deps: SigilDeps) {
    this.#deps = deps;
    this.#lookUp = store.sigilLookup(deps.db);
  }

  /**
   * Whom a request acts for, by its Authorization header.
   * @throws KatafractError `unauthorized`, `sigil_invalid`, `sigil_expired`, `sigil_revoked` (401)
   */
  async authenticate(authorization: string | undefined): Promise<SigilIdentity> {
    const token = bearerToken(authorization);
    if (token === null) throw new KatafractError('unauthorized', 'a Sigil is required', { status: 401 });
    if (token.length > LONGEST_TOKEN) return admit(null, 0);
    const hash = sha256(token).toString('hex');
    await this.#verify(token, hash);
    return admit(await this.#lookUp(hash), this.#deps.clock.now());
  }

  async #verify(token: string, hash: string): Promise<void> {
    const now = this.#deps.clock.now();
    const known = this.#verified.get(hash);
    this.#verified.delete(hash);
    if (known && known.exp * 1000 <= now)
      throw new KatafractError('sigil_expired', 'the Sigil has expired', { status: 401 });
    const { issuer, keyring } = this.#deps;
    const claims = known ?? (await verifySigil(token, keyring.jwks(), { issuer, now }));
    this.#verified.set(hash, claims);
    if (this.#verified.size > REMEMBERED) {
      for (const oldest of this.#verified.keys()) {
        this.#verified.delete(oldest);
        break;
      }
    }
  }

  /**
   * Mints a Sigil, for a new subscription or for one that is there. The same Idempotency-Key with the same request
   * returns the very same token: Ed25519 signs deterministically, so it is made again rather than kept.
   * @throws KatafractError `expiry_past`, `expiry_too_far` (422), `subscription_unknown` (404),
   * `subscription_revoked`, `idempotency_expired` (409), `idempotency_key_reused` (422)
   */
  async mint(request: MintRequest, actor: string, idempotencyKey?: string): Promise<Minted> {
    const key = idempotencyKey === undefined ? undefined : `${actor} ${idempotencyKey}`;
    const { tier, expiresAt, subscription = null } = request;
    const requestHash = sha256(JSON.stringify([tier, expiresAt, subscription])).toString('hex');
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
    const sigil = signer ? await sign(signer, row) : '';
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
    const { tier } = request;
    const { subscriptionId, entries } = await this.#subscribe(tx, { ...request, expiresAt }, actor);
    const signer = keyring.sigil();
    const row = {
      id: uuidv7(now),
      subscriptionId,
      kid: signer.kid,
      tier,
      issuer,
      issuedAt: new Date(Math.floor(now / 1000) * 1000),
      expiresAt: new Date(expiresAt),
    };
    const sigil = await sign(signer, row);
    await store.insertSigil(tx, { ...row, ...idempotency, tokenHash: sha256(sigil).toString('hex') });
    const detail = { subscription: subscriptionId, tier, expiresAt: row.expiresAt.toISOString() };
    await audit.record(tx, [
      ...entries,
      { actor, action: 'sigil.issued', subject: `sigil:${row.id}`, detail },
    ]);
    return { id: row.id, subscription: subscriptionId, sigil };
  }

  /** The subscription a new Sigil is for: made, or brought up to what the Sigil says. */
  async #subscribe(
    tx: Tx,
    { subscription, tier, expiresAt }: MintRequest,
    actor: string,
  ): Promise<{ subscriptionId: string; entries: AuditEntry[] }> {
    const until = new Date(expiresAt).toISOString();
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
    const shown = (state: { tier: Tier; expiresAt: number }) => ({
      tier: state.tier,
      expiresAt: new Date(state.expiresAt).toISOString(),
    });
    const detail = { from: shown(present), to: shown(next) };
    const subject = `subscription:${subscription}`;
    return {
      subscriptionId: subscription,
      entries: [{ actor, action: 'subscription.changed', subject, detail }],
    };
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

  devicesUsed(subscriptionId: string): Promise<number> {
    return store.countPeers(this.#deps.db, subscriptionId);
  }
}

type Signable = Pick<store.SigilRow, 'id' | 'subscriptionId' | 'tier' | 'issuer' | 'issuedAt' | 'expiresAt'>;

/** Same row, same key, same token. */
function sign(signer: SigningKey, row: Signable): Promise<string> {
  return new SignJWT({ tier: row.tier })
    .setProtectedHeader({ alg: 'EdDSA', typ: SIGIL_TYP, kid: signer.kid })
    .setIssuer(row.issuer)
    .setSubject(row.subscriptionId)
    .setJti(row.id)
    .setIssuedAt(row.issuedAt.getTime() / 1000)
    .setExpirationTime(row.expiresAt.getTime() / 1000)
    .sign(signer.privateKey);
}
