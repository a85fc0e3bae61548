/** The machine a run was made on: without it no figure of the run means anything. */
import { cpus, loadavg, release, totalmem } from 'node:os';
import type { Sql } from '../../controller/src/platform/db.ts';
import { exec, run } from '../lab/process.ts';

export interface Machine {
  readonly cores: string;
  readonly memory: string;
  readonly kernel: string;
  readonly node: string;
  readonly postgres: string;
  readonly disk: string;
  readonly wireguard: string;
  readonly ssh: string;
  readonly load: string;
}

/**
 * @param sql the server that the run uses
 * @param folder where it keeps its files
 * @throws Error where that server would acknowledge what is not on the disk
 */
export async function describeMachine(sql: Sql, folder: string): Promise<Machine> {
  const [server] = await sql<{ version: string; fsync: string; commit: string; wal: string }[]>`
    select version(), current_setting('fsync') as fsync, current_setting('synchronous_commit') as commit,
           current_setting('wal_sync_method') as wal`;
  if (server?.fsync !== 'on' || server.commit !== 'on') throw new Error('Postgres must run with fsync on');
  const [first] = cpus();
  return {
    cores: `${cpus().length} × ${first?.model.trim() ?? 'unknown'}`,
    memory: `${(totalmem() / 2 ** 30).toFixed(1)} GiB`,
    kernel: release(),
    node: process.version,
    postgres: `${server.version.split(' on ')[0]}, fsync on (${server.wal})`,
    disk: await diskOf(folder),
    wireguard: await wireguard(),
    ssh: (await run('ssh', ['-V'])).stderr.trim(),
    load: loadavg()
      .map((value) => value.toFixed(2))
      .join(' '),
  };
}

async function diskOf(folder: string): Promise<string> {
  const text = await exec('df', ['--output=fstype,source', folder]);
  return text.trim().split('\n').at(-1)?.replace(/\s+/, ' on ') ?? 'unknown';
}

async function wireguard(): Promise<string> {
  const tools = (await exec('wg', ['--version'])).split(' - ')[0]?.trim() ?? '';
  return `${await describeWireguard()}, ${tools}`;
}

/** What makes the tunnels: the kernel, or a wireguard-go of which version. @param program that, where not the machine's */
export async function describeWireguard(program?: string): Promise<string> {
  const kernel = await run('unshare', ['--net', 'ip', 'link', 'add', 'kfprobe', 'type', 'wireguard']);
  if (kernel.code === 0) return 'kernel';
  const { stdout } = await run(program ?? 'wireguard-go', ['--version']);
  return stdout.split('\n')[0]?.trim() || 'wireguard-go';
}
