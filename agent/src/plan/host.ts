/**
 * Plans everything of the host but its peers, pure. The order is the plan's and has one reason: at no moment may
 * packets be forwarded without the rules that hold them.
 */
import type { NodeConfig } from '@katafract/shared/desired';
import type { Family, Link, Tunnel, Uplinks } from '../ports.ts';
import { planFirewall } from './firewall.ts';
import { FAMILIES, ruleContext } from './rules.ts';
import { subnet4, subnet6 } from './subnets.ts';
import { FORWARDING, guardSysctls, type Sysctl } from './sysctls.ts';

export interface HostObservation extends Uplinks {
  /** null: there is no such interface. */
  readonly link: Link | null;
  /** Pools that have a route through the tunnel interface. */
  readonly routes: readonly string[];
  /** By path; null where this kernel has none. */
  readonly sysctls: ReadonlyMap<string, string | null>;
  /** What iptables-save printed. */
  readonly firewall: Readonly<Record<Family, string>>;
}

export type HostStep =
  | { readonly kind: 'rules'; readonly family: Family; readonly text: string }
  | { readonly kind: 'create' }
  | { readonly kind: 'private-key' }
  | { readonly kind: 'listen-port'; readonly port: number }
  | { readonly kind: 'add-address'; readonly address: string }
  | { readonly kind: 'remove-address'; readonly address: string }
  | { readonly kind: 'mtu'; readonly bytes: number }
  | { readonly kind: 'up' }
  | { readonly kind: 'route'; readonly pool: string }
  | { readonly kind: 'sysctl'; readonly path: string; readonly value: string }
  /** As sysctl, but not to be taken unless every rule is in place. */
  | { readonly kind: 'forwarding'; readonly path: string; readonly value: string };

export interface HostIdentity {
  /** Name of the tunnel interface. */
  readonly interfaceName: string;
  /** The node's own WireGuard key. */
  readonly publicKey: string;
}

export function planHost(
  identity: HostIdentity,
  config: NodeConfig,
  seen: HostObservation,
  tunnel: Tunnel | null,
): HostStep[] {
  return [
    ...planRules(config, seen),
    ...planTunnel(identity, config, seen, tunnel),
    ...planSysctls(
      guardSysctls({ tunnel: identity.interfaceName, uplink6: seen.uplink6 }),
      seen,
      'sysctl',
      seen.link ? null : identity.interfaceName,
    ),
    ...planSysctls(FORWARDING, seen, 'forwarding', null),
  ];
}

/** Rules first, and before the interface: a tunnel never exists without them. */
function planRules(config: NodeConfig, seen: HostObservation): HostStep[] {
  return FAMILIES.flatMap((family) => {
    const text = planFirewall(seen.firewall[family], ruleContext(family, config, seen));
    return text === null ? [] : [{ kind: 'rules', family, text } as const];
  });
}

/** Only what differs is touched, so that an interface which is right never flaps. */
function planTunnel(
  identity: HostIdentity,
  config: NodeConfig,
  seen: HostObservation,
  tunnel: Tunnel | null,
): HostStep[] {
  const steps: HostStep[] = [];
  const { link } = seen;
  const subnets = [subnet4(config), subnet6(config)];
  if (!link) steps.push({ kind: 'create' });
  if (tunnel?.publicKey !== identity.publicKey) steps.push({ kind: 'private-key' });
  if (tunnel?.listenPort !== config.listenPort) steps.push({ kind: 'listen-port', port: config.listenPort });
  const wanted = subnets.map((subnet) => subnet.gateway);
  // New before old: the pool is never without a gateway.
  for (const address of wanted) {
    if (!link?.addresses.includes(address)) steps.push({ kind: 'add-address', address });
  }
  for (const address of link?.addresses ?? []) {
    if (!wanted.includes(address)) steps.push({ kind: 'remove-address', address });
  }
  if (link?.mtu !== config.mtu) steps.push({ kind: 'mtu', bytes: config.mtu });
  if (!link?.up) steps.push({ kind: 'up' });
  for (const { pool, gateway } of subnets) {
    // The kernel makes the route itself when the address comes or the link goes up.
    const settled = link?.up && link.addresses.includes(gateway);
    if (settled && !seen.routes.includes(pool)) steps.push({ kind: 'route', pool });
  }
  return steps;
}

/** @param coming an interface that this plan makes: its settings cannot be seen yet and are all written */
function planSysctls(
  table: readonly Sysctl[],
  seen: HostObservation,
  kind: 'sysctl' | 'forwarding',
  coming: string | null,
): HostStep[] {
  return table.flatMap(({ path, value, from, optional }) => {
    const now = seen.sysctls.get(path) ?? null;
    const hidden = now === null && (!optional || (coming !== null && path.includes(`/${coming}/`)));
    const wrong = now !== null && now !== value && (from === undefined || now === from);
    return hidden || wrong ? [{ kind, path, value }] : [];
  });
}
