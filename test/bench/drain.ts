/**
 * (l) An exit with thousands of peers is drained while three devices ping through it: how long until every peer is on
 * another exit and that exit's kernel has said so, and whether a ping is lost. The devices read their peer and switch,
 * as apps do; the other peers have no device, which makes no difference to those that move them.
 */
import type { Peer } from '@katafract/shared/api';
import type { NodeId } from '@katafract/shared/units';
import type { Device } from '../lab/device.ts';
import { INTERNET } from '../lab/network.ts';
import { type Ping, startPing } from '../lab/ping.ts';
import { waitFor } from '../lab/wait.ts';
import type { Fleet } from './bed.ts';
import type { Report } from './report.ts';

const GOAL_S = 10;
const PING_MS = 100;
/** How often a device reads its peer. */
const READ_MS = 500;
const LEAVING = 'fra-1';
const STANDBY = 'hel-1';

interface DrainView {
  readonly state: string;
  readonly waiting: number;
  readonly moved: number;
  readonly total: number;
}

interface Live {
  readonly device: Device;
  readonly peer: Peer;
  readonly ping: Ping;
}

export const DRAIN_FLEET = {
  exits: [LEAVING, 'fra-2', 'fra-3', STANDBY].map((name) => ({ name, region: name.slice(0, 3) })),
  devices: 3,
  controllerEnv: { KATAFRACT_MOVE_GRACE_SECONDS: '10' },
};

/** Connects the devices to the exit that will be drained: the only one of the region that takes peers for now. */
async function connectDevices(fleet: Fleet, sigil: string): Promise<Live[]> {
  const { lab } = fleet;
  const others = DRAIN_FLEET.exits.map(({ name }) => name).filter((name) => /^fra-[23]$/.test(name));
  const set = (state: string) =>
    Promise.all(others.map((name) => lab.controller.operate('PATCH', `/v1/admin/nodes/${name}`, { state })));
  await set('cordoned');
  const connected = [];
  for (const device of lab.devices) {
    connected.push({ device, peer: (await lab.connectDevice(device, sigil, 'fra')).peer });
  }
  await set('active');
  return Promise.all(
    connected.map(async (one) => ({
      ...one,
      ping: await startPing(one.device.enter(), INTERNET.ipv4, PING_MS),
    })),
  );
}

/** Reads the peer until another exit comes first and has it, then switches between two pings. */
async function follow(fleet: Fleet, sigil: string, { device, peer, ping }: Live): Promise<void> {
  const { controller } = fleet.lab;
  const target = await waitFor(
    `${device.name} to be told of another exit`,
    async () => {
      const { exits, status } = (await controller.app<Peer>('GET', `/v1/peers/${peer.id}`, sigil)).body;
      const [first] = exits;
      return first && first.node !== LEAVING && status === 'active' && first;
    },
    { deadlineMs: 60_000, everyMs: READ_MS },
  );
  const answered = ping.received();
  // an answer on its way while the device itself changes over comes from an exit that it no longer listens to
  await waitFor('an answer just now', () => ping.received() > answered, { everyMs: 2 });
  await device.switchTo(target);
}

/** Resolves with the seconds until no peer waits for another exit and every kernel has what it should. */
async function moved(fleet: Fleet, started: number): Promise<{ placed: number; acked: number }> {
  const { controller } = fleet.lab;
  const patience = { deadlineMs: 120_000, everyMs: 100 };
  const seconds = () => (performance.now() - started) / 1000;
  const drain = () => controller.operate<DrainView>('GET', `/v1/admin/nodes/${LEAVING}/drain`);
  await waitFor('every peer to have another exit', async () => (await drain()).waiting === 0, patience);
  const placed = seconds();
  const applied = async () =>
    [...(await fleet.nodes()).values()].every(({ generation, applied }) => generation === applied);
  await waitFor('every kernel to have what it should', applied, patience);
  return { placed, acked: seconds() };
}

export async function measureDrain(fleet: Fleet, report: Report, peers: number): Promise<void> {
  const { controller } = fleet.lab;
  const { sigil } = await fleet.subscribe('pro');
  const live = await connectDevices(fleet, sigil);
  await fleet.commitPeers(fleet.exit(LEAVING), peers - live.length, [STANDBY as NodeId]);
  await fleet.converged(fleet.exit(LEAVING), peers);
  report.step(`${LEAVING} has its ${peers.toLocaleString('en')} peers, ${live.length} of them live`);
  const started = performance.now();
  await controller.operate('POST', `/v1/admin/nodes/${LEAVING}/drain`, {});
  const followed = Promise.all(live.map((one) => follow(fleet, sigil, one)));
  const { placed, acked } = await moved(fleet, started);
  await followed;
  const path = `/v1/admin/nodes/${LEAVING}/drain`;
  const done = async () => (await controller.operate<DrainView>('GET', path)).state === 'done';
  await waitFor('the exit to be empty', done, { deadlineMs: 120_000, everyMs: 200 });
  const empty = (performance.now() - started) / 1000;
  await fleet.converged(fleet.exit(LEAVING), 0);
  const tables = await Promise.all(fleet.lab.exits.map((exit) => exit.peers()));
  const inKernels = new Set(
    fleet.lab.exits.flatMap(({ region, name }, at) =>
      region === 'fra' && name !== LEAVING ? (tables[at] ?? []).map(({ publicKey }) => publicKey) : [],
    ),
  );
  if (inKernels.size !== peers)
    throw new Error(`${inKernels.size} of ${peers} peers are in the region's kernels`);
  const pings = await Promise.all(live.map(({ ping }) => ping.stop()));
  const sent = pings.reduce((sum, one) => sum + one.sent, 0);
  const lost = pings.reduce((sum, one) => sum + one.lost.length, 0);
  report.table(
    `(l) an exit with ${peers.toLocaleString('en')} peers is drained`,
    ['all placed s', 'all acked s', 'peers/s', 'exit empty s', 'pings', 'lost'],
    [[placed, acked, peers / acked, empty, String(sent), String(lost)]],
  );
  report.record('l', { peers, placed, acked, empty, sent, lost });
  report.judge(
    'l',
    `${peers.toLocaleString('en')} peers on other exits and acked`,
    acked,
    'less',
    GOAL_S,
    's',
  );
  report.judge('l', `pings lost of ${sent}`, lost, 'less', 0, 'lost');
}
