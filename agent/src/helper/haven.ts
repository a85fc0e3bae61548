/**
 * Keeps AdGuard Home's file as it is wanted, and the service running on it: what its API cannot be told (addresses it
 * binds, users, files it writes) it reads from there, and only when it starts.
 */
import { KatafractError } from '@katafract/shared/errors';
import { parse } from 'yaml';
import { adguardConfig, CONFIG_PATH, differences } from './adguard.ts';
import type { HelperPorts } from './ports.ts';
import { REQUESTS, type Request } from './requests.ts';
import { COMMANDS, type Command, HAVEN_UNIT, runCommand } from './system.ts';

const MEMORY = 'haven';

/**
 * @throws KatafractError `haven_missing` where there is no AdGuard Home; `haven_refused` where it does not start with
 * what was wanted: the file before is back then
 */
export async function haven(ports: HelperPorts, request: Request<'haven'>): Promise<void> {
  if ('off' in request) await stop(ports);
  else await keep(ports, request);
  // from now on it is kept so; what AdGuard does not start with is not tried again and again
  await ports.memory.write(MEMORY, request);
}

/** Whatever somebody made of the file since. @returns whether anything was put right */
export async function keepHaven(ports: HelperPorts): Promise<boolean> {
  const wanted = REQUESTS.haven.safeParse(await ports.memory.read(MEMORY));
  if (!wanted.success || 'off' in wanted.data) return false;
  return keep(ports, wanted.data);
}

async function stop(ports: HelperPorts): Promise<void> {
  await runCommand(ports.exec, COMMANDS.stopHaven);
  await ports.files.remove(CONFIG_PATH);
}

async function keep(ports: HelperPorts, request: Exclude<Request<'haven'>, { off: true }>): Promise<boolean> {
  const wanted = adguardConfig(request);
  const before = await ports.files.read(CONFIG_PATH);
  const wrong = differences(wanted, parsed(before));
  if (wrong.length === 0 && (await succeeds(ports, COMMANDS.havenActive))) return false;
  if (!(await succeeds(ports, COMMANDS.havenThere))) {
    throw new KatafractError('haven_missing', 'there is no AdGuard Home on this machine');
  }
  ports.log.info({ unit: HAVEN_UNIT, wrong: wrong.slice(0, 20) }, 'the DNS filter is set up');
  // it writes its file while it runs, and once more when it stops
  await runCommand(ports.exec, COMMANDS.stopHaven);
  try {
    if (wrong.length > 0)
      await ports.files.write(CONFIG_PATH, `${JSON.stringify(wanted, null, 1)}\n`, 'private');
    await runCommand(ports.exec, COMMANDS.startHaven);
  } catch (cause) {
    if (before !== null && wrong.length > 0) {
      await ports.files.write(CONFIG_PATH, before, 'private');
      await runCommand(ports.exec, COMMANDS.startHaven).catch((err: unknown) =>
        ports.log.error({ err }, 'nor does it start with what was there before'),
      );
    }
    throw new KatafractError('haven_refused', 'AdGuard Home does not start with what is wanted', { cause });
  }
  return true;
}

function parsed(text: string | null): unknown {
  if (text === null) return null;
  try {
    // no aliases: a file of a few lines must not become gigabytes
    return parse(text, { maxAliasCount: 0 });
  } catch {
    return null; // not YAML: as good as none, and it is written anew
  }
}

async function succeeds({ exec }: HelperPorts, command: Command): Promise<boolean> {
  try {
    await runCommand(exec, command);
    return true;
  } catch (error) {
    if (error instanceof KatafractError && error.code === 'command_failed') return false;
    throw error;
  }
}
