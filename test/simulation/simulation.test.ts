/** A small fleet through everything that befalls the large one of the bench: nothing that must hold is broken. */
import { expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { simulate } from './simulation.ts';

const database = useDatabase();

it('60 nodes and 5,000 peers: regions die, exits drain and flap, and every peer keeps a primary', async () => {
  const found = await simulate({
    database: database.url,
    size: { regions: 12, nodes: 60, peers: 5000 },
    seed: 7,
    seconds: 110,
  });
  expect(found.violations).toEqual([]);
  expect(found.happened).toMatchObject({ death: 2, region: 2, drain: 2 });
  expect(found.moved).toBeGreaterThan(500);
  expect(found.verdictMs.length).toBeGreaterThan(4);
});
