/**
 * Makes this checkout runnable: npm packages, Debian packages, bundles. Plain Node without dependencies, because it
 * runs before anything is installed. Every step is taken only where it is needed and says what it does and how long
 * it took; with everything in place it costs well under a second.
 *
 *   node test/setup.mjs --packages   npm packages and bundles only: all that a controller needs
 *   node test/setup.mjs --demo       and what the lab needs: WireGuard, iptables, iproute2 …
 *   node test/setup.mjs --test       and the real brokers and caches that the tests start
 *   node test/setup.mjs --bench      and what the bench measures and compares itself with: iperf3, nftables, OpenSSH,
 *                                    and a newer wireguard-go where the machine's is an old one
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const PNPM = 'pnpm@10.34.8';

/** Debian packages by what they are needed for: the program that shows it is there, and the package that brings it. */
const LAB = [
  ['ip', 'iproute2'],
  ['iptables', 'iptables'],
  ['wg', 'wireguard-tools'],
  ['conntrack', 'conntrack'],
  ['ping', 'iputils-ping'],
  ['sysctl', 'procps'],
  ['nsenter', 'util-linux'],
  ['setpriv', 'util-linux'],
];
const DAEMONS = [
  ['mosquitto', 'mosquitto'],
  ['redis-server', 'redis-server'],
];
const SSH = [
  ['sshd', 'openssh-server'],
  ['ssh', 'openssh-client'],
];
/** Measures what a tunnel carries; takes away the firewall that it is compared without. */
const TRAFFIC = [
  ['iperf3', 'iperf3'],
  ['nft', 'nftables'],
];
/** Makes the certificates that stand in for Apple's. */
const PKI = [['openssl', 'openssl']];
/** Boots real machines in containers, and builds what is installed there. */
const MACHINES = [
  ['debootstrap', 'debootstrap'],
  ['systemd-nspawn', 'systemd-container'],
  ['systemd-analyze', 'systemd'],
  ['dpkg-deb', 'dpkg'],
];
/** Forges the packets that attack an exit. */
const PYTHON = [['python3', 'python3']];
/** Services those packages would start at boot; the tests start their own instances instead. */
const UNITS = {
  mosquitto: ['mosquitto.service'],
  'redis-server': ['redis-server.service'],
  'openssh-server': ['ssh.service', 'ssh.socket'],
  iperf3: ['iperf3.service'],
};

const started = Date.now();
const seconds = (since) => `${((Date.now() - since) / 1000).toFixed(1)} s`;

function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}

/** Runs one step with its output shown only when it fails. */
function step(label, command, args, env = {}) {
  const since = Date.now();
  process.stdout.write(`setup: ${label} … `);
  const result = spawnSync(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    encoding: 'utf8',
    maxBuffer: 64 << 20,
  });
  if (result.status !== 0) {
    process.stdout.write('failed\n');
    fail(
      `${result.error ?? ''}${result.stdout ?? ''}${result.stderr ?? ''}\nsetup: ${command} ${args.join(' ')} failed`,
    );
  }
  process.stdout.write(`${seconds(since)}\n`);
}

/** Where a program is, looking into the sbin directories too, which the path of an ordinary user leaves out. */
function findProgram(name) {
  const path = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin', '/usr/local/sbin'];
  return path.some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return true;
    } catch {
      return false; // not in this folder
    }
  });
}

function sha256(...parts) {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest('hex');
}

/** True where the stamp of a step says that it was done for just this input. */
function isStamped(name, value) {
  const file = join(root, 'node_modules', name);
  return existsSync(file) && readFileSync(file, 'utf8') === value;
}

function stamp(name, value) {
  mkdirSync(join(root, 'node_modules'), { recursive: true });
  writeFileSync(join(root, 'node_modules', name), value);
}

function installNpmPackages() {
  const lock = sha256(
    readFileSync(join(root, 'pnpm-lock.yaml')),
    readFileSync(join(root, 'pnpm-workspace.yaml')),
  );
  const linked = ['.', 'agent', 'controller', 'shared', 'systemd', 'test'];
  const complete = linked.every((name) => existsSync(join(root, name, 'node_modules')));
  if (complete && isStamped('.katafract-lock', lock)) return;
  // CI=true: never ask whether an outdated node_modules may be replaced
  step('npm packages (pnpm install)', 'npx', ['--yes', PNPM, 'install', '--frozen-lockfile'], { CI: 'true' });
  stamp('.katafract-lock', lock);
}

/** Whether the kernel makes WireGuard interfaces, tried in a network namespace that ends with the try. */
function kernelHasWireguard() {
  return spawnSync('unshare', ['--net', 'ip', 'link', 'add', 'kfprobe', 'type', 'wireguard']).status === 0;
}

const missingOf = (set) => [
  ...new Set(set.filter(([program]) => !findProgram(program)).map(([, name]) => name)),
];

const POLICY = '/usr/sbin/policy-rc.d';
const POLICY_TEXT =
  '#!/bin/sh\n# katafract setup: no service starts while packages are installed\nexit 101\n';

