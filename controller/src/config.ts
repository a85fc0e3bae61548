/**
 * Configuration from the environment, checked as a whole: every error is found and named at once. The table below is
 * the one source of names, defaults and meanings, for the parser, `--help` and the README.
 */
import { homedir } from 'node:os';
import { join } from 'node:path';
import { addressPlan } from '@katafract/shared/addresses';
import { KatafractError } from '@katafract/shared/errors';
import { Cidr4, Cidr6 } from '@katafract/shared/units';
import { z } from 'zod';
import { PROVIDER_VARIABLES, providerContradictions, providersConfig } from './config-providers.ts';
import { STORE_VARIABLES, storeContradictions, storesConfig } from './config-stores.ts';
import { LOG_LEVELS } from './platform/log.ts';
import type { Listen } from './platform/server.ts';
import { list, path, url, type Variable, variable, webUrl, whole } from './platform/variables.ts';

const listen = z
  .string()
  .regex(/^(?:\[[0-9A-Fa-f:.]+\]|[^:[\]\s]+):\d{1,5}$/, 'host:port, such as 127.0.0.1:8080 or [::1]:8080')
  .transform((text): Listen => {
    const at = text.lastIndexOf(':');
    return { host: text.slice(0, at).replace(/^\[|\]$/g, ''), port: Number(text.slice(at + 1)) };
  })
  .refine(({ port }) => port <= 65535, 'a port is at most 65535');
const brokerUrl = url('mqtt:', 'mqtts:');

const VARIABLES = {
  DATABASE_URL: variable(
    url('postgres:', 'postgresql:').refine(
      (text) => !new URL(text).host.includes(','),
      'one host: a name that follows the primary',
    ),
    'Postgres 15 or later. Without it the controller runs its own Postgres 17 in its data directory',
  ),
  KATAFRACT_DATABASE_POOL: variable(whole(2, 500), 'Database connections at most', '16'),
  REDIS_URL: variable(
    url('redis:', 'rediss:'),
    'Redis 7 for rate limits, and for proofs of devices that were used, shared by several controllers. ' +
      'Without it each keeps its own: a stolen proof is then good once at each, for a minute',
  ),
  KATAFRACT_DATA_DIR: variable(
    path.startsWith('/', 'an absolute path'),
    'Where the embedded database and generated secrets lie',
    (root) => (root ? '/var/lib/katafract' : join(homedir(), '.local/share/katafract')),
    '/var/lib/katafract, or ~/.local/share/katafract where not root',
  ),
  KATAFRACT_API_LISTEN: variable(listen, 'Where the API listens', '127.0.0.1:8080'),
  KATAFRACT_MESH_LISTEN: variable(
    listen,
    'A second listener, on the mesh: /v1/admin, /metrics and the sessions of nodes and operators are then served only there. ' +
      'Without it keep the API listener itself, or these paths, away from the public',
  ),
  KATAFRACT_PUBLIC_URL: variable(
    webUrl,
    'How apps reach the API; the issuer of every Sigil',
    undefined,
    'http:// and KATAFRACT_API_LISTEN',
  ),
  KATAFRACT_MESH_URL: variable(
    webUrl,
    'How nodes reach the mesh listener',
    undefined,
    'http:// and KATAFRACT_MESH_LISTEN, else KATAFRACT_PUBLIC_URL',
  ),
  KATAFRACT_TRUSTED_PROXIES: variable(
    list,
    'Addresses or prefixes, by comma, of proxies whose X-Forwarded-For is believed',
  ),
  KATAFRACT_MQTT_LISTEN: variable(listen, 'Where the embedded broker listens', '127.0.0.1:1883'),
  KATAFRACT_MQTT_TLS_CERT_FILE: variable(path, 'PEM certificate chain: the embedded broker speaks TLS'),
  KATAFRACT_MQTT_TLS_KEY_FILE: variable(path, 'PEM private key to it'),
  KATAFRACT_MQTT_URL: variable(brokerUrl, 'An external MQTT 3.1.1 broker, instead of the embedded one'),
  KATAFRACT_MQTT_USERNAME: variable(z.string().min(1), 'Name of the controller at the external broker'),
  KATAFRACT_MQTT_PASSWORD_FILE: variable(path, 'File with its password'),
  KATAFRACT_MQTT_CA_FILE: variable(path, "PEM of the CA of the broker's certificate; nodes pin it too"),
  KATAFRACT_MQTT_ADMISSION: variable(
    z.enum(['dynsec', 'none']),
    "How the external broker lets nodes in: Mosquitto's dynamic-security plugin, or its own check of their JWT",
    'dynsec',
  ),
  KATAFRACT_MQTT_PUBLIC_URL: variable(
    brokerUrl,
    'The broker as nodes reach it',
    undefined,
    'KATAFRACT_MQTT_URL, else KATAFRACT_MQTT_LISTEN',
  ),
  KATAFRACT_OPERATOR_TOKEN_FILE: variable(
    path,
    "File with the operators' bootstrap token. Generated (mode 0600) where absent from the data directory",
    undefined,
    'operator-token in the data directory',
  ),
  KATAFRACT_MASTER_KEY_FILE: variable(
    path,
    'File with 32 bytes in base64 or hex that seal the signing keys. Generated like the token. Keep a copy of it',
    undefined,
    'master-key in the data directory',
  ),
  KATAFRACT_TUNNEL_IPV4: variable(Cidr4, 'Pool of tunnel addresses, of one size for good', '10.64.0.0/10'),
  KATAFRACT_TUNNEL_IPV6: variable(Cidr6, 'The same for IPv6', 'fd4b:6174:6166::/64'),
  KATAFRACT_ADDRESS_REST_SECONDS: variable(
    whole(0, 31_536_000),
    'How long a freed address rests before another peer may get it',
    '86400',
  ),
  KATAFRACT_ACK_TIMEOUT_MS: variable(
    whole(0, 60_000),
    'How long provisioning waits for the exit before it answers `pending`',
    '5000',
  ),
  KATAFRACT_MOVE_GRACE_SECONDS: variable(
    whole(0, 86_400),
    'How long an exit still answers a peer that moved away',
    '60',
  ),
  KATAFRACT_LAPSE_GRACE_SECONDS: variable(
    whole(0, 2_592_000),
    'How long a subscription keeps its peers after it ran out',
    '3600',
  ),
  KATAFRACT_SIGIL_MAX_DAYS: variable(
    whole(1, 3650),
    'The longest life of a Sigil that operators mint',
    '400',
  ),
  KATAFRACT_SIGIL_MINUTES: variable(
    whole(1, 1440),
    'Life of a Sigil that is bound to a device, which refreshes it; kept short, since offline verifiers learn of a revocation by its end',
    '60',
  ),
  KATAFRACT_SIGIL_ROTATE_DAYS: variable(whole(1, 3650), 'Age at which the Sigil key is replaced', '90'),
  KATAFRACT_RATE_LIMIT_PER_MINUTE: variable(
    whole(0, 10_000_000),
    'Requests a subscription may make; 0 for no limit',
    '600',
  ),
  KATAFRACT_ANONYMOUS_LIMIT_PER_MINUTE: variable(
    whole(0, 10_000_000),
    'Requests without a valid token that an address may make; 0 for no limit',
    '120',
  ),
  ...STORE_VARIABLES,
  ...PROVIDER_VARIABLES,
  KATAFRACT_SHUTDOWN_SECONDS: variable(
    whole(1, 600),
    'How long requests under way may take to finish at shutdown',
    '15',
  ),
  LOG_LEVEL: variable(z.enum(LOG_LEVELS), 'debug, info, warn, error or silent', 'info'),
} as const;

