import { afterEach, expect, test } from 'vitest';
import { type ShellExec, shellExec } from './shells.ts';

let exec: ShellExec;
afterEach(() => exec.close());

test('words arrive as they are, whatever is in them', async () => {
  exec = shellExec();
  const words = ['a b', "it's", '$HOME `id` "x"', '', '*', 'ü\\n', '-n'];
  expect(await exec.run('printf', ['%s|', ...words])).toBe(`${words.join('|')}|`);
});

test('output of many lines, and without a last line end', async () => {
  exec = shellExec();
  expect(await exec.run('seq', ['30000'])).toHaveLength(168_894);
  expect(await exec.run('printf', ['x'])).toBe('x');
  expect(await exec.run('true', [])).toBe('');
});

test('a failure has its reason, and does not spoil the shell', async () => {
  exec = shellExec();
  const failing = exec.run('ls', ['/nowhere']);
  await expect(failing).rejects.toMatchObject({
    code: 'command_failed',
    detail: { program: 'ls', stderr: expect.stringContaining('/nowhere') },
  });
  await expect(exec.run('no-such-program', [])).rejects.toMatchObject({ code: 'command_missing' });
  expect(await exec.run('echo', ['fine'])).toBe('fine\n');
});

test('warnings do not mix with output', async () => {
  exec = shellExec();
  expect(await exec.run('sh', ['-c', 'echo warning >&2; echo data'])).toBe('data\n');
});

test('commands run at once do not wait for one another', async () => {
  exec = shellExec();
  // The first waits for a file that only the second makes.
  const file = (await exec.run('mktemp', ['-u'])).trim();
  const waiting = exec.run('sh', [
    '-c',
    `while [ ! -e ${file} ]; do sleep 0.01; done; rm ${file}; echo done`,
  ]);
  await exec.run('touch', [file]);
  expect(await waiting).toBe('done\n');
});

test('what hangs is ended, with everything it started', async () => {
  exec = shellExec();
  await expect(exec.run('sleep', ['1000'], { timeoutMs: 50 })).rejects.toMatchObject({
    code: 'command_timeout',
  });
  expect(await exec.run('echo', ['next'])).toBe('next\n');
});

test('nothing of our own environment is passed on, and the locale is fixed', async () => {
  process.env.KATAFRACT_JOIN_TOKEN = 'secret';
  exec = shellExec();
  const seen = await exec.run('env', []);
  delete process.env.KATAFRACT_JOIN_TOKEN;
  expect(seen).not.toContain('secret');
  expect(seen).toContain('LC_ALL=C');
});
