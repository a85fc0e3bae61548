/** Real DNS questions, and who is bound to which port, as the kernel has it. */
import { Resolver } from 'node:dns/promises';
import { bigintToIpv6 } from '@katafract/shared/addresses';
import type { ResolverPort, SocketsPort } from '../haven/haven.ts';
import { readText } from './files.ts';

const TIMEOUT_MS = 1500;

export const resolver: ResolverPort = {
  async ask(server, name) {
    const asking = new Resolver({ timeout: TIMEOUT_MS, tries: 1 });
    asking.setServers([server.includes(':') ? `[${server}]:53` : `${server}:53`]);
    try {
      return await asking.resolve4(name);
    } catch (error) {
      // an answer without an address is an answer
      return (error as NodeJS.ErrnoException).code === 'ENODATA' ? [] : null;
    }
  },
};

/** A listening socket of TCP; UDP's that only receive show as closed. */
const LISTEN = '0A';

export const sockets: SocketsPort = {
  async boundTo(port) {
    const names = ['udp', 'udp6', 'tcp', 'tcp6'];
    const texts = await Promise.all(names.map((name) => readText(`/proc/net/${name}`)));
    return [...new Set(texts.flatMap((text, index) => parseSockets(text ?? '', port, names[index] ?? '')))];
  },
};

/** @param text of /proc/net/{tcp,udp}{,6}: addresses in hexadecimal, each group of four bytes in the machine's order */
export function parseSockets(text: string, port: number, protocol: string): string[] {
  const wanted = port.toString(16).toUpperCase().padStart(4, '0');
  return text
    .split('\n')
    .slice(1)
    .flatMap((line) => {
      const [, local = '', , state] = line.trim().split(/\s+/);
      const [address = '', at] = local.split(':');
      if (at !== wanted || (protocol.startsWith('tcp') && state !== LISTEN)) return [];
      return [address.length === 8 ? ipv4(address) : ipv6(address)];
    });
}

function ipv4(hex: string): string {
  return (hex.match(/../g) ?? [])
    .reverse()
    .map((octet) => Number.parseInt(octet, 16))
    .join('.');
}

function ipv6(hex: string): string {
  const words = hex.match(/.{8}/g) ?? [];
  const bytes = words.map((word) => (word.match(/../g) ?? []).reverse().join('')).join('');
  return bigintToIpv6(BigInt(`0x${bytes}`));
}
