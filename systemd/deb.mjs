/**
 * The agent's Debian package: both programs, the Node they run on, and their units. The same inputs give the same
 * bytes: times come from SOURCE_DATE_EPOCH (reproducible-builds.org), owners are root, modes are given here.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const LIBRARY = 'usr/lib/katafract-agent';
const ARCHITECTURES = { x64: 'amd64', arm64: 'arm64' };

const WRAPPER = `#!/bin/sh
exec /${LIBRARY}/node /${LIBRARY}/main.mjs "$@"
`;

const COPYRIGHT = `Katafract: unlicensed, all rights reserved.
It includes Node.js (https://github.com/nodejs/node/blob/main/LICENSE).
`;

/** Path below the root, mode, and a file or a text. */
function files({ main, helper, node }) {
  const unit = (name) => [`lib/systemd/system/${name}`, 0o644, { file: join(here, name) }];
  return [
    ['usr/bin/katafract-agent', 0o755, { text: WRAPPER }],
    [`${LIBRARY}/node`, 0o755, { file: node }],
    [`${LIBRARY}/main.mjs`, 0o644, { file: main }],
    [`${LIBRARY}/helper.mjs`, 0o644, { file: helper }],
    ['usr/share/doc/katafract-agent/copyright', 0o644, { text: COPYRIGHT }],
    unit('katafract-agent.service'),
    unit('katafract-helper.service'),
    unit('katafract-helper.path'),
    ...['postinst', 'prerm', 'postrm'].map((name) => [
      `DEBIAN/${name}`,
      0o755,
      { file: join(here, 'debian', name) },
    ]),
  ];
}

function control(version, architecture, kibibytes) {
  const fields = {
    Package: 'katafract-agent',
    Version: version,
    Architecture: architecture,
    Maintainer: 'Katafract <packages@katafract.invalid>',
    'Installed-Size': kibibytes,
    Depends: 'init-system-helpers, iproute2, iptables, libc6, libgcc-s1, libstdc++6, wireguard-tools',
    // for kernels without WireGuard
    Suggests: 'wireguard-go',
    Section: 'net',
    Priority: 'optional',
    Description:
      'Agent of a Katafract exit node\n Makes the kernel agree with what the controller wants of the node.',
  };
  return Object.entries(fields)
    .map(([name, value]) => `${name}: ${value}\n`)
    .join('');
}

/** Seconds since the epoch. */
function sourceDate() {
  if (process.env.SOURCE_DATE_EPOCH) return process.env.SOURCE_DATE_EPOCH;
  try {
    return execFileSync('git', ['log', '-1', '--format=%ct'], { cwd: here, encoding: 'utf8' }).trim();
  } catch {
    // an unpacked archive knows no commit: any time will do, as long as it is always the same
    return String(Date.UTC(2026, 0, 1) / 1000);
  }
}

/**
 * @param options.main, options.helper: the bundles; options.node: the Node to take along; options.version; options.folder
 * @returns the path of the package, and its SHA-256
 */
export function agentPackage({ main, helper, node = process.execPath, version, folder }) {
  const architecture = ARCHITECTURES[process.arch];
  if (!architecture) throw new Error(`no package for ${process.arch}`);
  const tree = mkdtempSync(join(tmpdir(), 'katafract-deb-'));
  try {
    let bytes = 0;
    for (const [path, mode, content] of files({ main, helper, node })) {
      const target = join(tree, path);
      mkdirSync(dirname(target), { recursive: true, mode: 0o755 });
      if ('text' in content) writeFileSync(target, content.text);
      else copyFileSync(content.file, target);
      chmodSync(target, mode);
      bytes += statSync(target).size;
    }
    writeFileSync(join(tree, 'DEBIAN/control'), control(version, architecture, Math.ceil(bytes / 1024)), {
      mode: 0o644,
    });
    return pack(tree, join(folder, `katafract-agent_${version}_${architecture}.deb`));
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

function pack(tree, path) {
  mkdirSync(dirname(path), { recursive: true });
  // folders take the mode of whoever builds, and times of today would differ each time
  execFileSync('find', [tree, '-type', 'd', '-exec', 'chmod', '0755', '{}', '+']);
  const env = { ...process.env, SOURCE_DATE_EPOCH: sourceDate() };
  execFileSync('find', [
    tree,
    '-exec',
    'touch',
    '--no-dereference',
    '-d',
    `@${env.SOURCE_DATE_EPOCH}`,
    '{}',
    '+',
  ]);
  const how = ['--root-owner-group', '-Zxz', '-z1', '--threads-max=2'];
  execFileSync('dpkg-deb', [...how, '--build', tree, path], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  return { path, sha256: createHash('sha256').update(readFileSync(path)).digest('hex') };
}
