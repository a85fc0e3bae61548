/**
 * The exit that is attacked: real WireGuard, real rules, no agent and no controller, so that a test can enforce any
 * table it likes, a row short of the real one for instance.
 *
 *    alice, bob  ── wg0 ──┐        ┌─ eth0 ── inet: the internet's web server, resolver, mail server; a neighbour as well
 *                         ├─ exit ─┤
 *    carol, dave ── wg1 ──┘        └─ mesh0 ── artemis: a host of the mesh
 *
 * Each client's host also has its own address on the internet, by which its tunnel's packets travel.
 */
import { fileURLToPath } from 'node:url';
import { OPEN_GATES, type RuleContext, ruleContext } from '@katafract/agent/plan/context';
import { planFirewall } from '@katafract/agent/plan/firewall';
import { settingContext, settingsOf } from '@katafract/agent/plan/host';
import { written } from '@katafract/agent/plan/sysctls';
import type { Table } from '@katafract/agent/plan/table';
import { wantedTunnels } from '@katafract/agent/plan/tunnels';
import type { NodeConfig } from '@katafract/shared/desired';
import { Cidr4, Cidr6 } from '@katafract/shared/units';
import { type Device, type KeyPair, makeKeys } from '../lab/device.ts';
import type { Exit } from '../lab/exit.ts';
import type { Host } from '../lab/host.ts';
import { Network } from '../lab/lab.ts';
import { cables, INTERNET } from '../lab/network.ts';
import type { Listener } from '../lab/resident.ts';
import { waitFor } from '../lab/wait.ts';

export type Family = 4 | 6;
export const FAMILIES: readonly Family[] = [4, 6];

/** An address in both families. */
export type Address = Readonly<Record<Family, string>>;

export interface Client {
  readonly device: Device;
  /** In the tunnel. */
  readonly address: Address;
  /** On the internet. */
  readonly outside: Address;
  readonly keys: KeyPair;
  readonly interface: 'wg0' | 'wg1';
}

export const GATEWAY: Address = { 4: '10.64.0.1', 6: 'fd4b:6174:6166::1' };
export const POOL: Address = { 4: '10.64.0.0/10', 6: 'fd4b:6174:6166::/64' };
export const WEB: Address = { 4: INTERNET.ipv4, 6: INTERNET.ipv6 };
export const PORTS = { wg0: 51820, wg1: 51821 } as const;
export const CONFIG: NodeConfig = {
  listenPort: PORTS.wg0,
  tunnels: 2,
  mtu: 1420,
  gateway4: Cidr4.parse('10.64.0.1/10'),
  gateway6: Cidr6.parse('fd4b:6174:6166::1/64'),
};
const UPLINKS = { uplink4: 'eth0', uplink6: 'eth0', uplinkAddresses: [] };
const CHOICES = { uplink: null, exitAddresses: [], connectionsPerClient: 2048 };
const MARKER_PORT = 9999;
export const script = (name: string) => fileURLToPath(new URL(name, import.meta.url));

/** What each setting is where nobody has seen to it: the kernel's default, or the worst that somebody may have left. */
const CARELESS: Readonly<Record<string, string>> = {
  ...Object.fromEntries(
    ['wg0', 'wg1'].flatMap((name) => [
      [`net/ipv4/conf/${name}/rp_filter`, '0'],
      [`net/ipv4/conf/${name}/send_redirects`, '1'],
      [`net/ipv4/conf/${name}/accept_redirects`, '1'],
      [`net/ipv4/conf/${name}/accept_source_route`, '1'],
    ]),
  ),
  'net/ipv4/conf/all/send_redirects': '1',
  'net/ipv4/conf/all/accept_redirects': '1',
  'net/ipv4/conf/all/accept_source_route': '1',
  'net/ipv4/conf/all/arp_ignore': '0',
  'net/netfilter/nf_conntrack_tcp_be_liberal': '1',
  'net/netfilter/nf_conntrack_tcp_ignore_invalid_rst': '1',
  'net/netfilter/nf_conntrack_tcp_loose': '1',
  'net/netfilter/nf_conntrack_tcp_timeout_established': '432000',
  'net/ipv4/ip_local_port_range': '32768 60999',
  'net/ipv4/ip_local_reserved_ports': '',
  'net/ipv6/conf/eth0/accept_ra': '1',
  'net/ipv4/ip_forward': '0',
  'net/ipv6/conf/all/forwarding': '0',
};

