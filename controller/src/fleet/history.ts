/**
 * The digests of the last generations of one lineage, as this process came to know them: committed here, read from the
 * database, sent. One generation with two digests means that the database has lost transactions and gave a number out
 * again; and what a node says it holds is only ours if it is in here.
 */
import type { Digest, Generation } from '@katafract/shared/units';

/** Generations remembered; a node acknowledges what was sent last, or what came soon before. */
const REMEMBERED = 4096;

export class History {
  readonly #digests = new Map<Generation, Digest>();

  /** @returns false where that generation is known with another digest */
  learn(generation: Generation, digest: Digest): boolean {
    const known = this.#digests.get(generation);
    if (known !== undefined) return known === digest;
    this.#digests.set(generation, digest);
    if (this.#digests.size > REMEMBERED) {
      for (const oldest of this.#digests.keys()) {
        this.#digests.delete(oldest);
        break;
      }
    }
    return true;
  }

  /** Whether the table at that generation is known to have been this one. */
  has(generation: Generation, digest: Digest): boolean {
    return this.#digests.get(generation) === digest;
  }

  clear(): void {
    this.#digests.clear();
  }
}
