/**
 * AdGuard Home on a machine, where its own archive would be unpacked: the stand-in, under the Node of the agent's package.
 * Node makes machine code, which the unit forbids to AdGuard; that one line of it is taken back.
 */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import type { Container } from './container.ts';

const FOLDER = 'opt/AdGuardHome';
const DROP_IN = 'etc/systemd/system/katafract-haven.service.d';

export async function unpackAdguard(machine: Container): Promise<void> {
  const { root } = machine;
  await build({
    entryPoints: [fileURLToPath(new URL('../haven/adguard.ts', import.meta.url))],
    outfile: join(root, FOLDER, 'adguard.mjs'),
    bundle: true,
    platform: 'node',
    format: 'esm',
    banner: {
      js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
    },
    logLevel: 'warning',
  });
  const program = join(root, FOLDER, 'AdGuardHome');
  writeFileSync(program, '#!/bin/sh\nexec /usr/lib/katafract-agent/node /opt/AdGuardHome/adguard.mjs "$@"\n');
  chmodSync(program, 0o755);
  mkdirSync(join(root, DROP_IN), { recursive: true });
  writeFileSync(join(root, DROP_IN, 'stand-in.conf'), '[Service]\nMemoryDenyWriteExecute=no\n');
  await machine.exec('systemctl', ['daemon-reload']);
}

/** Takes it away again. */
export async function removeAdguard(machine: Container): Promise<void> {
  await machine.exec('rm', ['-r', `/${FOLDER}`, `/${DROP_IN}`]);
}
