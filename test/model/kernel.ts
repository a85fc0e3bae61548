/**
 * The node's kernel in memory: WireGuard's peer table, in which an address belongs to one peer at a time and goes to
 * whoever was given it last, and the interface with what the host port sets on it. It outlives the agent; a reboot
 * empties it.
 */
import type { HostPort, HostReport, PeerBatch, PeerTablePort, PeerVisitor } from '@katafract/agent/ports';
import type { NodeConfig } from '@katafract/shared/desired';
import { KatafractError } from '@katafract/shared/errors';
import type { Faults } from './faults.ts';
import { never, type Process } from './process.ts';
import type { Random } from './random.ts';

const PUBLIC_KEY = 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=';

export interface KernelWatch {
  /** Before a batch is carried out. */
  told(batch: PeerBatch): void;
  /** After the table changed at the agent's word. */
  changed(): void;
}

export class Kernel {
  /** Key to its addresses, IPv4 first; null while there is no interface. */
  #peers: Map<string, string[]> | null = null;
  readonly #owners = new Map<string, string>();
  config: NodeConfig | null = null;
  /** Whether this run of the agent left the host in order when it last tried. */
  ready = false;
  /** Batches with anything in them, and interfaces made or configured anew. */
  writes = 0;

  /** The interface vanishes with all that was on it. */
  reset(): void {
    this.#peers = null;
    this.#owners.clear();
    this.config = null;
  }

  create(): void {
    this.#peers ??= new Map();
  }

  get up(): boolean {
    return this.#peers !== null;
  }

  keys(): string[] {
    return [...(this.#peers?.keys() ?? [])];
  }

  /** AllowedIPs as `wg show dump` prints them; undefined where there is no such peer. */
  allowed(key: string): string | undefined {
    const addresses = this.#peers?.get(key);
    if (!addresses) return undefined;
    return addresses.map((text) => `${text}/${text.includes(':') ? 128 : 32}`).join(',') || '(none)';
  }

  put(key: string, addresses: readonly string[]): void {
    if (!this.#peers) return;
    this.drop(key);
    for (const address of addresses) {
      const owner = this.#owners.get(address);
      if (owner !== undefined) this.#peers.set(owner, this.#others(owner, address));
      this.#owners.set(address, key);
    }
    this.#peers.set(key, [...addresses]);
  }

  #others(key: string, address: string): string[] {
    return (this.#peers?.get(key) ?? []).filter((text) => text !== address);
  }

  drop(key: string): void {
    for (const address of this.#peers?.get(key) ?? []) this.#owners.delete(address);
    this.#peers?.delete(key);
  }
}

/** `wg` for one run of the agent. */
export class KernelPort implements PeerTablePort {
  readonly #kernel: Kernel;
  readonly #process: Process;
  readonly #random: () => Random;
  readonly #faults: () => Faults;
  readonly #watch: KernelWatch;

  constructor(
    kernel: Kernel,
    process: Process,
    random: () => Random,
    faults: () => Faults,
    watch: KernelWatch,
  ) {
    this.#kernel = kernel;
    this.#process = process;
    this.#random = random;
    this.#faults = faults;
    this.#watch = watch;
  }

  #duration(): number {
    return this.#random().chance(0.4) ? 0 : this.#random().integer(0, this.#faults().slow);
  }

  #fails(): boolean {
    return this.#random().chance(this.#faults().kernel);
  }

  /** Sees some rows as they are when it begins and the others as they are when it ends. */
  async dump(visit: PeerVisitor) {
    if (!this.#process.alive) return never();
    const early = new Set(this.#kernel.keys().filter(() => this.#random().chance(0.5)));
    const there = this.#kernel.up;
    const show = (key: string) => {
      const allowed = this.#kernel.allowed(key);
      if (allowed !== undefined) visit(key, allowed, 0, false);
    };
    for (const key of early) show(key);
    return this.#process.step(this.#duration(), () => {
      if (this.#fails()) throw new Error('wg show failed');
      if (!there) return [null];
      if (!this.#kernel.up) throw new Error('the interface vanished');
      for (const key of this.#kernel.keys()) if (!early.has(key)) show(key);
      return [{ publicKey: PUBLIC_KEY, listenPort: this.#kernel.config?.listenPort ?? 0 }];
    });
  }

  async set(batch: PeerBatch): Promise<void> {
    if (!this.#process.alive) return never();
    this.#watch.told(batch);
    if (!this.#kernel.up) throw new KatafractError('tunnel_missing', 'there is no interface');
    const rows = [
      ...batch.remove.map((key) => () => this.#kernel.drop(key)),
      ...batch.set.map((peer) => () => this.#kernel.put(peer.publicKey, [peer.ipv4, peer.ipv6])),
    ];
    if (rows.length > 0) this.#kernel.writes++;
    let done = this.#random().integer(0, rows.length);
    for (const row of rows.slice(0, done)) row();
    const goOn = (to: number) => {
      for (const row of rows.slice(done, to)) row();
      done = Math.max(done, to);
      this.#watch.changed();
    };
    await this.#process.step(
      this.#duration(),
      () => {
        if (this.#fails()) {
          goOn(this.#random().integer(0, rows.length - 1));
          throw new Error('wg set failed');
        }
        goOn(rows.length);
        if (!this.#kernel.up) throw new KatafractError('tunnel_missing', 'the interface is gone');
      },
      () => goOn(this.#random().integer(0, rows.length)),
    );
  }
}

/** Everything else of the host, for one run of the agent: makes the interface and gives it its configuration. */
export function hostPort(
  kernel: Kernel,
  process: Process,
  random: () => Random,
  faults: () => Faults,
): HostPort {
  const report = (ready: boolean): HostReport => {
    kernel.ready = ready;
    return { ready, rules: ready ? 'ok' : 'failed', repairs: 0, failures: ready ? 0 : 1 };
  };
  const duration = () => (random().chance(0.4) ? 0 : random().integer(0, faults().slow));
  return {
    inspect: (config) =>
      process.step(duration(), () => {
        if (random().chance(faults().host)) throw new Error('could not look');
        return {
          settle: () =>
            process.step(duration(), () => {
              kernel.ready = false;
              if (random().chance(faults().host)) throw new Error('could not set up');
              if (random().chance(faults().host)) return report(false);
              const known = kernel.config;
              if (!kernel.up || known?.mtu !== config.mtu || known.listenPort !== config.listenPort) {
                kernel.writes++;
              }
              kernel.create();
              kernel.config = config;
              return report(true);
            }),
        };
      }),
  };
}
