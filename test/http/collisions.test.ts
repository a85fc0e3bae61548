/**
 * Two requests at once that want the same thing by different ways: one gets it, the other one is told why not. None
 * waits for the other in a circle (a deadlock would show as `database_busy`), and nothing is done twice.
 */
import type { Peer } from '@katafract/shared/api';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import { expectConsistent } from './tables.ts';

const database = useDatabase();
let controller: TestController;
let exit: FakeExit;
beforeAll(async () => {
  controller = await startController(database.url);
  await controller.addRegion('fra');
  exit = await startExit(controller, { node: 'fra-1', region: 'fra' });
  await waitFor('the exit', () => controller.ctx.fleet.roster.regions().every(({ available }) => available));
});
afterAll(async () => {
  await exit.leave();
  await controller.close();
});

it('a key wanted by a rotation and by a provision goes to one of them', async () => {
  const [mine, yours] = [await controller.mint('ops'), await controller.mint('ops')];
  const made = await Promise.all(
    Array.from({ length: 40 }, () => controller.provision(mine.sigil, newKey(), 'fra')),
  );
  const race = async ({ body: { id } }: { body: Peer }) => {
    const publicKey = newKey();
    const rotation = { token: mine.sigil, body: { publicKey } };
    return Promise.all([
      controller.call('PUT', `/v1/peers/${id}/key`, rotation),
      controller.provision(yours.sigil, publicKey, 'fra'),
    ]);
  };
  for (const answers of await Promise.all(made.map(race))) {
    const outcome = answers.map(({ status, code }) => code ?? (status < 300 ? 'done' : status)).sort();
    expect(outcome).toEqual(['done', 'public_key_in_use']);
  }
  await expectConsistent(controller);
});

it('an action that twenty operators roll back at once is rolled back once', async () => {
  const { sigil } = await controller.mint('plus');
  const before = newKey();
  const { body: peer } = await controller.provision(sigil, before, 'fra');
  const rotation = { token: sigil, body: { publicKey: newKey() } };
  await controller.call('PUT', `/v1/peers/${peer.id}/key`, rotation);
  const logOf = async (action: string) => {
    const path = `/v1/admin/audit?action=${action}&subject=peer:${peer.id}`;
    return (await controller.operate<{ items: { id: number }[] }>('GET', path)).items;
  };
  const [entry] = await logOf('peer.key_rotated');
  const path = `/v1/admin/audit/${entry?.id}/rollback`;
  const token = controller.operatorToken;
  const answers = await Promise.all(
    Array.from({ length: 20 }, () => controller.call('POST', path, { token })),
  );
  expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
  expect(answers.filter(({ code }) => code === 'already_rolled_back')).toHaveLength(19);
  expect(await logOf('peer.rolled_back')).toHaveLength(1);
  const { body: now } = await controller.call<Peer>('GET', `/v1/peers/${peer.id}`, { token: sigil });
  expect(now.publicKey).toBe(before);
});
