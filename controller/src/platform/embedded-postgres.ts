/**
 * A real Postgres 17 of our own, for whoever sets no DATABASE_URL. It listens on a Unix socket in a directory that
 * only its user (and root) may enter, and nowhere else; fsync stays on.
 *
 * It is a child of the controller and is started again if it dies. A controller that was killed leaves it running:
 * the next one stops that orphan cleanly and starts its own. Who owns it is told by an advisory lock held on a
 * connection for as long as the controller lives, so two controllers never share a data directory by accident.
 */
import type { ChildProcess } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { readFile, rename, rm, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import postgres from 'postgres';
import type { Logger } from './log.ts';
import { findBinaries, type PostgresBinaries } from './postgres-binaries.ts';

export interface EmbeddedPostgres {
  /** Of the database `katafract`. */
  readonly url: string;
  /** The same server, another database. */
  databaseUrl(name: string): string;
  /** The postmaster; changes when it is started again. */
  pid(): number;
  /** Fast shutdown: what is committed stays, open transactions are rolled back. */
  stop(): Promise<void>;
}

export interface EmbeddedOptions {
  /** Its files go below here. Every directory above must be searchable by the database's user. */
  readonly dataDir: string;
  readonly log: Logger;
  /** Further `name=value` settings, as for replication in tests. */
  readonly settings?: Readonly<Record<string, string>>;
}

const ROLE = 'katafract';
const OWNER_LOCK = 7_261_003;
const PATIENCE_MS = 20_000;
/** Longest path of a Unix socket that Linux takes. */
const SOCKET_PATH = 107;
/** The log is cut at start when it has grown beyond this, in bytes. */
const LOG_LIMIT = 10 * 1024 * 1024;

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

interface Places {
  readonly data: string;
  readonly socket: string;
  readonly log: string;
}

const SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: '',
  unix_socket_permissions: '0700',
  max_connections: '120',
  jit: 'off',
  timezone: 'UTC',
  // never a value of a row in the server's log
  log_error_verbosity: 'terse',
  log_min_messages: 'warning',
  log_checkpoints: 'off',
};

/** A url in libpq's form for sockets, which connect() of db.ts and psql both read. */
function socketUrl(socket: string, database: string): string {
  return `postgres://${ROLE}@localhost/${database}?host=${encodeURIComponent(socket)}`;
}

/** The database cluster, made where there is none; whole or not at all. */
async function initialise(binaries: PostgresBinaries, places: Places, log: Logger): Promise<void> {
  const version = await readFile(join(places.data, 'PG_VERSION'), 'utf8').catch(() => null);
  if (version !== null) {
    if (version.trim() === '17') return;
    throw new KatafractError('embedded_version', `${places.data} is of Postgres ${version.trim()}, not 17`);
  }
  const draft = `${places.data}.${process.pid}`;
  await rm(draft, { recursive: true, force: true });
  await binaries.directory(draft);
  const locale = ['--locale=C', '--locale-provider=builtin', '--builtin-locale=C.UTF-8', '--encoding=UTF8'];
  // trust is for local connections alone, and the socket's directory decides who can make one
  await binaries.run('initdb', [
    '-D',
    draft,
    '-U',
    ROLE,
    '--auth-local=trust',
    '--auth-host=reject',
    ...locale,
  ]);
  await rename(draft, places.data);
  log.info({ path: places.data }, 'made a database cluster');
}

/** The postmaster that a postmaster.pid names, if that process lives and is one. */
async function livingPostmaster(places: Places): Promise<number | null> {
  const text = await readFile(join(places.data, 'postmaster.pid'), 'utf8').catch(() => '');
  const pid = Number(text.split('\n')[0]);
  if (!Number.isInteger(pid) || pid <= 0) return null;
  const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  return command.includes(places.data) ? pid : null;
}

function ownerConnection(places: Places): postgres.Sql {
  return postgres({
    host: places.socket,
    user: ROLE,
    database: 'postgres',
    max: 1,
    connect_timeout: 5,
    max_lifetime: null,
    fetch_types: false,
    connection: { application_name: 'katafract-owner' },
    onnotice: () => undefined,
  });
}

async function takeOwnership(owner: postgres.Sql): Promise<boolean> {
  const [row] = await owner`select pg_try_advisory_lock(${OWNER_LOCK}) as mine`;
  return row?.mine === true;
}

const inUse = (places: Places) =>
  new KatafractError(
    'embedded_in_use',
    `another controller is using ${places.data}; give each its own data directory`,
  );

/** Stops the postmaster a killed controller left behind. @throws KatafractError `embedded_in_use` if it has an owner */
async function stopOrphan(binaries: PostgresBinaries, places: Places, log: Logger): Promise<void> {
  const pid = await livingPostmaster(places);
  if (pid === null) return;
  const owner = ownerConnection(places);
  try {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      try {
        if (!(await takeOwnership(owner))) throw inUse(places);
        break;
      } catch (error) {
        if (error instanceof KatafractError) throw error;
        // it may still be starting up, or be shutting down already
        if ((await livingPostmaster(places)) === null) return;
        if (Date.now() > deadline) break;
        await wait(100);
      }
    }
    log.warn({ count: pid }, 'stopping the Postgres that an earlier controller left running');
    await binaries.run('pg_ctl', ['stop', '-D', places.data, '-m', 'fast', '-w', '-t', '30']);
  } finally {
    await owner.end({ timeout: 1 });
  }
}

