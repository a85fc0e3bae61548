/**
 * The wg-quick(8) text of one tunnel. The controller renders it with the private key left blank, the client with the
 * key filled in, both from here, so that the two files differ in nothing else.
 */
import type { Endpoint, Ipv4, Ipv6, PublicKey } from './units.ts';

/** Everything goes through the tunnel: nothing of the device may leave beside it. */
const EVERYWHERE = '0.0.0.0/0, ::/0';
/** Seconds; keeps the mapping of a NAT in between open (wg(8) recommends 25). */
const KEEPALIVE = 25;

export interface WgQuickInput {
  readonly addresses: { readonly ipv4: Ipv4; readonly ipv6: Ipv6 };
  /** Resolvers inside the tunnel; an empty list leaves the device's own. */
  readonly dns: readonly (Ipv4 | Ipv6)[];
  readonly exit: { readonly publicKey: PublicKey; readonly endpoint: Endpoint };
  /** Base64; left blank where absent. */
  readonly privateKey?: string;
  /** Bytes; wg-quick works one out where absent. */
  readonly mtu?: number;
}

/** Renders a wg-quick file. Pure; ends with a newline. */
export function renderWgQuick(input: WgQuickInput): string {
  const { addresses, dns, exit, privateKey = '', mtu } = input;
  const lines = [
    '[Interface]',
    `PrivateKey = ${privateKey}`,
    `Address = ${addresses.ipv4}/32, ${addresses.ipv6}/128`,
    ...(dns.length > 0 ? [`DNS = ${dns.join(', ')}`] : []),
    ...(mtu === undefined ? [] : [`MTU = ${mtu}`]),
    '',
    '[Peer]',
    `PublicKey = ${exit.publicKey}`,
    `Endpoint = ${exit.endpoint}`,
    `AllowedIPs = ${EVERYWHERE}`,
    `PersistentKeepalive = ${KEEPALIVE}`,
  ];
  return `${lines.join('\n')}\n`;
}
