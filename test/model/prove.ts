/** The promise as vitest tests, in blocks of seeds, for one of the workers that share them. */
import type fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bulkScripts, type Script, scripts, wornScripts } from './script.ts';
import { failureOf, met, oneSeed, seedCount } from './seeds.ts';

/** Of a run with the usual number of seeds. */
const USUAL = 10_000;
const BULK = 30;
const WORN = 10;
const BLOCK = 1000;

/** Turns that a run may take; each must have come up somewhere, or the runs prove less than they seem to. */
const TO_MEET = [
  'sent delta again',
  'sent snapshot again',
  'publisher: lineage_raised',
  'publisher: mismatch',
  'publisher: failed',
  'agent: peers had drifted in the kernel',
  'agent: the kernel did not take every peer',
  'agent: could not look at the host',
  'agent: the host could not be set up',
  'agent: held state could not be written; nothing is acknowledged until it is',
  'agent: journal_torn',
  'refused: signature',
  'refused: version',
  'refused: node',
  'refused: stale',
  'refused: digest',
];

/** A failure is for reading: as the message of an error it is printed as it stands. */
function noFailure(report: string | null): void {
  if (report !== null) expect.fail(report);
}

function blocks(
  name: string,
  kind: fc.Arbitrary<Script>,
  usual: number,
  share: number,
  shares: number,
): void {
  const mine = Math.ceil(seedCount(usual) / shares);
  const end = (share + 1) * mine;
  for (let from = share * mine; from < end; from += BLOCK) {
    const to = Math.min(from + BLOCK, end);
    it(`${name}: seeds ${from} to ${to - 1}`, async () => {
      for (let seed = from; seed < to; seed++) noFailure(await failureOf(kind, seed));
    });
  }
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
      it(`seed ${only} with a worn journal`, async () => noFailure(await failureOf(wornScripts, only)));
      return;
    }
    blocks('the usual', scripts, USUAL, share, shares);
    blocks('bulk', bulkScripts, BULK, share, shares);
    blocks('a worn journal', wornScripts, WORN, share, shares);
    it('met with everything that there is to meet', () => {
      // with a few seeds only, some things may well not come up
      if (seedCount(USUAL) >= USUAL) expect([...met.keys()]).toEqual(expect.arrayContaining(TO_MEET));
    });
  });
}