/** What somebody else did to the firewall of the exit: text for iptables-restore, after our rules. */
export type Foreign = Readonly<Partial<Record<Family, string>>>;
export interface Enforcement {
  readonly context?: Partial<RuleContext>;
  /** The context is of this family alone; of both where absent. */
  readonly only?: Family;
  readonly foreign?: Foreign;
  /** Connections that are open stay so; forgotten where absent. */
  readonly keep?: true;
}

export const tool = (family: Family) => (family === 4 ? 'iptables' : 'ip6tables');
const bracketed = (address: string, port: number) =>
  address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;

export class Bed {
  readonly network: Network;
  readonly exit: Exit;
  readonly inet: Host;
  readonly artemis: Host;
  readonly alice: Client;
  readonly bob: Client;
  readonly carol: Client;
  readonly dave: Client;
  readonly #exitKeys: KeyPair;
  readonly #markers = new Map<string, Listener>();
  readonly #services = new Map<string, Listener>();

  private constructor(network: Network) {
    this.network = network;
    this.exit = network.exit('exit');
    this.inet = network.inet;
    this.artemis = network.artemis;
    const client = (index: number, on: Client['interface']): Client => {
      const device = network.devices[index];
      if (!device) throw new Error(`no device ${index}`);
      const host = index + 2;
      return {
        device,
        // the second interface has the second part of the pool
        address:
          on === 'wg0'
            ? { 4: `10.64.0.${host}`, 6: `fd4b:6174:6166::${host}` }
            : { 4: `10.72.0.${host}`, 6: `fd4b:6174:6166::8:${host}` },
        outside: { 4: device.address4, 6: device.address6 },
        keys: makeKeys(),
        interface: on,
      };
    };
    [this.alice, this.bob] = [client(0, 'wg0'), client(1, 'wg0')];
    [this.carol, this.dave] = [client(2, 'wg1'), client(3, 'wg1')];
    this.#exitKeys = makeKeys();
  }

  /** @param wireguardGo stands in for the machine's own on all hosts */
  static async make(wireguardGo?: string): Promise<Bed> {
    const network = await Network.start({ exits: [{ name: 'exit', region: 'fra' }], devices: 4 });
    try {
      if (wireguardGo !== undefined)
        for (const host of [network.exit('exit'), ...network.devices])
          await host.exec('sh', ['-c', 'mount --bind "$0" "$(command -v wireguard-go)"', wireguardGo]);
      const bed = new Bed(network);
      await bed.#build();
      return bed;
    } catch (error) {
      await network.close();
      throw error;
    }
  }

  close(): Promise<void> {
    return this.network.close();
  }

  get clients(): readonly Client[] {
    return [this.alice, this.bob, this.carol, this.dave];
  }

  /** The exit's addresses outside of the tunnel. */
  get public(): Address {
    return { 4: this.exit.publicAddress4, 6: this.exit.publicAddress6 };
  }
  get mesh(): Address {
    return { 4: this.exit.meshAddress, 6: cables.exit(0)[1]?.ipv6 ?? '' };
  }
  get meshHost(): Address {
    return { 4: cables.artemis()[1]?.ipv4 ?? '', 6: cables.artemis()[1]?.ipv6 ?? '' };
  }

