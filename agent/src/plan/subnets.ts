/** The gateway's addresses and the pool around them, in the text forms that ip and iptables print. */
import { bigintToIpv6, ipv4ToNumber, ipv6ToBigint } from '@katafract/shared/addresses';
import type { NodeConfig } from '@katafract/shared/desired';

/** One family's side of the tunnel. */
export interface Subnet {
  /** The gateway alone: 10.64.0.1. */
  readonly address: string;
  /** The gateway with the pool's prefix, as on the interface: 10.64.0.1/10. */
  readonly gateway: string;
  /** The same as a rule's destination: 10.64.0.1/32. */
  readonly host: string;
  /** The pool, as a rule's source and a route: 10.64.0.0/10. */
  readonly pool: string;
}

export function subnet4(config: NodeConfig): Subnet {
  const [address = '', prefix = '32'] = config.gateway4.split('/');
  const size = 2 ** (32 - Number(prefix));
  const value = ipv4ToNumber(address);
  const base = value - (value % size);
  return { address, gateway: config.gateway4, host: `${address}/32`, pool: `${dotted(base)}/${prefix}` };
}

export function subnet6(config: NodeConfig): Subnet {
  const [address = '', prefix = '128'] = config.gateway6.split('/');
  const value = ipv6ToBigint(address);
  const size = 1n << BigInt(128 - Number(prefix));
  const canonical = bigintToIpv6(value);
  return {
    address: canonical,
    gateway: `${canonical}/${prefix}`,
    host: `${canonical}/128`,
    pool: `${bigintToIpv6(value - (value % size))}/${prefix}`,
  };
}

/** Clients are dealt out over the exit addresses in so many groups, by the last bits of their address. */
const GROUPS = 8;

/**
 * Which clients of a pool leave by which address: a client keeps its address on the internet for all of its
 * connections, in both families alike, since its two tunnel addresses end in the same bits.
 * @returns sources as prefixes, or as address and mask where the mask has holes (which iptables takes in both families);
 * without addresses the whole pool, and null
 */
export function deal(
  pool: string,
  addresses: readonly string[],
): readonly { source: string; address: string | null }[] {
  const [first = null] = addresses;
  if (addresses.length < 2) return [{ source: pool, address: first }];
  return Array.from({ length: GROUPS }, (_, group) => ({
    source: groupOf(pool, group),
    address: addresses[group % addresses.length] ?? null,
  }));
}

function groupOf(pool: string, group: number): string {
  const [base = '', length = '0'] = pool.split('/');
  if (base.includes(':')) {
    const ones = ((1n << BigInt(length)) - 1n) << BigInt(128 - Number(length));
    return `${bigintToIpv6(ipv6ToBigint(base) + BigInt(group))}/${bigintToIpv6(ones | BigInt(GROUPS - 1))}`;
  }
  const ones = 2 ** 32 - 2 ** (32 - Number(length));
  return `${dotted(ipv4ToNumber(base) + group)}/${dotted(ones + GROUPS - 1)}`;
}

function dotted(value: number): string {
  return [24, 16, 8, 0].map((shift) => (value >>> shift) & 255).join('.');
}
