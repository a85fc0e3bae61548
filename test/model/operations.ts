/** Carries out the operations of a script on a world. */

import type { Desired } from '@katafract/shared/desired';
import { signDesired } from '@katafract/shared/desired';
import { setDigest } from '@katafract/shared/digest';
import type { Generation, Lineage, PublicKey } from '@katafract/shared/units';
import { base64url, CompactSign } from 'jose';
import { WEATHER } from './faults.ts';
import { flipped } from './network.ts';
import { ipv4Of, ipv6Of, keyOf, tuple } from './peers.ts';
import type { Action, Attack } from './script.ts';
import { NODE, OTHER_NODE, type World } from './world.ts';

/** Keys and addresses of the usual peers; bulk ones are numbered from BULK_FIRST. */
const POOL = 40;
const ADDRESS_FIRST = 2;
const BULK_FIRST = 1000;
const BULK_LAST = 12_000;
const ROGUE_FIRST = 20_000;
/** How long a caller of the API waits for the kernel. */
const PATIENCE_MS = 5000;
const COPIES = 6;

type Of<K extends Action['do']> = Extract<Action, { do: K }>;

export function perform(world: World, action: Action): void {
  switch (action.do) {
    case 'add':
      commit(world, newPeers(world, action.count), []);
      return;
    case 'remove':
      commit(world, [], present(world, action.count));
      return;
    case 'rotate':
      exchange(world, 1);
      return;
    case 'exchange':
      exchange(world, action.count);
      return;
    case 'bulk':
      bulk(world, action);
      return;
    case 'configure':
      configure(world);
      return;
    case 'sweep':
      world.log.sweep();
      return;
    case 'restore':
      restore(world, action);
      return;
    case 'meddle':
      meddle(world, action);
      return;
    case 'weather':
      world.faults = WEATHER[action.weather];
      return;
    case 'crash':
      crash(world, action);
      return;
    case 'restart controller':
      world.killController(action.which);
      world.later(action.down, () => world.startControllers());
      return;
    case 'disconnect':
      world.cutLine();
      world.later(action.down, () => world.mendLine());
      return;
    case 'attack':
      // signing takes the world's time
      attack(world, action.how).catch((error) => world.check(() => rethrow(error)));
  }
}

function rethrow(error: unknown): never {
  throw error;
}

type Rows = ReturnType<typeof tuple>[];

/** One transaction of a controller, with a caller who waits for the kernel. None while all are down. */
function commit(world: World, set: Rows, del: PublicKey[]): void {
  const { fleet, log } = world;
  const controller = fleet.any();
  if (!controller || set.length + del.length === 0) return;
  remember(world);
  for (const step of log.commit([{ node: NODE, set, del }])) {
    const keys = [...set.map(([key]) => key), ...del];
    const waiting = world.oracle.wait(log.state(NODE), keys);
    fleet.announce(controller, step, PATIENCE_MS, (applied) =>
      world.check(() => world.oracle.waited(waiting, applied)),
    );
  }
}

function remember(world: World): void {
  world.copies.push(world.log.copy());
  if (world.copies.length > COPIES) world.copies.shift();
}

function numbers(from: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => from + index);
}

function shuffled<T>(world: World, list: readonly T[]): T[] {
  const { operation } = world.random;
  return list
    .map((value) => ({ value, at: operation.next() }))
    .sort((a, b) => a.at - b.at)
    .map(({ value }) => value);
}

function present(world: World, count: number): PublicKey[] {
  return shuffled(world, [...world.log.state(NODE).rows.keys()]).slice(0, count);
}

function takenAddresses(world: World): Set<string> {
  return new Set(Array.from(world.log.state(NODE).rows.values(), ([, ipv4]) => ipv4));
}

function newPeers(world: World, count: number): Rows {
  const { rows } = world.log.state(NODE);
  const taken = takenAddresses(world);
  const keys = shuffled(world, numbers(0, POOL)).filter((index) => !rows.has(keyOf(index)));
  const addresses = shuffled(world, numbers(ADDRESS_FIRST, POOL)).filter(
    (index) => !taken.has(ipv4Of(index)),
  );
  return keys.slice(0, count).flatMap((key, at) => {
    const address = addresses[at];
    return address === undefined ? [] : [tuple(key, address)];
  });
}

/** New keys take over the addresses of keys that go. */
function exchange(world: World, count: number): void {
  const { rows } = world.log.state(NODE);
  const leaving = present(world, count);
  const coming = shuffled(world, numbers(0, POOL)).filter((index) => !rows.has(keyOf(index)));
  const set = leaving.flatMap((key, at): Rows => {
    const index = coming[at];
    const row = rows.get(key);
    return index === undefined || !row ? [] : [[keyOf(index), row[1], row[2]]];
  });
  commit(world, set, leaving.slice(0, set.length));
}

