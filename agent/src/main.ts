#!/usr/bin/env node
/** The agent's commands. Wires the real ports to the core, waits, and lets go; it decides nothing. */
import './host/memory.ts';
import { randomBytes } from 'node:crypto';
import { systemClock } from '@katafract/shared/clock';
import { JoinToken } from '@katafract/shared/enroll';
import { KatafractError } from '@katafract/shared/errors';
import { redactText } from '@katafract/shared/redact';
import { supervisor } from '@katafract/shared/supervisor';
import { Endpoint, Ipv4, Ipv6 } from '@katafract/shared/units';
import { Command } from 'commander';
import { z } from 'zod';
import { type Agent, createAgent } from './agent.ts';
import { hostPort } from './apply/host.ts';
import { readHeld } from './desired/ledger.ts';
import { haven } from './haven/haven.ts';
import { adguard, havenSecret } from './host/adguard.ts';
import { resolver, sockets } from './host/dns.ts';
import { type Exec, systemExec } from './host/exec.ts';
import { ledgerFiles, readText } from './host/files.ts';
import { firewall } from './host/firewall.ts';
import { lockTunnel } from './host/lock.ts';
import { logger } from './host/log.ts';
import { serveMetrics } from './host/metrics-server.ts';
import { type BrokerLink, brokerLink } from './host/mqtt.ts';
import { network } from './host/network.ts';
import { shellExec } from './host/shells.ts';
import { telemetry } from './host/telemetry.ts';
import { upkeepFiles } from './host/upkeep.ts';
import { watchHost } from './host/watch.ts';
import { peerTable, wireguard } from './host/wireguard.ts';
import { enroll, type Identity, loadIdentity, stateFiles } from './identity.ts';
import { inOrder, inspect, planText, statusText } from './inspect.ts';
import { observeHost } from './observe/host.ts';
import { CONNECTIONS_PER_CLIENT, type HostChoices } from './plan/context.ts';
import type { HostWish } from './plan/host.ts';
import { TABLE } from './plan/table.ts';
import { tunnelNames, tunnelOfAddress } from './plan/tunnels.ts';
import { verifyHaven, verifyHost, verifyRequests, verifyText } from './plan/verify.ts';
import type { HavenPort, Log, TunnelPort, Uplink } from './ports.ts';
import { sshGuarded } from './upkeep/plan.ts';
import { VERSION } from './version.ts';

interface HostOptions {
  stateDir: string;
  interface: string;
  havenPasswordFile?: string;
  uplink?: string;
  exitAddress: readonly string[];
  connectionsPerClient: string;
}

interface RunOptions extends HostOptions {
  once?: boolean;
  metricsListen?: string;
  logLevel: string;
}

/** Passes come every ten seconds, and the longest take a few: an agent without one for this long hangs. In ms. */
const STUCK_MS = 60_000;

/** The rules speak of `wg+`: a tunnel of another name would stand outside of them. */
const INTERFACE = /^wg[0-9a-z_-]{0,13}$/;

function parts(options: HostOptions, identity: Identity, exec: Exec, log: Log) {
  if (!INTERFACE.test(options.interface)) {
    throw new KatafractError(
      'interface_invalid',
      'the tunnel interface must be named wg…, at most 15 characters',
    );
  }
  const supervised = process.env.KATAFRACT_TUNNEL_UNITS === options.interface;
  const { wireguard: privateKey } = stateFiles(options.stateDir);
  const { config } = identity.node;
  const names = tunnelNames(options.interface, config);
  const tunnels = names.map((name) => wireguard(exec, name, privateKey, supervised));
  const net = network(exec);
  const rules = firewall(exec);
  const own = { interfaceName: options.interface, publicKey: identity.node.publicKey };
  const choices = hostChoices(options);
  return {
    names,
    peers: peerTable(tunnels, tunnelOfAddress(config)),
    own,
    choices,
    lookAtHost: (wish: HostWish) => observeHost(net, rules, options.interface, wish),
    host: hostPort(
      { tunnel: named(names, tunnels), network: net, firewall: rules, log },
      { ...own, choices, table: TABLE },
    ),
    disk: ledgerFiles(options.stateDir),
  };
}

/** @throws KatafractError `interface_invalid`: the node was enrolled with fewer of them */
function named(names: readonly string[], tunnels: readonly TunnelPort[]) {
  return (name: string): TunnelPort => {
    const found = tunnels[names.indexOf(name)];
    if (found) return found;
    throw new KatafractError('interface_invalid', `${name} is none of ${names.join(', ')}`);
  };
}

const ExitAddress = z.union([Ipv4, Ipv6]);

