/**
 * Everything the agent's core needs from outside, as types. The core (agent.ts, desired/, plan/, apply/) reads no
 * clock, spawns no process and opens no file: it is driven through these, by main.ts with the real host and by the
 * model-based test with a virtual one.
 */
import type { NodeConfig } from '@katafract/shared/desired';
import type { PeerEntry } from '@katafract/shared/digest';
import type { Applied, Heartbeat, Hello, PartState } from '@katafract/shared/uplink';
import type { HavenRequest } from './helper/requests.ts';

export type { Clock, SteadyClock } from '@katafract/shared/clock';

/** Structured log lines. Peers are never named in them: counts and codes only. */
export interface Log {
  info(fields: Readonly<Record<string, unknown>>, message: string): void;
  warn(fields: Readonly<Record<string, unknown>>, message: string): void;
  error(fields: Readonly<Record<string, unknown>>, message: string): void;
}

/**
 * Changes to the kernel's peer table; removals come first, so that an address can pass from one key to another, and so
 * that a key in both is made anew.
 */
export interface PeerBatch {
  /** Keys as the kernel names them; a key it does not have is no error. */
  readonly remove: readonly string[];
  /** Each replaces the AllowedIPs of its key. */
  readonly set: readonly PeerEntry[];
}

/**
 * One row of the kernel's table. `allowed` is the AllowedIPs text as printed; `handshake` is in Unix seconds, 0 never;
 * `known`: the kernel has an endpoint for it, which nobody else is told.
 */
export type PeerVisitor = (publicKey: string, allowed: string, handshake: number, known: boolean) => void;

/** A tunnel interface as WireGuard sees it. */
export interface Tunnel {
  readonly publicKey: string;
  readonly listenPort: number;
}

/** Every tunnel interface in the order of their ports; null for one that is not there. */
export type Tunnels = readonly (Tunnel | null)[];

/** The peers of all tunnel interfaces, as one table. */
export interface PeerTablePort {
  /**
   * Streams the whole table through `visit`, in no order. A peer on an interface that is not its own is visited with a
   * text that no AllowedIPs have. Not a snapshot: changes made meanwhile may or may not be seen.
   */
  dump(visit: PeerVisitor): Promise<Tunnels>;
  /**
   * Resolves when the kernel took all of the batch; rejects where it may have taken only a part.
   * @throws KatafractError `tunnel_missing` where an interface is not there, so that trying smaller batches is pointless
   */
  set(batch: PeerBatch): Promise<void>;
}

/**
 * The disk under the ledger: one snapshot and one journal, each a text. Every method is durable once it resolves, and
 * after a crash in the middle of one: `writeSnapshot` and `replaceJournal` left the old text or the new one,
 * `append` left any prefix of the addition.
 */
export interface LedgerDisk {
  load(): Promise<{ snapshot: string | null; journal: string }>;
  append(text: string): Promise<void>;
  writeSnapshot(text: string): Promise<void>;
  replaceJournal(text: string): Promise<void>;
}

export type UplinkMessage =
  | { readonly leaf: 'hello'; readonly body: Hello }
  | { readonly leaf: 'applied'; readonly body: Applied }
  | { readonly leaf: 'heartbeat'; readonly body: Heartbeat };

export interface Uplink {
  /** Hands a message to the broker. Drops it while there is no connection: every connect begins with a hello anyway. */
  send(message: UplinkMessage): void;
}

export type Family = 4 | 6;

/** Interfaces towards the internet, by family; null where no default route leads anywhere. */
export interface Uplinks {
  readonly uplink4: string | null;
  readonly uplink6: string | null;
  /** Addresses of both, without prefix; link-local ones are not listed. */
  readonly uplinkAddresses: readonly string[];
}

export interface Link {
  readonly up: boolean;
  readonly mtu: number;
  /** With prefix, as `ip` prints them; link-local ones are the kernel's own and not listed. */
  readonly addresses: readonly string[];
}

