/** What processes take, as proc(5) tells it: memory, and processor time by the part of the system they belong to. */
import { readdirSync, readFileSync } from 'node:fs';
import type { Sql } from '../../controller/src/platform/db.ts';
import { exec } from '../lab/process.ts';
import type { Fleet } from './bed.ts';

/** Resident memory in MiB (VmRSS). */
export function residentMiB(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(status.match(/^VmRSS:\s+(\d+) kB/m)?.[1] ?? Number.NaN) / 1024;
}

interface Ticks {
  readonly parent: number;
  /** Clock ticks it has run itself. */
  readonly own: number;
  /** The same of its children that have ended. */
  readonly children: number;
}

/** Fields 4 and 14 to 17 of `stat`. */
export function ticks(pid: number): Ticks {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
  const [user = 0, system = 0, childUser = 0, childSystem = 0] = fields.slice(11, 15);
  return { parent: fields[1] ?? 0, own: user + system, children: childUser + childSystem };
}

/** Processes come and go while they are looked at. */
function ticksIfThere(pid: number): Ticks | null {
  try {
    return ticks(pid);
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return null;
    throw error;
  }
}

async function pidsIn(namespace: string): Promise<number[]> {
  const text = await exec('ip', ['netns', 'pids', namespace]);
  return text.split('\n').filter(Boolean).map(Number);
}

export const PARTS = ['controller', 'database', 'agents', 'commands of agents', 'WireGuard daemons'] as const;
export type Part = (typeof PARTS)[number];

/** Processor time that each part of a fleet has taken so far, in ms. */
export async function processorTime(fleet: Fleet, sql: Sql): Promise<Record<Part, number>> {
  const hertz = Number(await exec('getconf', ['CLK_TCK']));
  const spent = Object.fromEntries(PARTS.map((part) => [part, 0])) as Record<Part, number>;
  const add = (part: Part, count: number) => {
    spent[part] += (count / hertz) * 1000;
  };
  add('controller', ticks(fleet.lab.controller.program.pid).own);
  for (const exit of fleet.lab.exits) {
    const daemon = await exit.wireguardPid();
    for (const pid of await pidsIn(exit.namespace)) {
      const at = ticksIfThere(pid);
      if (!at) continue;
      if (pid === exit.agentPid) add('agents', at.own);
      else if (pid === daemon) add('WireGuard daemons', at.own);
      // its shells: what they run ends at once and is then counted as theirs
      else add('commands of agents', at.own);
      if (pid !== daemon) add('commands of agents', at.children);
    }
  }
  add('database', await databaseTicks(sql));
  return spent;
}

/** Clock ticks of every process of the database's server that is alive. */
export async function databaseTicks(sql: Sql): Promise<number> {
  const [backend] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`;
  const server = backend ? ticks(backend.pid).parent : 0;
  let sum = 0;
  for (const name of readdirSync('/proc')) {
    const at = /^\d+$/.test(name) ? ticksIfThere(Number(name)) : null;
    if (at && at.parent === server) sum += at.own;
  }
  return sum;
}