  async #build(): Promise<void> {
    for (const name of ['wg0', 'wg1'] as const) await this.#makeTunnel(name);
    const ip = (...args: string[]) => this.exit.exec('ip', args);
    for (const { name, addresses, routes } of wantedTunnels('wg0', CONFIG)) {
      for (const address of addresses) await ip('address', 'add', address, 'dev', name);
      for (const { prefix, source } of routes)
        await ip('route', 'replace', prefix, 'dev', name, 'src', source);
    }
    for (const client of this.clients) {
      await this.allow(client, []);
      await this.connect(client, 4);
      await client.device.handshake();
    }
    for (const host of [...this.clients.map(({ device }) => device), this.inet, this.artemis]) {
      for (const [family, address] of [[4, '0.0.0.0'] as const, [6, '::'] as const]) {
        const listener = await host.listen({ transport: 'udp', port: MARKER_PORT, address });
        this.#markers.set(`${host.name} ${family}`, listener);
      }
    }
    await this.#serve();
  }

  async #makeTunnel(name: 'wg0' | 'wg1'): Promise<void> {
    const { exit } = this;
    if ((await exit.run('ip', ['link', 'add', name, 'type', 'wireguard'])).code !== 0) {
      const daemon = exit.start(`wireguard-${name}`, 'wireguard-go', [name], { LOG_LEVEL: 'error' });
      if ((await daemon.ended) !== 0) throw new Error(`wireguard-go: ${daemon.log.tail()}`);
    }
    const key = `${exit.stateDir}/${name}.key`;
    await exit.exec('sh', ['-c', `umask 077; cat >${key}`], { input: this.#exitKeys.privateKey });
    await exit.exec('wg', ['set', name, 'private-key', key, 'listen-port', String(PORTS[name])]);
    await exit.exec('ip', ['link', 'set', name, 'mtu', String(CONFIG.mtu), 'up']);
  }

  /** What the internet and the exit itself offer. */
  async #serve(): Promise<void> {
    const open = async (name: string, host: Host, options: Parameters<Host['listen']>[0]) =>
      this.#services.set(name, await host.listen(options));
    for (const family of FAMILIES) {
      const any = family === 4 ? '0.0.0.0' : '::';
      const web = WEB[family];
      for (const transport of ['tcp', 'udp'] as const) {
        const of = `${transport}${family}`;
        await open(`echo ${of}`, this.inet, { transport, port: 7, address: web, reply: 'echo' });
        await open(`foreign dns ${of}`, this.inet, { transport, port: 53, address: web, reply: 'foreign' });
        await open(`dot ${of}`, this.inet, { transport, port: 853, address: web, reply: 'foreign' });
        await open(`mail ${of}`, this.inet, { transport, port: 25, address: web, reply: '220' });
        await open(`own dns ${of}`, this.exit, {
          transport,
          port: 53,
          address: GATEWAY[family],
          reply: 'haven',
        });
        if (transport === 'tcp')
          await open(`own ssh ${of}`, this.exit, { transport, port: 22, address: any });
        await open(`own service ${of}`, this.exit, { transport, port: 7100, address: any, reply: 'secret' });
      }
    }
  }

  /** What a service has received since it was last asked. */
  async received(service: string): ReturnType<Listener['received']> {
    const listener = this.#services.get(service);
    if (!listener) throw new Error(`no service ${service}`);
    return listener.received({ reset: true });
  }

  /** A client's own addresses, and others that the exit is made to believe as well. */
  async allow({ keys, address, interface: name }: Client, others: readonly string[]): Promise<void> {
    const allowed = [`${address[4]}/32`, `${address[6]}/128`, ...others].join(',');
    await this.exit.exec('wg', ['set', name, 'peer', keys.publicKey, 'allowed-ips', allowed]);
  }

  /** Brings a client's tunnel up anew, by the exit's address of a family. @param listenPort its own, where it matters */
  async connect(client: Client, family: Family, listenPort?: number): Promise<void> {
    const { device, address, keys } = client;
    if ((await device.run('ip', ['link', 'show', 'wg0'])).code === 0) await device.down();
    const endpoint = bracketed(this.public[family], PORTS[client.interface]);
    const port = listenPort === undefined ? '' : `ListenPort = ${listenPort}\n`;
    await device.up(
      `[Interface]\nPrivateKey =\nAddress = ${address[4]}/32, ${address[6]}/128\n${port}MTU = ${CONFIG.mtu}\n` +
        `[Peer]\nPublicKey = ${this.#exitKeys.publicKey}\nEndpoint = ${endpoint}\nAllowedIPs = 0.0.0.0/0, ::/0\n`,
      keys.privateKey,
    );
  }

  static readonly settingContext = settingContext('wg0', CONFIG, UPLINKS);

  static context(family: Family): RuleContext {
    return ruleContext(family, CONFIG, UPLINKS, CHOICES, OPEN_GATES);
  }

  /** Such that each rule of the table is there in one of them. */
  static contexts(family: Family): readonly RuleContext[] {
    const own = Bed.context(family);
    return [own, { ...own, uplink: null }, { ...own, sshPort: 22 }];
  }

  /** Makes the exit enforce exactly this table, on a kernel that is careless otherwise. */
  async enforce(table: Table, { context = {}, only, foreign = {}, keep }: Enforcement = {}): Promise<void> {
    for (const family of FAMILIES) {
      const own = (only ?? family) === family ? context : {};
      const text = planFirewall('', { ...Bed.context(family), ...own }, table) ?? '';
      // without --noflush: of whatever stood there nothing stays but policies
      const reset = '*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n';
      await this.exit.exec(`${tool(family)}-restore`, [], { input: `${reset}${text}` });
      const more = foreign[family];
      if (more) await this.exit.exec(`${tool(family)}-restore`, ['--noflush'], { input: more });
    }
    await this.#set(table);
    if (!keep) await this.forget();
  }

  async #set(table: Table): Promise<void> {
    const settings = new Map(Object.entries(CARELESS));
    for (const setting of settingsOf('wg0', { config: CONFIG, table }, UPLINKS)) {
      settings.set(setting.path, written(setting, settings.get(setting.path) ?? null));
    }
    await this.write(settings);
  }

  /** Settings of the exit's kernel. */
  async write(settings: Iterable<readonly [string, string]>): Promise<void> {
    const words = [...settings].flat();
    const each = 'while [ $# -gt 0 ]; do echo "$2" >"/proc/sys/$1" || exit 1; shift 2; done';
    await this.exit.exec('sh', ['-c', each, 'set', ...words]);
  }

  /** Forgets connections, counters and what routes were learnt. */
  async forget(): Promise<void> {
    await this.exit.run('conntrack', ['-F']);
    for (const host of [this.inet, this.artemis, ...this.clients.map(({ device }) => device)]) {
      await Promise.all(FAMILIES.map((family) => host.exec(tool(family), ['-w', '-t', 'raw', '-F'])));
    }
  }

  /** Lets a client do something, and resolves when so many of its packets have reached the exit. */
  async sends(client: Client, family: Family, packets: number, what: () => Promise<unknown>): Promise<void> {
    const count = await this.exit.countPackets(['-i', client.interface], family);
    await what();
    await waitFor(`${packets} packets of ${client.device.name}`, async () => (await count()) >= packets, {
      deadlineMs: 10_000,
      everyMs: 10,
    });
  }

  /** Resolves when whatever the exit sent to a host so far has arrived there. */
  async delivered(to: Host, address: string): Promise<void> {
    const marker = this.#markers.get(`${to.name} ${address.includes(':') ? 6 : 4}`);
    if (!marker) throw new Error(`${to.name} has no marker`);
    await marker.received({ reset: true });
    const arrived = async () => {
      await this.exit.udp(address, MARKER_PORT);
      return (await marker.received()).count > 0;
    };
    await waitFor(`a packet to ${to.name}`, arrived, { deadlineMs: 10_000, everyMs: 10 });
  }

  /** Sends packets that no socket would send. */
  async forge(from: Host, ...packets: readonly object[]): Promise<void> {
    await from.exec('python3', [script('forge.py'), JSON.stringify(packets)]);
  }
}
