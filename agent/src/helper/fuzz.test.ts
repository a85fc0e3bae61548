/**
 * The agent may be somebody else's: whatever lies in its folder, the helper runs no command, and writes no file, that
 * is not of its vocabulary. The vocabulary stands here once more, by hand, so that a schema which grows shows.
 */
import { Buffer } from 'node:buffer';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { FILTER, HelperBed } from '../testing/helper-bed.ts';
import { REQUEST_NAMES, type RequestName } from './requests.ts';

const VERSION = /^\d{1,4}\.\d{1,4}\.\d{1,4}(?:[-+][A-Za-z0-9.-]{1,32})?$/;
const INSTALL =
  /^apt-get install -y -q --allow-downgrades --no-install-recommends -o DPkg::Lock::Timeout=60 -o Dpkg::Options::=--force-confold katafract-agent=(\S+)$/;
const COMMANDS = new Set([
  `dpkg-query -W -f=\${Version} katafract-agent`,
  'apt-get update -q -o DPkg::Lock::Timeout=60',
  'systemctl restart katafract-agent.service',
  'systemctl reboot',
  'systemctl daemon-reload',
  'systemctl restart apt-daily.timer apt-daily-upgrade.timer',
  'test -x /usr/lib/katafract-agent/AdGuardHome -o -x /opt/AdGuardHome/AdGuardHome',
  'systemctl start katafract-haven.service',
  'systemctl stop katafract-haven.service',
  'systemctl is-active --quiet katafract-haven.service',
  'sshd -t',
  'systemctl reload ssh.service',
  'ss -Htn state established sport = :22',
  'ip -j address show',
]);
const FILES = new Set([
  'etc/apt/apt.conf.d/52katafract',
  'etc/systemd/system/apt-daily.timer.d/katafract.conf',
  'etc/systemd/system/apt-daily-upgrade.timer.d/katafract.conf',
  'etc/ssh/sshd_config.d/10-katafract.conf',
  'var/lib/katafract-haven/AdGuardHome.yaml',
  'var/lib/katafract-helper/haven.json',
  'var/lib/katafract-helper/lease.json',
  'var/lib/katafract-helper/update.json',
  'root/.ssh/authorized_keys',
]);

const honest: Readonly<Record<RequestName, object>> = {
  ssh: { fromMesh: true },
  haven: FILTER,
  updates: { fromMinute: 60, minutes: 60 },
  update: { version: '2.0.0' },
  reboot: { lease: 'c0ffee00-0000-4000-8000-000000000001', until: 1_060_000 },
};

/** What people write where something else is expected. */
const evil = fc.oneof(
  fc.jsonValue({ maxDepth: 2 }),
  fc.constantFrom<unknown>(
    '-o=APT::Update::Pre-Invoke::=id',
    '1.0.0;reboot',
    '1.0.0 other-package',
    '1.0.0\nx',
    '../../etc/shadow',
    '$(reboot)',
    '0.0.0.0',
    '::',
    '8.8.8.8',
    '0.0.0.0/0',
    'file:///etc/shadow',
    '*-*-* *:*:*',
    'x\nhttp:\n  address: 0.0.0.0:80',
    '!!js/function x',
    '2.0.0',
    'https://dns.example',
    1e308,
    -1,
    0.5,
    [],
    {},
  ),
);

type Path = readonly string[];
function paths(value: unknown): Path[] {
  if (value === null || typeof value !== 'object') return [[]];
  return [[], ...Object.entries(value).flatMap(([key, part]) => paths(part).map((path) => [key, ...path]))];
}
function changed(value: unknown, [key, ...rest]: Path, to: unknown): unknown {
  if (key === undefined) return to;
  const copy = (Array.isArray(value) ? [...value] : { ...(value as object) }) as Record<string, unknown>;
  copy[key] = changed(copy[key], rest, to);
  return copy;
}

