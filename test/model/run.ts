/** One run: a script, then calm, then the question whether everything has become one. */
import { CALM } from './faults.ts';
import { perform } from './operations.ts';
import { Violation } from './oracle.ts';
import type { Script } from './script.ts';
import { type Keys, NODE, type Tampering, World } from './world.ts';

/** After the last fault the node must be right within so many heartbeats. */
const PATIENCE = 8;
/** Longest time between two of the agent's full passes, in ms. */
const HEARTBEAT_MS = 11_000;

/** Resolves if all held. @throws Violation and whatever else went wrong */
export async function run(script: Script, keys: Keys, tampering: Tampering = {}): Promise<World> {
  const world = new World(script.seed, script.topology, keys, tampering);
  world.startControllers();
  world.startNode();
  for (const { action, seed, pause } of script.operations) {
    world.reseed(seed);
    perform(world, action);
    await world.clock.advance(pause);
    if (world.violation) throw world.violation;
  }
  await calm(world);
  await converge(world);
  await staysPut(world);
  world.node?.tell();
  return world;
}

/** Everything works again, and an operator agrees to whatever the tables have become. */
async function calm(world: World): Promise<void> {
  world.faults = CALM;
  // what is down comes back by itself, also what is still to go down
  while (world.faultsEnd >= world.clock.now()) {
    await world.clock.advance(world.faultsEnd - world.clock.now() + 1);
  }
  world.mendLine();
  world.startControllers();
  world.startNode();
  world.log.allowShrink(NODE);
  for (const controller of world.fleet.alive) controller.refresh();
  if (world.violation) throw world.violation;
}

async function converge(world: World): Promise<void> {
  let difference: string | null = null;
  for (let beat = 0; beat < PATIENCE; beat++) {
    await world.clock.advance(HEARTBEAT_MS);
    if (world.violation) throw world.violation;
    difference = world.oracle.difference(world.fleet.hearing.map(({ publisher }) => publisher.acked));
    if (difference === null) return;
  }
  throw new Violation(`after ${PATIENCE} heartbeats ${difference}`);
}

/** Nothing is left to do: full passes and heartbeats write nothing and bring no message down. */
async function staysPut(world: World): Promise<void> {
  const count = () =>
    `${world.kernel.writes} kernel, ${world.disk.writes} disk, ${world.network.sent} messages`;
  const before = count();
  await world.clock.advance(2 * HEARTBEAT_MS);
  if (world.violation) throw world.violation;
  if (count() !== before) throw new Violation(`a further pass wrote: ${before}, then ${count()}`);
}
