/**
 * Builds every domain from the configuration and takes them down again in reverse order. The only place that knows
 * who depends on whom; tests pass their own clock, log or database.
 */
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, systemClock } from '@katafract/shared/clock';
import { type Audit, createAudit } from './audit/audit.ts';
import { Billing, configuredStores } from './billing/billing.ts';
import type { Config } from './config.ts';
import {
  type Bus,
  Commands,
  EmbeddedBroker,
  type EnrollmentDeps,
  ExternalBroker,
  Fleet,
  identityOf,
} from './fleet/fleet.ts';
import {
  createDrainMetrics,
  finishDrains,
  hetznerProvider,
  labProvider,
  Machines,
  manualProvider,
  type Provider,
  Reboots,
  Rollouts,
  userDataFor,
  Watch,
} from './fleet/jobs.ts';
import { BILLING_ENDS, createJobs, JOBS_LEASE, type Jobs, jobTable } from './jobs.ts';
import { forgetCommands } from './operators/jobs.ts';
import {
  createOperators,
  type OperatorKeysDeps,
  type Operators,
  operatorKeyOf,
  readOperatorToken,
} from './operators/operators.ts';
import { Peers } from './peers/peers.ts';
import { type Database, openDatabase } from './platform/db.ts';
import { startEmbeddedPostgres } from './platform/embedded-postgres.ts';
import { type Keyring, openKeyring, readMasterKey } from './platform/keyring.ts';
import { createLease } from './platform/lease.ts';
import { createLogger, type Logger } from './platform/log.ts';
import { createMetrics, type Metrics } from './platform/metrics.ts';
import { migrate } from './platform/migrate.ts';
import { readSecretFile } from './platform/secrets.ts';
import { openStore, type Store } from './platform/store.ts';
import { Sigils } from './sigil/sigil.ts';

export interface Overrides {
  readonly clock?: Clock;
  readonly log?: Logger;
  /** Already open, and migrated; closed with the rest. */
  readonly db?: Database;
  readonly bus?: Bus;
}

export interface Context {
  readonly config: Config;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly db: Database;
  readonly keyring: Keyring;
  readonly store: Store;
  readonly audit: Audit;
  readonly operators: Operators;
  readonly operatorKeys: OperatorKeysDeps;
  readonly bus: Bus;
  readonly fleet: Fleet;
  readonly enrollment: EnrollmentDeps;
  readonly peers: Peers;
  readonly sigils: Sigils;
  readonly billing: Billing;
  readonly rollouts: Rollouts;
  readonly reboots: Reboots;
  readonly machines: Machines;
  readonly jobs: Jobs;
  /** Keys the hashes of client addresses in the store. */
  readonly limitSecret: Uint8Array;
  readonly state: { draining: boolean };
  /** What must be true to serve; each by name. */
  readiness(): Promise<Record<string, boolean>>;
  /** Finishes what was begun, then takes everything down in reverse order. Never rejects: failures are logged. */
  close(): Promise<void>;
}

type Dispose = () => Promise<unknown> | unknown;

/** @throws KatafractError of whatever cannot start; what had started by then is taken down again */
export async function createContext(config: Config, overrides: Overrides = {}): Promise<Context> {
  const log = overrides.log ?? createLogger(config.logLevel);
  const disposers: { name: string; dispose: Dispose }[] = [];
  const close = async () => {
    for (const { name, dispose } of disposers.splice(0).reverse()) {
      try {
        await dispose();
      } catch (err) {
        log.error({ err, reason: name }, 'could not be closed');
      }
    }
  };
  try {
    return await build(config, overrides, log, close, (name, dispose) => disposers.push({ name, dispose }));
  } catch (error) {
    await close();
    throw error;
  }
}

