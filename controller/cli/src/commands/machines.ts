/** Regions, what they need, and the machines that come of it. */
import { KatafractError } from '@katafract/shared/errors';
import type { Command } from 'commander';
import { z } from 'zod';
import type { Answer } from '../api.ts';
import { Capacity, ChangedRegion, list, Machine, pageOf, Region } from '../bodies.ts';
import { type Act, asCount, asNumber, type Context, part } from '../command.ts';
import { readText, UsageError } from '../settings.ts';
import { ago, table } from '../text.ts';

interface RegionOptions {
  readonly name?: string;
  readonly country?: string;
  readonly latitude?: number;
  readonly longitude?: number;
  readonly timeZone?: string;
  readonly minExits?: number;
  /** False by --no-grow. */
  readonly grow?: string | false;
  readonly location?: string;
  readonly size?: string;
  readonly exitCapacity?: number;
  readonly bandwidth?: number;
  readonly tunnels?: number;
  readonly maxExits?: number;
  /** False by --no-haven. */
  readonly haven?: string | false;
  readonly sshFromMesh?: boolean;
}

export function machineCommands(program: Command, act: Act): void {
  program.command('regions').description('list regions as they are set up').action(act(listRegions));
  regionSet(program.command('region').description('set a region up'), act);
  program
    .command('capacity')
    .description('what every region is expected to need, the fullest first')
    .option('--explain', 'in whole sentences')
    .action(act(capacity));
  const machines = program
    .command('machines')
    .description('list machines, newest first')
    .option('--open', 'only those that are not over')
    .action(act(listMachines));
  machines
    .command('order')
    .description('ask for one more machine in a region')
    .argument('<region>')
    .action(act(order));
  machines
    .command('remove')
    .description('give a machine back, its node drained first')
    .argument('<machine>', 'its id')
    .action(act(remove));
  machines
    .command('cloud-init')
    .description('what to give a host so that it becomes this machine; a secret: there is a join token in it')
    .argument('<machine>', 'its id')
    .action(act(cloudInit));
}

function regionSet(region: Command, act: Act): void {
  region
    .command('set')
    .description('add a region (name, country and place are needed), or change one')
    .argument('<region>', 'its id')
    .option('--name <name>', 'as apps show it')
    .option('--country <code>', 'ISO 3166-1, two letters')
    .option('--latitude <degrees>', 'north positive', asNumber)
    .option('--longitude <degrees>', 'east positive', asNumber)
    .option('--time-zone <name>', 'IANA name, such as Europe/Berlin: when it is night there')
    .option('--min-exits <count>', 'exits that must stay well', asCount)
    .option('--grow <provider>', 'grow by itself: manual, hetzner or lab, with the options below')
    .option('--no-grow', 'not grow by itself')
    .option('--location <location>', "where, in the provider's own words")
    .option('--size <size>', "what, in the provider's own words")
    .option('--exit-capacity <peers>', 'peers that one such exit may carry', asCount)
    .option('--bandwidth <mbit>', 'what its line carries', asCount)
    .option('--tunnels <n>', 'WireGuard interfaces of one, on as many ports (default: 1)', asCount)
    .option('--max-exits <count>', 'exits beyond which the region does not grow', asCount)
    .option('--haven <file>', 'filter DNS as this file says: JSON with upstreams, bootstrap, blocklists, …')
    .option('--no-haven', 'not filter DNS')
    .option('--ssh-from-mesh', 'its exits answer SSH to the mesh alone, and root by key alone')
    .option('--no-ssh-from-mesh', 'SSH is as its exits have it')
    .action(act(setRegion));
}

async function listRegions(context: Context): Promise<void> {
  const { body, raw } = await (await context.api).call('GET', 'admin/regions', { schema: list(Region) });
  context.show(raw, () =>
    table(
      ['REGION', 'NAME', 'COUNTRY', 'TIME ZONE', '>MIN EXITS', 'HAVEN', 'SSH', 'GROWS'],
      body.items.map(({ id, name, country, timeZone, minExits, haven, sshFromMesh, growth }) => [
        id,
        name,
        country,
        timeZone,
        minExits,
        haven && `lists: ${haven.blocklists.length}`,
        sshFromMesh ? 'mesh' : null,
        growth && `${growth.provider} ${growth.size} ${growth.location}, up to ${growth.maxExits}`,
      ]),
    ),
  );
}

async function setRegion(context: Context, id: string, options: RegionOptions): Promise<void> {
  const { name, country, latitude, longitude, timeZone, minExits, sshFromMesh } = options;
  const growth = growthFrom(options);
  const haven = typeof options.haven === 'string' ? await havenFrom(options.haven) : options.haven;
  const place = { name, country, latitude, longitude };
  // undefined is left out of JSON
  const settings = { timeZone, minExits, growth, haven: haven === false ? null : haven, sshFromMesh };
  const whole = Object.values(place).every((value) => value !== undefined);
  const api = await context.api;
  const { raw } = whole
    ? await api.call('POST', 'admin/regions', { schema: ChangedRegion, body: { id, ...place, ...settings } })
    : await api.call('PATCH', `admin/regions/${part(id)}`, {
        schema: ChangedRegion,
        body: { ...place, ...settings },
      });
  context.show(raw, () => `${id} is set`);
}

