/** The promise as vitest tests, in blocks of seeds, for one of the workers that share them. */
import { describe, expect, it } from 'vitest';
import { bulkScripts, scripts } from './script.ts';
import { failureOf, oneSeed, seedCount } from './seeds.ts';

/** Of a run with the usual number of seeds. */
const USUAL = 10_000;
const BULK = 60;
const BLOCK = 1000;

/** A failure is for reading: as the message of an error it is printed as it stands. */
function noFailure(report: string | null): void {
  if (report !== null) expect.fail(report);
}

/** @param share which of `shares` */
export function prove(share: number, shares: number): void {
  const only = oneSeed();
  if (only !== null && share > 0) {
    it.skip('the one seed that is asked for is run by the first share', () => undefined);
    return;
  }
  describe('whatever happens, node and log become one, and nothing false is ever applied or acknowledged', () => {
    if (only !== null) {
      it(`seed ${only}`, async () => noFailure(await failureOf(scripts, only)));
      it(`seed ${only} in bulk`, async () => noFailure(await failureOf(bulkScripts, only)));
      return;
    }
    const mine = Math.ceil(seedCount(USUAL) / shares);
    for (let from = share * mine; from < (share + 1) * mine; from += BLOCK) {
      const to = Math.min(from + BLOCK, (share + 1) * mine);
      it(`seeds ${from} to ${to - 1}`, async () => {
        for (let seed = from; seed < to; seed++) noFailure(await failureOf(scripts, seed));
      });
    }
    const bulk = Math.ceil(seedCount(BULK) / shares);
    it(`seeds ${share * bulk} to ${(share + 1) * bulk - 1} in bulk`, async () => {
      for (let seed = share * bulk; seed < (share + 1) * bulk; seed++) {
        noFailure(await failureOf(bulkScripts, seed));
      }
    });
  });
}
