/**
 * `npm run demo`: a whole fleet on this machine. Brings it up, provisions devices through the public API with the SDK,
 * proves the promises, and stays up to be played with until Ctrl-C. With `--once` it prints one line per promise and
 * exits, with 0 only if all held.
 */
import { createClient } from '@katafract/client/sdk';
import { type Device, makeKeys } from '../lab/device.ts';
import { type Lab, REGIONS, startLab } from '../lab/lab.ts';
import { INTERNET } from '../lab/network.ts';
import { Shop } from '../stores/shop.ts';
import { type Connection, type Fleet, PROMISES } from './promises.ts';
import { Show } from './show.ts';
import { listNodes, removeState, STATE_FILE, writeState } from './state.ts';

const EXITS = [
  { name: 'fra-1', region: 'fra' },
  { name: 'fra-2', region: 'fra' },
  { name: 'hel-1', region: 'hel' },
  { name: 'sin-1', region: 'sin' },
  { name: 'ash-1', region: 'ash' },
  { name: 'hil-1', region: 'hil' },
];
/** Where each device wants to appear. */
const WISHES = ['fra', 'hel', 'sin', 'ash'];
const city = (region: string) => REGIONS.find(({ id }) => id === region)?.name ?? region;

const once = process.argv.includes('--once');
const startedAt = new Date();
// with --once, standard output is for the promises alone
const show = new Show(once ? process.stderr : process.stdout);
const verdicts = new Show(process.stdout);

async function connect(lab: Lab, sigil: string, device: Device, region: string): Promise<Connection> {
  const client = createClient({ baseUrl: lab.controller.publicApi, sigil });
  const { privateKey, publicKey } = makeKeys();
  const peer = await show.step(
    `${device.name} asks for ${city(region)}`,
    () => client.provision({ publicKey, region }),
    ({ exits, status }) => `: ${status} on ${exits.map(({ node, role }) => `${node} (${role})`).join(', ')}`,
  );
  await show.step(`${device.name} brings its tunnel up`, async () => {
    await device.up(peer.config, privateKey);
    await device.handshake();
  });
  const [primary] = peer.exits;
  return { device, peer, exit: lab.exit(primary?.node ?? '') };
}

async function showTables(fleet: Fleet): Promise<void> {
  show.heading('Nodes');
  const nodes = await listNodes(fleet);
  show.table({
    head: ['node', 'city', 'endpoint', 'state', 'generation', 'peers'],
    rows: nodes.map((node) => [
      node.id,
      city(node.region),
      node.endpoint,
      node.connected ? node.state : 'away',
      `${node.applied}/${node.generation}`,
      String(node.peers),
    ]),
  });
  show.heading('Peers');
  show.table({
    head: ['device', 'addresses in the tunnel', 'exits', 'key'],
    rows: fleet.connections.map(({ device, peer }) => [
      device.name,
      `${peer.addresses.ipv4}  ${peer.addresses.ipv6}`,
      peer.exits.map(({ node }) => node).join(' → '),
      `${peer.publicKey.slice(0, 12)}…`,
    ]),
  });
}

/** @returns whether all held; what is under way when the demo is stopped is not reported, and has not held */
async function provePromises(fleet: Fleet, stopped: () => boolean): Promise<boolean> {
  show.heading('Promises');
  let held = true;
  for (const { name, prove } of PROMISES) {
    const since = performance.now();
    let figure: unknown;
    const failure = await prove(fleet).then(
      (found) => {
        figure = found;
        return undefined;
      },
      (error: unknown) => (error instanceof Error ? error.message : String(error)),
    );
    if (stopped()) return false;
    if (failure !== undefined) held = false;
    const shown = typeof figure === 'string' ? `${name}: ${figure}` : name;
    verdicts.verdict(shown, failure, performance.now() - since);
  }
  return held;
}

