/**
 * The only door of billing: what stores say, what apps claim, what operators give, and what the clock ends.
 *
 *   webhook ─► inbox ─► reader (one a store) ─► settle ─► subscription, peers
 *   worker ──────┘ (what no message told)         ▲
 *   claim, voucher, grant ────────────────────────┘
 */
import type { IssuedSigil } from '@katafract/shared/api';
import type { Clock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import type { Audit } from '../audit/audit.ts';
import type { Peers } from '../peers/peers.ts';
import type { Database } from '../platform/db.ts';
import type { Logger } from '../platform/log.ts';
import type { Metrics } from '../platform/metrics.ts';
import { ENDS_CHANNEL, type Sigils } from '../sigil/sigil.ts';
import { type ClaimRequest, claim, storeOff } from './claim.ts';
import {
  type Granted,
  type GrantRequest,
  grant,
  makeVouchers,
  type VoucherRequest,
  type Vouchers,
} from './gifts.ts';
import * as inbox from './inbox.ts';
import { type BillingMetrics, createBillingMetrics } from './metrics.ts';
import { withoutText } from './privacy.ts';
import { StoreReader } from './reader.ts';
import type { StoreDeps } from './stores/call.ts';
import type { Checkout, StoreName, StorePort } from './stores/port.ts';
import { endDue, nextEnd, readRenewing, reconcile, type WorkerDeps } from './worker.ts';

export type { ClaimRequest } from './claim.ts';
export type { Granted, GrantRequest, VoucherRequest, Vouchers } from './gifts.ts';
export { configuredStores } from './stores/configured.ts';
export { STORES, type StoreName } from './stores/port.ts';

export interface BillingDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly audit: Audit;
  readonly sigils: Sigils;
  readonly peers: Peers;
  /** Builds the stores that are configured. */
  readonly stores: (deps: StoreDeps) => readonly StorePort[];
  /** How long a subscription keeps its peers after it ran out by the clock, in ms. */
  readonly lapseGraceMs: number;
  /** What makes the secrets of a repeated request the same again. */
  readonly seedSecret: Uint8Array;
}

/** How long a message of a store is remembered after it was handled: longer than any store repeats it. */
const MESSAGES_KEPT_MS = 30 * 86_400_000;

export class Billing {
  readonly #deps: BillingDeps;
  readonly #metrics: BillingMetrics;
  readonly #stores: ReadonlyMap<StoreName, StorePort>;
  readonly #readers: ReadonlyMap<StoreName, StoreReader>;
  readonly #all: WorkerDeps & Parameters<typeof claim>[0] & Parameters<typeof grant>[0];
  readonly #halt = new AbortController();
  #unlisten: () => Promise<void> = async () => undefined;

  constructor(deps: BillingDeps) {
    this.#deps = deps;
    const { db, clock, log } = deps;
    this.#metrics = createBillingMetrics(deps.metrics.registry, {
      backlog: () => inbox.backlog(db.sql),
      now: () => clock.now(),
      failed: (err) => {
        deps.metrics.survived.inc({ where: 'billing metrics' });
        log.debug({ err }, 'the backlog of billing could not be counted');
      },
    });
    const ports = deps.stores({ clock, observe: this.#metrics.observeCall });
    this.#stores = new Map(ports.map((port) => [port.name, port]));
    const random = Math.random;
    const halted = this.#halt.signal;
    const settling = { ...deps, metrics: this.#metrics, graceMs: deps.lapseGraceMs, random, halted };
    this.#readers = new Map(ports.map((port) => [port.name, new StoreReader(port, settling)]));
    const kick = (name: StoreName) => this.#readers.get(name)?.kick();
    this.#all = { ...settling, stores: this.#stores, readers: this.#readers, kick };
  }

  /** @param onEnds runs when the next end of a subscription may have moved, on whichever controller */
  async start(onEnds: () => void): Promise<void> {
    // also after every reconnect, when notices may have been missed
    this.#unlisten = await this.#deps.db.listen(ENDS_CHANNEL, onEnds, onEnds);
    this.kick();
  }

  /** Waits for no store any more: what is being asked is asked again by whoever runs next. */
  halt(): void {
    this.#halt.abort();
  }

  /** Resolves when nothing is under way any more. */
  async stop(): Promise<void> {
    this.halt();
    await this.#unlisten();
    await Promise.all([...this.#readers.values()].map((reader) => reader.stop()));
  }

  /** Resolves when no purchase is being read; for tests. */
  async idle(): Promise<void> {
    await Promise.all([...this.#readers.values()].map((reader) => reader.idle()));
  }

  /** The stores that are configured. */
  get stores(): readonly StoreName[] {
    return [...this.#stores.keys()];
  }

  /** Has whatever is due read, at every store. */
  kick(): void {
    for (const reader of this.#readers.values()) reader.kick();
  }

  /**
   * Takes a message of a store. It is safe once this resolves.
   * @throws KatafractError `store_off` (404), `webhook_invalid` (401), `webhook_malformed` (400), `store_unavailable`,
   * `database_unavailable` (503): the store sends it again
   */
  async receive(name: StoreName, request: { body: Uint8Array; headers: Headers }): Promise<void> {
    const port = this.#stores.get(name);
    if (!port) throw storeOff();
    const signal = await port.verify(request).catch((error: unknown) => {
      throw error instanceof KatafractError
        ? withoutText(error)
        : new KatafractError('internal', 'a message could not be verified', { cause: withoutText(error) });
    });
    this.#metrics.signals.inc({ store: name, type: signal.type });
    const fresh = await inbox.receive(this.#deps.db.sql, signal, new Date(this.#deps.clock.now()));
    if (fresh && signal.reference !== null) this.#readers.get(name)?.kick();
  }

  /** @throws KatafractError `store_off` (404), `tier_not_sold` (422), `store_unavailable` (503) */
  async checkout(name: StoreName, wish: Checkout, idempotencyKey?: string): Promise<{ url: string }> {
    const port = this.#stores.get(name);
    if (!port?.checkout) throw storeOff();
    return port.checkout(wish, idempotencyKey);
  }

  /** @see claim */
  claim(request: ClaimRequest): Promise<IssuedSigil | null> {
    return claim(this.#all, request);
  }

  /** @see grant */
  grant(request: GrantRequest, operator: string, idempotencyKey?: string): Promise<Granted> {
    return grant(this.#all, request, { operator, idempotencyKey });
  }

  /** @see makeVouchers */
  makeVouchers(request: VoucherRequest, operator: string, idempotencyKey?: string): Promise<Vouchers> {
    return makeVouchers(this.#all, request, { operator, idempotencyKey });
  }

  /** Ends what has run out. @returns how much that was */
  endDue(): Promise<number> {
    return endDue(this.#all);
  }

  /** When there is something to end next, in milliseconds since the epoch. */
  nextEnd(): Promise<number | null> {
    return nextEnd(this.#all);
  }

  readRenewing(): Promise<number> {
    return readRenewing(this.#all);
  }

  /** Asks one store for what its messages missed; nothing where it is not configured. @see reconcile */
  async reconcile(name: StoreName): Promise<number> {
    const port = this.#stores.get(name);
    return port ? reconcile(this.#all, port) : 0;
  }

  forgetMessages(): Promise<number> {
    const { db, clock } = this.#deps;
    return inbox.forgetMessages(db, new Date(clock.now() - MESSAGES_KEPT_MS));
  }
}
