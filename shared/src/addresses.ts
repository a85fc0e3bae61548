/**
 * Address arithmetic of the fleet-wide pool. A peer owns one index of the pool and with it one IPv4 and one IPv6
 * address: the index is what is allocated, the addresses follow. Index 0 is the network, 1 the gateway every node
 * answers on, the last one the broadcast address; none of them is ever given out.
 */
import { KatafractError } from './errors.ts';
import type { Cidr4, Cidr6, Endpoint, Ipv4, Ipv6 } from './units.ts';

export interface AddressPlan {
  readonly base4: number;
  readonly prefix4: number;
  readonly base6: bigint;
  readonly prefix6: number;
  /** First and last index that a peer may get, both included. */
  readonly first: number;
  readonly last: number;
}

export const GATEWAY_INDEX = 1;

/**
 * The pool in so many parts of one prefix each. A node with several tunnel interfaces has a part's clients on one of
 * them, so that a route a part is all that the way back takes: no marks, no rule for each client.
 */
export const ADDRESS_PARTS = 8;

/** IPv4 text to an unsigned 32-bit number. */
export function ipv4ToNumber(text: string): number {
  return text.split('.').reduce((sum, octet) => sum * 256 + Number(octet), 0);
}

function numberToIpv4(value: number): Ipv4 {
  return [24, 16, 8, 0].map((shift) => (value >>> shift) & 255).join('.') as Ipv4;
}

/** IPv6 text (any valid form) to a 128-bit number. */
export function ipv6ToBigint(text: string): bigint {
  const [head = '', tail] = text.split('::');
  const groups = (part: string) => (part === '' ? [] : part.split(':'));
  const left = groups(head);
  const right = tail === undefined ? [] : groups(tail);
  const fill = tail === undefined ? [] : Array<string>(8 - left.length - right.length).fill('0');
  const all = [...left, ...fill, ...right];
  if (all.length !== 8) throw new KatafractError('address_invalid', `not an IPv6 address: ${text}`);
  return all.reduce((sum, group) => (sum << 16n) | BigInt(`0x${group}`), 0n);
}

/** Canonical text of RFC 5952: longest run of two or more zero groups shortened, the first one of equals. */
export function bigintToIpv6(value: bigint): Ipv6 {
  const groups = Array.from({ length: 8 }, (_, i) => Number((value >> BigInt(112 - 16 * i)) & 0xffffn));
  let best = { start: -1, length: 1 };
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (start + length < 8 && groups[start + length] === 0) length++;
    if (length > best.length) best = { start, length };
  }
  const hex = groups.map((group) => group.toString(16));
  if (best.start < 0) return hex.join(':') as Ipv6;
  return `${hex.slice(0, best.start).join(':')}::${hex.slice(best.start + best.length).join(':')}` as Ipv6;
}

/**
 * Reads a pool from its two prefixes.
 * @throws KatafractError `address_plan_invalid` where a prefix has host bits set, or the IPv6 one is too small.
 */
export function addressPlan(cidr4: Cidr4, cidr6: Cidr6): AddressPlan {
  const [net4 = '', length4 = ''] = cidr4.split('/');
  const [net6 = '', length6 = ''] = cidr6.split('/');
  const prefix4 = Number(length4);
  const prefix6 = Number(length6);
  const size = 2 ** (32 - prefix4);
  const base4 = ipv4ToNumber(net4);
  const base6 = ipv6ToBigint(net6);
  const host6 = 128 - prefix6;
  const fits =
    size >= 8 && base4 % size === 0 && host6 >= 32 - prefix4 && base6 % (1n << BigInt(host6)) === 0n;
  if (!fits) throw new KatafractError('address_plan_invalid', `not a usable pool: ${cidr4} with ${cidr6}`);
  return { base4, prefix4, base6, prefix6, first: GATEWAY_INDEX + 1, last: size - 2 };
}

/** The two addresses of an index. */
export function addressesAt(plan: AddressPlan, index: number): { ipv4: Ipv4; ipv6: Ipv6 } {
  return { ipv4: numberToIpv4(plan.base4 + index), ipv6: bigintToIpv6(plan.base6 + BigInt(index)) };
}

/** The index that an IPv4 address of the pool belongs to. */
export function indexOf(plan: AddressPlan, ipv4: Ipv4): number {
  return ipv4ToNumber(ipv4) - plan.base4;
}

/** Indexes of the pool, those that nobody gets among them; and so many draws there are. */
export const poolSize = ({ prefix4 }: AddressPlan): number => 2 ** (32 - prefix4);

/**
 * The index that the n-th draw gives, a permutation of the whole pool: one of each part in turn, and with other last bits
 * than the one before, so that the clients of a pool that is nearly empty are spread over whatever goes by either.
 */
export function indexOfDraw(plan: AddressPlan, draw: number): number {
  const size = poolSize(plan) / ADDRESS_PARTS;
  const part = draw % ADDRESS_PARTS;
  return part * size + ((Math.floor(draw / ADDRESS_PARTS) + part) % size);
}

/** The tunnel interface, from 0, that a client's index belongs to on a node that has so many of them. */
export function tunnelOf(plan: AddressPlan, index: number, tunnels: number): number {
  return Math.floor(index / (poolSize(plan) / ADDRESS_PARTS)) % tunnels;
}

/** The prefixes of the parts that belong to a tunnel interface: of each part its IPv4 and its IPv6 one. */
export function partsOf(
  plan: AddressPlan,
  tunnel: number,
  tunnels: number,
): { ipv4: string; ipv6: string }[] {
  const size = poolSize(plan) / ADDRESS_PARTS;
  const bits = Math.log2(size);
  return Array.from({ length: ADDRESS_PARTS }, (_, part) => part)
    .filter((part) => part % tunnels === tunnel)
    .map((part) => {
      const { ipv4, ipv6 } = addressesAt(plan, part * size);
      return { ipv4: `${ipv4}/${32 - bits}`, ipv6: `${ipv6}/${128 - bits}` };
    });
}

export function portOf(endpoint: Endpoint): number {
  return Number(endpoint.slice(endpoint.lastIndexOf(':') + 1));
}

/** The same host, so many ports further on: where a tunnel interface after the first one answers. */
export function endpointAfter(endpoint: Endpoint, ports: number): Endpoint {
  const port = portOf(endpoint);
  return `${endpoint.slice(0, -String(port).length)}${port + ports}` as Endpoint;
}

/** Whether an IPv4 address lies in a prefix such as 10.64.0.0/10. */
export function isInNet4(address: string, prefix: string): boolean {
  const [base = '', length = '32'] = prefix.split('/');
  const size = 2 ** (32 - Number(length));
  return Math.floor(ipv4ToNumber(address) / size) === Math.floor(ipv4ToNumber(base) / size);
}
