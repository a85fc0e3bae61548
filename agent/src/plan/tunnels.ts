/**
 * The tunnel interfaces of an exit, pure: what each is called, which port it has, and which clients. All have the node's
 * one key. The first one has the gateway's addresses and the pool; a further one has a route for each part of the pool
 * that is its own, more specific than the pool's: so a client's packets find their way back without a mark or a rule,
 * and strict reverse-path filtering keeps clients of one from sending as those of another.
 */
import { addressPlan, indexOf, isInNet4, partsOf, tunnelOf } from '@katafract/shared/addresses';
import type { NodeConfig } from '@katafract/shared/desired';
import type { Cidr4, Cidr6, Ipv4 } from '@katafract/shared/units';
import type { Link, Tunnels } from '../ports.ts';
import { subnet4, subnet6 } from './subnets.ts';

export interface TunnelWish {
  readonly name: string;
  readonly listenPort: number;
  /** With the pool's prefix. */
  readonly addresses: readonly string[];
  readonly routes: readonly TunnelRoute[];
}

export interface TunnelRoute {
  readonly prefix: string;
  /** Address that the exit itself speaks from on it. */
  readonly source: string;
}

export type TunnelStep = { readonly device: string } & (
  | { readonly kind: 'create' }
  | { readonly kind: 'private-key' }
  | { readonly kind: 'listen-port'; readonly port: number }
  | { readonly kind: 'add-address'; readonly address: string }
  | { readonly kind: 'remove-address'; readonly address: string }
  | { readonly kind: 'mtu'; readonly bytes: number }
  | { readonly kind: 'up' }
  | { readonly kind: 'route'; readonly prefix: string; readonly source: string }
);

/** What was seen of the interfaces. */
export interface TunnelsSeen {
  /** Every interface that is called as tunnels are, also those that are none of the node's. */
  readonly links: ReadonlyMap<string, Link>;
  /** Prefixes that have a route through an interface, by its name. */
  readonly routes: ReadonlyMap<string, readonly string[]>;
}

export function listenPorts({ listenPort, tunnels = 1 }: NodeConfig): number[] {
  return Array.from({ length: tunnels }, (_, tunnel) => listenPort + tunnel);
}

/** Names of the interfaces: those after wg0 are wg1, wg2 and so on. @param first of the first one */
export function tunnelNames(first: string, { tunnels = 1 }: NodeConfig): string[] {
  const [, stem = '', number = ''] = /^(.*?)(\d*)$/.exec(first) ?? [];
  return Array.from({ length: tunnels }, (_, at) => (at === 0 ? first : `${stem}${Number(number) + at}`));
}

/** The interfaces as they are to be, in the order of their ports. */
export function wantedTunnels(first: string, config: NodeConfig): TunnelWish[] {
  const four = subnet4(config);
  const six = subnet6(config);
  const ports = listenPorts(config);
  return tunnelNames(first, config).map((name, at) => {
    const listenPort = ports[at] ?? config.listenPort;
    if (at === 0) {
      const routes = [four, six].map((subnet) => ({ prefix: subnet.pool, source: subnet.address }));
      return { name, listenPort, addresses: [four.gateway, six.gateway], routes };
    }
    const routes = partsOf(planOf(config), at, ports.length).flatMap(({ ipv4, ipv6 }) => [
      { prefix: ipv4, source: four.address },
      { prefix: ipv6, source: six.address },
    ]);
    return { name, listenPort, addresses: [], routes };
  });
}

/** Which interface a client belongs to, by its address in the tunnel; null for one that is of no pool. */
export function tunnelOfAddress(config: NodeConfig): (ipv4: string) => number | null {
  const { tunnels = 1 } = config;
  const { pool } = subnet4(config);
  const plan = planOf(config);
  return (ipv4) => (isInNet4(ipv4, pool) ? tunnelOf(plan, indexOf(plan, ipv4 as Ipv4), tunnels) : null);
}

const planOf = (config: NodeConfig) =>
  addressPlan(subnet4(config).pool as Cidr4, subnet6(config).pool as Cidr6);

/** Only what differs is touched, so that an interface which is right never flaps. @param publicKey the node's own */
export function planTunnels(
  wanted: readonly TunnelWish[],
  publicKey: string,
  mtu: number,
  seen: TunnelsSeen,
  tunnels: Tunnels,
): TunnelStep[] {
  const first = seen.links.get(wanted[0]?.name ?? '');
  const speaks = (source: string) => first?.addresses.some((address) => address.startsWith(`${source}/`));
  return wanted.flatMap((wish, at) => {
    const { name: device, listenPort, addresses, routes } = wish;
    const link = seen.links.get(device);
    const tunnel = tunnels[at];
    const steps: TunnelStep[] = [];
    if (!link) steps.push({ kind: 'create', device });
    if (tunnel?.publicKey !== publicKey) steps.push({ kind: 'private-key', device });
    if (tunnel?.listenPort !== listenPort) steps.push({ kind: 'listen-port', device, port: listenPort });
    // New before old: the pool is never without a gateway.
    for (const address of addresses) {
      if (!link?.addresses.includes(address)) steps.push({ kind: 'add-address', device, address });
    }
    for (const address of link?.addresses ?? []) {
      if (!addresses.includes(address)) steps.push({ kind: 'remove-address', device, address });
    }
    if (link?.mtu !== mtu) steps.push({ kind: 'mtu', device, bytes: mtu });
    if (!link?.up) steps.push({ kind: 'up', device });
    const there = seen.routes.get(device) ?? [];
    for (const { prefix, source } of routes) {
      // The kernel makes the pool's own route itself when the address comes or the link goes up; where the address was
      // away, it has taken it from the routes of the other interfaces.
      const missing = link?.up && speaks(source) ? !there.includes(prefix) : at > 0;
      if (missing) steps.push({ kind: 'route', device, prefix, source });
    }
    return steps;
  });
}
