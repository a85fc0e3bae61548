/** What a request comes down to on a Debian system: command lines, and the texts of configuration files. */
import type { Exec } from '../host/exec.ts';
import type { Request } from './requests.ts';

export interface Command {
  readonly program: string;
  readonly args: readonly string[];
  readonly timeoutMs: number;
}

export const AGENT_PACKAGE = 'katafract-agent';
export const AGENT_UNIT = 'katafract-agent.service';
export const HAVEN_UNIT = 'katafract-haven.service';
const MINUTE = 60_000;

const command = (program: string, args: readonly string[], timeoutMs = MINUTE): Command => ({
  program,
  args,
  timeoutMs,
});

export const COMMANDS = {
  /** Prints the version that is installed. */
  installed: command('dpkg-query', ['-W', `-f=\${Version}`, AGENT_PACKAGE]),
  refreshLists: command('apt-get', ['update', '-q', '-o', 'DPkg::Lock::Timeout=60'], 5 * MINUTE),
  restartAgent: command('systemctl', ['restart', AGENT_UNIT]),
  reboot: command('systemctl', ['reboot']),
  reloadUnits: command('systemctl', ['daemon-reload']),
  restartTimers: command('systemctl', ['restart', 'apt-daily.timer', 'apt-daily-upgrade.timer']),
  /** Succeeds where there is an AdGuard Home: the package's own, or one where its archive is unpacked. */
  havenThere: command('test', [
    '-x',
    '/usr/lib/katafract-agent/AdGuardHome',
    '-o',
    '-x',
    '/opt/AdGuardHome/AdGuardHome',
  ]),
  startHaven: command('systemctl', ['start', HAVEN_UNIT]),
  stopHaven: command('systemctl', ['stop', HAVEN_UNIT]),
  havenActive: command('systemctl', ['is-active', '--quiet', HAVEN_UNIT]),
  checkSsh: command('sshd', ['-t']),
  reloadSsh: command('systemctl', ['reload', 'ssh.service']),
  /** Sessions of sshd, with whoever is at their other end. */
  sshSessions: command('ss', ['-Htn', 'state', 'established', 'sport', '=', ':22']),
  addresses: command('ip', ['-j', 'address', 'show']),
} as const;

export function runCommand(exec: Exec, { program, args, timeoutMs }: Command): Promise<string> {
  return exec.run(program, args, { timeoutMs });
}

/** Installs a version of the agent, newer or older. Its package restarts it. @param version checked by the schema */
export function install(version: string): Command {
  const options = ['-o', 'DPkg::Lock::Timeout=60', '-o', 'Dpkg::Options::=--force-confold'];
  const flags = ['-y', '-q', '--allow-downgrades', '--no-install-recommends', ...options];
  return command('apt-get', ['install', ...flags, `${AGENT_PACKAGE}=${version}`], 5 * MINUTE);
}

/** Files by path below the system's root. */
export function updatesFiles(window: Request<'updates'>): Readonly<Record<string, string>> {
  const quarter = Math.floor(window.minutes / 4);
  const upgrade = { from: window.fromMinute + quarter, spread: 2 * quarter };
  return {
    'etc/apt/apt.conf.d/52katafract': APT_CONFIG,
    'etc/systemd/system/apt-daily.timer.d/katafract.conf': timer(window.fromMinute, quarter),
    'etc/systemd/system/apt-daily-upgrade.timer.d/katafract.conf': timer(upgrade.from, upgrade.spread),
  };
}

const WRITTEN = 'Written by katafract-helper from what the controller wants; changes are overwritten.';

/**
 * Read after 50unattended-upgrades, whose lists it empties: security updates and nothing else, and never a reboot. The
 * controller sees that one is needed, and gives each node its turn.
 */
const APT_CONFIG = `// ${WRITTEN}
#clear Unattended-Upgrade::Origins-Pattern;
#clear Unattended-Upgrade::Allowed-Origins;
Unattended-Upgrade::Origins-Pattern {
  "origin=Debian,codename=\${distro_codename},label=Debian-Security";
  "origin=Debian,codename=\${distro_codename}-security,label=Debian-Security";
};
Unattended-Upgrade::Automatic-Reboot "false";
Unattended-Upgrade::MinimalSteps "true";
APT::Periodic::Enable "1";
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Download-Upgradeable-Packages "1";
APT::Periodic::Unattended-Upgrade "1";
`;

/** Within the window or not at all: what was missed waits for the next night. */
function timer(fromMinute: number, spreadMinutes: number): string {
  const at = fromMinute % 1440;
  const two = (value: number) => String(value).padStart(2, '0');
  return `# ${WRITTEN}
[Timer]
OnCalendar=
OnCalendar=*-*-* ${two(Math.floor(at / 60))}:${two(at % 60)}:00 UTC
RandomizedDelaySec=${spreadMinutes}min
AccuracySec=1min
Persistent=false
`;
}