/** Many come, or as many go. */
function bulk(world: World, { count, go: leave }: Of<'bulk'>): void {
  const { rows } = world.log.state(NODE);
  const all = numbers(BULK_FIRST, BULK_LAST - BULK_FIRST);
  const here = all.filter((index) => rows.has(keyOf(index)));
  const go = leave && here.length >= count;
  const taken = takenAddresses(world);
  const free = all.filter((index) => !rows.has(keyOf(index)) && !taken.has(ipv4Of(index)));
  const come = go ? [] : free.slice(0, count).map((index) => tuple(index, index));
  commit(world, come, go ? here.slice(0, count).map(keyOf) : []);
}

function configure(world: World): void {
  if (world.fleet.alive.length === 0) return;
  remember(world);
  const { operation } = world.random;
  world.log.configure(NODE, {
    mtu: operation.integer(1280, 1500),
    listenPort: operation.integer(51820, 51830),
  });
  for (const controller of world.fleet.alive) controller.refresh();
}

function restore(world: World, action: Of<'restore'>): void {
  const copy = world.copies.at(-action.commits);
  if (!copy) return;
  world.copies.splice(-action.commits);
  world.log.restore(copy);
  world.fleet.reconnect();
  if (!action.restart) return;
  world.killController(0);
  world.killController(1);
  world.later(0, () => world.startControllers());
}

function meddle(world: World, { how }: Of<'meddle'>): void {
  const { kernel, random, oracle } = world;
  const { operation } = random;
  const keys = kernel.keys();
  const key = operation.pick(keys);
  const foreign = ROGUE_FIRST + operation.integer(0, 50);
  oracle.meddled();
  if (how === 'delete interface') kernel.reset();
  if (how === 'rogue') kernel.put(keyOf(foreign), [ipv4Of(foreign), ipv6Of(foreign)]);
  if (key === undefined) return;
  if (how === 'remove') kernel.drop(key);
  if (how === 'readdress') kernel.put(key, [ipv4Of(foreign)]);
  if (how === 'steal') {
    const address = kernel.allowed(key)?.split('/')[0];
    if (address) kernel.put(keyOf(foreign), [address]);
  }
  oracle.meddled(key);
}

function crash(world: World, { within, loses, down }: Of<'crash'>): void {
  world.later(within, () => {
    world.killNode();
    if (loses === 'kernel' || loses === 'both') {
      world.oracle.meddled();
      world.kernel.reset();
    }
    if (loses === 'disk' || loses === 'both') {
      world.disk.wipe();
      world.oracle.wiped();
    }
    world.later(down, () => world.startNode());
  });
}

async function attack(world: World, how: Attack): Promise<void> {
  const jws = await attackMessage(world, how);
  if (jws !== null) world.network.inject(jws);
}

async function attackMessage(world: World, how: Attack): Promise<string | null> {
  const { network, random, keys } = world;
  const { operation } = random;
  const heard = operation.pick(network.overheard) ?? null;
  const evil = message(world);
  const real = keys.state.privateKey;
  if (how === 'replay') return heard;
  if (how === 'flip') return heard && flipped(operation, heard);
  if (how === 'redirect') return signDesired({ ...evil, node: OTHER_NODE }, real, 'state');
  if (how === 'version') return signDesired({ ...evil, v: 2 as 1 }, real, 'state');
  if (how === 'typ') {
    const body = new TextEncoder().encode(JSON.stringify(evil));
    return new CompactSign(body).setProtectedHeader({ alg: 'EdDSA', typ: 'kf-node+jwt' }).sign(real);
  }
  const [head, body, signature] = (await signDesired(evil, keys.foreign.privateKey, 'state')).split('.');
  if (how === 'unsigned') return `${base64url.encode('{"alg":"none","typ":"kf-desired+jws"}')}.${body}.`;
  if (how === 'forge') return `${head}.${body}.${signature}`;
  const [heardHead, , heardSignature] = heard?.split('.') ?? [];
  return heardHead === undefined ? null : `${heardHead}.${body}.${heardSignature}`;
}

/** What somebody would like the node to believe: a table of his own, next in line or far ahead. */
function message(world: World): Desired {
  const { operation } = world.random;
  const state = world.log.state(NODE);
  const index = ROGUE_FIRST + operation.integer(100, 150);
  const row = tuple(index, index);
  const common = { v: 1 as const, node: NODE, part: 1, parts: 1, set: [row] };
  const to = (state.generation + operation.integer(1, 3)) as Generation;
  const entry = (list: Rows) => list.map(([publicKey, ipv4, ipv6]) => ({ publicKey, ipv4, ipv6 }));
  if (operation.chance(0.5)) {
    const digest = setDigest(entry([...state.rows.values(), row]));
    return { ...common, kind: 'delta', lineage: state.lineage, from: state.generation, to, digest, del: [] };
  }
  const lineage = (state.lineage + operation.integer(0, 1)) as Lineage;
  return { ...common, kind: 'snapshot', lineage, to, digest: setDigest(entry([row])), allowShrink: true };
}
