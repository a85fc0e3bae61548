/** What is counted of machines and of what regions need. */
import { Counter, Gauge, type Registry } from 'prom-client';
import type { Assessment } from './capacity.ts';
import { MACHINE_STATES, type MachineState } from './tables.ts';

export interface MachineCount {
  readonly state: MachineState;
  readonly count: number;
  /** When the oldest of them was wanted. */
  readonly oldest: string;
}

export interface MachineMetrics {
  readonly failures: Counter<'code'>;
  readonly orphans: Counter;
  forecasts(list: readonly Assessment[]): void;
  machines(counts: readonly MachineCount[], now: number): void;
}

const ON_THEIR_WAY: readonly MachineState[] = ['wanted', 'creating', 'booting', 'leaving', 'removing'];

export function createMachineMetrics(registry: Registry): MachineMetrics {
  const registers = [registry];
  const gauge = <L extends string>(name: string, help: string, ...labelNames: L[]) =>
    new Gauge<L>({ name: `katafract_${name}`, help, labelNames, registers });
  const peers = gauge('region_peers', 'Peers that the exits of a region carry', 'region');
  const room = gauge('region_room', 'Peers that its exits that are well may carry', 'region');
  const headroom = gauge(
    'region_headroom',
    'Room beside the peers that are expected; below 0, what lacks',
    'region',
  );
  const expected = gauge('region_expected_use', 'Share of the room that is expected to be used', 'region');
  const needs = gauge(
    'region_needs_capacity',
    '1 where a region needs capacity it does not get by itself',
    'region',
  );
  const machines = gauge('machines', 'Machines that are not over, by state', 'state');
  const oldest = gauge(
    'machine_oldest_open_seconds',
    'Age of the oldest machine that is on its way in or out',
  );
  return {
    failures: new Counter({
      name: 'katafract_machine_failures_total',
      help: 'Steps of machines that failed, and machines that came to nothing, by code',
      labelNames: ['code'],
      registers,
    }),
    orphans: new Counter({
      name: 'katafract_machine_orphans_total',
      help: 'Machines that were at a provider without being known, and were removed',
      registers,
    }),
    forecasts(list) {
      for (const one of [peers, room, headroom, expected, needs]) one.reset();
      for (const { forecast, decision } of list) {
        const { region } = forecast;
        peers.set({ region }, forecast.peers);
        room.set({ region }, forecast.room);
        headroom.set({ region }, forecast.headroom);
        expected.set({ region }, forecast.expectedUsed);
        needs.set({ region }, decision.do === 'alert' ? 1 : 0);
      }
    },
    machines(counts, now) {
      for (const state of MACHINE_STATES) {
        if (state === 'gone' || state === 'failed') continue;
        machines.set({ state }, counts.find((one) => one.state === state)?.count ?? 0);
      }
      const since = counts
        .filter(({ state }) => ON_THEIR_WAY.includes(state))
        .map((one) => Date.parse(one.oldest));
      oldest.set(since.length === 0 ? 0 : (now - Math.min(...since)) / 1000);
    },
  };
}
