/**
 * The API of the AdGuard Home stand-in, after its published openapi.yaml and the behaviour of v0.107: HTTP Basic, five
 * failed logins shut an address out (and then it is still 401), JSON or 415, errors in plain text, no body without a
 * content type and none with one where it is empty.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { compareSync } from 'bcryptjs';
import { type Config, duration } from './config.ts';

export interface Server {
  readonly config: Config;
  /** Writes the file; changes of the API are there after the next start. */
  save(): void;
  readonly statistics: { queries: number; blocked: number; reset(): void };
  clearQueryLog(): void;
}

class Refused extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

type Body = Record<string, unknown>;
type Route = (server: Server, body: Body) => unknown;

const OK = Symbol('OK');

function assign<T extends object>(
  target: T,
  body: Body,
  names: Readonly<Partial<Record<string, keyof T>>>,
): void {
  for (const [name, key] of Object.entries(names)) {
    if (key === undefined || body[name] === undefined) continue;
    if (typeof body[name] !== typeof target[key]) throw new Refused(400, `json: cannot unmarshal ${name}`);
    target[key] = body[name] as T[keyof T];
  }
}

const hostport = (address: string, port: number) =>
  port === 53 ? address : address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;

const ROUTES: Readonly<Record<string, Route>> = {
  'GET /status': ({ config: { dns, http, filtering } }) => ({
    version: 'v0.107.79',
    language: 'en',
    dns_addresses: dns.bind_hosts.map((address) => hostport(address, dns.port)),
    dns_port: dns.port,
    http_port: Number(http.address.slice(http.address.lastIndexOf(':') + 1)),
    protection_disabled_duration: 0,
    protection_enabled: filtering.protection_enabled,
    dhcp_available: true,
    running: true,
    start_time: 0,
  }),
  'POST /protection': ({ config }, body) => {
    assign(config.filtering, body, { enabled: 'protection_enabled' });
    return OK;
  },
  'GET /dns_info': ({ config: { dns, filtering, clients } }) => ({
    upstream_dns: dns.upstream_dns,
    upstream_dns_file: dns.upstream_dns_file,
    bootstrap_dns: dns.bootstrap_dns,
    fallback_dns: dns.fallback_dns,
    protection_enabled: filtering.protection_enabled,
    ratelimit: dns.ratelimit,
    ratelimit_subnet_len_ipv4: dns.ratelimit_subnet_len_ipv4,
    ratelimit_subnet_len_ipv6: dns.ratelimit_subnet_len_ipv6,
    ratelimit_whitelist: dns.ratelimit_whitelist,
    blocking_mode: 'default',
    edns_cs_enabled: dns.edns_client_subnet.enabled,
    edns_cs_use_custom: dns.edns_client_subnet.use_custom,
    edns_cs_custom_ip: dns.edns_client_subnet.custom_ip,
    dnssec_enabled: dns.enable_dnssec,
    disable_ipv6: false,
    upstream_mode: dns.upstream_mode,
    cache_size: dns.cache_size,
    resolve_clients: clients.runtime_sources.rdns,
    use_private_ptr_resolvers: dns.use_private_ptr_resolvers,
    local_ptr_upstreams: dns.local_ptr_upstreams,
    default_local_ptr_upstreams: [],
  }),
  'POST /dns_config': ({ config }, body) => {
    const { dns } = config;
    const own = [
      'upstream_dns',
      'upstream_dns_file',
      'bootstrap_dns',
      'fallback_dns',
      'ratelimit',
      'upstream_mode',
      'ratelimit_subnet_len_ipv4',
      'ratelimit_subnet_len_ipv6',
      'ratelimit_whitelist',
      'use_private_ptr_resolvers',
      'local_ptr_upstreams',
    ] as const;
    assign(dns, body, Object.fromEntries(own.map((name) => [name, name])));
    assign(dns, body, { dnssec_enabled: 'enable_dnssec' });
    assign(dns.edns_client_subnet, body, { edns_cs_enabled: 'enabled' });
    assign(config.clients.runtime_sources, body, { resolve_clients: 'rdns' });
    return OK;
  },
  'GET /querylog/config': ({ config: { querylog, dns } }) => ({
    enabled: querylog.enabled,
    interval: duration(querylog.interval),
    anonymize_client_ip: dns.anonymize_client_ip,
    ignored: querylog.ignored,
    ignored_enabled: querylog.ignored_enabled,
  }),
  'PUT /querylog/config/update': ({ config }, body) => {
    for (const name of ['enabled', 'interval', 'anonymize_client_ip', 'ignored']) {
      if (body[name] === undefined) throw new Refused(422, `${name} is null`);
    }
    assign(config.querylog, body, {
      enabled: 'enabled',
      ignored: 'ignored',
      ignored_enabled: 'ignored_enabled',
    });
    assign(config.dns, body, { anonymize_client_ip: 'anonymize_client_ip' });
    config.querylog.interval = `${Number(body.interval) / 3_600_000}h`;
    return OK;
  },
  'POST /querylog_clear': (server) => {
    server.clearQueryLog();
    return OK;
  },
  'GET /stats/config': ({ config: { statistics } }) => ({
    enabled: statistics.enabled,
    interval: duration(statistics.interval),
    ignored: statistics.ignored,
    ignored_enabled: statistics.ignored_enabled,
  }),
  'PUT /stats/config/update': ({ config }, body) => {
    for (const name of ['enabled', 'interval', 'ignored']) {
      if (body[name] === undefined) throw new Refused(422, `${name} is null`);
    }
    assign(config.statistics, body, {
      enabled: 'enabled',
      ignored: 'ignored',
      ignored_enabled: 'ignored_enabled',
    });
    config.statistics.interval = `${Number(body.interval) / 3_600_000}h`;
    return OK;
  },
  'POST /stats_reset': ({ statistics }) => {
    statistics.reset();
    return OK;
  },
  'GET /stats': ({ statistics }) => ({
    num_dns_queries: statistics.queries,
    num_blocked_filtering: statistics.blocked,
    avg_processing_time: 0.001,
    top_queried_domains: [],
    top_clients: [],
  }),
  'GET /filtering/status': ({ config }) => {
    const shown = (list: Config['filters']) =>
      list.length === 0 ? null : list.map((filter) => ({ ...filter, rules_count: 1 }));
    return {
      enabled: config.filtering.filtering_enabled,
      interval: config.filtering.filters_update_interval,
      filters: shown(config.filters),
      whitelist_filters: shown(config.whitelist_filters),
      user_rules: config.user_rules,
    };
  },
  'POST /filtering/config': ({ config }, body) => {
    assign(config.filtering, body, { enabled: 'filtering_enabled', interval: 'filters_update_interval' });
    return OK;
  },
  'POST /filtering/add_url': ({ config }, body) => {
    const list = body.whitelist === true ? config.whitelist_filters : config.filters;
    if (list.some(({ url }) => url === body.url))
      throw new Refused(400, `Filter with URL "${body.url}" is already added`);
    const id = Math.max(0, ...config.filters.map((filter) => filter.id)) + 1;
    list.push({ enabled: true, url: String(body.url), name: String(body.name), id });
    return 'OK 1 rules\n';
  },
  'POST /filtering/remove_url': ({ config }, body) => {
    const list = body.whitelist === true ? config.whitelist_filters : config.filters;
    const index = list.findIndex(({ url }) => url === body.url);
    if (index < 0) throw new Refused(404, 'no such filter');
    list.splice(index, 1);
    return 'OK 1 rules\n';
  },
  'POST /filtering/set_url': ({ config }, body) => {
    const list = body.whitelist === true ? config.whitelist_filters : config.filters;
    const filter = list.find(({ url }) => url === body.url);
    if (!filter) throw new Refused(400, 'url doesn’t exist');
    assign(filter, body.data as Body, { enabled: 'enabled', name: 'name', url: 'url' });
    return OK;
  },
  'POST /filtering/set_rules': ({ config }, body) => {
    assign(config, body, { rules: 'user_rules' });
    return OK;
  },
  'GET /access/list': ({ config: { dns } }) => ({
    allowed_clients: dns.allowed_clients,
    disallowed_clients: dns.disallowed_clients,
    blocked_hosts: dns.blocked_hosts,
  }),
  'POST /access/set': ({ config: { dns } }, body) => {
    const names = ['allowed_clients', 'disallowed_clients', 'blocked_hosts'] as const;
    assign(dns, body, Object.fromEntries(names.map((name) => [name, name])));
    return OK;
  },
  'GET /safebrowsing/status': ({ config }) => ({ enabled: config.filtering.safebrowsing_enabled }),
  'POST /safebrowsing/disable': ({ config }) => {
    config.filtering.safebrowsing_enabled = false;
    return OK;
  },
  'POST /safebrowsing/enable': ({ config }) => {
    config.filtering.safebrowsing_enabled = true;
    return OK;
  },
  'POST /parental/enable': ({ config }) => {
    config.filtering.parental_enabled = true;
    return OK;
  },
  'GET /parental/status': ({ config }) => ({ enabled: config.filtering.parental_enabled }),
  'POST /parental/disable': ({ config }) => {
    config.filtering.parental_enabled = false;
    return OK;
  },
  'GET /clients': ({ config: { clients } }) => ({
    clients: clients.persistent.length === 0 ? null : clients.persistent,
    auto_clients: [],
    supported_tags: [],
  }),
  'POST /clients/add': ({ config: { clients } }, body) => {
    clients.persistent.push({ name: String(body.name), ids: body.ids as string[] });
    return OK;
  },
  'POST /clients/delete': ({ config: { clients } }, body) => {
    const index = clients.persistent.findIndex(({ name }) => name === body.name);
    if (index < 0) throw new Refused(400, 'Client not found');
    clients.persistent.splice(index, 1);
    return OK;
  },
};