async function build(
  config: Config,
  { clock = systemClock, ...given }: Overrides,
  log: Logger,
  close: () => Promise<void>,
  onClose: (name: string, dispose: Dispose) => void,
): Promise<Context> {
  const metrics = createMetrics();
  const now = () => clock.now();
  const state = { draining: false };
  // searchable for the database's user; each secret in it has its own mode
  await mkdir(config.dataDir, { recursive: true, mode: 0o711 });
  const masterKey = await readMasterKey(config.masterKey.path, config.masterKey.create);
  const token = await readOperatorToken(config.operatorToken.path, config.operatorToken.create);

  const db = given.db ?? (await database(config, log, onClose));
  onClose('database', () => db.close());
  const survive = (where: string) => (err: unknown) => {
    metrics.survived.inc({ where });
    log.error({ err, reason: where }, 'survived a failure');
  };
  const keyring = await openKeyring({ db, masterKey, now, onError: survive('keyring') });
  onClose('keyring', () => keyring.close());
  const store = openStore(config.redisUrl, { now, log, survived: metrics.survived });
  onClose('store', () => store.close());
  const audit = createAudit(db);
  const operators = createOperators(token);

  const bus = given.bus ?? (await createBus(config, db, clock));
  const { plan } = config;
  const fleet = new Fleet({ db, clock, log, metrics, keyring, bus, plan });
  const broker = await brokerFor(config, '/v1/nodes/session');
  const enrollment = { db, keyring, audit, fleet, broker, now, seedSecret: masterKey };
  const audience = config.publicUrl;
  const told = { audience, broker: await brokerFor(config, '/v1/operators/session') };
  const evictions = survive('eviction of an operator');
  const operatorKeys = { db, audit, now, seedSecret: masterKey, told, bus, survived: evictions };
  const commands = new Commands({ db, audit, fleet, now, log, registry: metrics.registry, audience });
  fleet.obey((node, payload, kept) => commands.decide(node, payload, kept));
  onClose('commands of operators', () => commands.settled());
  const { addressRestMs: restMs, ackMs, moveGraceMs } = config;
  const peers = new Peers({ db, clock, fleet, audit, plan, restMs, ackMs, moveGraceMs });
  const sigils = new Sigils({
    db,
    clock,
    keyring,
    audit,
    issuer: config.publicUrl,
    replays: store,
    boundMs: config.sigilMs,
    maxDays: config.sigilMaxDays,
    rotateDays: config.sigilRotateDays,
    onEnded: (tx, subscriptionId) => peers.removeOfSubscription(tx, subscriptionId),
    onUnbound: (tx, subscriptionId, jkt) => peers.removeOfDevice(tx, subscriptionId, jkt),
  });
  const builders = await configuredStores(config.stores);
  const billing = new Billing({
    db,
    clock,
    log,
    metrics,
    audit,
    sigils,
    peers,
    stores: (deps) => builders.map((build) => build(deps)),
    lapseGraceMs: config.lapseGraceMs,
    seedSecret: masterKey,
  });
  await peers.start();
  onClose('fleet', () => fleet.stop());
  await fleet.start();
  onClose('peers', () => peers.drain());
  const lease = createLease(db, JOBS_LEASE);
  const watch = new Watch({ db, clock, log, registry: metrics.registry, audit, fleet });
  createDrainMetrics(metrics.registry, { db, now, failed: survive('drain metrics') });
  const machines = new Machines({
    db,
    clock,
    log,
    metrics,
    audit,
    keyring,
    fleet,
    bus,
    providers: await providersOf(config, clock),
    limits: config.providers.growth,
    seedSecret: masterKey,
    userData: await userDataFor(config.providers, urlForMachines(config)),
  });
  const upkeep = { db, clock, log, registry: metrics.registry, audit, fleet, seedSecret: masterKey };
  const rollouts = new Rollouts(upkeep);
  const reboots = new Reboots(upkeep);
  const table = jobTable({
    db,
    sigils,
    peers,
    fleet,
    billing,
    watch,
    machines,
    rollouts,
    reboots,
    finishDrains: () => finishDrains({ db, audit, fleet, now }),
    forgetCommands: () => forgetCommands(db, new Date(now())),
  });
  const jobs = createJobs(table, { clock, lease, log, metrics });
  onClose('billing', () => billing.stop());
  await billing.start(() => jobs.wake(BILLING_ENDS));
  machines.start((name) => jobs.wake(name));
  onClose('jobs', () => jobs.stop());
  onClose('calls to stores', () => billing.halt());
  jobs.start();

  const readiness = async () => ({
    accepting: !state.draining,
    database: await db.ping().then(
      () => true,
      (err) => {
        log.warn({ err }, 'the database does not answer');
        return false;
      },
    ),
    broker: bus.ready(),
  });
  const domains = {
    db,
    keyring,
    store,
    audit,
    operators,
    operatorKeys,
    bus,
    fleet,
    enrollment,
    peers,
    sigils,
    billing,
    rollouts,
    reboots,
    machines,
    jobs,
  };
  return { config, clock, log, metrics, ...domains, limitSecret: masterKey, state, readiness, close };
}

