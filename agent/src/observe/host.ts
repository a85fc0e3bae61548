/** One look at the host: all of it at once, since nothing in it waits for anything else. */
import type { HostObservation } from '../plan/host.ts';
import { FORWARDING, guardSysctls } from '../plan/sysctls.ts';
import type { FirewallPort, NetworkPort } from '../ports.ts';

export async function observeHost(
  network: NetworkPort,
  firewall: FirewallPort,
  interfaceName: string,
  fixedUplink: string | null,
): Promise<HostObservation> {
  const looking = [
    network.link(interfaceName),
    firewall.save(4),
    firewall.save(6),
    network.routes(interfaceName, fixedUplink),
  ] as const;
  const [link, rules4, rules6, routes] = await Promise.all(looking);
  const table = [...guardSysctls({ tunnel: interfaceName, uplink6: routes.uplink6 }), ...FORWARDING];
  const sysctls = await network.sysctls(table.map((row) => row.path));
  return { ...routes, link, sysctls, firewall: { 4: rules4, 6: rules6 } };
}
