/**
 * Loaded before a program under test (NODE_OPTIONS=--import): how late its event loop runs. At each SIGUSR2 it writes
 * what it saw since the last one, in ms, as JSON, and begins anew. Plain JavaScript without imports of ours, because it
 * is loaded into what ships.
 */
import { renameSync, writeFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';

const file = process.env.KATAFRACT_BENCH_LOOP;
if (file !== undefined) {
  const delay = monitorEventLoopDelay({ resolution: 10 });
  delay.enable();
  process.on('SIGUSR2', () => {
    const ms = (nanoseconds) => nanoseconds / 1e6;
    // the timer's own 10 ms are no delay
    const late = (value) => Math.max(0, ms(value) - 10);
    const seen = {
      median: late(delay.percentile(50)),
      p99: late(delay.percentile(99)),
      max: late(delay.max),
    };
    delay.reset();
    writeFileSync(`${file}.new`, JSON.stringify(seen));
    renameSync(`${file}.new`, file);
  });
}
