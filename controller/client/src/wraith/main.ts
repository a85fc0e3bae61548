/**
 * wraith: this machine's tunnel to an exit.
 *
 *   wraith up --region eu-de      provision (or reuse) this machine's peer and route everything through it
 *   wraith up --watch             the same, and stay: when the exit dies or is drained, go on through a standby
 *   wraith watch                  stay with a tunnel that is up
 *   wraith status                 exit, age of the handshake, transfer, standbys
 *   wraith down                   undo exactly what `up` did
 *   wraith claim                  get a Sigil for this machine by a claim secret; it is kept and refreshed from then on
 *
 * Sigils and secrets come from a file or the environment, never from argv, which every user of the machine can read.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import { Command, InvalidArgumentError, Option } from 'commander';
import { PATIENCE } from '../failover/rules.ts';
import { type Client, createClient } from '../sdk.ts';
import { down, forget, qr, status, type UpWish, up } from './commands.ts';
import {
  type ClientCredentials,
  claim,
  credentialsFor,
  deviceThumbprint,
  keepSigil,
  unbind,
} from './credentials.ts';
import { readDevice } from './device.ts';
import { hostPorts, locked } from './host.ts';
import type { Ports } from './ports.ts';
import { regionsText, statusText } from './text.ts';
import { watch } from './watch.ts';

interface GlobalOptions {
  readonly api?: string;
  readonly sigilFile?: string;
  readonly stateDir: string;
}
interface ClaimOptions {
  readonly secretFile?: string;
  readonly voucherFile?: string;
}
interface UpOptions {
  readonly region?: string;
  readonly exit?: string;
  readonly interface: string;
  readonly mtu?: number;
  readonly dns: boolean;
  readonly newKey: boolean;
  readonly watch: boolean;
  readonly homeAfter: number;
}

/** A person waits: less patience than an app. */
const RETRY = { attempts: 3, timeoutMs: 8_000 };
/** What is asked again in a while anyway. */
const ASK_ONCE = { attempts: 1, timeoutMs: 8_000 };

const DNS_HELP = `resolve names at the exit, by way of resolvconf. Without it the machine asks the resolver it has:
through the tunnel, or beside it where that resolver is in the local network`;

function buildProgram(): Command {
  const program = new Command('wraith')
    .description("This machine's WireGuard tunnel to a Katafract exit")
    .addOption(
      new Option('--api <url>', 'base URL of the API (default: the one used last)').env('WRAITH_API'),
    )
    .option(
      '--sigil-file <path>',
      'file that holds the Sigil (default: the environment variable WRAITH_SIGIL, else the one that was claimed)',
    )
    .option('--state-dir <path>', 'keys, peer and journal of this device; mode 0700', '/var/lib/wraith');
  program
    .command('up')
    .description('bring the tunnel up, or switch one that is up')
    .option('--region <region>', 'where to exit (default: where this device already has a peer)')
    .option('--exit <node>', 'one of the exits that `wraith status` lists (default: the primary)')
    .option('--interface <name>', 'name of the interface', interfaceName, 'wraith0')
    .option('--mtu <bytes>', 'of the interface (default: what the API says, or 1420)', mtu)
    .option('--dns', DNS_HELP, false)
    .option('--new-key', 'replace the key pair first', false)
    .option('--watch', 'stay, and go on through a standby when the exit does not answer', false)
    .addOption(homeAfter())
    .action((options: UpOptions) => runUp(program.opts<GlobalOptions>(), options));
  program
    .command('watch')
    .description(
      'stay with the tunnel that is up, as `up --watch` does; ends by Ctrl-C, and the tunnel stays',
    )
    .addOption(homeAfter())
    .action((options: Pick<UpOptions, 'homeAfter'>) => runWatch(program.opts<GlobalOptions>(), options));
  program
    .command('down')
    .description('take the tunnel down')
    .option('--forget', 'also give the peer back and forget its keys', false)
    .action((options: { forget: boolean }) => runDown(program.opts<GlobalOptions>(), options.forget));
  program
    .command('status')
    .description('show the tunnel; exit code 3 where it is not up')
    .option('--json', 'for machines', false)
    .action((options: { json: boolean }) => runStatus(program.opts<GlobalOptions>(), options.json));
  program
    .command('claim')
    .description('get a Sigil for this machine: by the claim secret of what was paid for, or by a gift code')
    .option(
      '--secret-file <path>',
      'file that holds the secret (default: WRAITH_SECRET; made for a gift code)',
    )
    .option('--voucher-file <path>', 'file that holds a gift code (default: WRAITH_VOUCHER)')
    .action((options: ClaimOptions) => runClaim(program.opts<GlobalOptions>(), options));
  program
    .command('unbind')
    .description("give this machine's place in the subscription back; its Sigil and peer end")
    .action(() => runUnbind(program.opts<GlobalOptions>()));
  program
    .command('key')
    .description('show the thumbprint of this machine, for which an operator can mint a Sigil')
    .action(() => runKey(program.opts<GlobalOptions>()));
  program
    .command('regions')
    .description('list the regions')
    .action(() => runRegions(program.opts<GlobalOptions>()));
  program
    .command('qr')
    .description('show a wg-quick file as QR code, for a phone; give the phone a --state-dir of its own')
    .option('--region <region>', 'where to exit')
    .option('--svg', 'SVG instead of text', false)
    .action((options: { region?: string; svg: boolean }) => runQr(program.opts<GlobalOptions>(), options));
  return program;
}

