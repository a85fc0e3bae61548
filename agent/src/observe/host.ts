/** One look at the host: all of it at once, since nothing in it waits for anything else. */

import { type HostObservation, type HostWish, settingsOf } from '../plan/host.ts';
import { tunnelNames } from '../plan/tunnels.ts';
import type { Family, FirewallPort, Link, NetworkPort, Route, Uplinks } from '../ports.ts';
import { uplinkOf } from './routes.ts';

/** @param wish names the tunnels, the uplink where the operator fixed it, and the settings to look at */
export async function observeHost(
  network: NetworkPort,
  firewall: FirewallPort,
  interfaceName: string,
  wish: Omit<HostWish, 'gates'>,
): Promise<HostObservation> {
  const looking = [network.links(), network.routes(), firewall.save(4), firewall.save(6)] as const;
  const [links, routes, rules4, rules6] = await Promise.all(looking);
  const uplinks = findUplinks(routes, links, wish.choices.uplink);
  const paths = settingsOf(interfaceName, wish, uplinks).map((setting) => setting.path);
  const names = tunnelNames(interfaceName, wish.config);
  const through = (name: string) => [...routes[4], ...routes[6]].filter(({ device }) => device === name);
  return {
    ...uplinks,
    links: new Map([...links].filter(([name]) => names.includes(name) || name.startsWith('wg'))),
    routes: new Map(names.map((name) => [name, through(name).map(({ prefix }) => prefix)])),
    sysctls: await network.sysctls(paths),
    firewall: { 4: rules4, 6: rules6 },
  };
}

function findUplinks(
  routes: Readonly<Record<Family, readonly Route[]>>,
  links: ReadonlyMap<string, Link>,
  fixed: string | null,
): Uplinks {
  const uplink4 = uplinkOf(routes[4], fixed);
  const uplink6 = uplinkOf(routes[6], fixed);
  const addressesOf = (name: string | null) => (name === null ? [] : (links.get(name)?.addresses ?? []));
  const isIpv6 = (address: string) => address.includes(':');
  const all = [
    ...addressesOf(uplink4).filter((address) => !isIpv6(address)),
    ...addressesOf(uplink6).filter(isIpv6),
  ];
  return { uplink4, uplink6, uplinkAddresses: all.map((address) => address.split('/')[0] ?? '') };
}