const name = fc.constantFrom(...REQUEST_NAMES);
const near = name.chain((which) =>
  fc.record({
    name: fc.constant(which),
    content: fc
      .array(
        fc.oneof(
          fc.tuple(fc.constantFrom(...paths(honest[which])), evil),
          fc.tuple(
            fc
              .constantFrom(...paths(honest[which]).filter((path) => path.length > 0))
              .map((path) => [...path.slice(0, -1), 'more']),
            evil,
          ),
        ),
        { minLength: 1, maxLength: 2 },
      )
      .map((edits) =>
        JSON.stringify(edits.reduce<unknown>((value, [path, to]) => edit(value, path, to), honest[which])),
      ),
  }),
);
/** An earlier edit may have taken away what a later one speaks of. */
function edit(value: unknown, path: Path, to: unknown): unknown {
  try {
    return changed(value, path, to);
  } catch {
    return value;
  }
}
const far = fc.record({
  name,
  content: fc.oneof(
    fc.json(),
    fc.string({ unit: 'binary' }),
    fc.uint8Array().map((bytes) => Buffer.from(bytes).toString('latin1')),
  ),
});
const elsewhere = fc.record({
  name: fc.stringMatching(/^[a-z.-]{1,12}$/).filter((text) => !/^\.+$/.test(text)),
  content: fc.json(),
});

/** Values anywhere in a file that AdGuard reads, by which it would answer or tell others. */
function checkFilter(text: string): void {
  const config = JSON.parse(text) as {
    http: { address: string };
    dns: { bind_hosts: string[]; allowed_clients: string[]; upstream_dns: string[] };
    filters: { url: string }[];
    querylog: { enabled: boolean };
  };
  expect(config.http.address).toBe('127.0.0.1:3053');
  for (const at of [...config.dns.bind_hosts, ...config.dns.allowed_clients]) {
    expect(at).toMatch(/^(?:10\.|172\.(?:1[6-9]|2\d|3[01])\.|192\.168\.|100\.|f[cd][0-9a-f]{2}:)/);
  }
  for (const upstream of config.dns.upstream_dns) expect(upstream).toMatch(/^(?:https|h3|tls|quic):\/\//);
  for (const { url } of config.filters) expect(url).toMatch(/^https:\/\//);
  expect(config.querylog.enabled).toBe(false);
}

it('does nothing outside of its vocabulary, whatever it is asked', async () => {
  let refused = 0;
  let done = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.oneof({ weight: 6, arbitrary: near }, { weight: 2, arbitrary: far }, elsewhere), {
        minLength: 1,
        maxLength: 3,
      }),
      async (left) => {
        const bed = new HelperBed();
        try {
          bed.write('root/.ssh/authorized_keys', 'ssh-ed25519 AAAA admin\n');
          bed.prints = (command) =>
            command.startsWith('ip ') ? '[{"flags":["UP"],"addr_info":[{"local":"100.64.0.1"}]}]' : '';
          bed.meanwhile = () => bed.leave('alive', { version: bed.installed });
          for (const request of left)
            writeFileSync(join(bed.state, 'requests', request.name), request.content);
          await bed.help();
          for (const command of bed.commands) {
            const version = INSTALL.exec(command)?.[1];
            if (version === undefined) expect(COMMANDS).toContain(command);
            else expect(version).toMatch(VERSION);
          }
          for (const file of bed.files()) expect(FILES).toContain(file);
          const filter = bed.read('var/lib/katafract-haven/AdGuardHome.yaml');
          if (filter !== null) checkFilter(filter);
          for (const asked of new Set(left.map((request) => request.name))) {
            if (!(REQUEST_NAMES as readonly string[]).includes(asked)) continue;
            const result = bed.resultOf(asked);
            if (result.code === 'request_refused') refused++;
            if (result.outcome === 'done') done++;
          }
        } finally {
          bed.close();
        }
      },
    ),
    { numRuns: 1000 },
  );
  // it was asked for much, most of which was nonsense, and some of which was not
  expect(refused).toBeGreaterThan(500);
  expect(done).toBeGreaterThan(30);
});
