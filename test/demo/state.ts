/** `.lab/state.json`: the running lab for other programs. Only its owner may read it, for it holds the operator token. */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { INTERNET } from '../lab/network.ts';
import type { Fleet } from './promises.ts';

export const STATE_FILE = fileURLToPath(new URL('../../.lab/state.json', import.meta.url));

export interface NodeRow {
  readonly id: string;
  readonly region: string;
  readonly state: string;
  readonly connected: boolean;
  readonly endpoint: string;
  readonly peers: number;
  readonly generation: number;
  readonly applied: number;
}

export async function listNodes({ lab }: Pick<Fleet, 'lab'>): Promise<NodeRow[]> {
  return (await lab.controller.operate<{ items: NodeRow[] }>('GET', '/v1/admin/nodes')).items;
}

/** Writes it anew, whole or not at all. */
export async function writeState(fleet: Fleet, startedAt: Date): Promise<void> {
  const { lab, sigil, connections } = fleet;
  const interfaces = { tunnel: 'wg0', uplink: 'eth0', mesh: 'mesh0' };
  const state = {
    lab: lab.id,
    pid: process.pid,
    startedAt: startedAt.toISOString(),
    folder: lab.folder,
    api: { url: lab.api, docs: `${lab.api}/docs`, publicUrl: lab.controller.publicApi },
    operatorToken: lab.operatorToken,
    operatorTokenFile: lab.controller.operatorTokenFile,
    sigil,
    internet: { namespace: lab.inet.namespace, ...INTERNET },
    mesh: { namespace: lab.mesh.namespace },
    controller: {
      namespace: lab.artemis.namespace,
      meshAddress: '100.64.0.1',
      publicUrl: lab.controller.publicUrl,
    },
    exits: lab.exits.map((exit) => ({
      name: exit.name,
      region: exit.region,
      namespace: exit.namespace,
      interfaces,
      ipv4: exit.publicAddress4,
      ipv6: exit.publicAddress6,
      meshAddress: exit.meshAddress,
      endpoint: exit.endpoint,
      metrics: exit.metricsUrl,
      stateDir: exit.stateDir,
      agentPid: exit.agentPid,
    })),
    devices: connections.map(({ device, peer, exit }) => ({
      name: device.name,
      namespace: device.namespace,
      interfaces: { tunnel: 'wg0', uplink: 'eth0' },
      ipv4: device.address4,
      ipv6: device.address6,
      tunnel: peer.addresses,
      peer: peer.id,
      publicKey: peer.publicKey,
      exit: exit.name,
      standbys: peer.exits.filter(({ role }) => role === 'standby').map(({ node }) => node),
    })),
    nodes: await listNodes(fleet),
  };
  mkdirSync(dirname(STATE_FILE), { recursive: true });
  const draft = `${STATE_FILE}.${process.pid}`;
  writeFileSync(draft, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 });
  renameSync(draft, STATE_FILE);
}

/** Removes it, unless another demo has written its own since. */
export function removeState(): void {
  try {
    const { pid } = JSON.parse(readFileSync(STATE_FILE, 'utf8')) as { pid: number };
    if (pid === process.pid) rmSync(STATE_FILE);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}
