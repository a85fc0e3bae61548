/** What befalls the fleet, by a seed: deaths, whole regions, flapping, drains, and systems that want to reboot. */

import type { Context } from '@katafract/controller/context';
import { startDrain } from '@katafract/controller/fleet/drains';
import type { RegionId } from '@katafract/shared/units';
import type { Random } from '../model/random.ts';
import type { SimulatedFleet } from './fleet.ts';
import type { SimulatedNode } from './node.ts';

export interface Event {
  /** In ms from the beginning. */
  readonly at: number;
  readonly what: 'death' | 'region' | 'flap' | 'drain' | 'reboot';
  readonly happen: () => Promise<void> | void;
}

/** Not before everybody has said hello. */
const FIRST_MS = 15_000;
/** Of all nodes. */
const SHARE = { deaths: 0.01, flapping: 0.002, drained: 0.001, rebooting: 0.01 };

export function script(ctx: Context, fleet: SimulatedFleet, random: Random, ms: number): Event[] {
  const nodes = [...fleet.nodes.values()];
  const any = () => nodes[random.integer(0, nodes.length - 1)] as SimulatedNode;
  const some = (share: number) => Array.from({ length: Math.max(2, Math.round(nodes.length * share)) }, any);
  const moment = () => FIRST_MS + random.next() * Math.max(0, ms - FIRST_MS - 40_000);
  const events: Event[] = [];
  for (const node of some(SHARE.deaths)) {
    const back = random.chance(0.7) ? random.integer(35, 120) * 1000 : null;
    events.push({ at: moment(), what: 'death', happen: () => fleet.leave(node, back) });
  }
  for (const node of some(SHARE.flapping)) {
    for (let at = FIRST_MS; at < ms; at += random.integer(20, 60) * 1000) {
      const away = random.integer(5, 35) * 1000;
      events.push({ at, what: 'flap', happen: () => fleet.leave(node, away) });
    }
  }
  for (const at of [FIRST_MS + 5000, ms / 2]) {
    const region: RegionId = any().region;
    const away = random.integer(40, 90) * 1000;
    const all = nodes.filter((node) => node.region === region);
    events.push({
      at,
      what: 'region',
      happen: () => {
        for (const node of all) fleet.leave(node, away);
      },
    });
  }
  for (const { id } of some(SHARE.drained)) {
    const deps = { db: ctx.db, audit: ctx.audit, fleet: ctx.fleet, now: () => ctx.clock.now() };
    const happen = async () => void (await startDrain(deps, id, undefined, 'simulation'));
    events.push({ at: FIRST_MS + random.next() * 10_000, what: 'drain', happen });
  }
  for (const node of some(SHARE.rebooting)) {
    const happen = () => {
      node.rebootNeeded = true;
    };
    events.push({ at: 0, what: 'reboot', happen });
  }
  return events.sort((a, b) => a.at - b.at);
}
