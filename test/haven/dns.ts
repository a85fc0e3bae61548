/** Real DNS of the AdGuard Home stand-in, over UDP and TCP, on the addresses that it is configured to. */
import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';
import { decode, encode, type Packet, streamDecode, streamEncode } from 'dns-packet';
import type { Config } from './config.ts';

export interface Question {
  readonly name: string;
  readonly client: string;
  readonly blocked: boolean;
}

/** What every name that is not filtered resolves to; absent: the upstreams do not answer. */
export type Answer = () => string | null;

const HEALTH_NAME = 'healthcheck.adguardhome.test';
const SERVFAIL = 2;
const plain = (address: string) => address.replace(/^::ffff:/, '');

export function serveDns(
  config: Config,
  upstream: Answer,
  onQuestion: (question: Question) => void,
  onFault: (error: Error) => void,
): void {
  const asked = new Map<string, { second: number; count: number }>();

  /** Each client for itself, as far as the length says. */
  function withinRate(client: string): boolean {
    const { ratelimit, ratelimit_subnet_len_ipv4: length } = config.dns;
    const key = client.includes(':') || length === 32 ? client : client.replace(/\.\d+$/, '');
    const second = Math.floor(Date.now() / 1000);
    const before = asked.get(key);
    const count = before?.second === second ? before.count + 1 : 1;
    asked.set(key, { second, count });
    return ratelimit === 0 || count <= ratelimit;
  }

  function respond(query: Packet, client: string): Packet | null {
    const [question] = query.questions ?? [];
    if (!question || !allowed(config.dns.allowed_clients, client) || !withinRate(client)) return null;
    const name = question.name.toLowerCase();
    const head: Packet = { type: 'response', id: query.id ?? 0, flags: 0x180, questions: [question] };
    if (name === HEALTH_NAME) return head;
    const blocked =
      config.filtering.protection_enabled && config.user_rules.some((rule) => rule === `||${name}^`);
    onQuestion({ name, client, blocked });
    const address = blocked ? '0.0.0.0' : upstream();
    if (address === null) return { ...head, flags: 0x180 | SERVFAIL };
    if (question.type !== 'A') return head;
    return { ...head, answers: [{ type: 'A', name: question.name, ttl: 10, data: address }] };
  }

  const { bind_hosts: hosts, port } = config.dns;
  for (const address of hosts) {
    const ipv6Only = address.includes(':');
    const udp = createSocket({ type: ipv6Only ? 'udp6' : 'udp4', ipv6Only });
    udp.on('error', onFault);
    udp.on('message', (message, from) => {
      const answer = attempt(() => respond(decode(message), plain(from.address)));
      if (answer) udp.send(encode(answer), from.port, from.address);
    });
    udp.bind(port, address);
    const tcp = createServer((socket) => {
      socket.on('error', () => socket.destroy());
      socket.on('data', (data) => {
        const query = attempt(() => streamDecode(data as Buffer));
        const answer = query && respond(query, plain(socket.remoteAddress ?? ''));
        if (answer) socket.end(streamEncode(answer));
        else socket.destroy();
      });
    });
    tcp.on('error', onFault);
    tcp.listen({ port, host: address, ipv6Only });
  }
}

/** What is no DNS gets no answer. */
function attempt<T>(work: () => T): T | null {
  try {
    return work();
  } catch {
    return null;
  }
}

/** Nets of IPv4 by their bits, of IPv6 by a /64's text; an empty list is everybody. */
function allowed(nets: readonly string[], client: string): boolean {
  if (nets.length === 0) return true;
  return nets.some((net) => {
    const [base = '', length = '32'] = net.split('/');
    if (client.includes(':') !== base.includes(':')) return false;
    if (client.includes(':')) return client.startsWith(base.replace(/::$/, ':'));
    const value = (text: string) => text.split('.').reduce((sum, octet) => sum * 256 + Number(octet), 0);
    const size = 2 ** (32 - Number(length));
    return Math.floor(value(client) / size) === Math.floor(value(base) / size);
  });
}