export interface Route {
  readonly device: string;
  /** Canonical prefix, 10.64.0.0/10; the default route is 0.0.0.0/0 or ::/0. */
  readonly prefix: string;
  readonly metric: number;
}

/** One tunnel interface, with the settings that WireGuard has of its own. */
export interface TunnelPort {
  /** Makes the interface: in the kernel, else by wireguard-go, which then outlives the agent. */
  create(): Promise<void>;
  setPrivateKey(): Promise<void>;
  setListenPort(port: number): Promise<void>;
}

export interface FirewallPort {
  /** What `iptables-save` prints. */
  save(family: Family): Promise<string>;
  /** Takes a whole text or nothing of it; chains that the text does not name stay as they are. */
  restore(family: Family, text: string): Promise<void>;
}

export interface NetworkPort {
  /** Every interface, by name. */
  links(): Promise<ReadonlyMap<string, Link>>;
  /** The main tables of both families. */
  routes(): Promise<Readonly<Record<Family, readonly Route[]>>>;
  /** By path under /proc/sys; null where this kernel has none. */
  sysctls(paths: readonly string[]): Promise<Map<string, string | null>>;
  setSysctl(path: string, value: string): Promise<void>;
  /** One `ip` command. */
  ip(args: readonly string[]): Promise<void>;
}

/** What came of making the host (interface, addresses, sysctls, firewall) as it should be. */
export interface HostReport {
  /** The interface is up as configured and the rules are in place; nothing is acknowledged otherwise. */
  readonly ready: boolean;
  readonly rules: PartState;
  /** Things found changed and put right again; things set up for the first time do not count. */
  readonly repairs: number;
  /** Steps that failed; they are tried again with the next timer. */
  readonly failures: number;
}

/** What the rules let in and keep out by what else was found. */
export interface Gates {
  /** Clients may ask the resolver. */
  readonly dnsOpen: boolean;
  /** SSH is for the mesh alone, and nobody is locked out by that. */
  readonly sshFromMesh: boolean;
}

/** A look at the host, ready to be acted on. */
export interface HostInspection {
  /** Plans from what was seen and applies it. @param tunnels as dumped beside this inspection */
  settle(tunnels: Tunnels, gates: Gates): Promise<HostReport>;
}

/** One thing that was looked at of the DNS filter. */
export interface HavenFinding {
  /** Stable word. */
  readonly id: string;
  readonly holds: boolean;
  /** What is possible where it does not hold. */
  readonly attack: string;
}

export interface HavenCounts {
  readonly queries: number;
  readonly blocked: number;
}

/** A look at the DNS filter, ready to be acted on. */
export interface HavenView {
  /** `unsafe`: it keeps or tells something of clients; `failed`: it does not do what it should. */
  readonly state: 'ok' | 'failed' | 'unsafe';
  /** Whether that comes from an answer; an AdGuard that cannot be asked says nothing, neither good nor bad. */
  readonly known: boolean;
  readonly findings: readonly HavenFinding[];
  /** Of the last hour, of all clients together; null where it does not count, or could not be asked. */
  readonly counts: HavenCounts | null;
  /** Puts right what it can be told. @returns how much of it */
  settle(): Promise<number>;
}

export interface HavenPort {
  /** What the helper is to be asked for; null where no filter is wanted. */
  request(config: NodeConfig): HavenRequest | null;
  /** Only looks; null where no filter is wanted. */
  look(config: NodeConfig): Promise<HavenView | null>;
}

/** Everything the node is besides its peers. */
export interface HostPort {
  /** Only looks. @param config as it should be */
  inspect(config: NodeConfig): Promise<HostInspection>;
}

/** Aggregates about the machine, units as in Heartbeat. */
export type Telemetry = Pick<
  Heartbeat,
  'cpu' | 'memoryUsed' | 'memoryTotal' | 'load' | 'uptimeSeconds' | 'rxBytes' | 'txBytes'
>;

export interface TelemetryPort {
  read(): Promise<Telemetry>;
}
