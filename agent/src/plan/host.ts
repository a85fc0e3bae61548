/**
 * Plans everything of the host but its peers, pure. The order is the plan's and has one reason: at no moment may
 * packets be forwarded without the rules that hold them.
 */
import type { NodeConfig } from '@katafract/shared/desired';
import type { Family, Gates, Link, Tunnel, Uplinks } from '../ports.ts';
import { FAMILIES, type HostChoices, ruleContext } from './context.ts';
import { planFirewall } from './firewall.ts';
import { subnet4, subnet6 } from './subnets.ts';
import { isSet, type SettingContext, type SettingRow, type Sysctl, written } from './sysctls.ts';
import type { Table } from './table.ts';

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
  /** `close`: settings that end forwarding of the family, for where the text is not taken. */
  | {
      readonly kind: 'rules';
      readonly family: Family;
      readonly text: string;
      readonly close: readonly Sysctl[];
    }
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

/** What is to be: the config of the node, what its machine's operator chose, and what every exit enforces. */
export interface HostWish {
  readonly config: NodeConfig;
  readonly choices: HostChoices;
  readonly gates: Gates;
  readonly table: Table;
}

export function planHost(
  identity: HostIdentity,
  wish: HostWish,
  seen: HostObservation,
  tunnel: Tunnel | null,
): HostStep[] {
  const name = identity.interfaceName;
  const coming = seen.link ? null : name;
  const context = settingContext(name, wish.config, seen);
  return [
    ...planRules(wish, seen, name),
    ...planTunnel(identity, wish.config, seen, tunnel),
    ...planSettings(wish.table.settings, context, 'sysctl', seen, coming),
    ...planSettings(wish.table.forwarding, context, 'forwarding', seen, null),
  ];
}

/** Rules first, and before the interface: a tunnel never exists without them. */
function planRules(
  { config, choices, gates, table }: HostWish,
  seen: HostObservation,
  name: string,
): HostStep[] {
  return FAMILIES.flatMap((family) => {
    const text = planFirewall(
      seen.firewall[family],
      ruleContext(family, config, seen, choices, gates),
      table,
    );
    const context = settingContext(name, config, seen);
    const forwarding = table.forwarding.filter((row) => (row.family ?? family) === family);
    const close = forwarding
      .flatMap((row) => row.settings(context))
      .filter(({ path }) => seen.sysctls.get(path) != null)
      .map((setting) => ({ ...setting, value: '0' }));
    return text === null ? [] : [{ kind: 'rules', family, text, close } as const];
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
function planSettings(
  rows: readonly SettingRow[],
  context: SettingContext,
  kind: 'sysctl' | 'forwarding',
  seen: HostObservation,
  coming: string | null,
): HostStep[] {
  const now = new Map(seen.sysctls);
  const steps: HostStep[] = [];
  for (const setting of rows.flatMap((row) => row.settings(context))) {
    const { path, optional } = setting;
    const value = now.get(path) ?? null;
    const ofComing = coming !== null && path.includes(`/${coming}/`);
    if (value === null ? optional && !ofComing : isSet(setting, value)) continue;
    steps.push({ kind, path, value: written(setting, value) });
    now.set(path, written(setting, value));
  }
  return steps;
}

export function settingContext(tunnel: string, config: NodeConfig, uplinks: Uplinks): SettingContext {
  return { tunnel, uplink6: uplinks.uplink6, listenPorts: [config.listenPort] };
}

/** Every setting of the kernel that is to be looked at. */
export function settingsOf(
  tunnel: string,
  { config, table }: Omit<HostWish, 'gates' | 'choices'>,
  uplinks: Uplinks,
): Sysctl[] {
  const context = settingContext(tunnel, config, uplinks);
  return [...table.settings, ...table.forwarding].flatMap((row) => row.settings(context));
}