type Name = keyof typeof VARIABLES;
type Parsed = { [N in Name]?: z.output<(typeof VARIABLES)[N]['schema']> };

export type Config = ReturnType<typeof assemble>;

/** One line a variable, as `--help` and the README show them. */
export function configTable(): { name: string; fallback: string; meaning: string }[] {
  return Object.entries(VARIABLES).map(([name, entry]: [string, Variable]) => ({
    name,
    fallback: entry.shown ?? (typeof entry.fallback === 'string' ? entry.fallback : ''),
    meaning: entry.meaning,
  }));
}

/**
 * Reads the environment. An empty variable counts as absent.
 * @throws KatafractError `config_invalid`, its `detail.errors` naming every variable that is wrong, and why
 */
export function loadConfig(
  env: Readonly<Record<string, string | undefined>>,
  root = process.getuid?.() === 0,
) {
  const errors: string[] = [];
  const parsed: Record<string, unknown> = {};
  for (const [name, entry] of Object.entries(VARIABLES) as [Name, Variable][]) {
    const fallback = typeof entry.fallback === 'function' ? entry.fallback(root) : entry.fallback;
    const text = env[name] || fallback;
    if (text === undefined) continue;
    const result = entry.schema.safeParse(text);
    if (result.success) parsed[name] = result.data;
    // the value is not repeated: it may be a URL with a password in it
    else errors.push(...result.error.issues.map((issue) => `${name}: ${issue.message}`));
  }
  const wrong = new Set(errors.map((error) => error.split(':')[0] ?? ''));
  errors.push(...contradictions(parsed as Parsed), ...providerContradictions(parsed as Parsed));
  errors.push(...storeContradictions(parsed as Parsed, wrong));
  if (errors.length > 0)
    throw new KatafractError('config_invalid', `the configuration is not valid: ${errors.join('; ')}`, {
      detail: { errors },
    });
  return assemble(parsed as Required<Parsed>, parsed as Parsed);
}

