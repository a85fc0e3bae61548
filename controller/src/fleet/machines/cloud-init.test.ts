import { execFileSync, spawnSync } from 'node:child_process';
import { JoinToken } from '@katafract/shared/enroll';
import { NodeId } from '@katafract/shared/units';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type CloudInit, enrollmentOf, readCloudInit, renderCloudInit } from './cloud-init.ts';
import { SETUP_SCRIPT, SETUP_UNIT } from './setup-script.ts';

const joinToken = JoinToken.parse(`kfj1_${'s'.repeat(43)}_${'p'.repeat(43)}`);
const machine: CloudInit = {
  node: NodeId.parse('fra-3'),
  controllerUrl: 'https://mesh.example.net:8443/base',
  joinToken,
  endpointPort: 51820,
  agent: { kind: 'deb', url: 'https://mesh.example.net/agent.deb', sha256: 'ab'.repeat(32) },
};
const key = '-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZ=\n-----END PGP PUBLIC KEY BLOCK-----\n';
const bootstrap = '#!/bin/sh\necho "it\'s $HOME" `id` \\ {{ jinja }} ~: - \t| é 👍\n';

const code = (change: object) => {
  try {
    renderCloudInit({ ...machine, ...change } as CloudInit);
    return 'rendered';
  } catch (error) {
    return (error as { code?: string }).code;
  }
};

/** What cloud-init's own parser makes of a document; null where this machine has no PyYAML. */
function pyYaml(documents: readonly string[]): unknown[] | null {
  const program = 'import sys,json,yaml\nfor d in json.load(sys.stdin): print(json.dumps(yaml.safe_load(d)))';
  const run = spawnSync('python3', ['-c', program], {
    input: JSON.stringify(documents),
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  if ((run.error && 'code' in run.error && run.error.code === 'ENOENT') || /No module named/.test(run.stderr))
    return null;
  expect(run.stderr).toBe('');
  return run.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

describe('cloud-init', () => {
  test('what is needed to enroll is read back from it', () => {
    const text = renderCloudInit({ ...machine, endpointHost: 'fra-3.example.net', bootstrap });
    expect(text.startsWith('#cloud-config\n{')).toBe(true);
    const config = readCloudInit(text);
    expect(enrollmentOf(config)).toEqual({
      joinToken,
      controllerUrl: machine.controllerUrl,
      endpointPort: 51820,
      endpointHost: 'fra-3.example.net',
    });
    expect(config.hostname).toBe('fra-3');
  });

  test('the token is in one file of root, and in no command', () => {
    const config = readCloudInit(renderCloudInit({ ...machine, bootstrap }));
    const holders = config.write_files.filter(({ content }) => content.includes(joinToken));
    expect(holders.map(({ path, permissions }) => [path, permissions])).toEqual([
      ['/var/lib/katafract-setup/token', '0600'],
    ]);
    const { write_files: _, ...rest } = config;
    expect(JSON.stringify(rest)).not.toContain('kfj1_');
    expect(SETUP_SCRIPT).not.toMatch(/cat [^\n]*token|\$\(.*token|set -x/);
    const modes = config.write_files
      .filter(({ path }) => path.startsWith('/var/lib/'))
      .map((f) => f.permissions);
    expect(new Set(modes)).toEqual(new Set(['0600', '0700']));
  });

  test('an apt source is tied to its key', () => {
    const agent = {
      kind: 'apt',
      url: 'https://apt.example.net',
      suite: 'stable',
      components: 'main extra',
      key,
    } as const;
    const files = new Map(
      readCloudInit(renderCloudInit({ ...machine, agent })).write_files.map(({ path, content }) => [
        path,
        content,
      ]),
    );
    expect(files.get('/var/lib/katafract-setup/apt.sources')).toBe(
      'Types: deb\nURIs: https://apt.example.net\nSuites: stable\nComponents: main extra\n' +
        'Signed-By: /etc/apt/keyrings/katafract.asc\n',
    );
    expect(files.get('/var/lib/katafract-setup/apt.asc')).toBe(key);
    expect(files.get('/var/lib/katafract-setup/environment')).not.toContain('KATAFRACT_DEB');
  });

  test.each([
    ['a line break in the URL', { controllerUrl: 'https://a\nKATAFRACT_X=1' }],
    ['a quote in the URL', { controllerUrl: "https://a'" }],
    ['a substitution in the URL', { controllerUrl: 'https://a/$(id)' }],
    ['a blank in the URL of the package', { agent: { ...machine.agent, url: 'https://a/ b' } }],
    ['no digest', { agent: { ...machine.agent, sha256: '' } }],
    ['a host that is an option', { endpointHost: '-x' }],
    ['a token that is none', { joinToken: 'kfj1_x' }],
    ['a node that is a path', { node: '../x' }],
    ['a port out of range', { endpointPort: 65536 }],
    ['a bootstrap that is no script', { bootstrap: 'rm' }],
    ['a bootstrap that is no text', { bootstrap: '#!\ud800' }],
    [
      'a second field in the apt source',
      { agent: { kind: 'apt', url: 'https://a', suite: 's\nTrusted: yes', components: 'main', key } },
    ],
  ])('refuses %s', (_, change) => {
    expect(code(change)).toBe('cloud_init_invalid');
  });

  test('refuses what does not fit, and never says the token', () => {
    expect(code({ bootstrap: `#!${'x'.repeat(32_768)}` })).toBe('cloud_init_too_large');
    expect(code({ bootstrap: `#!${'x'.repeat(24_000)}` })).toBe('rendered');
    expect(() => renderCloudInit({ ...machine, joinToken: `${joinToken}!` as JoinToken })).toThrow(
      /joinToken/,
    );
    expect(() => renderCloudInit({ ...machine, joinToken: `${joinToken}!` as JoinToken })).not.toThrow(/sss/);
  });

  test('the script is one', () => {
    expect(execFileSync('sh', ['-n'], { input: SETUP_SCRIPT, encoding: 'utf8' })).toBe('');
    expect(SETUP_UNIT).toContain('ExecStart=/var/lib/katafract-setup/setup\n');
  });

  test('YAML takes any bootstrap script as it was written', (context) => {
    const scripts = fc
      .sample(fc.string({ unit: 'binary', minLength: 500, maxLength: 1000 }), 8)
      .map((text) => `#!${text.replaceAll('\0', '')}`)
      .concat(bootstrap);
    const documents = scripts.map((script) => renderCloudInit({ ...machine, bootstrap: script }));
    const read = pyYaml(documents);
    if (!read) return context.skip('no PyYAML here');
    expect(read).toEqual(documents.map(readCloudInit));
    return undefined;
  });
});