/**
 * Starts it, and resolves once it takes connections.
 * @throws KatafractError `embedded_in_use`, `embedded_version`, `embedded_start_failed`, `embedded_path_too_long`, or
 * one of findBinaries
 */
export async function startEmbeddedPostgres(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const { dataDir, log } = options;
  const places = {
    data: join(dataDir, 'data'),
    socket: join(dataDir, 'run'),
    log: join(dataDir, 'postgres.log'),
  };
  if (`${places.socket}/.s.PGSQL.5432.lock`.length > SOCKET_PATH)
    throw new KatafractError('embedded_path_too_long', `too long for a Unix socket: ${places.socket}`);
  const binaries = await findBinaries(join(dataDir, 'bin'), log);
  await binaries.directory(dataDir);
  await binaries.directory(places.socket);
  await initialise(binaries, places, log);
  await stopOrphan(binaries, places, log);
  if (((await stat(places.log).catch(() => null))?.size ?? 0) > LOG_LIMIT) await truncate(places.log);
  const server = new Server(binaries, places, options);
  await server.start();
  return server;
}

class Server implements EmbeddedPostgres {
  readonly url: string;
  readonly #binaries: PostgresBinaries;
  readonly #places: Places;
  readonly #settings: Readonly<Record<string, string>>;
  readonly #log: Logger;
  #child: ChildProcess | null = null;
  #owner: postgres.Sql | null = null;
  #stopping = false;
  #restart: Promise<void> = Promise.resolve();

  constructor(binaries: PostgresBinaries, places: Places, options: EmbeddedOptions) {
    this.#binaries = binaries;
    this.#places = places;
    this.#log = options.log;
    this.#settings = { ...SETTINGS, unix_socket_directories: places.socket, ...options.settings };
    this.url = this.databaseUrl(ROLE);
  }

  databaseUrl(name: string): string {
    return socketUrl(this.#places.socket, name);
  }

  pid(): number {
    return this.#child?.pid ?? 0;
  }

  async start(): Promise<void> {
    const child = this.#launch();
    try {
      await this.#ready(child);
    } catch (error) {
      child.kill('SIGQUIT');
      throw error;
    }
    this.#child = child;
    child.once('exit', (code, signal) => this.#died(child, code, signal));
    if (child.exitCode !== null || child.signalCode !== null) throw await this.#startFailed();
  }

  #launch(): ChildProcess {
    const settings = Object.entries(this.#settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
    const out = openSync(this.#places.log, 'a', 0o600);
    try {
      // its own process group: Ctrl-C in a terminal must not stop it before the controller has drained
      return this.#binaries.spawn(['-D', this.#places.data, ...settings], {
        detached: true,
        stdio: ['ignore', out, out],
      });
    } finally {
      closeSync(out);
    }
  }

  /** Waits until it answers, makes the database and takes ownership. */
  async #ready(child: ChildProcess): Promise<void> {
    let failure: Error | null = null;
    child.once('error', (error) => {
      failure = error;
    });
    const owner = ownerConnection(this.#places);
    const deadline = Date.now() + PATIENCE_MS;
    try {
      for (;;) {
        if (failure !== null || child.exitCode !== null || Date.now() > deadline)
          throw await this.#startFailed();
        const mine = await takeOwnership(owner).catch(() => null);
        if (mine === false) throw inUse(this.#places);
        // the socket may be answered by another's postmaster, for which ours gave way
        if (mine && (await livingPostmaster(this.#places)) === child.pid) break;
        await wait(20);
      }
      const [there] = await owner`select 1 from pg_database where datname = ${ROLE}`;
      if (!there) await owner.unsafe(`create database ${ROLE}`);
      this.#owner = owner;
    } catch (error) {
      await owner.end({ timeout: 1 });
      throw error;
    }
  }

  async #startFailed(): Promise<KatafractError> {
    const text = await readFile(this.#places.log, 'utf8').catch(() => '');
    const last = text.trim().split('\n').slice(-4).join(' | ');
    return new KatafractError(
      'embedded_start_failed',
      `Postgres did not start; see ${this.#places.log}: ${last}`,
    );
  }

  /** Starts it again; backends of a killed postmaster may hold its memory for a moment, so it tries for a while. */
  #died(child: ChildProcess, code: number | null, signal: string | null): void {
    if (this.#stopping || this.#child !== child) return;
    this.#log.error({ code: String(code), signal: signal ?? '' }, 'Postgres died: starting it again');
    this.#restart = (async () => {
      const stale = this.#owner;
      this.#owner = null;
      await stale?.end({ timeout: 0 });
      for (let attempt = 1; !this.#stopping; attempt++) {
        try {
          await this.start();
          return this.#log.info({ attempt }, 'Postgres is back');
        } catch (err) {
          this.#log.error({ err, attempt }, 'Postgres did not come back yet');
          await wait(Math.min(100 * attempt, 2000));
        }
      }
    })();
  }

  async stop(): Promise<void> {
    if (this.#stopping) return this.#restart;
    this.#stopping = true;
    await this.#restart;
    await this.#owner?.end({ timeout: 1 });
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill('SIGINT');
    const slow = setTimeout(() => {
      this.#log.warn({}, 'Postgres did not stop in 20 s: immediate shutdown');
      child.kill('SIGQUIT');
    }, 20_000);
    await exited;
    clearTimeout(slow);
  }
}