/** What each variable cannot know by itself. */
function contradictions(at: Parsed): string[] {
  const errors: string[] = [];
  if ((at.KATAFRACT_MQTT_TLS_CERT_FILE === undefined) !== (at.KATAFRACT_MQTT_TLS_KEY_FILE === undefined))
    errors.push('KATAFRACT_MQTT_TLS_CERT_FILE, KATAFRACT_MQTT_TLS_KEY_FILE: set both or neither');
  if (at.KATAFRACT_MQTT_USERNAME !== undefined && at.KATAFRACT_MQTT_URL === undefined)
    errors.push('KATAFRACT_MQTT_USERNAME: means nothing without KATAFRACT_MQTT_URL');
  if ((at.KATAFRACT_MQTT_USERNAME === undefined) !== (at.KATAFRACT_MQTT_PASSWORD_FILE === undefined))
    errors.push('KATAFRACT_MQTT_USERNAME, KATAFRACT_MQTT_PASSWORD_FILE: set both or neither');
  if (at.KATAFRACT_TUNNEL_IPV4 !== undefined && at.KATAFRACT_TUNNEL_IPV6 !== undefined) {
    try {
      addressPlan(at.KATAFRACT_TUNNEL_IPV4, at.KATAFRACT_TUNNEL_IPV6);
    } catch (error) {
      errors.push(`KATAFRACT_TUNNEL_IPV4, KATAFRACT_TUNNEL_IPV6: ${(error as Error).message}`);
    }
  }
  return errors;
}

const hostPort = ({ host, port }: Listen) => `${host.includes(':') ? `[${host}]` : host}:${port}`;

/** @param set variables with a default; @param maybe the same, for those that may be absent */
function assemble(set: Required<Parsed>, maybe: Parsed) {
  const dataDir = set.KATAFRACT_DATA_DIR;
  const tls = maybe.KATAFRACT_MQTT_TLS_CERT_FILE !== undefined;
  const publicUrl = maybe.KATAFRACT_PUBLIC_URL ?? `http://${hostPort(set.KATAFRACT_API_LISTEN)}`;
  const meshListen = maybe.KATAFRACT_MESH_LISTEN ?? null;
  const external = maybe.KATAFRACT_MQTT_URL;
  return {
    databaseUrl: maybe.DATABASE_URL ?? null,
    databasePool: set.KATAFRACT_DATABASE_POOL,
    redisUrl: maybe.REDIS_URL ?? null,
    dataDir,
    apiListen: set.KATAFRACT_API_LISTEN,
    meshListen,
    publicUrl,
    meshUrl: maybe.KATAFRACT_MESH_URL ?? (meshListen ? `http://${hostPort(meshListen)}` : publicUrl),
    trustedProxies: maybe.KATAFRACT_TRUSTED_PROXIES ?? [],
    mqtt: {
      listen: set.KATAFRACT_MQTT_LISTEN,
      tls: tls
        ? { certFile: set.KATAFRACT_MQTT_TLS_CERT_FILE, keyFile: set.KATAFRACT_MQTT_TLS_KEY_FILE }
        : null,
      external:
        external === undefined
          ? null
          : {
              url: external,
              username: maybe.KATAFRACT_MQTT_USERNAME ?? null,
              passwordFile: maybe.KATAFRACT_MQTT_PASSWORD_FILE ?? null,
              admission: set.KATAFRACT_MQTT_ADMISSION,
            },
      caFile: maybe.KATAFRACT_MQTT_CA_FILE ?? null,
      publicUrl:
        maybe.KATAFRACT_MQTT_PUBLIC_URL ??
        external ??
        `${tls ? 'mqtts' : 'mqtt'}://${hostPort(set.KATAFRACT_MQTT_LISTEN)}`,
    },
    /** Secret files are generated only where their place was not chosen: a wrong path must not pass for a new start. */
    operatorToken: {
      path: maybe.KATAFRACT_OPERATOR_TOKEN_FILE ?? join(dataDir, 'operator-token'),
      create: maybe.KATAFRACT_OPERATOR_TOKEN_FILE === undefined,
    },
    masterKey: {
      path: maybe.KATAFRACT_MASTER_KEY_FILE ?? join(dataDir, 'master-key'),
      create: maybe.KATAFRACT_MASTER_KEY_FILE === undefined,
    },
    plan: addressPlan(set.KATAFRACT_TUNNEL_IPV4, set.KATAFRACT_TUNNEL_IPV6),
    addressRestMs: set.KATAFRACT_ADDRESS_REST_SECONDS * 1000,
    ackMs: set.KATAFRACT_ACK_TIMEOUT_MS,
    moveGraceMs: set.KATAFRACT_MOVE_GRACE_SECONDS * 1000,
    lapseGraceMs: set.KATAFRACT_LAPSE_GRACE_SECONDS * 1000,
    sigilMs: set.KATAFRACT_SIGIL_MINUTES * 60_000,
    sigilMaxDays: set.KATAFRACT_SIGIL_MAX_DAYS,
    sigilRotateDays: set.KATAFRACT_SIGIL_ROTATE_DAYS,
    limits: {
      subscriptionPerMinute: set.KATAFRACT_RATE_LIMIT_PER_MINUTE,
      anonymousPerMinute: set.KATAFRACT_ANONYMOUS_LIMIT_PER_MINUTE,
    },
    /** Each null where it is off. */
    stores: storesConfig(set, maybe),
    /** Who has machines to give, and when they are asked. */
    providers: providersConfig(set, maybe),
    shutdownMs: set.KATAFRACT_SHUTDOWN_SECONDS * 1000,
    logLevel: set.LOG_LEVEL,
  };
}
