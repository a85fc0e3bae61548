/**
 * What a running AdGuard Home must say of itself over its API, pure: one check an answer, each with the calls that put it
 * right. What it reads only when it starts (addresses, users, files) is the helper's business (helper/adguard.ts).
 *
 * Source: AdGuard Home's published openapi.yaml (v0.107).
 */
import { z } from 'zod';
import type { HavenRequest } from '../helper/requests.ts';

export interface Call {
  readonly method: 'POST' | 'PUT';
  /** Below /control. */
  readonly path: string;
  /** Absent: no body at all, and then no content type either, or it is refused. */
  readonly body?: object;
}

export interface Check {
  readonly id: string;
  /** What is possible where it is not right. */
  readonly attack: string;
  /** What is asked for, below /control. */
  readonly path: string;
  /** Whether an answer, as JSON, is what it should be. */
  readonly right: (answer: unknown) => boolean;
  /** Whether, as it is, something of a client is kept or told to somebody: then nobody may ask until it is right. */
  readonly unsafe: (answer: unknown) => boolean;
  /** Empty where only the file and a new start can help. */
  readonly repair: (answer: unknown) => readonly Call[];
}

const HOUR_MS = 3_600_000;
const never = () => false;

/** Both as sets: AdGuard may sort them. */
function same(found: readonly string[], wanted: readonly string[]): boolean {
  return [...found].sort().join('\n') === [...wanted].sort().join('\n');
}

/** A check of an answer of a known shape; one of another shape is not right, and not safe either. */
function check<S extends z.ZodType>(
  id: string,
  path: string,
  schema: S,
  rules: {
    readonly attack: string;
    readonly right: (answer: z.infer<S>) => boolean;
    readonly unsafe?: (answer: z.infer<S>) => boolean;
    readonly repair?: (answer: z.infer<S>) => readonly Call[];
  },
): Check {
  const read = (answer: unknown) => schema.safeParse(answer);
  return {
    id,
    path,
    attack: rules.attack,
    right(answer) {
      const { success, data } = read(answer);
      return success && rules.right(data);
    },
    unsafe(answer) {
      const { success, data } = read(answer);
      return success ? (rules.unsafe ?? never)(data) : rules.unsafe !== undefined;
    },
    repair(answer) {
      const { success, data } = read(answer);
      return success ? (rules.repair?.(data) ?? []) : [];
    },
  };
}

/** AdGuard says null where a list is empty. */
const strings = z
  .array(z.string())
  .nullish()
  .transform((list) => list ?? []);
const Filters = z
  .array(z.object({ url: z.string(), name: z.string(), enabled: z.boolean() }))
  .nullish()
  .transform((list) => list ?? []);

const Status = z.object({
  running: z.boolean(),
  protection_enabled: z.boolean(),
  dns_addresses: strings,
  dns_port: z.number(),
});
const QueryLog = z.object({ enabled: z.boolean(), anonymize_client_ip: z.boolean() });
const Statistics = z.object({ enabled: z.boolean(), interval: z.number() });
const Resolving = z.object({
  upstream_dns: strings,
  bootstrap_dns: strings,
  fallback_dns: strings,
  upstream_dns_file: z.string().optional(),
  ratelimit: z.number(),
  ratelimit_subnet_len_ipv4: z.number(),
  ratelimit_subnet_len_ipv6: z.number(),
  edns_cs_enabled: z.boolean(),
  dnssec_enabled: z.boolean(),
  resolve_clients: z.boolean(),
  use_private_ptr_resolvers: z.boolean(),
});
const Filtering = z.object({
  enabled: z.boolean(),
  filters: Filters,
  whitelist_filters: Filters,
  user_rules: strings,
});
const Access = z.object({ allowed_clients: strings, disallowed_clients: strings });
const Enabled = z.object({ enabled: z.boolean() });
const Clients = z.object({
  clients: z
    .array(z.object({ name: z.string() }))
    .nullish()
    .transform((list) => list ?? []),
});