export function serveApi(server: Server, onFault: (error: Error) => void): void {
  const { address } = server.config.http;
  const failures = new Map<string, { count: number; blockedUntil: number }>();

  /** As the real one: a blocked address is told nothing else than one with a wrong password. */
  function letsIn(request: IncomingMessage): boolean {
    const { users, auth_attempts: most, block_auth_min: minutes } = server.config;
    if (users.length === 0) return true;
    const from = request.socket.remoteAddress ?? '';
    const [scheme, encoded = ''] = (request.headers.authorization ?? '').split(' ');
    if (scheme !== 'Basic') return false;
    const before = failures.get(from) ?? { count: 0, blockedUntil: 0 };
    if (Date.now() < before.blockedUntil) return false;
    const text = Buffer.from(encoded, 'base64').toString('utf8');
    const [name, password] = [text.slice(0, text.indexOf(':')), text.slice(text.indexOf(':') + 1)];
    const user = users.find((each) => each.name === name);
    if (user && compareSync(password, user.password)) {
      failures.delete(from);
      return true;
    }
    const count = before.count + 1;
    failures.set(from, { count, blockedUntil: count >= most ? Date.now() + minutes * 60_000 : 0 });
    return false;
  }

  async function answer(request: IncomingMessage): Promise<unknown> {
    const body = await bodyOf(request);
    const path = (request.url ?? '').replace(/^\/control/, '');
    const route = ROUTES[`${request.method} ${path}`];
    if (!route) throw new Refused(404, '404 page not found');
    const result = route(server, body);
    if (request.method !== 'GET') server.save();
    return result;
  }

  const http = createServer((request, response) => {
    if (!letsIn(request)) {
      response.writeHead(401).end();
      return;
    }
    answer(request).then(
      (result) => succeed(response, result),
      (error: Error) => {
        const status = error instanceof Refused ? error.status : 500;
        response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8' }).end(`${error.message}\n`);
      },
    );
  });
  http.on('error', onFault);
  const at = address.lastIndexOf(':');
  http.listen(Number(address.slice(at + 1)), address.slice(0, at).replace(/^\[|\]$/g, ''));
}

function succeed(response: ServerResponse, result: unknown): void {
  if (result === OK || typeof result === 'string') {
    response
      .writeHead(200, { 'content-type': 'text/plain; charset=utf-8' })
      .end(result === OK ? 'OK\n' : (result as string));
    return;
  }
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(result));
}

async function bodyOf(request: IncomingMessage): Promise<Body> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  if (request.method === 'GET') return {};
  const text = Buffer.concat(chunks).toString('utf8');
  const type = request.headers['content-type'] ?? '';
  if (text === '') {
    if (type !== '') throw new Refused(415, `empty body with content-type "${type}" not allowed`);
    return {};
  }
  if (type !== 'application/json') throw new Refused(415, 'only content-type application/json is allowed');
  try {
    return JSON.parse(text) as Body;
  } catch (error) {
    throw new Refused(400, `json decode: ${error}`);
  }
}
