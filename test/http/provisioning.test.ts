import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
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
});
afterAll(async () => {
  await exit.leave();
  await controller.close();
});

it('x', async () => {
  writeFileSync('/tmp/openapi.json', (await controller.call('GET', '/openapi.json')).text);
  const { sigil } = await controller.mint('plus');
  const answer = await controller.provision(sigil, newKey(), 'fra');
  console.log(answer);
  await expectConsistent(controller);
  console.log(await controller.metric('katafract_http_request_seconds_count', 'v1/peers'));
});
