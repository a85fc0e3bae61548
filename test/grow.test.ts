/**
 * A region that fills up grows by itself: the controller asks the lab for a machine, the machine becomes an exit by what
 * it was told alone, and a device's tunnel leads through it. An exit that dies for good is replaced in the same way, with
 * all of its peers acknowledged elsewhere long before.
 */
import { type Peer, PeerList } from '@katafract/shared/api';
import { expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import { makeKeys } from './lab/device.ts';
import { INTERNET } from './lab/network.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';

const PEERS = 85;
const database = useDatabase();
const fleet = useLab(() => ({
  exits: [
    { name: 'fra-1', region: 'fra', capacity: 100 },
    { name: 'hel-1', region: 'hel' },
    { name: 'sin-1', region: 'sin' },
  ],
  devices: 1,
  database: database.url,
  cloud: true,
  controllerEnv: { KATAFRACT_REPLACE_AFTER_MINUTES: '0', KATAFRACT_MOVE_GRACE_SECONDS: '1' },
}));

interface Machine {
  node: string;
  state: string;
  reason: string;
  replaces: string | null;
}
interface Capacity {
  region: string;
  explained: string;
}

const machines = async () =>
  (await fleet.lab.controller.operate<{ items: Machine[] }>('GET', '/v1/admin/machines')).items;
const serving = (node: string) =>
  waitFor(`${node} to serve`, async () => {
    expect(fleet.lab.cloud.faults).toEqual([]);
    return (await machines()).find((one) => one.node === node && one.state === 'serving');
  });
const seconds = (since: number) => `${((performance.now() - since) / 1000).toFixed(1)} s`;
let sigil: string;

test('a region that fills up grows by itself, and a new device lands on the new exit', async () => {
  const { lab } = fleet;
  const growth = { provider: 'lab', location: 'lab', size: 'small', capacity: 100, maxExits: 3 };
  await lab.controller.operate('PATCH', '/v1/admin/regions/fra', { growth });
  sigil = await lab.mintSigil('ops');
  await Promise.all(Array.from({ length: PEERS }, () => lab.provision(sigil, makeKeys().publicKey, 'fra')));
  const full = performance.now();
  const { items } = await lab.controller.operate<{ items: Capacity[] }>('GET', '/v1/admin/capacity');
  console.log(items.find(({ region }) => region === 'fra')?.explained);
  const machine = await serving('fra-m1');
  console.log(`${seconds(full)} from full to an exit that serves: ${machine.reason}`);
  expect(machine.reason).toMatch(/^capacity: fra: 85 peers on 1 exit with room for 100/);
  const [device] = lab.devices;
  if (!device) throw new Error('no device');
  const { peer } = await lab.connectDevice(device, await lab.mintSigil('pro'), 'fra');
  expect(peer.exits[0]?.node).toBe('fra-m1');
  expect(await device.httpGet(`http://${INTERNET.ipv4}/`)).toBe(lab.exit('fra-m1').publicAddress4);
});

test('an exit that dies for good is replaced, its peers acknowledged elsewhere before', async () => {
  const { lab } = fleet;
  const died = performance.now();
  await lab.exit('fra-1').powerOff();
  const peers = async (): Promise<Peer[]> => {
    const all: Peer[] = [];
    for (let cursor = ''; ; ) {
      const answer = await lab.controller.app('GET', `/v1/peers?limit=100${cursor}`, sigil);
      const { items, next } = PeerList.parse(answer.body);
      all.push(...items);
      if (next === null) return all;
      cursor = `&cursor=${next}`;
    }
  };
  await waitFor('every peer to be acknowledged elsewhere', async () => {
    const all = await peers();
    const elsewhere = all.every(({ status, exits }) => {
      const primary = exits.find(({ role }) => role === 'primary');
      return status === 'active' && primary?.status === 'active' && primary.node !== 'fra-1';
    });
    return all.length === PEERS && elsewhere;
  });
  console.log(`${seconds(died)} from death to every peer acknowledged elsewhere`);
  const machine = await serving('fra-m2');
  expect(machine).toMatchObject({ replaces: 'fra-1' });
  console.log(`${seconds(died)} from death to its successor serving`);
  await waitFor('the dead one to be retired', async () => {
    const { items } = await lab.controller.operate<{ items: { id: string; state: string }[] }>(
      'GET',
      '/v1/admin/nodes',
    );
    return items.find(({ id }) => id === 'fra-1')?.state === 'retired';
  });
  // and in one piece
  expect(await lab.provision(sigil, makeKeys().publicKey, 'fra')).toMatchObject({ status: 'active' });
});
