/**
 * (i) From the death of an exit to the first packet that its device gets back through another, with nobody's help:
 * killed and unplugged in turn, the first half of the times with the controller up, the second with it dead. Each
 * death comes at a random moment between two probes. `wraith` runs as it ships.
 */
import { INTERNET } from '../lab/network.ts';
import { waitFor } from '../lab/wait.ts';
import { Wraith } from '../lab/wraith.ts';
import type { Fleet } from './bed.ts';
import type { Report } from './report.ts';
import { quantile, summarize } from './stats.ts';

const GOAL_MS = 5000;
/** From one death to the next at least, in ms: `wraith` switches ten times a minute at most, whatever happens. */
const PACE_MS = 7000;
/** What was on its way at the moment of death has arrived by then, in ms. */
const IN_FLIGHT_MS = 100;

interface Death {
  readonly fault: 'killed' | 'unplugged';
  readonly controller: 'up' | 'dead';
  readonly ms: number;
}

async function die(fleet: Fleet, wraith: Wraith, fault: Death['fault']): Promise<number> {
  const { exit: used } = await wraith.status();
  const exit = fleet.exit(used?.node ?? '');
  const ping = await wraith.device.startPing(INTERNET.ipv4, 20);
  await new Promise((resolve) => setTimeout(resolve, Math.random() * 1000));
  const started = performance.now();
  await (fault === 'killed' ? exit.crash() : exit.plugged(false));
  await new Promise((resolve) => setTimeout(resolve, IN_FLIGHT_MS));
  const before = ping.received();
  await waitFor('an answer through another exit', () => ping.received() > before, { everyMs: 5 });
  const took = performance.now() - started;
  await ping.stop();
  if (fault === 'killed') exit.startAgent();
  else await exit.plugged(true);
  await waitFor(`${exit.name} to be back`, async () => (await exit.peers()).length > 0);
  return took;
}

export async function measureFailover(fleet: Fleet, report: Report, deaths: number): Promise<void> {
  const [device] = fleet.lab.devices;
  if (!device) throw new Error('the bench has one device');
  const { sigil } = await fleet.subscribe('pro');
  const wraith = new Wraith(fleet.lab, device, sigil);
  // it stays where it went, so that each death is one switch
  await wraith.watch(fleet.lab.exits[0]?.region ?? '', 1800);
  const times: Death[] = [];
  for (let at = 0; at < deaths; at++) {
    if (at === Math.ceil(deaths / 2)) await fleet.lab.controller.kill('SIGKILL');
    const controller = at < deaths / 2 ? 'up' : 'dead';
    const fault = at % 2 === 0 ? 'killed' : 'unplugged';
    const paced = new Promise((resolve) => setTimeout(resolve, PACE_MS));
    const ms = await die(fleet, wraith, fault);
    await paced;
    times.push({ fault, controller, ms });
    report.step(`exit ${fault}, controller ${controller}: ${Math.round(ms)} ms`);
  }
  await wraith.leave();
  const groups = [
    ['all', times],
    ['killed', times.filter(({ fault }) => fault === 'killed')],
    ['unplugged', times.filter(({ fault }) => fault === 'unplugged')],
    ['controller up', times.filter(({ controller }) => controller === 'up')],
    ['controller dead', times.filter(({ controller }) => controller === 'dead')],
  ] as const;
  report.table(
    '(i) from the death of an exit to a packet through another',
    ['ms', 'count', 'median', 'p95', 'min', 'max'],
    groups.map(([name, some]) => {
      const list = some.map(({ ms }) => ms);
      const { count, median, min, max } = summarize(list);
      return [name, String(count), median, quantile(list, 0.95), min, max];
    }),
  );
  report.record('i', times);
  const p95 = quantile(
    times.map(({ ms }) => ms),
    0.95,
  );
  report.judge('i', 'an exit dies: p95 until its device is on another', p95, 'less', GOAL_MS, 'ms');
}