async function runUp(globals: GlobalOptions, options: UpOptions): Promise<void> {
  // a watching `wraith` would take the tunnel back to where it was
  await watching(globals, async () => {
    const raise = () => locked(globals.stateDir, () => bringUp(globals, options));
    if (!options.watch) return raise();
    await raise().catch((error: unknown) => {
      // its standbys may: they are tried next
      if (!(error instanceof KatafractError && error.code === 'no_handshake')) throw error;
      console.error(`wraith: ${error.message}`);
    });
    await stay(globals, options);
  });
}

async function bringUp(globals: GlobalOptions, options: UpOptions): Promise<void> {
  const ports = await hostPorts(globals.stateDir);
  const api = await apiUrl(globals, ports);
  const { region, exit: node, mtu: size, interface: name, dns, newKey } = options;
  const wish: UpWish = { interface: name, dns, newKey, api, region, exit: node, mtu: size };
  const exit = await up(ports, await connect(globals, api, ports), wish);
  ports.note(`up through ${exit.node} (${exit.region})`);
}

function runWatch(globals: GlobalOptions, options: Pick<UpOptions, 'homeAfter'>): Promise<void> {
  return watching(globals, () => stay(globals, options));
}

/** One at a time, beside the lock that each change takes. */
async function watching(globals: GlobalOptions, task: () => Promise<void>): Promise<void> {
  await locked(join(globals.stateDir, 'watch'), task);
}

async function stay(globals: GlobalOptions, { homeAfter }: Pick<UpOptions, 'homeAfter'>): Promise<void> {
  const host = await hostPorts(globals.stateDir);
  const note = (line: string) => host.note(`${new Date().toISOString()} ${line}`);
  const ports: Ports = { ...host, note };
  const client = await connect(globals, await apiUrl(globals, ports), ports, ASK_ONCE);
  const ended = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => ended.abort());
  note('watching');
  await watch(ports, client, {
    patience: { homeWell: homeAfter * 1000 },
    exclusively: (task) => locked(globals.stateDir, task),
    signal: ended.signal,
  });
  note('the tunnel stays up, and nobody watches it');
}

async function runDown(globals: GlobalOptions, alsoForget: boolean): Promise<void> {
  await locked(globals.stateDir, async () => {
    const ports = await hostPorts(globals.stateDir);
    ports.note((await down(ports)) ? 'down' : 'was not up');
    if (alsoForget) await forget(ports, await connect(globals, await apiUrl(globals, ports), ports));
  });
}

async function runClaim(globals: GlobalOptions, options: ClaimOptions): Promise<void> {
  await locked(globals.stateDir, async () => {
    const ports = await hostPorts(globals.stateDir);
    const api = await apiUrl(globals, ports);
    const secret = await secretFrom(options.secretFile, process.env.WRAITH_SECRET);
    const voucher = await secretFrom(options.voucherFile, process.env.WRAITH_VOUCHER);
    const { tier, devices } = await claim(ports, (given) => clientFor(api, given), { secret, voucher });
    ports.note(`claimed: ${tier}, device ${devices.bound} of ${devices.limit}`);
  });
}

