/** The gateway's addresses and the pool around them, in the text forms that ip and iptables print. */
import { bigintToIpv6, ipv4ToNumber, ipv6ToBigint } from '@katafract/shared/addresses';
import type { NodeConfig } from '@katafract/shared/desired';

/** One family's side of the tunnel. */
export interface Subnet {
  /** The gateway with the pool's prefix, as on the interface: 10.64.0.1/10. */
  readonly gateway: string;
  /** The gateway alone, as a rule's destination: 10.64.0.1/32. */
  readonly host: string;
  /** The pool, as a rule's source and a route: 10.64.0.0/10. */
  readonly pool: string;
}

export function subnet4(config: NodeConfig): Subnet {
  const [address = '', prefix = '32'] = config.gateway4.split('/');
  const size = 2 ** (32 - Number(prefix));
  const value = ipv4ToNumber(address);
  const base = value - (value % size);
  const pool = [24, 16, 8, 0].map((shift) => (base >>> shift) & 255).join('.');
  return { gateway: config.gateway4, host: `${address}/32`, pool: `${pool}/${prefix}` };
}

export function subnet6(config: NodeConfig): Subnet {
  const [address = '', prefix = '128'] = config.gateway6.split('/');
  const value = ipv6ToBigint(address);
  const size = 1n << BigInt(128 - Number(prefix));
  const canonical = bigintToIpv6(value);
  return {
    gateway: `${canonical}/${prefix}`,
    host: `${canonical}/128`,
    pool: `${bigintToIpv6(value - (value % size))}/${prefix}`,
  };
}
