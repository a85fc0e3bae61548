/**
 * The Debian packages (systemd/), with a few bytes in the place of Node and the bundles where only their making is tried:
 * it is quick. What they do on a machine: test/boot.test.ts.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const builder = new URL('../../systemd/packages.mjs', import.meta.url);
const unitFile = (path: string) => fileURLToPath(new URL(path, builder));
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
  const manuals = { 'katafract-agent': '.TH' };
  const options = JSON.stringify({ main, helper, node, version, manuals, output: join(folder, umask) });
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
    '-rw-r--r-- root/root ./etc/default/katafract-agent',
    '-rw-r--r-- root/root ./lib/systemd/system/katafract-agent.service',
    '-rw-r--r-- root/root ./lib/systemd/system/katafract-haven.service',
    '-rw-r--r-- root/root ./lib/systemd/system/katafract-helper.path',
    '-rw-r--r-- root/root ./lib/systemd/system/katafract-helper.service',
    '-rw-r--r-- root/root ./lib/systemd/system/katafract-tunnel@.service',
    '-rw-r--r-- root/root ./usr/lib/katafract-agent/helper.mjs',
    '-rw-r--r-- root/root ./usr/lib/katafract-agent/main.mjs',
    '-rw-r--r-- root/root ./usr/lib/sysusers.d/katafract-agent.conf',
    '-rw-r--r-- root/root ./usr/share/doc/katafract-agent/changelog.gz',
    '-rw-r--r-- root/root ./usr/share/doc/katafract-agent/copyright',
    '-rw-r--r-- root/root ./usr/share/lintian/overrides/katafract-agent',
    '-rw-r--r-- root/root ./usr/share/man/man8/katafract-agent.8.gz',
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
});

test('is the same, byte for byte, whoever builds it', () => {
  expect(build('1.2.3', '077').sha256).toBe(build('1.2.3', '002').sha256);
});

test('leaves tunnels alone when the agent stops', () => {
  const unit = readFileSync(unitFile('agent/katafract-agent.service'), 'utf8');
  expect(unit).toMatch(/^KillMode=process$/m);
  expect(unit).not.toMatch(/^ExecStop/m);
});

describe.each([
  ['katafract-agent', 'agent'],
  ['katafract-controller', 'controller'],
])('%s', (name, of) => {
  test('has maintainer scripts that a shell can read', () => {
    for (const script of ['postinst', 'prerm', 'postrm']) run('sh', ['-n', unitFile(`${of}/${script}`)]);
  });

  test('is exposed less than 2.0, by systemd-analyze', () => {
    // what is wrong with a unit goes to standard error, and does not fail it
    const unit = unitFile(`${of}/${name}.service`);
    const { stdout, stderr } = both('systemd-analyze', [
      'security',
      '--offline=true',
      '--threshold=19',
      unit,
    ]);
    expect(stderr).toBe('');
    expect(stdout).toMatch(/Overall exposure level for .*: 1\.\d OK/);
  });

  test('takes one capability at most', () => {
    const unit = readFileSync(unitFile(`${of}/${name}.service`), 'utf8');
    const allowed = /^CapabilityBoundingSet=(.*)$/m.exec(unit)?.[1];
    expect(allowed).toBe(of === 'agent' ? 'CAP_NET_ADMIN' : '');
    expect(unit).toMatch(/^User=katafract-/m);
  });
});

function both(command: string, args: readonly string[]): { stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  expect(status).toBe(0);
  return { stdout, stderr };
}