/** In the order in which they are put right: what may leak comes first. */
export function checksOf({ settings, gateway4, gateway6, pool4, pool6 }: HavenRequest): readonly Check[] {
  const addresses = [gateway4, gateway6];
  const dnsConfig = {
    upstream_dns: settings.upstreams,
    bootstrap_dns: settings.bootstrap,
    fallback_dns: [],
    upstream_mode: 'load_balance',
    ratelimit: settings.queriesPerSecond,
    ratelimit_subnet_len_ipv4: 32,
    ratelimit_subnet_len_ipv6: 128,
    ratelimit_whitelist: [],
    edns_cs_enabled: false,
    dnssec_enabled: true,
    resolve_clients: false,
    use_private_ptr_resolvers: false,
  };
  const bound = (answer: z.infer<typeof Status>) =>
    same(answer.dns_addresses, addresses) && answer.dns_port === 53;
  return [
    check('query-log', '/querylog/config', QueryLog, {
      attack: 'who seizes the exit reads what each client looked up, and when',
      right: (answer) => !answer.enabled && answer.anonymize_client_ip,
      unsafe: (answer) => answer.enabled,
      repair: () => [
        {
          method: 'PUT',
          path: '/querylog/config/update',
          body: {
            enabled: false,
            interval: HOUR_MS,
            anonymize_client_ip: true,
            ignored: [],
            ignored_enabled: false,
          },
        },
        { method: 'POST', path: '/querylog_clear' },
      ],
    }),
    check('clients', '/clients', Clients, {
      attack: 'a list of devices stands on the disk of the exit',
      right: ({ clients }) => clients.length === 0,
      unsafe: ({ clients }) => clients.length > 0,
      repair: ({ clients }) =>
        clients.map(({ name }) => ({ method: 'POST', path: '/clients/delete', body: { name } })),
    }),
    check('statistics', '/stats/config', Statistics, {
      attack: 'who seizes the exit reads which names were asked for most',
      right: ({ enabled, interval }) => enabled === settings.statistics && (!enabled || interval === HOUR_MS),
      unsafe: ({ enabled }) => enabled && !settings.statistics,
      repair: () => [
        {
          method: 'PUT',
          path: '/stats/config/update',
          body: { enabled: settings.statistics, interval: HOUR_MS, ignored: [], ignored_enabled: false },
        },
        { method: 'POST', path: '/stats_reset' },
      ],
    }),
    check('resolving', '/dns_info', Resolving, {
      attack: "queries go to somebody else's resolver, in the clear, or with the client's net in them",
      right: (answer) =>
        same(answer.upstream_dns, settings.upstreams) &&
        same(answer.bootstrap_dns, settings.bootstrap) &&
        answer.fallback_dns.length === 0 &&
        answer.ratelimit === settings.queriesPerSecond &&
        answer.ratelimit_subnet_len_ipv4 === 32 &&
        answer.ratelimit_subnet_len_ipv6 === 128 &&
        !answer.edns_cs_enabled &&
        answer.dnssec_enabled &&
        !answer.resolve_clients &&
        !answer.use_private_ptr_resolvers,
      unsafe: (answer) =>
        !same(answer.upstream_dns, settings.upstreams) ||
        answer.fallback_dns.length > 0 ||
        answer.edns_cs_enabled,
      repair: () => [{ method: 'POST', path: '/dns_config', body: dnsConfig }],
    }),
    ...['safebrowsing', 'parental'].map((name) =>
      check(name, `/${name}/status`, Enabled, {
        attack: "AdGuard's own servers are asked about the names that clients look up",
        right: ({ enabled }) => !enabled,
        unsafe: ({ enabled }) => enabled,
        repair: () => [{ method: 'POST', path: `/${name}/disable` }],
      }),
    ),
    check('binding', '/status', Status, {
      attack: 'the resolver is open to others than clients, or filters nothing',
      right: (answer) => answer.running && answer.protection_enabled && bound(answer),
      unsafe: (answer) => !bound(answer),
      repair: ({ protection_enabled: enabled }) =>
        enabled ? [] : [{ method: 'POST', path: '/protection', body: { enabled: true, duration: 0 } }],
    }),
    check('access', '/access/list', Access, {
      attack: 'others than clients are answered',
      right: (answer) =>
        same(answer.allowed_clients, [pool4, pool6]) && answer.disallowed_clients.length === 0,
      repair: () => [
        {
          method: 'POST',
          path: '/access/set',
          body: { allowed_clients: [pool4, pool6], disallowed_clients: [], blocked_hosts: BLOCKED_HOSTS },
        },
      ],
    }),
    check('filters', '/filtering/status', Filtering, {
      attack: 'clients reach what they are promised not to',
      right: (answer) => filterRepairs(answer, settings).length === 0,
      repair: (answer) => filterRepairs(answer, settings),
    }),
  ];
}

/** Names that tell of the server itself; AdGuard's default. */
const BLOCKED_HOSTS = ['version.bind', 'id.server', 'hostname.bind'];

function filterRepairs(
  answer: z.infer<typeof Filtering>,
  { blocklists, rules }: HavenRequest['settings'],
): Call[] {
  const call = (path: string, body: object): Call => ({ method: 'POST', path: `/filtering/${path}`, body });
  const calls: Call[] = [];
  if (!answer.enabled) calls.push(call('config', { enabled: true, interval: 24 }));
  for (const { url } of answer.whitelist_filters) calls.push(call('remove_url', { url, whitelist: true }));
  for (const { url } of answer.filters) {
    if (!blocklists.some((list) => list.url === url))
      calls.push(call('remove_url', { url, whitelist: false }));
  }
  for (const { name, url } of blocklists) {
    const there = answer.filters.find((filter) => filter.url === url);
    if (!there) calls.push(call('add_url', { name, url, whitelist: false }));
    else if (!there.enabled || there.name !== name) {
      calls.push(call('set_url', { url, whitelist: false, data: { name, url, enabled: true } }));
    }
  }
  if (answer.user_rules.join('\n') !== rules.join('\n')) calls.push(call('set_rules', { rules }));
  return calls;
}
