/**
 * One simulated fleet in a process of its own, so that its memory is its own:
 *
 *   DATABASE_URL=… node --expose-gc --import tsx test/simulation/main.ts --nodes 1000 --peers 100000 --seconds 120
 *
 * Prints the result as JSON on the last line; the database must be migrated and empty.
 */
import { parseArgs } from 'node:util';
import { simulate } from './simulation.ts';

const { values } = parseArgs({
  options: {
    nodes: { type: 'string', default: '1000' },
    peers: { type: 'string', default: '100000' },
    regions: { type: 'string', default: '200' },
    seconds: { type: 'string', default: '120' },
    seed: { type: 'string', default: '1' },
  },
});
const { DATABASE_URL: database = '' } = process.env;
const result = await simulate({
  database,
  size: { regions: Number(values.regions), nodes: Number(values.nodes), peers: Number(values.peers) },
  seconds: Number(values.seconds),
  seed: Number(values.seed),
  onStep: (text) => console.error(text),
});
console.log(JSON.stringify(result));
