/**
 * Machines of Hetzner's Cloud. Everything we make there carries the machine's id as a label, and nothing is kept here:
 * whatever a try left behind when it failed or was killed is found by its label, by the next try, by `remove` or by
 * `list`. At most one server stands for a machine, however many make it at once: its name is the node's, names are
 * unique in a project, and Hetzner refuses the second one; the loser finds the winner's by its label.
 */
import { sleep } from '@katafract/shared/clock';
import {
  type Action,
  type HetznerApi,
  type HetznerDeps,
  hetznerApi,
  type PrimaryIp,
  refused,
  type Server,
  unavailable,
} from './hetzner-api.ts';
import type { MachineOrder, ProvidedMachine, Provider } from './provider.ts';

export interface HetznerConfig {
  /** Such as https://api.hetzner.cloud/v1 */
  readonly apiBase: string;
  /** Of one project, with leave to read and write: a secret. */
  readonly token: string;
  /** Tells our machines from those of another fleet in the same project. */
  readonly fleet: string;
  readonly image: string;
  /** Names or ids of keys in the project. Without any, Hetzner sets a root password and mails it. */
  readonly sshKeys: readonly string[];
  /** Ids. */
  readonly firewalls: readonly number[];
  readonly networks: readonly number[];
}

const MACHINE = 'katafract-machine';
const POLL_MS = 2_000;
/** An action that takes longer is left to itself. */
const PATIENCE_MS = 120_000;

export function hetznerProvider(config: HetznerConfig, deps: HetznerDeps): Provider {
  const api = hetznerApi(config, deps);
  const ours = { 'managed-by': 'katafract', 'katafract-fleet': config.fleet };
  const ofFleet = selector(ours);
  const ofMachine = (machine: string) => selector({ ...ours, [MACHINE]: machine });
  const labels = (machine: string, node: string) => ({ ...ours, [MACHINE]: machine, 'katafract-node': node });

  /** Oldest first: whoever looks keeps the same one. */
  const serversOf = async (machine: string) =>
    (await api.servers(ofMachine(machine))).sort((left, right) => left.id - right.id);

  const make = async (order: MachineOrder): Promise<Server> => {
    const made = await api.createServer(request(config, order, labels(order.machine, order.node)));
    if (made) return made;
    // an answer of ours that was lost, or somebody who made the same machine at the same moment
    const [found] = await serversOf(order.machine);
    if (found) return found;
    throw refused(`another server is named ${order.node}`);
  };

  const settled = (action: () => Promise<Action[] | null>) => waitFor(deps.clock, action);

  /** Takes a server away, its addresses having been labelled first: they may outlive it. */
  const drop = async (server: Server, machine: string) => {
    const known = await api.addresses(ofMachine(machine));
    await label(api, server, known, labels(machine, server.labels['katafract-node'] ?? server.name));
    const action = await api.deleteServer(server.id);
    if (action === null) return;
    const actions = await settled(async () => {
      const now = await api.action(action.id);
      return now && [now];
    });
    if (actions?.some(({ status }) => status !== 'success'))
      throw unavailable('a server could not be deleted');
  };

  /** Deletes addresses of the machine that no server has. */
  const dropAddresses = async (addresses: readonly PrimaryIp[]) => {
    for (const { id, assignee_id } of addresses) if (assignee_id === null) await api.deleteAddress(id);
  };

  return {
    name: 'hetzner',
    automatic: true,

    async create(order) {
      const [found, ...spare] = await serversOf(order.machine);
      for (const server of spare) await drop(server, order.machine);
      const server = found ?? (await make(order));
      if (server.status === 'deleting') throw unavailable('an earlier try is still being deleted', 5);
      const actions = await settled(async () => lastOfMaking(await api.actionsOf(server.id)));
      if (actions === null) throw unavailable('the server vanished while it was made', 5);
      if (actions.some(({ status }) => status === 'error')) {
        await drop(server, order.machine);
        throw unavailable('the server was not made whole; it is deleted');
      }
      const addresses = await api.addresses(ofMachine(order.machine));
      await label(api, server, addresses, labels(order.machine, order.node));
      await dropAddresses(addresses);
      return provided(server, order.machine);
    },

    async remove(machine) {
      for (const server of await serversOf(machine)) await drop(server, machine);
      await dropAddresses(await api.addresses(ofMachine(machine)));
    },

    async list() {
      const servers = (await api.servers(ofFleet)).sort((left, right) => left.id - right.id);
      const unassigned = (await api.addresses(ofFleet)).filter(({ assignee_id }) => assignee_id === null);
      const machines = new Map<string, ProvidedMachine>();
      const note = (machine: string | undefined, what: (id: string) => ProvidedMachine) => {
        if (machine !== undefined && !machines.has(machine)) machines.set(machine, what(machine));
      };
      for (const server of servers) note(server.labels[MACHINE], (machine) => provided(server, machine));
      // what a server left behind costs money too, and `remove` takes it away
      for (const { id, labels } of unassigned)
        note(labels[MACHINE], (machine) => ({ machine, ref: `primary_ip ${id}`, address: null }));
      return [...machines.values()];
    },
  };
}

/** Of what makes a server whole, how each stands now; other actions are not ours. */
function lastOfMaking(actions: readonly Action[] | null): Action[] | null {
  if (actions === null) return null;
  const inOrder = [...actions].sort((left, right) => left.id - right.id);
  return ['create_server', 'start_server'].flatMap(
    (name) => inOrder.findLast(({ command }) => command === name) ?? [],
  );
}

function request(config: HetznerConfig, order: MachineOrder, labels: Readonly<Record<string, string>>) {
  return {
    name: order.node,
    location: order.location,
    server_type: order.size,
    image: config.image,
    labels,
    user_data: order.userData,
    start_after_create: true,
    public_net: { enable_ipv4: true, enable_ipv6: true },
    ...(config.sshKeys.length > 0 ? { ssh_keys: config.sshKeys } : {}),
    ...(config.firewalls.length > 0 ? { firewalls: config.firewalls.map((firewall) => ({ firewall })) } : {}),
    ...(config.networks.length > 0 ? { networks: config.networks } : {}),
  };
}

function provided(server: Server, machine: string): ProvidedMachine {
  return { machine, ref: String(server.id), address: server.public_net.ipv4?.ip ?? null };
}

function selector(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels)
    .map(([key, value]) => `${key}==${value}`)
    .join(',');
}

/** Labels those addresses of a server that are not `known` by their label yet. */
async function label(
  api: HetznerApi,
  { public_net }: Server,
  known: readonly PrimaryIp[],
  labels: Readonly<Record<string, string>>,
): Promise<void> {
  for (const address of [public_net.ipv4, public_net.ipv6]) {
    if (address && !known.some(({ id }) => id === address.id)) await api.labelAddress(address.id, labels);
  }
}

/** Looks until none runs any more, or it took too long. */
async function waitFor(
  clock: HetznerDeps['clock'],
  look: () => Promise<Action[] | null>,
): Promise<Action[] | null> {
  const until = clock.now() + PATIENCE_MS;
  for (;;) {
    const actions = await look();
    if (actions === null || actions.every(({ status }) => status !== 'running') || clock.now() >= until)
      return actions;
    await sleep(clock, POLL_MS);
  }
}
