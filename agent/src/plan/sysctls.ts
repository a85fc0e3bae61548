/** Kernel settings of an exit, as one table. Names are paths under /proc/sys, since interface names may hold dots. */

export interface Sysctl {
  readonly path: string;
  readonly value: string;
  /** Only where it holds this now. */
  readonly from?: string;
  /** Not every kernel has it. */
  readonly optional?: true;
  readonly why: string;
}

export interface SysctlContext {
  readonly tunnel: string;
  readonly uplink6: string | null;
}

/** Settings that make the exit safer, and do no harm before it forwards. */
export function guardSysctls({ tunnel, uplink6 }: SysctlContext): Sysctl[] {
  const uplink: Sysctl[] = uplink6
    ? [
        {
          path: `net/ipv6/conf/${uplink6}/accept_ra`,
          value: '2',
          from: '1',
          why: 'a host that forwards ignores router advertisements at 1, and would lose its own IPv6 uplink',
        },
      ]
    : [];
  return [
    {
      path: `net/ipv4/conf/${tunnel}/rp_filter`,
      value: '1',
      why: 'a source that is not routed back into the tunnel is forged',
    },
    {
      path: 'net/ipv4/conf/all/send_redirects',
      value: '0',
      why: 'clients are never to be shown a way around the exit; off needs both this and the next',
    },
    { path: `net/ipv4/conf/${tunnel}/send_redirects`, value: '0', why: 'as above' },
    {
      path: `net/ipv4/conf/${tunnel}/accept_redirects`,
      value: '0',
      why: "a client must not change the exit's routes",
    },
    { path: `net/ipv6/conf/${tunnel}/accept_redirects`, value: '0', optional: true, why: 'as above' },
    {
      path: `net/ipv6/conf/${tunnel}/accept_ra`,
      value: '0',
      optional: true,
      why: 'a client must not announce itself as a router',
    },
    {
      path: `net/ipv4/conf/${tunnel}/accept_source_route`,
      value: '0',
      why: 'a packet must not choose its way past the rules',
    },
    {
      path: 'net/ipv4/conf/all/arp_ignore',
      value: '1',
      why: 'neighbours must not find the gateway address on the uplink; 2 would cut off hosts with a /32 address',
    },
    ...uplink,
  ];
}

/** Forwarding itself: enabled last, when every rule is in place. */
export const FORWARDING: readonly Sysctl[] = [
  { path: 'net/ipv4/ip_forward', value: '1', why: 'IPv4 of the clients' },
  { path: 'net/ipv6/conf/all/forwarding', value: '1', optional: true, why: 'IPv6 of the clients' },
];
