/** One look at the host: all of it at once, since nothing in it waits for anything else. */

import { type HostObservation, type HostWish, settingsOf } from '../plan/host.ts';
import { isInSubnet } from '../plan/subnets.ts';
import type { Family, FirewallPort, Link, NetworkPort, Route, Uplinks } from '../ports.ts';
import { uplinkOf } from './routes.ts';

/** @param wish names the tunnel, the uplink where the operator fixed it, and the settings to look at */
export async function observeHost(
  network: NetworkPort,
  firewall: FirewallPort,
  interfaceName: string,
  wish: HostWish,
): Promise<HostObservation> {
  const looking = [network.links(), network.routes(), firewall.save(4), firewall.save(6)] as const;
  const [links, routes, rules4, rules6] = await Promise.all(looking);
  const uplinks = findUplinks(routes, links, wish.choices.uplink);
  const paths = settingsOf(interfaceName, wish, uplinks).map((setting) => setting.path);
  return {
    ...uplinks,
    link: links.get(interfaceName) ?? null,
    routes: [...routes[4], ...routes[6]]
      .filter((route) => route.device === interfaceName)
      .map((route) => route.prefix),
    sysctls: await network.sysctls(paths),
    firewall: { 4: rules4, 6: rules6 },
  };
}

function findUplinks(
  routes: Readonly<Record<Family, readonly Route[]>>,
  links: ReadonlyMap<string, Link>,
  fixed: string | null,
): Uplinks {
  const [route4, route6] = [uplinkOf(routes[4], fixed), uplinkOf(routes[6], fixed)];
  const addressesOf = (route: Route | null) => (route && links.get(route.device)?.addresses) ?? [];
  const gateway = route4?.gateway ?? null;
  return {
    uplink4: route4?.device ?? null,
    uplink6: route6?.device ?? null,
    uplinkAddresses: [...addressesOf(route4).filter(isIpv4), ...addressesOf(route6).filter(isIpv6)].map(
      (address) => address.split('/')[0] ?? '',
    ),
    gatewayInSubnet:
      gateway !== null &&
      addressesOf(route4).some((address) => isIpv4(address) && isInSubnet(gateway, address)),
  };
}

const isIpv6 = (address: string) => address.includes(':');
const isIpv4 = (address: string) => !isIpv6(address);
