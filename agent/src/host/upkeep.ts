/** The agent's side of the requests to the helper: files in its own state directory, and facts of the machine. */
import { access, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { Alive, REQUEST_NAMES, REQUESTS, type RequestName, Result } from '../helper/requests.ts';
import type { RequestSeen, UpkeepAction, UpkeepFacts } from '../upkeep/plan.ts';
import type { UpkeepPort } from '../upkeep/upkeep.ts';
import { readText, writeDurably } from './files.ts';

/** Where the machine says how it is; tests have their own. */
export interface MachineFiles {
  readonly boot: string;
  readonly rebootRequired: string;
}

export const MACHINE_FILES: MachineFiles = {
  boot: '/proc/sys/kernel/random/boot_id',
  rebootRequired: '/run/reboot-required',
};

const Lease = z.object({ lease: z.uuid(), boot: z.string() });
const json = (value: object) => `${JSON.stringify(value)}\n`;

/** @param directory the agent's state directory */
export function upkeepFiles(directory: string, machine: MachineFiles = MACHINE_FILES): UpkeepPort {
  const folder = join(directory, 'requests');
  const leaseFile = join(directory, 'reboot.json');
  const file = (name: string) => join(folder, name);

  async function request(name: RequestName): Promise<RequestSeen> {
    const [pending, result] = await Promise.all([
      read(file(name), REQUESTS[name]),
      read(file(`${name}.result`), Result),
    ]);
    return { pending, result };
  }

  async function look(): Promise<UpkeepFacts> {
    const [requests, lease, boot, rebootNeeded, alive] = await Promise.all([
      Promise.all(REQUEST_NAMES.map(async (name) => [name, await request(name)] as const)),
      read(leaseFile, Lease),
      readText(machine.boot),
      exists(machine.rebootRequired),
      read(file('alive'), Alive),
    ]);
    return {
      requests: Object.fromEntries(requests) as Record<RequestName, RequestSeen>,
      lease,
      boot: (boot ?? '').trim(),
      rebootNeeded,
      alive: alive?.version ?? null,
    };
  }

  async function act(action: UpkeepAction): Promise<void> {
    await mkdir(folder, { mode: 0o700, recursive: true });
    switch (action.do) {
      case 'request':
        return writeDurably(file(action.name), json(action.request));
      case 'forget':
        await rm(file(action.name), { force: true });
        return rm(file(`${action.name}.result`), { force: true });
      case 'remember':
        return writeDurably(leaseFile, json({ lease: action.lease, boot: action.boot }));
      case 'alive':
        return writeDurably(file('alive'), json({ version: action.version }));
    }
  }

  return { look, act };
}

/** What a file holds; null where there is none. What cannot be read as it should is as good as nothing. */
async function read<S extends z.ZodType>(path: string, schema: S): Promise<z.infer<S> | null> {
  const text = await readText(path);
  if (text === null) return null;
  try {
    return schema.parse(JSON.parse(text));
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof z.ZodError) return null;
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
