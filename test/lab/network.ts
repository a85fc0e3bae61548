/**
 * How the lab's hosts are wired. The drawing is in lab.ts; here is what is plugged in where, and how. Nothing is ever
 * made in the machine's own network namespace: both ends of every cable are made inside the lab.
 */

import type { Host } from './host.ts';
import { exec } from './process.ts';

/** The internet's web server: outside of every prefix that an exit must not let its clients reach. */
export const INTERNET = { ipv4: '198.51.100.80', ipv6: '2001:db8:51::80' } as const;

/** One end of a cable: what it is called in the host, and its addresses there. */
export interface Cable {
  readonly interface: 'eth0' | 'mesh0';
  readonly bridge: 'exits' | 'devices' | 'mesh';
  readonly ipv4: string;
  readonly ipv6: string;
}

const BRIDGES = {
  exits: { ipv4: '203.0.113.1', length4: 24, ipv6: '2001:db8:113::1', length6: 64 },
  devices: { ipv4: '192.0.2.1', length4: 24, ipv6: '2001:db8:2::1', length6: 64 },
  mesh: { ipv4: undefined, length4: 10, ipv6: undefined, length6: 48 },
} as const;

/** Host 1 is the gateway, artemis is 2, exits and devices count from 11. */
export const cables = {
  artemis: (): Cable[] => [
    { interface: 'eth0', bridge: 'exits', ipv4: '203.0.113.2', ipv6: '2001:db8:113::2' },
    { interface: 'mesh0', bridge: 'mesh', ipv4: '100.64.0.1', ipv6: 'fd7a:115c:a1e0::1' },
  ],
  exit: (index: number): Cable[] => [
    {
      interface: 'eth0',
      bridge: 'exits',
      ipv4: `203.0.113.${11 + index}`,
      ipv6: `2001:db8:113::${11 + index}`,
    },
    {
      interface: 'mesh0',
      bridge: 'mesh',
      ipv4: `100.64.0.${11 + index}`,
      ipv6: `fd7a:115c:a1e0::${11 + index}`,
    },
  ],
  device: (index: number): Cable[] => [
    {
      interface: 'eth0',
      bridge: 'devices',
      ipv4: `192.0.2.${11 + index}`,
      ipv6: `2001:db8:2::${11 + index}`,
    },
  ],
};

/** The router that is the internet: it forwards between its bridges and answers as the web server itself. */
export async function createInternet(inet: Host): Promise<void> {
  await inet.create({
    'net/ipv4/ip_forward': '1',
    'net/ipv6/conf/all/forwarding': '1',
    'net/ipv4/conf/all/send_redirects': '0',
    'net/ipv4/conf/default/send_redirects': '0',
  });
  await batch(inet, [
    ...bridge('exits'),
    ...bridge('devices'),
    `addr add ${INTERNET.ipv4}/32 dev lo`,
    `addr add ${INTERNET.ipv6}/128 dev lo`,
    'link set lo up',
  ]);
}

/** The mesh as the fabric it is: it has no address of its own, and no way out. */
export async function createMesh(mesh: Host): Promise<void> {
  await mesh.create();
  await batch(mesh, bridge('mesh'));
}

function bridge(name: keyof typeof BRIDGES): string[] {
  const { ipv4, length4, ipv6, length6 } = BRIDGES[name];
  const addresses = ipv4
    ? [`addr add ${ipv4}/${length4} dev ${name}`, `addr add ${ipv6}/${length6} dev ${name}`]
    : [];
  return [
    `link add ${name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
    ...addresses,
    `link set ${name} up`,
  ];
}

/** Plugs a host in. `port` names the other end of its cables and is at most 11 characters. */
export async function plug(
  host: Host,
  port: string,
  wiring: readonly Cable[],
  inet: Host,
  mesh: Host,
): Promise<void> {
  for (const cable of wiring) {
    const side = cable.bridge === 'mesh' ? mesh : inet;
    await batch(side, [
      `link add ${port} type veth peer name ${cable.interface} address ${hardwareAddress(cable)} netns ${host.namespace}`,
      `link set ${port} master ${cable.bridge} up`,
    ]);
  }
  await batch(host, ['link set lo up', ...wiring.flatMap(configure)]);
}

/** As a network card has: the same after a reboot, since the neighbours remember it for half a minute. */
function hardwareAddress({ ipv4 }: Cable): string {
  const octets = ipv4.split('.').map((octet) => Number(octet).toString(16).padStart(2, '0'));
  return ['02', '00', ...octets].join(':');
}

function configure(cable: Cable): string[] {
  const { ipv4, length4, ipv6, length6 } = BRIDGES[cable.bridge];
  return [
    `addr add ${cable.ipv4}/${length4} dev ${cable.interface}`,
    `addr add ${cable.ipv6}/${length6} dev ${cable.interface}`,
    `link set ${cable.interface} up`,
    ...(ipv4 ? [`route add default via ${ipv4}`, `route add default via ${ipv6}`] : []),
  ];
}

/** Pulls a host's cables out. Both ends are gone when this returns, which the end of a namespace does not promise. */
export async function unplug(port: string, wiring: readonly Cable[], inet: Host, mesh: Host): Promise<void> {
  for (const cable of wiring) await batch(cable.bridge === 'mesh' ? mesh : inet, [`link del ${port}`]);
}

async function batch(host: Host, lines: readonly string[]): Promise<void> {
  await exec('ip', ['-n', host.namespace, '-batch', '-'], { input: `${lines.join('\n')}\n` });
}
