/** What the rules and settings of an exit depend on: its config, what was seen of the host, and what its operator set. */
import type { NodeConfig } from '@katafract/shared/desired';
import type { Family, Gates, Uplinks } from '../ports.ts';
import { type Subnet, subnet4, subnet6 } from './subnets.ts';
import { listenPorts } from './tunnels.ts';

export const FAMILIES: readonly Family[] = [4, 6];

/** What the operator of the machine chose; the same for every generation of its desired state. */
export interface HostChoices {
  /** Interface towards the internet; null: wherever the default route leads. */
  readonly uplink: string | null;
  /** Own public addresses that clients are spread over; empty: whichever the uplink has. */
  readonly exitAddresses: readonly string[];
  /** Connections that one client may have open at once through the exit, and again as many to the exit itself. */
  readonly connectionsPerClient: number;
}

/** Every client of a household behind one device is one client here; a large download swarm has a few hundred. */
export const CONNECTIONS_PER_CLIENT = 2048;

export const DEFAULT_CHOICES: HostChoices = {
  uplink: null,
  exitAddresses: [],
  connectionsPerClient: CONNECTIONS_PER_CLIENT,
};

/** What the rules depend on, for one family. */
export interface RuleContext {
  readonly family: Family;
  readonly subnet: Subnet;
  /** Interface that leads to the internet; null where there is none. */
  readonly uplink: string | null;
  /** UDP ports that WireGuard listens on. */
  readonly listenPorts: readonly number[];
  /** Addresses of this family that clients leave by; empty: whichever the uplink has. */
  readonly exitAddresses: readonly string[];
  readonly connectionsPerClient: number;
  readonly dnsOpen: boolean;
  /** Port of SSH, where that is for the mesh alone; null where it is for everybody. */
  readonly sshPort: number | null;
}

/** Everything is as it should be, and nothing restricted. */
export const OPEN_GATES: Gates = { dnsOpen: true, sshFromMesh: false };

export function ruleContext(
  family: Family,
  config: NodeConfig,
  uplinks: Uplinks,
  choices: HostChoices,
  gates: Gates,
): RuleContext {
  const here = uplinks.uplinkAddresses;
  const ofFamily = choices.exitAddresses.filter((address) => address.includes(':') === (family === 6));
  return {
    family,
    subnet: family === 4 ? subnet4(config) : subnet6(config),
    uplink: family === 4 ? uplinks.uplink4 : uplinks.uplink6,
    listenPorts: listenPorts(config),
    // an address that the host does not have would swallow every answer
    exitAddresses: ofFamily.filter((address) => here.includes(address)),
    connectionsPerClient: choices.connectionsPerClient,
    dnsOpen: gates.dnsOpen,
    sshPort: gates.sshFromMesh ? (config.sshFromMesh?.port ?? null) : null,
  };
}
