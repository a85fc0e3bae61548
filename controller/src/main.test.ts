/** The controller as a process: what it says, how it exits. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../../test/database.ts';
import { waitFor } from '../../test/lab/wait.ts';

const database = useDatabase();
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'kf-main-'));
});
afterAll(() => rm(folder, { recursive: true }));

function start(env: Record<string, string>, ...args: string[]) {
  const main = fileURLToPath(new URL('./main.ts', import.meta.url));
  const child = spawn(process.execPath, ['--import', 'tsx', main, ...args], {
    env: { PATH: process.env.PATH, ...env },
  });
  const said = { out: '', err: '' };
  child.stdout.on('data', (text) => {
    said.out += text;
  });
  child.stderr.on('data', (text) => {
    said.err += text;
  });
  return { child, said, exit: once(child, 'close').then(([code]) => code as number | null) };
}
const settings = () => ({
  DATABASE_URL: database.url,
  KATAFRACT_DATA_DIR: folder,
  KATAFRACT_API_LISTEN: '127.0.0.1:0',
  KATAFRACT_MQTT_LISTEN: '127.0.0.1:0',
});

it('lists every error of its configuration and exits with EX_CONFIG', async () => {
  const { said, exit } = start({ LOG_LEVEL: 'loud', REDIS_URL: 'nonsense' });
  expect(await exit).toBe(78);
  expect(said.err).toContain('REDIS_URL:');
  expect(said.err).toContain('LOG_LEVEL:');
});

it('prints its variables', async () => {
  const { said, exit } = start({}, '--help');
  expect(await exit).toBe(0);
  expect(said.out).toContain('| KATAFRACT_API_LISTEN | 127.0.0.1:8080 |');
});

it('serves, says where, and ends cleanly on SIGTERM', async () => {
  const { child, said, exit } = start(settings());
  const [, url = ''] = await waitFor('the URL', () => said.out.match(/controller: (http:\S+),/));
  expect((await fetch(`${url}/readyz`)).status).toBe(200);
  expect(said.out).toContain(`Operator token: ${folder}/operator-token`);
  child.kill('SIGTERM');
  expect(await exit).toBe(0);
  expect(said.err).toBe('');
});

it('says why it cannot run', async () => {
  const settled = start({ ...settings(), KATAFRACT_MASTER_KEY_FILE: join(folder, 'none') });
  expect(await settled.exit).toBe(1);
  expect(settled.said.err).toContain('(secret_unreadable)');
});
