/**
 * One host of the lab: a network namespace `kf<id>-<name>` with a mount namespace of its own (WireGuard's control
 * sockets live under /run/wireguard, where two hosts would meet). A holder process keeps the mount namespace alive;
 * everything else enters both by nsenter, which becomes the program it starts, so its process id is the program's.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { type Ping, startPing } from './ping.ts';
import { exec, type Output, Program, type RunOptions, run } from './process.ts';
import {
  type Connection,
  type Forward,
  type HttpRequest,
  type HttpResponse,
  type Listener,
  type ListenOptions,
  Resident,
} from './resident.ts';
import { waitFor } from './wait.ts';

/** Settings every host starts from, whatever the machine's own are: plain hosts that forward nothing. */
const SYSCTLS: Readonly<Record<string, string>> = {
  'net/ipv4/ip_forward': '0',
  'net/ipv4/conf/all/rp_filter': '0',
  'net/ipv4/conf/default/rp_filter': '0',
  'net/ipv6/conf/all/disable_ipv6': '0',
  'net/ipv6/conf/default/disable_ipv6': '0',
  'net/ipv6/conf/all/forwarding': '0',
  'net/ipv6/conf/default/accept_ra': '0',
  'net/ipv6/conf/default/accept_dad': '0',
};

/**
 * Private /run/wireguard, a boot id of its own (so that its reboots show), then the settings, then a word on standard
 * output, then nothing for as long as it lives.
 */
const HOLDER = `
mkdir -p /run/wireguard && mount -t tmpfs -o mode=0755,size=16m katafract-lab /run/wireguard || exit 1
cat /proc/sys/kernel/random/uuid >/run/wireguard/.boot_id || exit 1
mount --bind /run/wireguard/.boot_id /proc/sys/kernel/random/boot_id || exit 1
for setting in "$@"; do echo "\${setting#*=}" >"/proc/sys/\${setting%%=*}" || exit 1; done
echo ready
exec sleep infinity`;

export class Host {
  readonly name: string;
  readonly namespace: string;
  readonly #folder: string;
  #holder: ChildProcess | undefined;
  #resident: Promise<Resident> | undefined;

  /** @param folder where logs of the host's programs go */
  constructor(id: string, name: string, folder: string) {
    this.name = name;
    this.namespace = `kf${id}-${name}`;
    this.#folder = folder;
  }

  /** Makes the namespaces. Interfaces and addresses are the network's business. */
  async create(sysctls: Readonly<Record<string, string>> = {}): Promise<void> {
    await exec('ip', ['netns', 'add', this.namespace]);
    const settings = Object.entries({ ...SYSCTLS, ...sysctls }).map(([name, value]) => `${name}=${value}`);
    const shell = ['sh', '-c', HOLDER, 'holder', ...settings];
    const command = ['netns', 'exec', this.namespace, 'setpriv', '--pdeathsig', 'KILL', ...shell];
    const holder = spawn('ip', command, {
      stdio: ['ignore', 'pipe', 'inherit'],
      cwd: '/',
      detached: true,
    });
    this.#holder = holder;
    await new Promise<void>((resolve, reject) => {
      holder.once('error', reject);
      holder.once('exit', (code) => reject(new Error(`${this.namespace} did not start (${code})`)));
      holder.stdout?.once('data', resolve);
    });
    holder.removeAllListeners('exit');
    holder.stdout?.destroy();
    holder.unref();
  }

  /** Ends every process of the host and removes its namespaces, interfaces and rules, as a power cut would. */
  async destroy(): Promise<void> {
    const pids = async () =>
      (await exec('ip', ['netns', 'pids', this.namespace])).split('\n').filter(Boolean);
    await waitFor(`end of all processes in ${this.namespace}`, async () => {
      const left = await pids();
      for (const pid of left) kill(Number(pid));
      return left.length === 0;
    });
    await exec('ip', ['netns', 'del', this.namespace]);
    this.#holder = undefined;
    this.#resident = undefined;
  }

