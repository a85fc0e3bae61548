/**
 * The controller as it ships, killed (SIGKILL) in every state of a machine's life, each time with the provider or the
 * fleet in the middle of something: when it is back it goes on where it was. The provider has made one machine of one
 * wish, told it one thing, and is left with none; no step was taken twice.
 */
import { connect } from '@katafract/controller/platform/db';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { FakeExit, newKey } from './fake-exit.ts';
import { FakeCloud } from './machines.ts';
import { ShippedController } from './shipped.ts';

const PEERS = 20;
const database = useDatabase();
let cloud: FakeCloud;
let api: ShippedController;
const exits: FakeExit[] = [];

beforeAll(async () => {
  cloud = await FakeCloud.open();
  api = await ShippedController.run(database.url, {
    // for so long its machine is leaving
    KATAFRACT_MOVE_GRACE_SECONDS: '3',
    KATAFRACT_LAB_URL: cloud.url,
    KATAFRACT_AGENT_DEB_URL: 'https://packages.test/agent.deb',
    KATAFRACT_AGENT_DEB_SHA256: '0'.repeat(64),
  });
  await api.addRegion('fra');
  const old = await FakeExit.enroll(api, { node: 'fra-1', region: 'fra' });
  await old.connect(api.brokerUrl);
  exits.push(old);
});
afterAll(async () => {
  for (const exit of exits) await exit.leave();
  await api.close();
  await cloud.close();
});

interface Machine {
  id: string;
  node: string;
  state: string;
}
const machine = async () => {
  const { items } = await api.operate<{ items: Machine[] }>('GET', '/v1/admin/machines');
  return items[0];
};
const reaches = (state: string) =>
  waitFor(`the machine to be ${state}`, async () => {
    const now = await machine();
    return now?.state === state && now;
  });
const stateOf = async (node: string) => {
  const { items } = await api.operate<{ items: { id: string; lifecycle: string }[] }>(
    'GET',
    '/v1/admin/nodes',
  );
  return items.find(({ id }) => id === node)?.lifecycle;
};
/** From now on the provider does what it is asked by this method, but keeps its answer to itself. */
function hold(method: string): { readonly asked: Promise<void>; release(): void } {
  let release: () => void = () => undefined;
  const until = new Promise<void>((resolve) => {
    release = resolve;
  });
  const asked = new Promise<void>((resolve) => {
    cloud.faults((call) => {
      if (!call.startsWith(method)) return undefined;
      resolve();
      return { until };
    });
  });
  return {
    asked,
    release() {
      cloud.faults(() => undefined);
      release();
    },
  };
}
/** Kills the controller while the provider has done what it was asked and not yet answered. */
async function killedDuring(held: ReturnType<typeof hold>): Promise<void> {
  await held.asked;
  await api.kill();
  held.release();
  await api.start();
}

it('goes on with a machine wherever it was killed, and does no step twice', async () => {
  await waitFor('the exit', async () => (await stateOf('fra-1')) === 'active');
  const { sigil } = await api.mint('ops');
  for (let peer = 0; peer < PEERS; peer++) {
    expect((await api.provision(sigil, newKey(), 'fra')).status).toBe(201);
  }
  const growth = { provider: 'lab', location: 'here', size: 'small', capacity: 100, maxExits: 3 };
  // wanted, creating
  const making = hold('PUT');
  await api.operate('PATCH', '/v1/admin/regions/fra', { growth, minExits: 2 });
  await killedDuring(making);
  const { id, node } = await reaches('booting');
  await api.restart();
  const exit = await cloud.boot(api, api.brokerUrl, id);
  exits.push(exit);
  await api.restart();
  await reaches('serving');
  // leaving
  const [old] = exits;
  if (!old) throw new Error('two exits');
  await api.operate('PATCH', '/v1/admin/regions/fra', { growth: null, minExits: 0 });
  const { sigil: more } = await api.mint('ops');
  await api.provision(more, newKey(), 'fra');
  await waitFor('peers on both', () => exit.table.size > 0 && old.table.size === PEERS + 1);
  await api.operate('DELETE', `/v1/admin/machines/${id}`);
  await waitFor('the drain', async () => (await stateOf(node)) === 'draining');
  const removing = hold('DELETE');
  await api.restart();
  // removing
  await killedDuring(removing);
  await reaches('gone');
  expect(cloud.made).toEqual([id]);
  expect(cloud.told(id)).toHaveLength(1);
  expect(cloud.there.size).toBe(0);
  const sql = connect(database.url, { max: 1 });
  const steps = await sql<{ action: string }[]>`
    select action from audit_log where subject in (${`machine:${id}`}, ${`node:${node}`}) order by id`;
  await sql.end();
  expect(steps.map(({ action }) => action)).toEqual([
    'machine.wanted',
    'join_token.created',
    'machine.created',
    'node.enrolled',
    'machine.serving',
    'machine.leaving',
    'drain.started',
    'drain.finished',
    'node.retired',
    'machine.gone',
  ]);
  expect([await stateOf(node), old.table.size, exit.table.size]).toEqual(['retired', PEERS + 1, 0]);
  for (const one of exits) expect(one.faults).toEqual([]);
});
