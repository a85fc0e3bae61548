/**
 * The helper: takes up what the agent asks of its machine, as root, one pass over the requests. It believes nothing of
 * a request but what its schema lets through, and can be killed anywhere: a request is there until it has its result,
 * and what must not be done twice is written down before it is done.
 */
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import { haven, keepHaven } from './haven.ts';
import type { HelperPorts } from './ports.ts';
import { Alive, REQUEST_NAMES, REQUESTS, type Request, type RequestName, type Result } from './requests.ts';
import { ssh } from './ssh.ts';
import { COMMANDS, install, runCommand as run, updatesFiles } from './system.ts';

const ASK_EVERY_MS = 500;
/** No honest lease is longer, in ms. */
const LONGEST_LEASE_MS = 60 * 60_000;
const UpdateMemory = z.object({ version: z.string(), before: z.string() });
const LeaseMemory = z.object({ lease: z.string(), until: z.number() });

/** One pass. @returns how many requests were answered */
export async function serve(ports: HelperPorts): Promise<number> {
  let answered = 0;
  for (const name of REQUEST_NAMES) if (await serveOne(ports, name)) answered++;
  try {
    await keepHaven(ports);
  } catch (error) {
    ports.log.error({ err: error }, 'the DNS filter could not be put right');
  }
  return answered;
}

async function serveOne(ports: HelperPorts, name: RequestName): Promise<boolean> {
  const { requests, log, now } = ports;
  let request: unknown = null;
  try {
    const raw = await requests.take(name);
    if (raw === undefined) return false;
    const parsed = REQUESTS[name].safeParse(raw);
    if (!parsed.success) throw new KatafractError('request_refused', `${name}: not of the vocabulary`);
    request = parsed.data;
    await HANDLERS[name](ports, parsed.data);
    // a reboot has its answer before it begins
    if (name !== 'reboot') await conclude(ports, name, { request, outcome: 'done', at: now() });
    log.info({ request: name }, 'done');
  } catch (error) {
    const code = error instanceof KatafractError ? error.code : 'failed';
    log.error({ request: name, err: error }, 'failed');
    await conclude(ports, name, { request, outcome: 'failed', code, at: now() });
  }
  return true;
}

/** The result first: a request without one would be asked again. */
async function conclude({ requests }: HelperPorts, name: RequestName, result: Result): Promise<void> {
  await requests.answer(name, result);
  await requests.remove(name);
}

const HANDLERS: Readonly<Record<RequestName, (ports: HelperPorts, request: Request) => Promise<void>>> = {
  update: (ports, request) => update(ports, request as Request<'update'>),
  reboot: (ports, request) => reboot(ports, request as Request<'reboot'>),
  updates: (ports, request) => updates(ports, request as Request<'updates'>),
  haven: (ports, request) => haven(ports, request as Request<'haven'>),
  ssh: (ports, request) => ssh(ports, request as Request<'ssh'>),
};

/**
 * Installs another version and waits until it speaks with the controller. One that does not could never be told to go
 * back, so the version before is put back here.
 * @throws KatafractError `install_failed`, `not_alive`, `not_restored` where even that failed
 */
async function update(ports: HelperPorts, { version }: Request<'update'>): Promise<void> {
  const { memory, requests } = ports;
  const began = UpdateMemory.safeParse(await memory.read('update'));
  const resumed = began.success && began.data.version === version;
  const before = resumed ? began.data.before : (await run(ports.exec, COMMANDS.installed)).trim();
  await memory.write('update', { version, before });
  await requests.remove('alive');
  try {
    if (before === version) await run(ports.exec, COMMANDS.restartAgent);
    else await installOnce(ports, version);
  } catch (cause) {
    await restore(ports, before);
    throw new KatafractError('install_failed', `version ${version} could not be installed`, { cause });
  }
  if (!(await comesAlive(ports, version))) {
    await restore(ports, before);
    throw new KatafractError('not_alive', `version ${version} did not reach the controller in time`);
  }
  await memory.write('update', null);
}

/** With fresh lists where the old ones do not know the version. */
async function installOnce(ports: HelperPorts, version: string): Promise<void> {
  try {
    await run(ports.exec, install(version));
  } catch (error) {
    ports.log.warn({ err: error }, 'not installed; once more with fresh package lists');
    await run(ports.exec, COMMANDS.refreshLists);
    await run(ports.exec, install(version));
  }
}

async function restore(ports: HelperPorts, before: string): Promise<void> {
  try {
    await installOnce(ports, before);
  } catch (cause) {
    throw new KatafractError('not_restored', `version ${before} could not be put back`, { cause });
  }
  await ports.memory.write('update', null);
}

async function comesAlive({ requests, now, sleep, patienceMs }: HelperPorts, version: string) {
  for (const end = now() + patienceMs; now() < end; await sleep(ASK_EVERY_MS)) {
    const sign = Alive.safeParse(await requests.take('alive'));
    if (sign.success && sign.data.version === version) return true;
  }
  return false;
}

/**
 * @throws KatafractError `lease_over` where its time has passed or lies too far away; `lease_used` where this one, or a
 * later one, was used before; `command_failed` where the system does not reboot
 */
async function reboot(ports: HelperPorts, request: Request<'reboot'>): Promise<void> {
  const { memory, now } = ports;
  const { lease, until } = request;
  if (now() >= until || until - now() > LONGEST_LEASE_MS) {
    throw new KatafractError('lease_over', 'it is not the time of this lease');
  }
  const last = LeaseMemory.safeParse(await memory.read('lease'));
  if (last.success && (last.data.lease === lease || until <= last.data.until)) {
    throw new KatafractError('lease_used', 'this lease was used before');
  }
  await memory.write('lease', { lease, until });
  await conclude(ports, 'reboot', { request, outcome: 'done', at: now() });
  await run(ports.exec, COMMANDS.reboot);
}

async function updates(ports: HelperPorts, window: Request<'updates'>): Promise<void> {
  for (const [path, text] of Object.entries(updatesFiles(window))) await ports.files.write(path, text);
  await run(ports.exec, COMMANDS.reloadUnits);
  await run(ports.exec, COMMANDS.restartTimers);
}
