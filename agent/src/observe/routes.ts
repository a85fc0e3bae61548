/**
 * Reads /proc/net/route and /proc/net/ipv6_route, pure: which interface leads to the internet, and which prefixes lead
 * into the tunnel. It saves two processes with every look.
 */
import { bigintToIpv6 } from '@katafract/shared/addresses';
import type { Route } from '../ports.ts';

/** RTF_UP and RTF_REJECT of <linux/route.h>. */
const UP = 0x1;
const REJECT = 0x200;

/** Little-endian hexadecimal, as /proc/net/route prints IPv4 addresses. */
function ipv4(hex: string): string {
  const octets = hex.match(/../g) ?? [];
  return octets
    .reverse()
    .map((octet) => Number.parseInt(octet, 16))
    .join('.');
}

function ones(hex: string): number {
  return Number.parseInt(hex, 16).toString(2).replaceAll('0', '').length;
}

export function parseRoutes4(text: string): Route[] {
  return text
    .split('\n')
    .slice(1)
    .flatMap((line) => {
      const [device, destination, , flags, , , metric, mask] = line.trim().split(/\s+/);
      if (!device || !destination || !mask || !usable(flags)) return [];
      return [{ device, prefix: `${ipv4(destination)}/${ones(mask)}`, metric: Number(metric) }];
    });
}

export function parseRoutes6(text: string): Route[] {
  return text.split('\n').flatMap((line) => {
    const [destination, length, , , , metric, , , flags, device] = line.trim().split(/\s+/);
    if (!device || device === 'lo' || !usable(flags)) return [];
    const prefix = `${bigintToIpv6(BigInt(`0x${destination}`))}/${Number.parseInt(length ?? '', 16)}`;
    return [{ device, prefix, metric: Number.parseInt(metric ?? '', 16) }];
  });
}

function usable(flags: string | undefined): boolean {
  const bits = Number.parseInt(flags ?? '0', 16);
  return (bits & UP) !== 0 && (bits & REJECT) === 0;
}

/**
 * The interface of the default route with the lowest metric, tunnels aside; null where there is none.
 * @param fixed only by this interface, where the operator named one
 */
export function uplinkOf(routes: readonly Route[], fixed: string | null): string | null {
  const defaults = routes.filter(
    ({ prefix, device }) =>
      /^(?:0\.0\.0\.0|::)\/0$/.test(prefix) && (fixed === null ? !device.startsWith('wg') : device === fixed),
  );
  return defaults.sort((left, right) => left.metric - right.metric)[0]?.device ?? null;
}
