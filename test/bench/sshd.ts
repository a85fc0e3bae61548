/** An OpenSSH server on an exit's mesh address, as Debian configures one, with a key for whoever pushes. */
import { chmodSync, existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Exit } from '../lab/exit.ts';
import { exec, type Program } from '../lab/process.ts';

const PORT = 2222;
/** sshd insists on this directory, which the service would make. */
const SEPARATION = '/run/sshd';

export interface SshTarget {
  readonly host: string;
  readonly port: number;
  readonly key: string;
  readonly knownHosts: string;
  /** Where the kept connection's socket lies. */
  readonly control: string;
}

export interface SshServer {
  readonly target: SshTarget;
  stop(): Promise<void>;
}

export async function startSshd(exit: Exit): Promise<SshServer> {
  const folder = join(exit.stateDir, 'ssh');
  mkdirSync(folder, { mode: 0o700 });
  const file = (name: string) => join(folder, name);
  for (const name of ['host', 'client']) {
    await exec('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', name, '-f', file(name)]);
  }
  const hostKey = readFileSync(file('host.pub'), 'utf8');
  writeFileSync(file('known_hosts'), `[${exit.meshAddress}]:${PORT} ${hostKey}`);
  writeFileSync(file('authorized_keys'), readFileSync(file('client.pub')));
  writeFileSync(file('config'), configuration(exit, file));
  chmodSync(file('authorized_keys'), 0o600);
  const made = !existsSync(SEPARATION);
  if (made) mkdirSync(SEPARATION, { mode: 0o755 });
  const daemon: Program = exit.start('sshd', '/usr/sbin/sshd', ['-D', '-e', '-f', file('config')]);
  await daemon.waitFor(/Server listening on/);
  const target = {
    host: exit.meshAddress,
    port: PORT,
    key: file('client'),
    knownHosts: file('known_hosts'),
    control: file('control'),
  };
  return {
    target,
    async stop() {
      await daemon.stop();
      if (made) rmdirSync(SEPARATION);
    },
  };
}

/** Debian's own settings where they matter to the time (PAM on), and only our key. */
function configuration(exit: Exit, file: (name: string) => string): string {
  return `ListenAddress ${exit.meshAddress}:${PORT}
HostKey ${file('host')}
PidFile none
AuthorizedKeysFile ${file('authorized_keys')}
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
UseDNS no
PrintMotd no
MaxStartups 100
`;
}
