/** The machines of a lab as real ones: each host's network with a systemd on it that installs the packages that ship. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Host } from '../lab/host.ts';
import { exec } from '../lab/process.ts';
import { Container } from './container.ts';
import { copyOf, debian } from './debian.ts';

/** What a bare Debian of a provider has, and what the packages need. */
const PACKAGES = [
  'dbus',
  'iproute2',
  'iptables',
  'iputils-ping',
  'openssh-server',
  'procps',
  'systemd',
  'systemd-sysv',
  'wireguard-go',
  'wireguard-tools',
];
const BUILD = fileURLToPath(new URL('../../build.mjs', import.meta.url));

export interface Packages {
  readonly agent: string;
  readonly controller: string;
}

/** Builds the packages as a release; not compressed, which takes most of the time. */
export async function buildPackages(version: string, folder: string): Promise<Packages> {
  const env = { KATAFRACT_DEB_COMPRESSION: 'none' };
  await exec(process.execPath, [BUILD, 'deb', version, folder], { env });
  const architecture = (await exec('dpkg', ['--print-architecture'])).trim();
  const path = (name: string) => join(folder, `katafract-${name}_${version}_${architecture}.deb`);
  return { agent: path('agent'), controller: path('controller') };
}

/** A bare Debian on the network of a host, not switched on yet. */
export async function system(host: Host, folder: string): Promise<Container> {
  mkdirSync(folder, { recursive: true });
  const root = join(folder, `${host.name}.root`);
  await copyOf(await debian(PACKAGES), root);
  return new Container({
    name: host.namespace,
    root,
    namespace: host.namespace,
    console: join(folder, `${host.name}.console`),
  });
}
