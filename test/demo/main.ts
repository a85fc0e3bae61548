/**
 * `npm run demo`: a whole fleet on this machine, provisioned through the public API and proved. Stays up with its URLs
 * printed until Ctrl-C; with `--once` it ends by itself, with exit code 0 only if every promise held.
 */
import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { makeKeys } from '../lab/device.ts';
import { type Lab, startLab } from '../lab/lab.ts';
import { PROMISES, type Stage, type Tunnel } from './promises.ts';
import { heading, milliseconds, paint, say, step, table } from './screen.ts';

const EXITS = [
  { name: 'fra-1', region: 'fra' },
  { name: 'fra-2', region: 'fra' },
  { name: 'hel-1', region: 'hel' },
  { name: 'ash-1', region: 'ash' },
  { name: 'hil-1', region: 'hil' },
  { name: 'sin-1', region: 'sin' },
];
/** Where each device wants its exit. */
const WISHES = ['fra', 'fra', 'hel', 'sin'];
const STATE = fileURLToPath(new URL('../../.lab/state.json', import.meta.url));

interface NodeView {
  readonly id: string;
  readonly region: string;
  readonly state: string;
  readonly peers: number;
  readonly generation: number;
  readonly applied: number;
  readonly connected: boolean;
}

const nodesOf = async (lab: Lab) =>
  (await lab.controller.operate<{ items: NodeView[] }>('GET', '/v1/admin/nodes')).items;

async function showNodes(lab: Lab): Promise<void> {
  const rows = (await nodesOf(lab)).map((node) => [
    node.id,
    node.region,
    node.connected ? node.state : 'away',
    String(node.peers),
    `${node.applied} of ${node.generation}`,
    lab.exit(node.id).endpoint,
  ]);
  say(table([['node', 'region', 'state', 'peers', 'generation in the kernel', 'endpoint'], ...rows]));
}

async function connect(lab: Lab): Promise<Tunnel[]> {
  const tunnels: Tunnel[] = [];
  const sigil = await lab.mintSigil('pro');
  for (const [index, device] of lab.devices.entries()) {
    const region = WISHES[index] ?? 'fra';
    const keys = makeKeys();
    const since = performance.now();
    const peer = await lab.provision(sigil, keys.publicKey, region);
    const took = performance.now() - since;
    const [primary, ...standbys] = peer.exits.map(({ node }) => node);
    step(
      `${device.name} asked for ${region}: ${primary} has it after ${paint('green', milliseconds(took))}, standbys ${standbys.join(', ')}`,
    );
    await device.up(peer.config, keys.privateKey);
    tunnels.push({ device, peer, sigil, took });
  }
  const rows = tunnels.map(({ device, peer }) => [
    device.name,
    peer.addresses.ipv4,
    peer.addresses.ipv6,
    peer.exits.map(({ node, role }) => (role === 'primary' ? node : `(${node})`)).join(' '),
  ]);
  say(table([['device', 'IPv4', 'IPv6', 'exits'], ...rows]));
  return tunnels;
}

/** Checks one promise after the other. @returns whether all held */
async function prove(stage: Stage): Promise<boolean> {
  let failed = 0;
  for (const promise of PROMISES) {
    try {
      const seen = await promise.check(stage);
      say(`${paint('green', 'pass')}  ${promise.text}\n      ${paint('gray', seen)}`);
    } catch (error) {
      failed++;
      say(
        `${paint('red', 'FAIL')}  ${promise.text}\n      ${error instanceof Error ? error.message : String(error)}`,
      );
    }
  }
  say(`\n${PROMISES.length - failed} of ${PROMISES.length} promises held`);
  return failed === 0;
}

/** Describes the lab for other programs; readable by its owner only, since it names an operator token. */
async function writeState({ lab, tunnels }: Stage): Promise<void> {
  const state = {
    pid: process.pid,
    api: lab.api,
    publicApi: lab.controller.publicApi,
    operatorToken: lab.operatorToken,
    namespaces: [lab.inet, lab.mesh, lab.artemis, ...lab.exits, ...lab.devices].map(
      ({ namespace }) => namespace,
    ),
    controller: {
      namespace: lab.artemis.namespace,
      meshUrl: lab.controller.meshUrl,
      publicUrl: lab.controller.publicUrl,
    },
    exits: lab.exits.map((exit) => ({
      name: exit.name,
      namespace: exit.namespace,
      tunnel: exit.tunnel,
      endpoint: exit.endpoint,
      uplink: { interface: 'eth0', ipv4: exit.publicAddress4, ipv6: exit.publicAddress6 },
      mesh: { interface: 'mesh0', ipv4: exit.meshAddress },
      metrics: exit.metricsUrl,
    })),
    devices: tunnels.map(({ device, peer }) => ({
      name: device.name,
      namespace: device.namespace,
      tunnel: 'wg0',
      peer: peer.id,
      addresses: peer.addresses,
      exits: peer.exits.map(({ node, role }) => ({ node, role })),
    })),
    nodes: await nodesOf(lab),
  };
  mkdirSync(fileURLToPath(new URL('.', `file://${STATE}`)), { recursive: true });
  writeFileSync(STATE, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 });
  chmodSync(STATE, 0o600);
}

function stopped(): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
}

async function stayUp(stage: Stage): Promise<void> {
  const { lab } = stage;
  heading('The fleet stays up');
  await showNodes(lab);
  const [first] = stage.tunnels;
  say(`
  API and reference   ${lab.api}/docs
  metrics             ${lab.api}/metrics
  operator token      ${lab.controller.operatorTokenFile}
  the lab as data     .lab/state.json
  a device's shell    ip netns exec ${first?.device.namespace} bash     (try: ping 198.51.100.80)
  an exit's kernel    ${lab.exits[0]?.enter().join(' ')} wg show

Ctrl-C ends it and removes everything.`);
  const refresh = setInterval(() => {
    writeState(stage).catch((error: unknown) => step(`the state could not be written: ${error}`));
  }, 5000);
  await stopped();
  clearInterval(refresh);
  say('\nremoving everything');
}

async function main(once: boolean): Promise<boolean> {
  heading(
    'A fleet on this machine: one controller with its own Postgres and broker, six exits in five cities, four devices',
  );
  const lab = await startLab({ exits: EXITS, devices: WISHES.length, onStep: step });
  try {
    await showNodes(lab);
    heading('Devices ask for exits through the public API');
    const stage = { lab, tunnels: await connect(lab) };
    await writeState(stage);
    heading('What was promised');
    const held = await prove(stage);
    await writeState(stage);
    if (!once) await stayUp(stage);
    return held;
  } finally {
    rmSync(STATE, { force: true });
    await lab.close();
  }
}

process.exitCode = (await main(process.argv.includes('--once'))) ? 0 : 1;