/** @throws KatafractError `option_invalid` */
function hostChoices({ uplink, exitAddress, connectionsPerClient }: HostOptions): HostChoices {
  const exitAddresses = z.array(ExitAddress).safeParse(exitAddress);
  const connections = z.coerce.number().int().min(1).max(1_000_000).safeParse(connectionsPerClient);
  const invalid = (option: string, what: string) =>
    new KatafractError('option_invalid', `${option}: ${what}`);
  if (!exitAddresses.success) throw invalid('--exit-address', `not an address: ${exitAddress.join(' ')}`);
  if (!connections.success) throw invalid('--connections-per-client', 'not a number from 1 to 1,000,000');
  return {
    uplink: uplink ?? null,
    exitAddresses: exitAddresses.data,
    connectionsPerClient: connections.data,
  };
}

async function havenOf({ stateDir, havenPasswordFile }: HostOptions, log: Log): Promise<HavenPort> {
  const secret = await havenSecret(stateDir, havenPasswordFile ?? null);
  return haven(
    { adguard: adguard(secret.password), resolver, sockets, clock: systemClock, log },
    secret.hash,
  );
}

function makeAgent(
  options: RunOptions,
  identity: Identity,
  exec: Exec,
  log: Log,
  uplink: Uplink,
  filter: HavenPort,
): Agent {
  const { names, peers, host, disk } = parts(options, identity, exec, log);
  const { node, stateKey } = identity;
  return createAgent(
    {
      clock: systemClock,
      random: Math.random,
      log,
      peers,
      host,
      disk,
      uplink,
      telemetry: telemetry(names),
      haven: filter,
      upkeep: upkeepFiles(options.stateDir),
    },
    {
      node: node.node,
      stateKey,
      boot: randomBytes(9).toString('base64url'),
      version: VERSION,
      enrolledLineage: node.lineage,
      enrolledConfig: node.config,
    },
  );
}

async function run(options: RunOptions): Promise<void> {
  const log = logger((line) => process.stdout.write(line), options.logLevel);
  const identity = await loadIdentity(options.stateDir);
  const { node, key } = identity;
  const link = brokerLink(
    { clock: systemClock, random: Math.random, log, fetch },
    { node: node.node, broker: node.broker, key },
  );
  const exec = shellExec();
  try {
    const agent = makeAgent(options, identity, exec, log, link, await havenOf(options, log));
    const unlock = await lockTunnel(options.interface);
    await agent.start();
    const { applied, position, lastPass } = agent.status();
    log.info({ version: VERSION, ...position, applied }, 'the host is as it was held');
    const complain = (err: unknown) => log.warn({ err }, 'systemd could not be told');
    const systemd = supervisor(process.env, systemClock, (...command) => exec.run(...command), complain);
    if (options.once) process.exitCode = lastPass?.failures === 0 ? 0 : 1;
    else {
      await systemd.ready();
      const unwatched = systemd.watch(() => (agent.status().lastPassAge ?? 0) < STUCK_MS);
      await serve(options, agent, link, log);
      unwatched();
      await systemd.stopping();
    }
    await agent.stop();
    await link.stop();
    await unlock();
  } finally {
    exec.close();
  }
}

/** Until told to stop. */
async function serve(options: RunOptions, agent: Agent, link: BrokerLink, log: Log): Promise<void> {
  const { metricsListen } = options;
  const metrics = metricsListen ? await serveMetrics(metricsListen, () => agent.status()) : null;
  link.start(agent);
  const unwatch = watchHost(systemClock, log, () => agent.onHostChanged());
  await signalled();
  unwatch();
  log.info({}, 'stopping; tunnels and rules stay');
  await metrics?.close();
}

/** Resolves at SIGTERM or SIGINT, and keeps the process alive until then. */
function signalled(): Promise<void> {
  return new Promise((resolve) => {
    const alive = setInterval(() => undefined, 2 ** 30);
    const done = () => {
      clearInterval(alive);
      resolve();
    };
    process.once('SIGTERM', done);
    process.once('SIGINT', done);
  });
}

/** What is there and what should be, beside the running agent and changing nothing. */
async function beside(options: HostOptions) {
  const identity = await loadIdentity(options.stateDir);
  const quiet: Log = { info: () => undefined, warn: () => undefined, error: () => undefined };
  const { peers, own, choices, lookAtHost, disk } = parts(options, identity, systemExec, quiet);
  const held = await readHeld(disk, identity.node.node);
  const config = held?.config ?? identity.node.config;
  const filter = config.haven ? await (await havenOf(options, quiet)).look(config) : null;
  const { requests } = await upkeepFiles(options.stateDir).look();
  const gates = {
    // as the agent would have it by this one look
    dnsOpen: filter === null || (filter.known && filter.state !== 'unsafe'),
    sshFromMesh: sshGuarded(config.sshFromMesh !== undefined, requests),
  };
  const wish = { config, choices, gates, table: TABLE };
  return { node: identity.node.node, peers, own, lookAtHost, held, wish, filter, requests };
}

async function look(options: HostOptions) {
  const { node, peers, own, lookAtHost, held, wish, filter } = await beside(options);
  const seen = await inspect({ peers, lookAtHost, clock: systemClock }, own, held, wish, filter);
  return { node, seen };
}

