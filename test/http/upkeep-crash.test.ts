/**
 * The controller as it ships, killed (SIGKILL) while the nodes of a wave update, and again while a release goes back:
 * when it is back it goes on where it was, and no node is told anything twice.
 */
import { connect } from '@katafract/controller/platform/db';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { FakeExit } from './fake-exit.ts';
import { ShippedController } from './shipped.ts';
import { type Release, UpkeepExit } from './upkeep-exit.ts';

const database = useDatabase();
let api: ShippedController;
const exits: UpkeepExit[] = [];
const releases: Record<string, Release> = { '0.3.0': 'restored' };

beforeAll(async () => {
  api = await ShippedController.run(database.url);
  await api.addRegion('fra', 50, 8);
  await api.addRegion('hel', 60, 25);
  await api.addRegion('sin', 1, 104);
  for (const node of ['fra-1', 'fra-2', 'hel-1', 'hel-2', 'sin-1']) {
    const exit = await FakeExit.enroll(api, { node, region: node.slice(0, 3) });
    await exit.connect(api.brokerUrl);
    exits.push(new UpkeepExit(exit, api.brokerUrl, (version) => releases[version] ?? 'good'));
    exit.beat();
  }
});
afterAll(async () => {
  for (const one of exits) {
    one.stop();
    await one.exit.leave();
  }
  await api.close();
});

it('goes on with a rollout where it was killed, and takes no step twice', async () => {
  await waitFor('the exits', async () => (await api.metric('katafract_node_connected')) === exits.length);
  const sql = connect(database.url, { max: 1 });
  const roll = (version: string) =>
    api.operate<{ id: string }>('POST', '/v1/admin/rollouts', {
      version,
      soakSeconds: 0,
      timeoutSeconds: 60,
    });
  const stateOf = async (id: string) => (await sql`select state from rollouts where id = ${id}`)[0]?.state;
  const count = async (id: string, state: string) => {
    const rows = await sql`select 1 from rollout_nodes where rollout_id = ${id} and state = ${state}`;
    return rows.length;
  };
  const good = await roll('0.2.0');
  for (const done of [0, 2]) {
    await waitFor('a node that updates', async () => (await count(good.id, 'updated')) >= done, {
      everyMs: 5,
    });
    await waitFor('a node that updates', async () => (await count(good.id, 'updating')) > 0, { everyMs: 5 });
    await api.kill();
    await api.start();
  }
  await waitFor('it to be out', async () => (await stateOf(good.id)) === 'done');
  expect(exits.map(({ history }) => history)).toEqual(exits.map(() => ['0.2.0']));

  const bad = await roll('0.3.0');
  await waitFor('it to go back', async () => (await stateOf(bad.id)) === 'rolling_back', { everyMs: 5 });
  await api.kill();
  await api.start();
  await waitFor('it to be back', async () => (await stateOf(bad.id)) === 'rolled_back');
  expect(exits.map(({ version }) => version)).toEqual(exits.map(() => '0.2.0'));
  expect(exits.filter(({ history }) => history.length > 1)).toHaveLength(1);

  const steps = await sql<{ step: string; count: number }[]>`
    select subject || ' ' || (detail ->> 'node') || ' ' || (detail ->> 'state') as step, count(*)::int as count
    from audit_log where action = 'rollout.node_changed' group by 1`;
  expect(steps.filter((step) => step.count > 1)).toEqual([]);
  expect(steps).toHaveLength(2 * exits.length + 4);
  await sql.end();
  for (const { exit } of exits) expect(exit.faults).toEqual([]);
});
