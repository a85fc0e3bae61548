/**
 * The region list as the controller signed it, kept over restarts. A list that is unsigned, forged or older than the
 * one at hand is refused, wherever it comes from, and the one at hand stays.
 */
import { type Region, RegionList } from '@katafract/shared/api';
import { KatafractError } from '@katafract/shared/errors';
import { REGIONS_TYP, verifyBody } from '@katafract/shared/signed-body';
import { z } from 'zod';
import type { Client, SignedRegions } from '../sdk.ts';

const Kept = z.object({
  body: z.string(),
  signature: z.string(),
  etag: z.string().nullable(),
  jwks: z.object({ keys: z.array(z.looseObject({ kty: z.string() })) }),
});
type Kept = z.infer<typeof Kept>;

/** Where the list is between two runs. */
export interface Shelf {
  read(): Promise<string | null>;
  write(text: string): Promise<void>;
}

interface Held {
  readonly kept: Kept;
  readonly signedAt: number;
  readonly regions: readonly Region[];
}

export class KnownRegions {
  readonly #client: Pick<Client, 'signedRegions' | 'jwks'>;
  readonly #shelf: Shelf;
  #held: Held | undefined;

  constructor(client: Pick<Client, 'signedRegions' | 'jwks'>, shelf: Shelf) {
    this.#client = client;
    this.#shelf = shelf;
  }

  /** The last list that was good; empty before the first. */
  get regions(): readonly Region[] {
    return this.#held?.regions ?? [];
  }

  /** Takes what an earlier run kept. @throws KatafractError `signature_invalid`, `state_invalid`: it is as if there were none */
  async load(): Promise<void> {
    const text = await this.#shelf.read();
    if (text === null) return;
    const kept = Kept.safeParse(parseJson(text));
    if (!kept.success) throw new KatafractError('state_invalid', 'the kept region list is damaged');
    this.#held = await open(kept.data);
  }

  /**
   * Asks for a newer one.
   * @throws KatafractError of the API; `signature_invalid`, `list_stale`: refused, the one at hand stays
   */
  async refresh(signal?: AbortSignal): Promise<void> {
    const answer = await this.#client.signedRegions(this.#held?.kept.etag ?? undefined, { signal });
    if (answer === null) return;
    const held = await this.#checked(answer, signal);
    const before = this.#held;
    if (before && held.signedAt < before.signedAt && held.kept.body !== before.kept.body) {
      throw new KatafractError('list_stale', 'the region list is older than the one at hand', {
        status: 502,
      });
    }
    this.#held = held;
    await this.#shelf.write(JSON.stringify(held.kept));
  }

  async #checked({ body, signature, etag }: SignedRegions, signal: AbortSignal | undefined): Promise<Held> {
    const at = { body, signature: signature ?? '', etag };
    const { kept } = this.#held ?? {};
    if (kept !== undefined) {
      const known = await open({ ...at, jwks: kept.jwks }).catch(unlessForged);
      if (known !== null) return known;
    }
    // signed with a key that came since: the keys themselves come from the API alone
    return open({ ...at, jwks: Kept.shape.jwks.parse(await this.#client.jwks({ signal })) });
  }
}

async function open(kept: Kept): Promise<Held> {
  const { signedAt } = await verifyBody(kept.body, kept.signature, { jwks: kept.jwks, typ: REGIONS_TYP });
  return { kept, signedAt, regions: RegionList.parse(parseJson(kept.body)).items };
}

function unlessForged(error: unknown): null {
  if (error instanceof KatafractError && error.code === 'signature_invalid') return null;
  throw error;
}

/** Undefined for what is not JSON: no schema here takes that. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