async function verify(options: HostOptions & { json?: boolean }): Promise<void> {
  const { lookAtHost, wish, filter, requests } = await beside(options);
  const findings = [
    ...verifyHost(options.interface, wish, await lookAtHost(wish)),
    ...verifyRequests(wish.config, requests),
    ...verifyHaven(wish.config, filter),
  ];
  console.log(options.json ? JSON.stringify(findings, null, 2) : verifyText(findings));
  process.exitCode = findings.every(({ holds }) => holds) ? 0 : 3;
}

async function joinToken(file: string | undefined): Promise<JoinToken> {
  const text = file === undefined ? process.env.KATAFRACT_JOIN_TOKEN : ((await readText(file)) ?? '');
  const token = JoinToken.safeParse(text?.trim());
  if (token.success) return token.data;
  throw new KatafractError(
    'join_token_missing',
    'give the join token (kfj1_…) by --token-file or in KATAFRACT_JOIN_TOKEN',
  );
}

function program(): Command {
  const cli = new Command('katafract-agent')
    .description('Keeps a VPN exit node in line with the state its controller wants')
    .version(VERSION);
  const stateDir = process.env.KATAFRACT_STATE_DIR ?? '/var/lib/katafract-agent';
  const command = (name: string, text: string) =>
    cli
      .command(name)
      .description(text)
      .option('--state-dir <path>', 'where the node keeps its state', stateDir);
  const onHost = (name: string, text: string) =>
    command(name, text)
      .option(
        '--interface <name>',
        'tunnel interface; further ones are numbered on from it',
        process.env.KATAFRACT_INTERFACE ?? 'wg0',
      )
      .option(
        '--uplink <name>',
        'interface to the internet (default: that of the default route)',
        process.env.KATAFRACT_UPLINK,
      )
      .option(
        '--exit-address <ip>',
        'own public address that clients leave by; several, in either family, are dealt out among them',
        (address: string, before: readonly string[]) => [...before, address],
        (process.env.KATAFRACT_EXIT_ADDRESSES ?? '').split(/[\s,]+/).filter(Boolean),
      )
      .option(
        '--haven-password-file <path>',
        "password of the DNS filter's interface, where a secrets manager gives one (default: one of the node's own)",
        process.env.KATAFRACT_HAVEN_PASSWORD_FILE,
      )
      .option(
        '--connections-per-client <n>',
        'connections that one client may have open at once',
        process.env.KATAFRACT_CONNECTIONS_PER_CLIENT ?? String(CONNECTIONS_PER_CLIENT),
      );

  command('enroll', 'make this machine a node')
    .requiredOption('--controller <url>', 'base URL of the controller')
    .option('--token-file <path>', 'file with the join token (else KATAFRACT_JOIN_TOKEN)')
    .option('--endpoint <host:port>', 'public WireGuard endpoint, where the join token names none')
    .action(
      async (options: { stateDir: string; controller: string; tokenFile?: string; endpoint?: string }) => {
        const token = await joinToken(options.tokenFile);
        const controller = new URL(options.controller);
        const endpoint = options.endpoint === undefined ? {} : { endpoint: Endpoint.parse(options.endpoint) };
        const ports = { exec: systemExec, fetch, now: Date.now };
        const node = await enroll(ports, { controller, token, directory: options.stateDir, ...endpoint });
        console.log(`enrolled as ${node.node} in region ${node.region}`);
      },
    );
  onHost('run', 'keep the host in line until told to stop; tunnels and rules stay up after it')
    .option('--once', 'one full pass from what is held, then exit (1 where a step failed)')
    .option(
      '--metrics-listen <host:port>',
      'serve Prometheus metrics, on a mesh address',
      process.env.KATAFRACT_METRICS_LISTEN,
    )
    .option('--log-level <level>', 'debug, info, warn or error', process.env.KATAFRACT_LOG_LEVEL ?? 'info')
    .action(run);
  onHost('status', 'what is held, what is observed and what differs; exit status 3 where they differ')
    .option('--json', 'as JSON')
    .action(async (options: HostOptions & { json?: boolean }) => {
      const { node, seen } = await look(options);
      console.log(options.json ? JSON.stringify({ node, ...seen }, null, 2) : statusText(node, seen));
      process.exitCode = inOrder(seen) ? 0 : 3;
    });
  onHost(
    'verify',
    'prove this host against what an exit enforces; says which attack each failing row would allow (exit status 3)',
  )
    .option('--json', 'as JSON')
    .action(verify);
  onHost('plan', 'what one full pass would do; changes nothing').action(async (options: HostOptions) => {
    console.log(planText((await look(options)).seen));
  });
  return cli;
}

// Whoever reads the log may go away (and has nowhere to be told so); the node must not go with him.
process.stdout.on('error', () => undefined);
try {
  await program().parseAsync();
} catch (error) {
  const code = error instanceof KatafractError ? error.code : 'failed';
  const cause = error instanceof Error && error.cause instanceof Error ? ` (${error.cause.message})` : '';
  console.error(redactText(`${code}: ${error instanceof Error ? error.message : String(error)}${cause}`));
  process.exitCode = 1;
}
