/**
 * A stand-in for the AdGuard Home binary, since that cannot be had here: the same flags, the same file, the same API, and
 * real DNS on the addresses that it is configured to. It keeps what the real one would keep: a query log and statistics
 * in files, while it is told to.
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { serveApi } from './api.ts';
import { load, save } from './config.ts';
import { serveDns } from './dns.ts';

const { values } = parseArgs({
  options: {
    config: { type: 'string', short: 'c' },
    'work-dir': { type: 'string', short: 'w' },
    'check-config': { type: 'boolean' },
    'no-check-update': { type: 'boolean' },
    'no-permcheck': { type: 'boolean' },
    'web-addr': { type: 'string' },
  },
});
const work = values['work-dir'] ?? '.';
const path = values.config ?? join(work, 'AdGuardHome.yaml');

function die(error: unknown): never {
  process.stderr.write(`${error instanceof Error ? error.message : error}\n`);
  process.exit(1);
}

function run(): void {
  const config = load(path);
  if (values['check-config']) {
    process.stderr.write('configuration file is ok\n');
    return;
  }
  const folder = (given: string) => {
    const at = given || join(work, 'data');
    mkdirSync(at, { recursive: true });
    return at;
  };
  const logFile = () => join(folder(config.querylog.dir_path), 'querylog.json');
  const names = new Map<string, number>();
  const statistics = {
    queries: 0,
    blocked: 0,
    reset() {
      this.queries = 0;
      this.blocked = 0;
      names.clear();
      rmSync(join(folder(config.statistics.dir_path), 'stats.db'), { force: true });
    },
  };
  // the real one remembers failures, too, only as long as it runs
  save(path, config);
  // as an upstream would: whatever this file says, or nothing while it is not there
  const upstream = () => {
    const file = join(work, 'upstream');
    return existsSync(file) ? readFileSync(file, 'utf8').trim() : '198.51.100.80';
  };
  serveDns(
    config,
    () => (upstream() === 'down' ? null : upstream()),
    ({ name, client, blocked }) => {
      if (config.querylog.enabled)
        appendFileSync(logFile(), `${JSON.stringify({ T: new Date(), QH: name, IP: client })}\n`);
      if (!config.statistics.enabled) return;
      statistics.queries++;
      if (blocked) statistics.blocked++;
      names.set(name, (names.get(name) ?? 0) + 1);
      writeFileSync(join(folder(config.statistics.dir_path), 'stats.db'), JSON.stringify([...names]));
    },
    die,
  );
  serveApi(
    {
      config,
      statistics,
      save: () => save(path, config),
      clearQueryLog: () => rmSync(logFile(), { force: true }),
    },
    die,
  );
  process.on('SIGTERM', () => {
    save(path, config);
    process.exit(0);
  });
}

try {
  run();
} catch (error) {
  die(error);
}
