/**
 * The controller as it ships, ended in the middle of provisioning: asked to (SIGTERM) it finishes what it began, killed
 * (SIGKILL) it does not; either way everything it has answered with 201 is in the database afterwards, and on the
 * exits once it is back. (Under load in the lab, with real tunnels, and with Postgres and the broker killed as well:
 * test/outage.test.ts.)
 */
import { configTable } from '@katafract/controller/config';
import { PeerList } from '@katafract/shared/api';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { CONTROLLER } from '../lab/bundles.ts';
import { run } from '../lab/process.ts';
import { waitFor } from '../lab/wait.ts';
import { FakeExit, newKey } from './fake-exit.ts';
import { ShippedController } from './shipped.ts';

const database = useDatabase();
let api: ShippedController;
let exit: FakeExit;

beforeAll(async () => {
  api = await ShippedController.run(database.url);
  await api.addRegion('fra');
  exit = await FakeExit.enroll(api, { node: 'fra-1', region: 'fra' });
  await exit.connect(api.brokerUrl);
});
afterAll(async () => {
  await exit.leave();
  await api.close();
});

/** Peers by eight callers at once, until `enough` are answered and then until nobody answers any more. */
async function provisionUntilGone(sigil: string, enough: number, end: () => void): Promise<Set<string>> {
  const acknowledged = new Set<string>();
  const caller = async () => {
    for (;;) {
      const answer = await api.provision(sigil, newKey(), 'fra').catch(() => null);
      if (answer === null) return; // no connection: it is gone
      expect([201, 503]).toContain(answer.status);
      if (answer.status === 201) acknowledged.add(answer.body.publicKey);
      if (acknowledged.size === enough) end();
    }
  };
  await Promise.all(Array.from({ length: 8 }, caller));
  return acknowledged;
}

async function keysOf(sigil: string): Promise<Set<string>> {
  const keys = new Set<string>();
  for (let cursor = ''; ; ) {
    const body = PeerList.parse(
      (await api.call('GET', `/v1/peers?limit=100${cursor}`, { token: sigil })).body,
    );
    for (const { publicKey } of body.items) keys.add(publicKey);
    if (body.next === null) return keys;
    cursor = `&cursor=${body.next}`;
  }
}

it.each(['SIGTERM', 'SIGKILL'] as const)('loses nothing it has acknowledged at %s', async (signal) => {
  await waitFor('the exit', async () => (await api.metric('katafract_node_connected')) === 1);
  const { sigil } = await api.mint('ops');
  let ended: Promise<number | string> = Promise.resolve('not yet');
  const acknowledged = await provisionUntilGone(sigil, 40, () => {
    ended = api.program.stop(signal);
  });
  expect(await ended).toBe(signal === 'SIGTERM' ? 0 : signal);
  if (signal === 'SIGTERM') expect(api.program.log.tail(1)).toContain('stopped');
  expect(acknowledged.size).toBeGreaterThanOrEqual(40);
  await api.start();
  const kept = await keysOf(sigil);
  expect([...acknowledged].filter((key) => !kept.has(key))).toEqual([]);
  const held = () => new Set<string>(exit.table.keys());
  await waitFor('the exit to hold all of them', () => [...kept].every((key) => held().has(key)));
  expect(exit.faults).toEqual([]);
});

it('tells its configuration with --help, and every mistake in it at once', async () => {
  const help = await run(process.execPath, [CONTROLLER, '--help']);
  expect(help.code).toBe(0);
  for (const { name } of configTable()) expect(help.stdout).toContain(name);
  const wrong = { KATAFRACT_API_LISTEN: 'nowhere', LOG_LEVEL: 'loud', DATABASE_URL: 'mysql://x' };
  const refused = await run(process.execPath, [CONTROLLER], { env: wrong });
  expect(refused.code).toBe(78);
  for (const name of Object.keys(wrong)) expect(refused.stderr).toContain(name);
});
