/**
 * Rate limits: per subscription for apps, per client address for requests that prove nothing. A client's address is
 * used for nothing else: it reaches the store only as a keyed hash that changes every day, and it is never logged.
 */
import { createHmac, hkdfSync } from 'node:crypto';
import { BlockList, isIP, isIPv6 } from 'node:net';
import { KatafractError } from '@katafract/shared/errors';
import type { ApiContext } from './api.ts';
import type { Metrics } from './metrics.ts';
import type { Store } from './store.ts';

const WINDOW_MS = 60_000;
const DAY_MS = 86_400_000;

export interface LimitDeps {
  readonly store: Store;
  readonly metrics: Metrics;
  readonly now: () => number;
  /** Requests a minute; 0 for no limit. */
  readonly subscriptionPerMinute: number;
  readonly anonymousPerMinute: number;
  /** Proxies whose X-Forwarded-For is believed. */
  readonly trustedProxies: readonly string[];
  /** Keys the hash of addresses; the same on every controller that shares a store. */
  readonly secret: Uint8Array;
}

export interface Limits {
  /** Counts a request of a subscription. @throws KatafractError `rate_limited` (429) */
  subscription(c: ApiContext, subscriptionId: string): Promise<void>;
  /** Counts a request of an address. @throws KatafractError `rate_limited` (429) */
  address(c: ApiContext): Promise<void>;
}

/** A list of addresses and prefixes. @throws TypeError where one is neither */
export function proxyList(entries: readonly string[]): BlockList {
  const list = new BlockList();
  for (const entry of entries) {
    const [address = '', prefix] = entry.split('/');
    const family = isIPv6(address) ? 'ipv6' : 'ipv4';
    list.addSubnet(address, prefix === undefined ? (family === 'ipv6' ? 128 : 32) : Number(prefix), family);
  }
  return list;
}

const isListed = (list: BlockList, address: string) => list.check(address, isIPv6(address) ? 'ipv6' : 'ipv4');

/** Plain IPv4 for an IPv4-mapped address, and the /64 for IPv6: one subscriber has at least that much to himself. */
export function addressGroup(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  if (mapped) return mapped;
  if (!isIPv6(address)) return address;
  const [head = '', tail] = address.split('::');
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  const fill = tail === undefined ? [] : Array<string>(8 - left.length - right.length).fill('0');
  return [...left, ...fill, ...right].slice(0, 4).join(':');
}

/**
 * The address a request came from: that of the connection, or, behind proxies we trust, the last one in
 * X-Forwarded-For that is not itself such a proxy.
 */
export function clientAddress(peer: string, forwarded: string | undefined, trusted: BlockList): string {
  if (!isListed(trusted, peer)) return peer;
  const hops = (forwarded ?? '').split(',').map((hop) => hop.trim());
  return hops.reverse().find((hop) => isIP(hop) !== 0 && !isListed(trusted, hop)) ?? peer;
}

export function createLimits(deps: LimitDeps): Limits {
  const trusted = proxyList(deps.trustedProxies);
  const key = Buffer.from(hkdfSync('sha256', deps.secret, '', 'katafract rate limits', 32));

  async function count(c: ApiContext, scope: string, name: string, quota: number): Promise<void> {
    if (quota === 0) return;
    const { count, resetMs } = await deps.store.hit(`limit:${scope}:${name}`, WINDOW_MS);
    const seconds = Math.max(1, Math.ceil(resetMs / 1000));
    // draft-ietf-httpapi-ratelimit-headers-10
    c.header('RateLimit-Policy', `"${scope}";q=${quota};w=${WINDOW_MS / 1000}`);
    c.header('RateLimit', `"${scope}";r=${Math.max(0, quota - count)};t=${seconds}`);
    if (count <= quota) return;
    deps.metrics.rateLimited.inc({ scope });
    throw new KatafractError('rate_limited', 'too many requests', { status: 429, retryAfter: seconds });
  }

  return {
    subscription: (c, id) => count(c, 'subscription', id, deps.subscriptionPerMinute),
    address(c) {
      const peer = c.env?.incoming?.socket.remoteAddress ?? 'unknown';
      const group = addressGroup(clientAddress(peer, c.req.header('x-forwarded-for'), trusted));
      const day = Math.floor(deps.now() / DAY_MS);
      const name = createHmac('sha256', key).update(`${day} ${group}`).digest('base64url');
      return count(c, 'address', name, deps.anonymousPerMinute);
    },
  };
}
