/**
 * Hears of changes that somebody else makes to the host: to the firewall, by the events of nf_tables, and to links,
 * addresses and routes, by those of rtnetlink. They tell the agent only that it should look, and look at once; where one
 * cannot be had (iptables-legacy has no events), the timer finds the same a little later.
 */
import type { Log, SteadyClock } from '../ports.ts';
import { type Following, follow } from './exec.ts';

const SOURCES: readonly (readonly [string, ...string[]])[] = [
  ['xtables-monitor', '--event'],
  ['ip', 'monitor', 'link', 'address', 'route'],
];
/**
 * Before a source that ended is begun again, in ms: doubled from the first to the last while it does not live long.
 * xtables-monitor 1.8 ends over rules that it cannot print (some that reject), so it ends now and then.
 */
const PAUSE_MS = { first: 100, last: 25_600 };
const LONG_LIFE_MS = 10_000;

/** @returns what ends it */
export function watchHost(clock: SteadyClock, log: Log, onChange: () => void): () => void {
  const running = new Set<Following>();
  let stopped = false;
  const begin = (source: readonly [string, ...string[]], pause: number): void => {
    const [program, ...args] = source;
    const since = clock.elapsed();
    const following = follow(program, args, onChange);
    running.add(following);
    void following.ended.then((why) => {
      running.delete(following);
      if (stopped) return;
      const wait = clock.elapsed() - since < LONG_LIFE_MS ? pause : PAUSE_MS.first;
      const next = Math.min(wait * 2, PAUSE_MS.last);
      if (next === PAUSE_MS.last && wait < next) {
        log.warn({ source: program, why }, 'changes by others are found by the timer alone');
      }
      // what ended it may have been a change, and so may be what came before it listens again
      onChange();
      clock.after(wait, () => {
        if (stopped) return;
        begin(source, next);
        onChange();
      });
    });
  };
  for (const source of SOURCES) begin(source, PAUSE_MS.first);
  return () => {
    stopped = true;
    for (const following of running) following.stop();
  };
}
