/** The receiver follows a recorded conversation of every protocol version. */

import { type Desired, Desired as DesiredSchema } from '@katafract/shared/desired';
import { setDigest } from '@katafract/shared/digest';
import desired from '@katafract/shared/fixtures/1/desired.json' with { type: 'json' };
import { Lineage } from '@katafract/shared/units';
import { expect, it } from 'vitest';
import { receive, type Staging } from './receive.ts';
import { held as after } from './record.ts';

it('protocol 1: a snapshot in parts, a delta on top, an empty snapshot of a later lineage', () => {
  const enrolledLineage = Lineage.parse(1);
  let held: ReturnType<typeof after> | null = null;
  let staging: Staging | null = null;
  const take = (message: Desired) => {
    const verdict = receive({ held, enrolledLineage, staging }, message);
    staging = verdict.kind === 'stage' ? verdict.staging : null;
    if (verdict.kind === 'accept') held = after(verdict.change, held);
    return verdict.kind;
  };
  const said = (list: readonly { message: unknown }[]) =>
    list.map(({ message }) => take(DesiredSchema.parse(message)));
  const table = () => [...(held?.peers.values() ?? [])];
  expect(said(desired.snapshot)).toEqual(['stage', 'accept']);
  expect(table()).toHaveLength(2);
  expect(said(desired.delta)).toEqual(['accept']);
  expect(setDigest(table())).toBe(desired.delta[0]?.message.digest);
  expect(said(desired.snapshot)).toEqual(['refuse', 'refuse']);
  expect(said(desired.empty)).toEqual(['accept']);
  expect(table()).toEqual([]);
});