async function runUnbind(globals: GlobalOptions): Promise<void> {
  await locked(globals.stateDir, async () => {
    const ports = await hostPorts(globals.stateDir);
    await down(ports);
    await unbind(ports, await connect(globals, await apiUrl(globals, ports), ports));
    ports.note('unbound');
  });
}

async function runKey(globals: GlobalOptions): Promise<void> {
  await locked(globals.stateDir, async () => {
    console.log(await deviceThumbprint(await hostPorts(globals.stateDir)));
  });
}

async function runStatus(globals: GlobalOptions, json: boolean): Promise<void> {
  const current = await status(await hostPorts(globals.stateDir));
  console.log(json ? JSON.stringify(current) : statusText(current));
  if (current.state !== 'up') process.exitCode = 3;
}

async function runRegions(globals: GlobalOptions): Promise<void> {
  const ports = await hostPorts(globals.stateDir);
  const client = await connect(globals, await apiUrl(globals, ports), ports);
  console.log(regionsText(await client.regions()));
}

async function runQr(globals: GlobalOptions, options: { region?: string; svg: boolean }): Promise<void> {
  await locked(globals.stateDir, async () => {
    const ports = await hostPorts(globals.stateDir);
    const api = await apiUrl(globals, ports);
    const wish = { api, region: options.region, newKey: false };
    console.log(await qr(ports, await connect(globals, api, ports), wish, options.svg ? 'svg' : 'text'));
  });
}

async function apiUrl({ api }: GlobalOptions, { files }: Ports): Promise<string> {
  const url = api ?? (await readDevice(files))?.api;
  if (url === undefined || !URL.canParse(url)) {
    throw new KatafractError('api_missing', 'name the API with --api or WRAITH_API');
  }
  return url;
}

async function connect(
  { sigilFile }: GlobalOptions,
  api: string,
  { files }: Ports,
  retry: typeof RETRY = RETRY,
): Promise<Client> {
  const given = await secretFrom(sigilFile, process.env.WRAITH_SIGIL);
  const { deviceKey, sigil } = await credentialsFor(files, given);
  if (sigil === undefined) {
    const hint = '`wraith claim` one, or put it into --sigil-file or WRAITH_SIGIL';
    throw new KatafractError('sigil_missing', `there is no Sigil: ${hint}`);
  }
  return clientFor(api, { sigil, deviceKey, onSigil: (fresh) => keepSigil(files, fresh) }, retry);
}

function clientFor(api: string, given: ClientCredentials, retry: typeof RETRY = RETRY): Client {
  const { sigil, deviceKey, onSigil } = given;
  return createClient({
    baseUrl: api,
    retry,
    ...(sigil === undefined ? {} : { sigil }),
    ...(deviceKey === undefined ? {} : { deviceKey }),
    ...(onSigil === undefined ? {} : { onSigil }),
  });
}

/** From a file, else from the environment; undefined where neither has it. */
async function secretFrom(
  path: string | undefined,
  variable: string | undefined,
): Promise<string | undefined> {
  const text = path === undefined ? variable : await readFile(path, 'utf8');
  return text?.trim() || undefined;
}

function interfaceName(text: string): string {
  if (/^[a-z][a-z0-9-]{0,14}$/.test(text)) return text;
  throw new InvalidArgumentError('1 to 15 of a-z, 0-9 and hyphen, a letter first');
}

function homeAfter(): Option {
  const what = 'how long home must be well again before the tunnel returns; doubles when it did not last';
  return new Option('--home-after <seconds>', what).argParser(seconds).default(PATIENCE.homeWell / 1000);
}

function seconds(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value >= 1 && value <= 1800) return value;
  throw new InvalidArgumentError('a number of seconds from 1 to 1800');
}

function mtu(text: string): number {
  const bytes = Number(text);
  if (Number.isInteger(bytes) && bytes >= 1280 && bytes <= 9000) return bytes;
  throw new InvalidArgumentError('a number of bytes from 1280 to 9000');
}

try {
  await buildProgram().parseAsync();
} catch (error) {
  const known = error instanceof KatafractError;
  const code = known ? error.code : ((error as NodeJS.ErrnoException).code ?? 'internal');
  console.error(`wraith: ${known ? error.message : String(error)} (${code})`);
  process.exitCode = 1;
}