/** Installs Debian packages without leaving one of their services running or enabled. */
function aptInstall(packages) {
  const env = { DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' };
  const leftover = existsSync(POLICY) && readFileSync(POLICY, 'utf8') === POLICY_TEXT;
  const ours = leftover || !existsSync(POLICY);
  const removePolicy = () => ours && rmSync(POLICY, { force: true });
  if (ours) writeFileSync(POLICY, POLICY_TEXT, { mode: 0o755 });
  process.once('exit', removePolicy);
  step('package lists (apt-get update)', 'apt-get', ['update', '-qq'], env);
  step(
    `Debian packages: ${packages.join(' ')}`,
    'apt-get',
    ['install', '-y', '-qq', '--no-install-recommends', ...packages],
    env,
  );
  removePolicy();
  process.off('exit', removePolicy);
  const units = packages.flatMap((name) => UNITS[name] ?? []);
  if (units.length > 0 && findProgram('systemctl')) {
    // fails where systemd is installed but not running the machine; nothing is enabled to any effect there
    spawnSync('systemctl', ['disable', '--quiet', ...units], { stdio: 'ignore' });
  }
}

function installDebianPackages(set) {
  let missing = missingOf(set);
  const mayInstall = process.getuid?.() === 0 && findProgram('apt-get');
  if (missing.length > 0 && mayInstall) {
    aptInstall(missing);
    missing = missingOf(set);
  }
  if (!findProgram('wireguard-go') && findProgram('ip') && !kernelHasWireguard()) {
    if (mayInstall) aptInstall(['wireguard-go']);
    else missing.push('wireguard-go (or a kernel with WireGuard)');
  }
  if (missing.length > 0) {
    fail(
      `setup: missing on this machine:\n${missing.map((name) => `  ${name}`).join('\n')}\n` +
        `Install them (on Debian: apt-get install ${missing.map((name) => name.split(' ')[0]).join(' ')}) or run this as root there.`,
    );
  }
  if (process.getuid?.() !== 0) fail('setup: the lab makes network namespaces: run this as root.');
}

/**
 * The first wireguard-go that takes many packets at once from the kernel and gives it many at once, as the WireGuard of
 * a kernel does. Debian 12 has an older one, and this in its backports.
 */
const BATCHING = { version: 'v0.0.20230223', suite: 'bookworm-backports' };

/** Fetches it beside the machine's own, into the checkout; the bench measures through both. */
function fetchBatchingWireguard() {
  const folder = join(root, 'node_modules/.cache/wireguard-go');
  if (existsSync(join(folder, 'usr/bin/wireguard-go')) || kernelHasWireguard()) return;
  const own =
    spawnSync('wireguard-go', ['--version'], { encoding: 'utf8' }).stdout.match(/v[\d.]+/)?.[0] ?? '';
  if (own >= BATCHING.version) return;
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(join(folder, 'lists/partial'), { recursive: true });
  const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';
  const source = `deb [signed-by=${keyring}] http://deb.debian.org/debian ${BATCHING.suite} main\n`;
  writeFileSync(join(folder, 'sources.list'), source);
  // the machine's own sources, lists and packages are neither asked nor changed
  const apart = [
    `Dir::Etc::SourceList=${folder}/sources.list`,
    'Dir::Etc::SourceParts=/dev/null',
    `Dir::State::Lists=${folder}/lists`,
    'Dir::State::Status=/dev/null',
    'Dir::Cache::PkgCache=',
    'Dir::Cache::SrcPkgCache=',
    'APT::Sandbox::User=root',
  ].flatMap((option) => ['-o', option]);
  const script = `cd "$0" && apt-get "$@" update -qq && apt-get "$@" download -qq wireguard-go && dpkg-deb -x *.deb .`;
  step(`wireguard-go of ${BATCHING.suite}`, 'sh', ['-c', script, folder, ...apart], { LC_ALL: 'C' });
}

/** Every source file that a bundle can be made from. */
function sources(folder, found = []) {
  for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      if (entry.name !== 'node_modules' && entry.name !== 'dist') sources(path, found);
    } else if (!entry.name.endsWith('.test.ts')) found.push(path);
  }
  return found;
}

function buildBundles() {
  if (!existsSync(join(root, 'build.mjs'))) {
    process.stdout.write('setup: no build.mjs in this checkout, bundles are not built\n');
    return;
  }
  const files = ['shared', 'agent', 'controller', 'drizzle'].flatMap((folder) => sources(folder)).sort();
  const facts = ['build.mjs', 'pnpm-lock.yaml', ...files].map((file) => {
    const { mtimeMs, size } = statSync(join(root, file));
    return `${file} ${mtimeMs} ${size}\n`;
  });
  const fingerprint = sha256(...facts);
  const built = ['agent', 'controller'].every((name) => existsSync(join(root, name, 'dist/main.mjs')));
  if (built && isStamped('.katafract-build', fingerprint)) return;
  step('bundles (node build.mjs)', process.execPath, ['build.mjs']);
  stamp('.katafract-build', fingerprint);
}

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19))
  fail(`setup: Node 20.19 or newer is needed, this is ${process.version}`);

const SETS = {
  '--packages': [],
  '--demo': [...LAB, ...PKI],
  '--test': [...LAB, ...DAEMONS, ...PKI, ...PYTHON, ...MACHINES],
  '--bench': [...LAB, ...SSH, ...PKI, ...PYTHON, ...TRAFFIC],
};
const wanted = process.argv.slice(2);
const unknown = wanted.filter((flag) => !(flag in SETS));
if (unknown.length > 0) fail(`setup: unknown ${unknown.join(' ')}; known: ${Object.keys(SETS).join(' ')}`);
// without a flag: everything the checkout can ask for
const chosen = wanted.length > 0 ? wanted : ['--test', '--bench'];
const debian = chosen.flatMap((flag) => SETS[flag]);

if (debian.length > 0) installDebianPackages(debian);
installNpmPackages();
buildBundles();
if (chosen.includes('--bench')) fetchBatchingWireguard();
if (Date.now() - started > 1000) process.stdout.write(`setup: ready in ${seconds(started)}\n`);
