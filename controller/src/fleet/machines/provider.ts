/**
 * Whoever has machines to give: the port that capacity is grown through, and what a machine is told so that it becomes
 * a node. Every call may be made again after a crash in the middle of it, so each is idempotent by the machine's id.
 */
import type { NodeId, RegionId } from '@katafract/shared/units';

export const PROVIDERS = ['manual', 'hetzner', 'lab'] as const;
export type ProviderName = (typeof PROVIDERS)[number];

/** How a region grows by itself. */
export interface Growth {
  readonly provider: ProviderName;
  /** In the provider's own words: where (fsn1) and what (cpx21). */
  readonly location: string;
  readonly size: string;
  /** Peers one such machine may carry. */
  readonly capacity: number;
  readonly bandwidthMbit: number | null;
  /** Its WireGuard interfaces, on as many ports; one where absent. */
  readonly tunnels?: number | undefined;
  /** Exits of the region, those on the way counted, beyond which it does not grow. */
  readonly maxExits: number;
}

export interface MachineOrder {
  /** Ours; the provider keeps it as a label, and it is how a machine is found again. */
  readonly machine: string;
  /** Name of the node that it becomes. */
  readonly node: NodeId;
  readonly region: RegionId;
  readonly location: string;
  readonly size: string;
  /** `#cloud-config` document with the one-time join token in it: a secret. */
  readonly userData: string;
}

/** A machine as its provider knows it. */
export interface ProvidedMachine {
  readonly machine: string;
  /** The provider's own id of it. */
  readonly ref: string;
  /** Public IPv4, once it is known. */
  readonly address: string | null;
}

/**
 * A provider. Calls have timeouts; what it answers is never logged as it came (create may answer with a root password).
 * Errors are KatafractError: `provider_unavailable` (try again later), `provider_refused` (no: quota, no such size or
 * location, no credit; trying again helps only when somebody did something), `provider_unauthorized`.
 */
export interface Provider {
  readonly name: ProviderName;
  /** Whether machines come by themselves; a manual one waits for a person. */
  readonly automatic: boolean;
  /** Makes the machine, or finds the one that an earlier try has made; whatever else that try left is taken away. */
  create(order: MachineOrder): Promise<ProvidedMachine>;
  /** Takes the machine away, and whatever belongs to it; one that is gone already is a success. */
  remove(machine: string): Promise<void>;
  /** Everything of this fleet that exists there, wanted or not. */
  list(): Promise<readonly ProvidedMachine[]>;
}
