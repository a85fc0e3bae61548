/**
 * Loaded before a program under test (NODE_OPTIONS=--import) where the bench was asked for profiles: samples the whole
 * run and writes a .cpuprofile, which Chrome's DevTools open, when the program ends. Plain JavaScript without imports
 * of ours, because it is loaded into what ships.
 */
import { writeFileSync } from 'node:fs';
import { Session } from 'node:inspector';
import { basename, dirname, join } from 'node:path';

const folder = process.env.KATAFRACT_BENCH_PROFILES;
if (folder !== undefined) {
  const session = new Session();
  session.connect();
  session.post('Profiler.enable');
  session.post('Profiler.setSamplingInterval', { interval: 500 });
  session.post('Profiler.start');
  process.on('exit', () => {
    // the inspector answers within the call, so this still works while the process ends
    session.post('Profiler.stop', (error, result) => {
      const program = basename(dirname(dirname(process.argv[1] ?? 'node')));
      const file = join(folder, `${program}-${process.pid}.cpuprofile`);
      if (error === null) writeFileSync(file, JSON.stringify(result.profile));
    });
  });
}