function growthFrom(options: RegionOptions): object | null | undefined {
  const { grow, location, size, exitCapacity, bandwidth, tunnels, maxExits } = options;
  const of = [location, size, exitCapacity, bandwidth, tunnels, maxExits];
  if (grow === false) return null;
  if (grow === undefined) {
    if (of.every((value) => value === undefined)) return undefined;
    throw new UsageError('options_missing', 'how a region grows begins with --grow <provider>');
  }
  if (exitCapacity === undefined || maxExits === undefined)
    throw new UsageError('options_missing', '--grow needs --exit-capacity and --max-exits');
  return {
    provider: grow,
    location: location ?? '',
    size: size ?? '',
    capacity: exitCapacity,
    bandwidthMbit: bandwidth ?? null,
    tunnels,
    maxExits,
  };
}

/** As it is written: the controller says field by field what it would not take. */
async function havenFrom(path: string): Promise<unknown> {
  const text = await readText(path, 'haven_unreadable');
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new UsageError('haven_malformed', `${path} is not JSON`, { cause });
  }
}

const percent = (share: number) => `${Math.round(share * 100)} %`;

async function capacity(context: Context, { explain }: { explain?: true }): Promise<void> {
  const { body, raw } = await (await context.api).call('GET', 'admin/capacity', { schema: list(Capacity) });
  context.show(raw, () =>
    explain
      ? body.items
          .map(({ explained, decision }) => `${explained}\n  ${decision.do}: ${decision.reason}`)
          .join('\n')
      : table(
          [
            'REGION',
            '>EXITS',
            '>COMING',
            '>PEERS',
            '>ROOM',
            '>USED',
            '>EXPECTED',
            '>PEERS/H',
            'DECISION',
            'WHY',
          ],
          body.items.map((at) => [
            at.region,
            at.exits,
            at.coming,
            at.peers,
            at.room,
            percent(at.used),
            percent(at.expectedUsed),
            Math.round(at.trend),
            at.decision.do,
            at.decision.reason,
          ]),
        ),
  );
}

/** Pages at most: a thousand machines, more than anybody reads. */
const PAGES = 10;

async function allMachines(context: Context, open: boolean): Promise<{ items: Machine[]; raw: unknown[] }> {
  const items: Machine[] = [];
  const raw: unknown[] = [];
  let cursor = '';
  for (let page = 0; page < PAGES; page++) {
    const path = `admin/machines?limit=100&open=${open}${cursor}`;
    const answer = await (await context.api).call('GET', path, { schema: pageOf(Machine) });
    items.push(...answer.body.items);
    raw.push(...(answer.raw as { items: unknown[] }).items);
    if (answer.body.next === null) break;
    cursor = `&cursor=${part(answer.body.next)}`;
  }
  return { items, raw };
}

/** @throws KatafractError `machine_unknown` */
export async function readMachine(context: Context, id: string): Promise<Answer<Machine>> {
  const { items, raw } = await allMachines(context, false);
  const at = items.findIndex((one) => one.id === id);
  const body = items[at];
  if (body) return { body, raw: raw[at] };
  throw new KatafractError('machine_unknown', `no machine ${id}`, { status: 404 });
}

async function listMachines(context: Context, { open = false }: { open?: boolean }): Promise<void> {
  const { items, raw } = await allMachines(context, open);
  context.show({ items: raw }, () =>
    table(
      ['MACHINE', 'NODE', 'REGION', 'PROVIDER', 'STATE', 'SINCE', 'ADDRESS', 'PROBLEM', 'WHY'],
      items.map((one) => [
        one.id,
        one.node,
        one.region,
        one.provider,
        one.state,
        ago(one.since, context.now),
        one.address,
        one.problem,
        one.reason,
      ]),
    ),
  );
}

const machineLine = ({ id, node, region, provider, state }: Machine) =>
  `machine ${id}: ${node} in ${region} by ${provider}, ${state}`;

async function order(context: Context, region: string): Promise<void> {
  const asked = { schema: Machine, body: { region }, makes: true };
  const { body, raw } = await (await context.api).call('POST', 'admin/machines', asked);
  context.show(raw, () => machineLine(body));
}

async function remove(context: Context, id: string): Promise<void> {
  const { body, raw } = await (await context.api).call('DELETE', `admin/machines/${part(id)}`, {
    schema: Machine,
  });
  context.show(raw, () => machineLine(body));
}

async function cloudInit(context: Context, id: string): Promise<void> {
  const path = `admin/machines/${part(id)}/cloud-init`;
  const { body } = await (await context.api).call('GET', path, { schema: z.string() });
  context.show({ machine: id, cloudInit: body }, () => body.trimEnd());
}
