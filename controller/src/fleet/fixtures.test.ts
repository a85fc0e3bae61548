/** The controller understands what nodes of every protocol version said, and answers in kind. */
import { Desired } from '@katafract/shared/desired';
import desired from '@katafract/shared/fixtures/1/desired.json' with { type: 'json' };
import uplink from '@katafract/shared/fixtures/1/uplink.json' with { type: 'json' };
import { Generation } from '@katafract/shared/units';
import { Applied, Hello } from '@katafract/shared/uplink';
import { expect, it } from 'vitest';
import { toMessages } from './changes.ts';
import { carryOn, type Head } from './rules.ts';

it('protocol 1: carries a node on from its hello to what it later acknowledged', () => {
  const [delta] = desired.delta.map(({ message }) => Desired.parse(message));
  if (delta?.kind !== 'delta') throw new Error('the sample is a delta');
  const { lineage, generation, digest } = Applied.parse(uplink.applied);
  const head: Head = { lineage, generation, digest, swept: Generation.parse(0) };
  expect(carryOn(Hello.parse(uplink.hello), head)).toEqual({ do: 'delta', from: delta.from });
  const { config: _, ...update } = delta;
  expect(toMessages(update)).toEqual([delta]);
  expect(carryOn({ ...Applied.parse(uplink.applied), want: 'delta' }, head)).toEqual({ do: 'nothing' });
});