  /** Command and arguments that enter the host and run there what follows them. */
  enter(): string[] {
    if (this.#holder?.pid === undefined) throw new Error(`${this.namespace} is not up`);
    return [
      'nsenter',
      `--net=/run/netns/${this.namespace}`,
      `--mount=/proc/${this.#holder.pid}/ns/mnt`,
      '--',
    ];
  }

  /** Runs a command here that must succeed, and returns what it printed. */
  exec(command: string, args: readonly string[] = [], options: RunOptions = {}): Promise<string> {
    const [program = '', ...rest] = [...this.enter(), command, ...args];
    return exec(program, rest, options);
  }

  /** Runs a command here, whatever comes of it. */
  run(command: string, args: readonly string[] = [], options: RunOptions = {}): Promise<Output> {
    const [program = '', ...rest] = [...this.enter(), command, ...args];
    return run(program, rest, options);
  }

  /** Starts a program here; its output goes to `<host>-<label>.log` in the lab's folder. */
  start(label: string, command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Program {
    const [program = '', ...rest] = [...this.enter(), command, ...args];
    return new Program(program, rest, join(this.#folder, `${this.name}-${label}.log`), { env });
  }

  #hands(): Promise<Resident> {
    this.#resident ??= Resident.start(this.enter());
    return this.#resident;
  }

  /** An HTTP request from this host; rejects with the error code where no answer came. */
  async http(call: HttpRequest): Promise<HttpResponse> {
    return (await this.#hands()).http(call);
  }

  /** Body of a page fetched from this host. */
  async httpGet(url: string, timeoutMs = 5000): Promise<string> {
    return (await this.http({ url, timeoutMs })).body;
  }

  /** What a TCP connection to a port comes to: `open`, `timeout`, or a code such as `ECONNREFUSED`. */
  async probe(address: string, port: number, timeoutMs = 1000): Promise<string> {
    return (await this.#hands()).probe(address, port, timeoutMs);
  }

  /** Sends datagrams; with `replyMs`, resolves with the first answer or null. */
  async udp(...args: Parameters<Resident['udp']>): Promise<string | null> {
    return (await this.#hands()).udp(...args);
  }

  /** One datagram from each of so many ports of this host. */
  async flows(address: string, port: number, count: number): Promise<void> {
    return (await this.#hands()).flows(address, port, count);
  }

  /** Ports that this host gives to so many sockets which ask for none in particular. */
  async givenPorts(count: number): Promise<number[]> {
    return (await this.#hands()).ports(count);
  }

  /** Opens a TCP connection and keeps it. */
  async hold(address: string, port: number, timeoutMs?: number): Promise<Connection> {
    return (await this.#hands()).hold(address, port, timeoutMs);
  }

  /** Listens here and counts what arrives. */
  async listen(options: ListenOptions = {}): Promise<Listener> {
    return (await this.#hands()).listen(options);
  }

  /** Makes a port of the machine's own 127.0.0.1 reachable from this host, on its 127.0.0.1. */
  async expose(port: number): Promise<void> {
    await (await this.#hands()).expose(port);
  }

  /** A port on the machine's own 127.0.0.1 that leads to an address inside this host. */
  async forward(address: string, port: number): Promise<Forward> {
    return (await this.#hands()).forward(address, port);
  }

  /** Whether one of `count` echo requests is answered within `timeoutMs` each. */
  async ping(address: string, options: { count?: number; timeoutMs?: number } = {}): Promise<boolean> {
    const { count = 1, timeoutMs = 1000 } = options;
    const args = ['-n', '-q', '-c', String(count), '-i', '0.2', '-W', String(timeoutMs / 1000), address];
    return (await this.run('ping', args)).code === 0;
  }

  /** Pings without a pause until stopped, and accounts for every single packet. */
  startPing(address: string, intervalMs = 50): Promise<Ping> {
    return startPing(this.enter(), address, intervalMs);
  }

  /**
   * Counts packets that match, as they reach an interface of this host and before any of its other rules.
   * @param match iptables match arguments, e.g. `['-s', '10.64.0.0/10']`
   */
  async countPackets(match: readonly string[], family: 4 | 6 = 4): Promise<() => Promise<number>> {
    const tool = family === 4 ? 'iptables' : 'ip6tables';
    const label = `count-${Math.random().toString(36).slice(2)}`;
    const rule = [...match, '-m', 'comment', '--comment', label];
    await this.exec(tool, ['-w', '-t', 'raw', '-I', 'PREROUTING', ...rule]);
    return async () => {
      const listing = await this.exec(tool, ['-w', '-t', 'raw', '-L', 'PREROUTING', '-v', '-x', '-n']);
      const line = listing.split('\n').find((candidate) => candidate.includes(label));
      return Number(line?.trim().split(/\s+/)[0] ?? Number.NaN);
    };
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error; // gone already
  }
}