/** The configured database, or our own, migrated. */
async function database(
  config: Config,
  log: Logger,
  onClose: (name: string, dispose: Dispose) => void,
): Promise<Database> {
  const url = await databaseUrl(config, log, onClose);
  await migrate(url, log);
  return openDatabase(url, log, { max: config.databasePool });
}

async function databaseUrl(
  config: Config,
  log: Logger,
  onClose: (name: string, dispose: Dispose) => void,
): Promise<string> {
  if (config.databaseUrl !== null) return config.databaseUrl;
  const embedded = await startEmbeddedPostgres({ dataDir: join(config.dataDir, 'postgres'), log });
  onClose('embedded postgres', () => embedded.stop());
  return embedded.url;
}

async function createBus({ mqtt }: Config, db: Database, clock: Clock): Promise<Bus> {
  const { external, tls, listen, caFile } = mqtt;
  if (external) {
    const { url, username, passwordFile, admission } = external;
    return new ExternalBroker({
      url,
      admission,
      clock,
      ...(username === null ? {} : { username }),
      ...(passwordFile === null ? {} : { password: await readSecretFile(passwordFile) }),
      ...(caFile === null ? {} : { ca: await readSecretFile(caFile) }),
    });
  }
  return new EmbeddedBroker({
    ...listen,
    clock,
    identityOf: (node) => identityOf(db, node),
    operatorKeyOf: (name) => operatorKeyOf(db, name),
    ...(tls
      ? { tls: { cert: await readFile(tls.certFile, 'utf8'), key: await readSecretFile(tls.keyFile) } }
      : {}),
  });
}

/** Where a new machine enrolls: a token must not travel in the clear, unless it is within the mesh. */
function urlForMachines({ publicUrl, meshUrl }: Config): string {
  return publicUrl.startsWith('https:') ? publicUrl : meshUrl;
}

/** Who has machines to give. */
async function providersOf({ providers: { hetzner, lab } }: Config, clock: Clock): Promise<Provider[]> {
  const token = hetzner && (await readSecretFile(hetzner.tokenFile));
  return [
    manualProvider(),
    ...(hetzner === null ? [] : [hetznerProvider({ ...hetzner, token: token ?? '' }, { clock })]),
    ...(lab === null ? [] : [labProvider(lab)]),
  ];
}

/** What a node that enrolls, or an operator, is told of the broker. @param session where to show a token first */
async function brokerFor({ mqtt, meshUrl }: Config, session: string): Promise<EnrollmentDeps['broker']> {
  const shown = mqtt.external?.admission === 'dynsec';
  return {
    url: mqtt.publicUrl,
    ...(mqtt.caFile === null ? {} : { ca: await readSecretFile(mqtt.caFile) }),
    ...(shown ? { sessionUrl: `${meshUrl}${session}` } : {}),
  };
}
