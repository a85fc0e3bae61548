/**
 * The Sigil that an app holds and the device that proves itself with it (DPoP): what each request bears, and when the
 * Sigil is exchanged for a fresh one. A Sigil that is bound to no device is sent as it is.
 */
import type { IssuedSigil } from '@katafract/shared/api';
import type { Clock } from '@katafract/shared/clock';
import { type DeviceKey, makeProof } from '@katafract/shared/dpop';
import { KatafractError } from '@katafract/shared/errors';
import { readSigil } from '@katafract/shared/sigil';

/** What a request bears: a Sigil; one that may have expired; the device's proof alone, before there is any; nothing. */
export type Bears = 'sigil' | 'expired sigil' | 'device' | 'nothing';

export interface SessionOptions {
  /** A function is asked each time, and what it gives is its own to refresh. */
  readonly sigil: string | (() => string | Promise<string>) | undefined;
  readonly deviceKey: DeviceKey | undefined;
  /** The API as the public knows it, ending with a slash: what proofs are made for. */
  readonly publicBase: URL;
  readonly clock: Clock;
  /** Exchanges the Sigil at hand. @param hasten the one at hand still does: do not try for long */
  readonly exchange: (hasten: boolean) => Promise<IssuedSigil>;
  /** A new Sigil came, to be kept by whoever must find it after a restart. */
  readonly onSigil: (sigil: string) => void | Promise<void>;
}

/** A Sigil is exchanged in the last fifth of its life, and in the last five minutes at most. */
const EARLY_MS = 300_000;

export class Session {
  readonly #options: SessionOptions;
  #held: string | null;
  /** How far the API's clock is ahead of ours; 0 until it has turned down a proof for its time. */
  #aheadMs = 0;
  #lastDate: { theirs: number; ours: number } | null = null;
  #exchanging: Promise<void> | null = null;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#held = typeof options.sigil === 'string' ? options.sigil : null;
  }

  /** @throws KatafractError `sigil_missing`, `device_key_missing`, and of the exchange */
  async headers(method: string, path: string, bears: Bears): Promise<Record<string, string>> {
    if (bears === 'nothing') return {};
    const token = bears === 'device' ? undefined : await this.#token(bears);
    if (token !== undefined && !readSigil(token)?.device) return { authorization: `Bearer ${token}` };
    const { deviceKey, publicBase } = this.#options;
    if (!deviceKey) throw new KatafractError('device_key_missing', 'this takes the key of the device');
    const url = new URL(path, publicBase).href;
    const dpop = await makeProof(deviceKey, { method, url, now: this.#now(), token });
    return { dpop, ...(token === undefined ? {} : { authorization: `DPoP ${token}` }) };
  }

  async #token(bears: Bears): Promise<string> {
    const { sigil } = this.#options;
    if (typeof sigil === 'function') return sigil();
    if (bears === 'sigil') await this.#freshen();
    if (this.#held === null) throw new KatafractError('sigil_missing', 'there is no Sigil yet: claim one');
    return this.#held;
  }

  async #freshen(): Promise<void> {
    const known = this.#held === null ? null : readSigil(this.#held);
    if (!known?.device) return;
    const left = known.expiresAt - this.#now();
    if (left > Math.min(EARLY_MS, (known.expiresAt - known.issuedAt) / 5)) return;
    try {
      await this.#exchange(left > 0);
    } catch (error) {
      // what is at hand will do until it ends; the next request tries again
      const passing = error instanceof KatafractError && (error.status === 503 || error.status === 429);
      if (!passing || left <= 0) throw error;
    }
  }

  /** However many requests need it, it is exchanged once. */
  #exchange(hasten: boolean): Promise<void> {
    const { exchange } = this.#options;
    this.#exchanging ??= exchange(hasten)
      .then(({ sigil }) => this.keep(sigil))
      .finally(() => {
        this.#exchanging = null;
      });
    return this.#exchanging;
  }

  /** Holds this Sigil from now on. */
  async keep(sigil: string): Promise<void> {
    this.#held = sigil;
    await this.#options.onSigil(sigil);
  }

  /** Notes what an answer says of the time. */
  noteDate(header: string | null): void {
    const theirs = Date.parse(header ?? '');
    this.#lastDate = Number.isNaN(theirs) ? null : { theirs, ours: this.#options.clock.now() };
  }

  /** Whether, after this refusal, the same request is worth sending once more; makes ready for it. */
  async recover({ code }: KatafractError, bears: Bears): Promise<boolean> {
    if (code === 'dpop_stale' && this.#lastDate !== null) {
      this.#aheadMs = this.#lastDate.theirs - this.#lastDate.ours;
      return true;
    }
    const ours = bears === 'sigil' && this.#held !== null && readSigil(this.#held)?.device;
    if (code !== 'sigil_expired' || !ours) return false;
    await this.#exchange(false);
    return true;
  }

  #now(): number {
    return this.#options.clock.now() + this.#aheadMs;
  }
}
