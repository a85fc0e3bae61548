/**
 * Two controllers on one database, and an exit that has its session at one of them: the other one knows as well that
 * the exit lives, however long it is quiet, and goes on knowing when the exit changes sides.
 */
import { systemClock } from '@katafract/shared/clock';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';

const database = useDatabase();
let one: TestController;
let two: TestController;
let exit: FakeExit;
let skewMs = 0;

beforeAll(async () => {
  const clock = { now: () => Date.now() + skewMs, after: systemClock.after };
  one = await startController(database.url, { clock });
  two = await startController(database.url, { clock, beside: one });
  // what is proved must not lean on the minute's refresh, whenever that falls
  await Promise.all([one.ctx.jobs.stop(), two.ctx.jobs.stop()]);
  await one.addRegion('fra');
  exit = await startExit(one, { node: 'fra-1', region: 'fra' });
});
afterAll(async () => {
  await exit.leave();
  await two.close();
  await one.close();
});

const available = (controller: TestController) =>
  controller.ctx.fleet.roster.regions().every((region) => region.available);

it('hears at one controller that an exit lives which speaks to the other', async () => {
  await waitFor('the exit at both', () => available(one) && available(two));
  skewMs += 40_000;
  expect([available(one), available(two)], 'silent for longer than an exit may be').toEqual([false, false]);
  exit.beat();
  await waitFor('the heartbeat at both', () => available(one) && available(two), { deadlineMs: 5000 });
  const { sigil } = await two.mint('free');
  expect(await two.provision(sigil, newKey(), 'fra')).toMatchObject({
    status: 201,
    body: { status: 'active' },
  });
});

it('goes on hearing of an exit that has moved to the other controller', async () => {
  await exit.leave();
  skewMs += 40_000;
  await exit.connect(two.brokerUrl);
  await waitFor('the exit at both', () => available(one) && available(two), { deadlineMs: 5000 });
  // also what is read from the database must not be outdone by what was heard here long ago
  await waitFor(
    'the report',
    async () => {
      await one.ctx.fleet.refresh();
      return available(one);
    },
    { deadlineMs: 5000 },
  );
  const { sigil } = await one.mint('free');
  expect(await one.provision(sigil, newKey(), 'fra')).toMatchObject({
    status: 201,
    body: { status: 'active' },
  });
});
