/**
 * A bare Debian 12 with cloud-init and nothing of ours, as a cloud's image has it, and signed apt repositories. What is
 * fetched is kept between runs: debootstrap takes a minute.
 */
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { exec } from '../lab/process.ts';

/** As in a cloud's image. */
const IMAGE = [
  'ca-certificates',
  'cloud-init',
  'dbus',
  'ifupdown',
  'iproute2',
  'iputils-ping',
  'kmod',
  'locales',
  'openssh-server',
  'python3-cffi-backend',
  'systemd',
  'systemd-sysv',
];
/** What the set-up installs on it, besides the agent; wireguard-go since a container cannot load a module. */
const PACKAGES = ['chrony', 'iptables', 'unattended-upgrades', 'wireguard-go', 'wireguard-tools'];

const nice = (command: string, args: readonly string[]) => exec('nice', [command, ...args]);

/** Kept between runs, and between checkouts. */
const CACHE = '/var/cache/katafract-test';

/**
 * A Debian 12 with these packages, made once: it takes a minute. Two that make it at once do no harm.
 * @returns the tree, which is not to be written to
 */
export async function debian(packages: readonly string[]): Promise<string> {
  const name = createHash('sha256').update(packages.join(' ')).digest('hex').slice(0, 12);
  const tree = join(CACHE, `bookworm-${name}`);
  if (existsSync(tree)) return tree;
  mkdirSync(CACHE, { recursive: true });
  const fresh = mkdtempSync(join(CACHE, 'making-'));
  try {
    await nice('debootstrap', ['--variant=minbase', `--include=${packages.join(',')}`, 'bookworm', fresh]);
    await nice('chroot', [fresh, 'apt-get', 'clean']);
    chmodSync(fresh, 0o755);
    renameSync(fresh, tree);
  } catch (error) {
    rmSync(fresh, { recursive: true, force: true });
    if (!existsSync(tree)) throw error; // somebody else was faster
  }
  return tree;
}

/** A copy that may be written to. */
export async function copyOf(tree: string, to: string): Promise<void> {
  await exec('cp', ['--archive', '--reflink=auto', tree, to]);
}

/** @returns the tree of the image, and a folder with the packages it lacks */
export async function bareDebian(cache: string): Promise<{ image: string; packages: string }> {
  const [image, packages] = [join(cache, 'image'), join(cache, 'packages')];
  const done = join(cache, 'done');
  const wanted = [...IMAGE, ...PACKAGES].join(' ');
  if (!existsSync(done) || readFileSync(done, 'utf8') !== wanted) {
    rmSync(cache, { recursive: true, force: true });
    mkdirSync(packages, { recursive: true });
    await nice('debootstrap', ['--variant=minbase', `--include=${IMAGE.join(',')}`, 'bookworm', image]);
    copyFileSync('/etc/resolv.conf', join(image, 'etc/resolv.conf'));
    await nice('chroot', [image, 'apt-get', '-q', 'update']);
    const download = ['install', '-q', '-y', '--no-install-recommends', '--download-only'];
    await nice('chroot', [image, 'apt-get', 'clean']);
    await nice('chroot', [image, 'apt-get', ...download, ...PACKAGES]);
    const archives = join(image, 'var/cache/apt/archives');
    for (const name of readdirSync(archives).filter((file) => file.endsWith('.deb')))
      copyFileSync(join(archives, name), join(packages, name));
    await nice('chroot', [image, 'apt-get', 'clean']);
    rmSync(join(image, 'var/lib/apt/lists'), { recursive: true });
    writeFileSync(done, wanted);
  }
  return { image, packages };
}

export interface Repository {
  /** ASCII-armoured. */
  readonly key: string;
}

/** Makes a folder with packages a signed repository: suite `stable`, component `main`. */
export async function repository(folder: string, packages: readonly string[]): Promise<Repository> {
  const architecture = (await exec('dpkg', ['--print-architecture'])).trim();
  const index = `main/binary-${architecture}/Packages`;
  const suite = join(folder, 'dists/stable');
  mkdirSync(join(suite, `main/binary-${architecture}`), { recursive: true });
  mkdirSync(join(folder, 'pool'), { recursive: true });
  const entries: string[] = [];
  for (const path of packages) {
    const name = path.slice(path.lastIndexOf('/') + 1);
    copyFileSync(path, join(folder, 'pool', name));
    const control = (await exec('dpkg-deb', ['-f', path])).trimEnd();
    entries.push(
      `${control}\nFilename: pool/${name}\nSize: ${statSync(path).size}\nSHA256: ${sha256(path)}\n`,
    );
  }
  writeFileSync(join(suite, index), entries.join('\n'));
  const { size } = statSync(join(suite, index));
  const release = [
    'Origin: test',
    'Suite: stable',
    'Codename: stable',
    `Date: ${new Date().toUTCString()}`,
    `Architectures: ${architecture}`,
    'Components: main',
    'SHA256:',
    ` ${sha256(join(suite, index))} ${size} ${index}`,
  ];
  writeFileSync(join(suite, 'Release'), `${release.join('\n')}\n`);
  const gpg = ['--homedir', join(folder, '.gnupg'), '--batch', '--yes', '--passphrase', ''];
  mkdirSync(join(folder, '.gnupg'), { mode: 0o700 });
  await exec('gpg', [...gpg, '--quick-gen-key', 'test <test@example.net>', 'ed25519', 'sign', 'never']);
  await exec('gpg', [...gpg, '--clearsign', '-o', join(suite, 'InRelease'), join(suite, 'Release')]);
  const key = await exec('gpg', [...gpg, '--armor', '--export']);
  await exec('gpgconf', ['--homedir', join(folder, '.gnupg'), '--kill', 'all']);
  return { key };
}

export function sha256(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}
