/**
 * Plans everything of the host but its peers, pure. The order is the plan's and has one reason: at no moment may
 * packets be forwarded without the rules that hold them.
 */
import type { NodeConfig } from '@katafract/shared/desired';
import type { Family, Gates, Tunnels, Uplinks } from '../ports.ts';
import { FAMILIES, type HostChoices, ruleContext } from './context.ts';
import { planFirewall } from './firewall.ts';
import { isSet, type SettingContext, type SettingRow, type Sysctl, written } from './sysctls.ts';
import type { Table } from './table.ts';
import {
  listenPorts,
  planTunnels,
  type TunnelStep,
  type TunnelsSeen,
  tunnelNames,
  wantedTunnels,
} from './tunnels.ts';

export interface HostObservation extends Uplinks, TunnelsSeen {
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
  | TunnelStep
  | { readonly kind: 'sysctl'; readonly path: string; readonly value: string }
  /** As sysctl, but not to be taken unless every rule is in place. */
  | { readonly kind: 'forwarding'; readonly path: string; readonly value: string };

export interface HostIdentity {
  /** Name of the first tunnel interface. */
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
  tunnels: Tunnels,
): HostStep[] {
  const { interfaceName, publicKey } = identity;
  const { config, table } = wish;
  const wanted = wantedTunnels(interfaceName, config);
  const coming = wanted.map(({ name }) => name).filter((name) => !seen.links.has(name));
  const context = settingContext(interfaceName, config, seen);
  return [
    ...planRules(wish, seen, interfaceName),
    ...planTunnels(wanted, publicKey, config.mtu, seen, tunnels),
    ...planSettings(table.settings, context, 'sysctl', seen, coming),
    ...planSettings(table.forwarding, context, 'forwarding', seen, []),
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

/** @param coming interfaces that this plan makes: their settings cannot be seen yet and are all written */
function planSettings(
  rows: readonly SettingRow[],
  context: SettingContext,
  kind: 'sysctl' | 'forwarding',
  seen: HostObservation,
  coming: readonly string[],
): HostStep[] {
  const now = new Map(seen.sysctls);
  const steps: HostStep[] = [];
  for (const setting of rows.flatMap((row) => row.settings(context))) {
    const { path, optional } = setting;
    const value = now.get(path) ?? null;
    const ofComing = coming.some((name) => path.includes(`/${name}/`));
    if (value === null ? optional && !ofComing : isSet(setting, value)) continue;
    steps.push({ kind, path, value: written(setting, value) });
    now.set(path, written(setting, value));
  }
  return steps;
}

/** @param first name of the first tunnel interface */
export function settingContext(first: string, config: NodeConfig, uplinks: Uplinks): SettingContext {
  return {
    tunnels: tunnelNames(first, config),
    uplink6: uplinks.uplink6,
    listenPorts: listenPorts(config),
  };
}

/** Every setting of the kernel that is to be looked at. */
export function settingsOf(
  first: string,
  { config, table }: Omit<HostWish, 'gates' | 'choices'>,
  uplinks: Uplinks,
): Sysctl[] {
  const context = settingContext(first, config, uplinks);
  return [...table.settings, ...table.forwarding].flatMap((row) => row.settings(context));
}
