/**
 * Configuration of the AdGuard Home stand-in: read from YAML, filled with AdGuard's defaults, written back whenever the
 * API changes something, as the real one does. Facts from AdGuard Home's internal/home/config.go (v0.107, schema 34).
 */
import { chmodSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { parse, stringify } from 'yaml';

export interface Filter {
  enabled: boolean;
  url: string;
  name: string;
  id: number;
}

const DEFAULTS = {
  http: {
    address: '0.0.0.0:3000',
    session_ttl: '720h',
    pprof: { port: 6060, enabled: false },
    doh: { routes: ['GET /dns-query'], insecure_enabled: false },
  },
  users: [] as { name: string; password: string }[],
  auth_attempts: 5,
  block_auth_min: 15,
  language: '',
  theme: 'auto',
  dns: {
    bind_hosts: ['0.0.0.0'],
    port: 53,
    anonymize_client_ip: false,
    ratelimit: 20,
    ratelimit_subnet_len_ipv4: 24,
    ratelimit_subnet_len_ipv6: 56,
    ratelimit_whitelist: [] as string[],
    refuse_any: true,
    upstream_dns: ['https://dns10.quad9.net/dns-query'],
    upstream_dns_file: '',
    bootstrap_dns: ['9.9.9.10'],
    fallback_dns: [] as string[],
    upstream_mode: 'load_balance',
    allowed_clients: [] as string[],
    disallowed_clients: [] as string[],
    blocked_hosts: ['version.bind', 'id.server', 'hostname.bind'],
    trusted_proxies: ['127.0.0.0/8', '::1/128'],
    cache_enabled: true,
    cache_size: 4_194_304,
    enable_dnssec: true,
    edns_client_subnet: { custom_ip: '', enabled: false, use_custom: false },
    handle_ddr: true,
    use_private_ptr_resolvers: true,
    local_ptr_upstreams: [] as string[],
    use_dns64: false,
    serve_plain_dns: true,
    hostsfile_enabled: true,
  },
  tls: { enabled: false },
  querylog: {
    dir_path: '',
    ignored: [] as string[],
    interval: '2160h',
    size_memory: 1000,
    enabled: true,
    ignored_enabled: false,
    file_enabled: true,
  },
  statistics: {
    dir_path: '',
    ignored: [] as string[],
    interval: '24h',
    enabled: true,
    ignored_enabled: false,
  },
  filters: [] as Filter[],
  whitelist_filters: [] as Filter[],
  user_rules: [] as string[],
  dhcp: { enabled: false },
  filtering: {
    protection_enabled: true,
    filtering_enabled: true,
    parental_enabled: false,
    safebrowsing_enabled: false,
    filters_update_interval: 24,
  },
  clients: {
    runtime_sources: { whois: true, arp: true, rdns: true, dhcp: true, hosts: true },
    persistent: [] as { name: string; ids: string[] }[],
  },
  log: { enabled: true, file: '', verbose: false },
  os: { group: '', user: '', rlimit_nofile: 0 },
  schema_version: 34,
};
export type Config = typeof DEFAULTS;

function merged<T>(fallback: T, given: unknown): T {
  if (given === undefined || given === null) return structuredClone(fallback);
  if (Array.isArray(fallback)) {
    if (!Array.isArray(given)) throw new Error('a list is needed');
    return given as T;
  }
  if (typeof fallback === 'object' && fallback !== null) {
    if (typeof given !== 'object' || Array.isArray(given)) throw new Error('a block is needed');
    const there = given as Record<string, unknown>;
    const known = Object.entries(fallback).map(([key, value]) => [key, merged(value, there[key])]);
    return Object.fromEntries(known) as T;
  }
  if (typeof given !== typeof fallback)
    throw new Error(`${JSON.stringify(given)} instead of a ${typeof fallback}`);
  return given as T;
}

/** @throws Error for what the real one refuses to start with */
export function load(path: string): Config {
  const config = merged(DEFAULTS, parse(readFileSync(path, 'utf8')));
  if (config.schema_version > 34)
    throw new Error(`unknown configuration schema version ${config.schema_version}`);
  if (config.dns.bind_hosts.length === 0) throw new Error('no bind hosts');
  for (const upstream of config.dns.upstream_dns) {
    if (!/^(?:(?:https|h3|tls|quic|udp|tcp):\/\/)?[\w.[\]:/~-]+$/.test(upstream))
      throw new Error(`bad upstream ${upstream}`);
  }
  return config;
}

export function save(path: string, config: Config): void {
  writeFileSync(`${path}.tmp`, stringify(config));
  chmodSync(`${path}.tmp`, 0o600);
  renameSync(`${path}.tmp`, path);
}

/** `1h` and the like, in milliseconds. */
export function duration(text: string): number {
  const units = { h: 3_600_000, m: 60_000, s: 1000 } as const;
  return [...text.matchAll(/(\d+)([hms])/g)].reduce(
    (sum, [, value, unit]) => sum + Number(value) * units[unit as keyof typeof units],
    0,
  );
}
