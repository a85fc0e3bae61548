/**
 * The test API as a process of its own, to be run inside a namespace. Argument: JSON of `exits`, each with the name of
 * its WireGuard interface, which takes the peers as they are made. Prints its URL; ends with its standard input.
 */
import { startTestApi, type TestExit } from './api.ts';
import { tellExits } from './tunnel-lab.ts';

const { exits, interfaces } = JSON.parse(process.argv[2] ?? '') as {
  exits: TestExit[];
  interfaces: string[];
};
const api = await startTestApi({ exits, onPeer: tellExits(interfaces) });
console.log(api.url);
process.stdin.on('end', () => void api.close()).resume();
