/** The agent's Debian package (systemd/deb.mjs), with a few bytes in the place of Node and the bundles: it is quick. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';

const builder = new URL('../../systemd/deb.mjs', import.meta.url);
const units = fileURLToPath(new URL('.', builder));
const run = (command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}) =>
  execFileSync(command, args, { encoding: 'utf8', env: { ...process.env, ...env } });

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'katafract-package-'));
  for (const name of ['main', 'helper', 'node']) writeFileSync(join(folder, name), name, { mode: 0o600 });
});
afterAll(() => rmSync(folder, { recursive: true }));

/** @param umask of whoever builds */
function build(version: string, umask: string): { path: string; sha256: string } {
  const [main, helper, node] = ['main', 'helper', 'node'].map((name) => join(folder, name));
  const options = JSON.stringify({ main, helper, node, version, folder: join(folder, umask) });
  const program = `import { agentPackage } from ${JSON.stringify(builder.href)};
    process.umask(0o${umask});
    console.log(JSON.stringify(agentPackage(${options})));`;
  const args = ['--input-type=module', '--eval', program];
  return JSON.parse(run(process.execPath, args, { SOURCE_DATE_EPOCH: '1700000000' }));
}

test('holds what it should, as root and with the right modes', () => {
  const { path } = build('1.2.3-rc.1', '022');
  const rows = run('dpkg-deb', ['-c', path]).trim().split('\n');
  const files = rows.map((row) => row.split(/\s+/)).filter(([mode]) => mode?.startsWith('-'));
  expect(files.map(([mode, owner, , , , name]) => `${mode} ${owner} ${name}`).sort()).toEqual([
    '-rw-r--r-- root/root ./lib/systemd/system/katafract-agent.service',
    '-rw-r--r-- root/root ./lib/systemd/system/katafract-helper.path',
    '-rw-r--r-- root/root ./lib/systemd/system/katafract-helper.service',
    '-rw-r--r-- root/root ./usr/lib/katafract-agent/helper.mjs',
    '-rw-r--r-- root/root ./usr/lib/katafract-agent/main.mjs',
    '-rw-r--r-- root/root ./usr/share/doc/katafract-agent/copyright',
    '-rwxr-xr-x root/root ./usr/bin/katafract-agent',
    '-rwxr-xr-x root/root ./usr/lib/katafract-agent/node',
  ]);
  const folders = rows.filter((row) => row.startsWith('d'));
  expect(folders.every((row) => row.startsWith('drwxr-xr-x root/root'))).toBe(true);
  // the helper asks apt for the version under the agent's own name of it
  expect(run('dpkg-deb', ['-f', path, 'Package', 'Version'])).toBe(
    'Package: katafract-agent\nVersion: 1.2.3-rc.1\n',
  );
  expect(run('dpkg-deb', ['-f', path, 'Depends'])).toMatch(/iproute2, iptables, .*wireguard-tools/);
  for (const script of ['postinst', 'prerm', 'postrm']) run('sh', ['-n', join(units, 'debian', script)]);
});

test('is the same, byte for byte, whoever builds it', () => {
  expect(build('1.2.3', '077').sha256).toBe(build('1.2.3', '002').sha256);
});

test('leaves tunnels alone when the agent stops', () => {
  const unit = readFileSync(join(units, 'katafract-agent.service'), 'utf8');
  expect(unit).toMatch(/^KillMode=process$/m);
  expect(unit).not.toMatch(/^ExecStop/m);
});
