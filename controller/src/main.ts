/**
 * The controller's process: reads the configuration, wires, serves, and on SIGTERM or SIGINT lets go in an order that
 * loses nothing acknowledged: first no new requests, then those under way, then the domains, the broker, the database.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { systemClock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { supervisor } from '@katafract/shared/supervisor';
import { type Config, configTable, loadConfig } from './config.ts';
import { type Context, createContext } from './context.ts';
import { createHttp } from './http.ts';
import { type HttpListener, listenHttp } from './platform/server.ts';

const runCommand = promisify(execFile);

/** sysexits.h */
const EX_SOFTWARE = 70;
const EX_CONFIG = 78;

function help(): string {
  const rows = configTable();
  const line = (cells: string[]) => `| ${cells.join(' | ')} |`;
  return [
    'The Katafract controller. It is configured by its environment:',
    '',
    line(['variable', 'default', 'meaning']),
    line(['---', '---', '---']),
    ...rows.map(({ name, fallback, meaning }) => line([name, fallback, meaning])),
    '',
  ].join('\n');
}

function readConfig(): Config | null {
  try {
    return loadConfig(process.env);
  } catch (error) {
    if (!(error instanceof KatafractError)) throw error;
    const errors = (error.detail?.errors as string[] | undefined) ?? [error.message];
    process.stderr.write(`The configuration is not valid:\n${errors.map((text) => `  ${text}\n`).join('')}`);
    return null;
  }
}

function signalled(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => resolve(signal));
  });
}

async function listen(ctx: Context): Promise<HttpListener[]> {
  const { config, log } = ctx;
  const api = createHttp(ctx);
  const onFault = (err: unknown) => log.error({ err }, 'a request failed outside of the app');
  const open = [await listenHttp(api, config.apiListen, config.meshListen === null, onFault)];
  if (config.meshListen) open.push(await listenHttp(api, config.meshListen, true, onFault));
  for (const listener of open) log.info({ listen: listener.url }, 'listening');
  return open;
}

async function serve(config: Config): Promise<void> {
  const ctx = await createContext(config);
  const { log } = ctx;
  // Through the log, which redacts; then end at once. What was acknowledged is in the database.
  process.on('uncaughtException', (err) => {
    log.error({ err }, 'a fault that nobody handled');
    process.exit(EX_SOFTWARE);
  });
  try {
    const listeners = await listen(ctx);
    const [api] = listeners;
    process.stdout.write(`Katafract controller: ${api?.url}, reference at ${api?.url}/docs\n`);
    process.stdout.write(`Operator token: ${config.operatorToken.path}\n`);
    const systemd = supervisor(process.env, systemClock, runCommand, (err) =>
      log.warn({ err }, 'systemd could not be told'),
    );
    await systemd.ready();
    // that this timer comes round is what is watched: a database that is away is no reason to begin anew
    const unwatched = systemd.watch(() => true);
    const signal = await signalled();
    unwatched();
    await systemd.stopping();
    log.info({ signal }, 'shutting down');
    ctx.state.draining = true;
    await Promise.all(listeners.map((listener) => listener.drain(config.shutdownMs)));
  } finally {
    await ctx.close();
  }
  log.info({}, 'stopped');
}

if (process.argv.includes('--help')) {
  process.stdout.write(help());
} else {
  const config = readConfig();
  if (config === null) process.exitCode = EX_CONFIG;
  else {
    try {
      await serve(config);
    } catch (error) {
      const { code = 'internal', message } = error as { code?: string; message: string };
      process.stderr.write(`The controller cannot run: ${message} (${code})\n`);
      process.exitCode = 1;
    }
  }
}
