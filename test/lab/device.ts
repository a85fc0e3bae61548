/**
 * A device of a customer: a host that brings a tunnel up from the wg-quick file that provisioning returned, with the
 * steps wg-quick itself would take (interface, key, addresses, routes), less the resolver of the machine.
 */
import { generateKeyPairSync } from 'node:crypto';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Host } from './host.ts';
import type { Cable } from './network.ts';
import { waitFor } from './wait.ts';

const TUNNEL = 'wg0';

export interface KeyPair {
  /** Base64, as `wg genkey` prints it. */
  readonly privateKey: string;
  readonly publicKey: string;
}

/** A new WireGuard key pair. */
export function makeKeys(): KeyPair {
  const { privateKey } = generateKeyPairSync('x25519');
  const { d = '', x = '' } = privateKey.export({ format: 'jwk' });
  const standard = (text: string) => Buffer.from(text, 'base64url').toString('base64');
  return { privateKey: standard(d), publicKey: standard(x) };
}

export interface ExitChoice {
  readonly publicKey: string;
  readonly endpoint: string;
}

interface TunnelConfig {
  readonly addresses: readonly string[];
  readonly mtu: string | undefined;
  readonly allowed: readonly string[];
  readonly exit: ExitChoice;
  /** The file without the keys that only wg-quick reads, and with the private key in it. */
  readonly stripped: string;
}

/** Takes a wg-quick file apart, as `wg-quick strip` and `wg-quick up` together do. */
function parseConfig(config: string, privateKey: string): TunnelConfig {
  const values = new Map<string, string>();
  const stripped: string[] = [];
  for (const line of config.split('\n').map((text) => text.trim())) {
    const [key = '', value = ''] = line.split(/\s*=\s*(.*)/s);
    if (value !== '') values.set(key, value);
    if (key === 'PrivateKey') stripped.push(`PrivateKey = ${privateKey}`);
    else if (!['Address', 'DNS', 'MTU'].includes(key)) stripped.push(line);
  }
  const list = (key: string) => (values.get(key) ?? '').split(/\s*,\s*/).filter(Boolean);
  return {
    addresses: list('Address'),
    mtu: values.get('MTU'),
    allowed: list('AllowedIPs'),
    exit: { publicKey: values.get('PublicKey') ?? '', endpoint: values.get('Endpoint') ?? '' },
    stripped: `${stripped.join('\n')}\n`,
  };
}

const family = (address: string) => (address.includes(':') ? '-6' : '-4');
/** Mark of the tunnel's own packets, and number of the routing table for all others; what wg-quick uses. */
const MARK = '51820';

export class Device extends Host {
  /** Address on the internet side. */
  readonly address4: string;
  readonly address6: string;
  readonly #folder: string;
  #exit: ExitChoice | undefined;
  #allowed: readonly string[] = [];

  constructor(id: string, name: string, folder: string, cable: Cable) {
    super(id, name, folder);
    this.address4 = cable.ipv4;
    this.address6 = cable.ipv6;
    this.#folder = folder;
  }

  /** Brings the tunnel up from a wg-quick file, in which the private key may be blank. */
  async up(config: string, privateKey: string): Promise<void> {
    const { addresses, mtu, allowed, exit, stripped } = parseConfig(config, privateKey);
    await this.#createInterface();
    const file = join(this.#folder, `${this.name}.conf`);
    await writeFile(file, stripped, { mode: 0o600 });
    await this.exec('wg', ['setconf', TUNNEL, file]).finally(() => rm(file));
    for (const address of addresses) {
      await this.exec('ip', [family(address), 'address', 'add', address, 'dev', TUNNEL]);
    }
    await this.exec('ip', ['link', 'set', TUNNEL, 'mtu', mtu ?? '1420', 'up']);
    await this.exec('wg', ['set', TUNNEL, 'fwmark', MARK]);
    for (const route of allowed) await this.#route(route);
    this.#exit = exit;
    this.#allowed = allowed;
  }

  async #createInterface(): Promise<void> {
    const kernel = await this.run('ip', ['link', 'add', TUNNEL, 'type', 'wireguard']);
    if (kernel.code === 0) return;
    // with a log level it keeps its output after it has gone into the background: to a file, not to a pipe of ours
    const daemon = this.start('wireguard', 'wireguard-go', [TUNNEL], { LOG_LEVEL: 'error' });
    const code = await daemon.ended;
    if (code !== 0) throw new Error(`wireguard-go failed on ${this.name} (${code}): ${daemon.log.tail()}`);
  }

  /** A default route takes everything but the tunnel's own packets, the exit's public address included. */
  async #route(prefix: string): Promise<void> {
    const ip = (...args: string[]) => this.exec('ip', [family(prefix), ...args]);
    if (!prefix.endsWith('/0')) {
      await ip('route', 'add', prefix, 'dev', TUNNEL);
      return;
    }
    await ip('route', 'add', prefix, 'dev', TUNNEL, 'table', MARK);
    await ip('rule', 'add', 'not', 'fwmark', MARK, 'table', MARK);
    await ip('rule', 'add', 'table', 'main', 'suppress_prefixlength', '0');
  }

  /** Switches to another exit with the same addresses and key, as the failover of a client does. */
  async switchTo(exit: ExitChoice): Promise<void> {
    const old = this.#exit;
    const leave = old && old.publicKey !== exit.publicKey ? ['peer', old.publicKey, 'remove'] : [];
    const join = ['peer', exit.publicKey, 'endpoint', exit.endpoint, 'allowed-ips', this.#allowed.join(',')];
    await this.exec('wg', ['set', TUNNEL, ...leave, ...join, 'persistent-keepalive', '25']);
    this.#exit = exit;
  }

  /** Takes the tunnel down; what was sent through it goes out beside it again. */
  async down(): Promise<void> {
    await this.exec('ip', ['link', 'del', TUNNEL]);
    for (const prefix of this.#allowed.filter((allowed) => allowed.endsWith('/0'))) {
      await this.exec('ip', [family(prefix), 'rule', 'del', 'not', 'fwmark', MARK, 'table', MARK]);
      await this.exec('ip', [family(prefix), 'rule', 'del', 'table', 'main', 'suppress_prefixlength', '0']);
    }
    this.#exit = undefined;
  }

  /** Unix seconds of the last handshake with the exit, 0 where there was none. */
  async lastHandshake(): Promise<number> {
    const text = await this.exec('wg', ['show', TUNNEL, 'latest-handshakes']);
    return Number(text.trim().split('\t')[1] ?? 0);
  }

  /** Waits for a handshake, sending something to cause one. */
  async handshake(gateway = '10.64.0.1', deadlineMs = 30_000): Promise<void> {
    await waitFor(
      `a handshake of ${this.name}`,
      async () => {
        await this.ping(gateway, { timeoutMs: 500 });
        return (await this.lastHandshake()) > 0;
      },
      { deadlineMs },
    );
  }
}