/** How the operators' command is called here. */
const operateBy = (api: string, tokenFile: string) =>
  `KATAFRACT_URL=${api} KATAFRACT_OPERATOR_TOKEN_FILE=${tokenFile} node controller/cli/dist/katafract.mjs nodes`;

function showWayIn({ lab, connections }: Fleet): void {
  show.heading('Up. Ctrl-C takes it all away again.');
  const [first] = connections;
  show.table({
    head: ['what', 'where'],
    rows: [
      ['API', lab.api],
      ['reference', `${lab.api}/docs`],
      ['operator token', lab.controller.operatorTokenFile],
      ['operate it', operateBy(lab.api, lab.controller.operatorTokenFile)],
      ['this lab as JSON', STATE_FILE],
      ['logs', `${lab.folder}/*.log`],
      ['an exit from inside', `ip netns exec ${lab.exits[0]?.namespace} wg show wg0`],
      ['a device from inside', `ip netns exec ${first?.device.namespace} ping ${INTERNET.ipv4}`],
    ],
  });
}

interface Stop {
  readonly requested: boolean;
  readonly signal: Promise<void>;
}

function listenForStop(): Stop {
  let requested = false;
  const signal = new Promise<void>((resolve) => {
    for (const name of ['SIGINT', 'SIGTERM'] as const) {
      process.on(name, () => {
        // asked a second time: leave at once; the lab's janitor does the rest
        if (requested) process.exit(130);
        requested = true;
        resolve();
      });
    }
  });
  return {
    signal,
    get requested() {
      return requested;
    },
  };
}

async function bringUp(): Promise<Fleet> {
  show.heading(
    `Katafract: ${EXITS.length} exits in ${REGIONS.length} regions, ${WISHES.length} devices, one machine`,
  );
  const shop = await Shop.open();
  const lab = await startLab({
    exits: EXITS,
    devices: WISHES.length + 1,
    cloud: true,
    controllerEnv: shop.env,
    onStep: (text) => show.done(text),
  }).catch(async (error: unknown) => {
    await shop.close();
    throw error;
  });
  try {
    await shop.join(lab);
    show.heading('Devices');
    const sigil = await lab.mintSigil('pro');
    const connections: Connection[] = [];
    const [payer, ...devices] = lab.devices.toReversed();
    if (!payer) throw new Error('there is a device for each wish and one more');
    for (const [index, device] of devices.toReversed().entries()) {
      connections.push(await connect(lab, sigil, device, WISHES[index] ?? 'fra'));
    }
    return { lab, sigil, connections, shop, payer };
  } catch (error) {
    show.line(lab.logTails());
    await lab.close();
    await shop.close();
    throw error;
  }
}

async function stayUp(fleet: Fleet, stop: Stop): Promise<void> {
  showWayIn(fleet);
  while (!stop.requested) {
    await Promise.race([stop.signal, new Promise((resolve) => setTimeout(resolve, 5000))]);
    // somebody may be playing with the controller, and then it has no news of the nodes
    if (!stop.requested)
      await writeState(fleet, startedAt).catch((error: Error) => show.line(`  ${error.message}`));
  }
}

async function main(): Promise<boolean> {
  const stop = listenForStop();
  let up = false;
  // Ctrl-C while it comes up ends the process; the janitor clears up behind it
  void stop.signal.then(() => up || process.exit(130));
  const fleet = await bringUp();
  up = true;
  try {
    await writeState(fleet, startedAt);
    await showTables(fleet);
    const proof = provePromises(fleet, () => stop.requested);
    const held = await Promise.race([proof, stop.signal.then(() => false)]);
    if (!once) await stayUp(fleet, stop);
    return held;
  } finally {
    removeState();
    await show.step('everything removed', async () => {
      await fleet.lab.close();
      await fleet.shop.close();
    });
  }
}

let held = false;
try {
  held = await main();
} catch (error) {
  show.line(`\nThe demo failed: ${error instanceof Error ? error.message : String(error)}`);
}
process.exit(held ? 0 : 1);
