/**
 * AdGuard Home's own configuration (v0.107, schema 34), pure: what a wish comes down to, and whether what stands on the
 * disk is that. Only what we say anything about is compared; AdGuard fills in the rest. What it can be told over its API
 * as well is here too, so that it starts as it should be.
 *
 * Source: internal/home/config.go and internal/dnsforward/config.go of AdGuard Home.
 */
import type { HavenRequest } from './requests.ts';

export const CONFIG_PATH = 'var/lib/katafract-haven/AdGuardHome.yaml';
/** In memory, and gone with the service. */
const VOLATILE = '/run/katafract-haven';
export const API_PORT = 3053;
export const API_USER = 'katafract';
const SCHEMA = 34;

type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };

/** @returns an object whose JSON is the YAML file: every JSON text is a YAML one */
export function adguardConfig({ settings, gateway4, gateway6, pool4, pool6, password }: HavenRequest) {
  return {
    http: {
      address: `127.0.0.1:${API_PORT}`,
      session_ttl: '1h',
      pprof: { enabled: false },
      doh: { insecure_enabled: false },
    },
    users: [{ name: API_USER, password }],
    dns: {
      bind_hosts: [gateway4, gateway6],
      port: 53,
      anonymize_client_ip: true,
      // of each client for itself: the default counts a /24, which is 250 clients, as one
      ratelimit: settings.queriesPerSecond,
      ratelimit_subnet_len_ipv4: 32,
      ratelimit_subnet_len_ipv6: 128,
      ratelimit_whitelist: [],
      refuse_any: true,
      upstream_dns: settings.upstreams,
      upstream_dns_file: '',
      bootstrap_dns: settings.bootstrap,
      // a query is answered by an upstream in private, or not at all
      fallback_dns: [],
      upstream_mode: 'load_balance',
      allowed_clients: [pool4, pool6],
      disallowed_clients: [],
      trusted_proxies: [],
      enable_dnssec: true,
      edns_client_subnet: { enabled: false, use_custom: false },
      // would invite devices to encrypted DNS that this exit does not offer
      handle_ddr: false,
      use_private_ptr_resolvers: false,
      local_ptr_upstreams: [],
      use_dns64: false,
      serve_plain_dns: true,
      // the names of the machine are none of a client's business
      hostsfile_enabled: false,
    },
    tls: { enabled: false },
    querylog: { enabled: false, file_enabled: false, interval: '1h', dir_path: VOLATILE },
    statistics: { enabled: settings.statistics, interval: '1h', dir_path: VOLATILE },
    filters: settings.blocklists.map(({ name, url }, index) => ({ enabled: true, url, name, id: index + 1 })),
    whitelist_filters: [],
    user_rules: settings.rules,
    dhcp: { enabled: false },
    filtering: {
      protection_enabled: true,
      filtering_enabled: true,
      // these ask AdGuard's own servers about the names that clients look up
      parental_enabled: false,
      safebrowsing_enabled: false,
    },
    clients: {
      runtime_sources: { whois: false, arp: false, rdns: false, dhcp: false, hosts: false },
      // a client that is known here by its address is a device on our disk
      persistent: [],
    },
    // its errors name what was looked up
    log: { enabled: false, verbose: false, file: '' },
    os: { group: '', user: '' },
    schema_version: SCHEMA,
  } as const satisfies Json;
}

/** Paths of what is not as it is wanted; empty where all is. @param found the file, parsed; anything at all */
export function differences(wanted: Json, found: unknown, path = ''): string[] {
  if (path === 'schema_version') return typeof found === 'number' && found >= SCHEMA ? [] : [path];
  if (Array.isArray(wanted)) {
    const same = Array.isArray(found) && found.length === wanted.length;
    return same
      ? wanted.flatMap((item: Json, index) => differences(item, found[index], `${path}.${index}`))
      : [path];
  }
  if (wanted !== null && typeof wanted === 'object') {
    if (found === null || typeof found !== 'object' || Array.isArray(found)) return [path];
    const there = found as Record<string, unknown>;
    return Object.entries(wanted).flatMap(([key, value]) =>
      differences(value as Json, there[key], path === '' ? key : `${path}.${key}`),
    );
  }
  // AdGuard writes an empty list as none
  return wanted === found ? [] : [path];
}
