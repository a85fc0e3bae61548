/**
 * Machines as they are: a systemd that boots, the packages as they ship, and nothing else of ours. An exit and its
 * controller are installed, enrolled, killed, frozen, upgraded, rebooted and taken away again, under a device whose
 * pings all come back and one that scans and reaches nothing.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Peer } from '@katafract/shared/api';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { Scan } from './isolation/scan.ts';
import { expectOk } from './lab/controller.ts';
import { type Device, makeKeys } from './lab/device.ts';
import type { Exit } from './lab/exit.ts';
import type { Host } from './lab/host.ts';
import { Network } from './lab/lab.ts';
import { INTERNET } from './lab/network.ts';
import { waitFor } from './lab/wait.ts';
import { removeAdguard, unpackAdguard } from './machine/adguard.ts';
import type { Container } from './machine/container.ts';
import { ServiceController } from './machine/service-controller.ts';
import { buildPackages, type Packages, system } from './machine/systems.ts';

const GATEWAY6 = 'fd4b:6174:6166::1';
const WIRETAP = fileURLToPath(new URL('machine/wiretap.py', import.meta.url));
const VERSIONS = ['0.1.0', '0.2.0'] as const;

/** Whether this kernel lets us have containers at all. */
const forbidden = spawnSync('unshare', ['--mount', '--pid', '--fork', 'true'], { encoding: 'utf8' });
if (forbidden.status !== 0) {
  console.error(`NOT TESTED: no machine is booted, this kernel forbids containers: ${forbidden.stderr}`);
}

let network: Network;
let releases: readonly Packages[];
let controller: ServiceController;
let exit: Exit;
let machine: Container;
let device: Device;
let scanner: Device;
let peer: Peer;
let deviceKey: string;

describe.skipIf(forbidden.status !== 0)('a machine', () => {
  beforeAll(async () => {
    network = await Network.start({ exits: [{ name: 'fra-1', region: 'fra' }], devices: 2 });
    const [first, second] = network.devices;
    if (!first || !second) throw new Error('no devices');
    [device, scanner] = [first, second];
    exit = network.exit('fra-1');
    releases = [];
    for (const version of VERSIONS)
      releases = [...releases, await buildPackages(version, join(network.folder, 'debs'))];
    machine = await system(exit, network.folder);
    controller = new ServiceController(network.artemis, await system(network.artemis, network.folder));
    await Promise.all([machine.boot(), controller.machine.boot()]);
  }, 600_000);
  afterAll(async () => {
    await machine?.cut();
    await controller?.machine.cut();
    await network?.close();
  });
  afterEach(async ({ task }) => {
    if (task.result?.state !== 'fail') return;
    for (const each of [machine, controller.machine]) {
      console.error((await each.run('journalctl', ['--no-pager', '-n', '60', '-o', 'cat'])).stdout);
    }
  });

  /** Copies a package onto a machine and installs it. */
  async function install(to: Container, path: string): Promise<void> {
    mkdirSync(join(to.root, 'root/debs'), { recursive: true });
    const name = path.slice(path.lastIndexOf('/') + 1);
    copyFileSync(path, join(to.root, 'root/debs', name));
    await to.exec('dpkg', ['--install', '--force-confold', '--force-downgrade', `/root/debs/${name}`]);
  }

  const property = async (unit: string, name: string) =>
    (await machine.exec('systemctl', ['show', '--value', '--property', name, unit])).trim();
  const active = async () => (await machine.run('systemctl', ['is-active', 'katafract-agent'])).stdout.trim();
  const agentPid = () => property('katafract-agent', 'MainPID');
  /** Peers by the kernel, as any operator would look. */
  const peers = async () =>
    (await machine.run('wg', ['show', 'all', 'peers'])).stdout.trim().split('\n').filter(Boolean);

  /** What a host is told that a name is; null where it gets no answer. */
  async function resolve(name: string, server = '10.64.0.1', from: Host = device): Promise<string | null> {
    const script = `const r = new (require('node:dns/promises').Resolver)({ timeout: 500, tries: 1 }); r.setServers([process.argv[2]]);
      r.resolve4(process.argv[1]).then(([a]) => console.log(a), () => process.exit(1))`;
    const at = server.includes(':') ? `[${server}]` : server;
    const { code, stdout } = await from.run(process.execPath, ['-e', script, name, at]);
    return code === 0 ? stdout.trim() : null;
  }

  /** Does something while a device pings through the tunnel; no ping may be lost. */
  async function undisturbed(what: () => Promise<unknown>): Promise<void> {
    const ping = await device.startPing(INTERNET.ipv4, 20);
    await what();
    expect((await ping.stop()).lost).toEqual([]);
  }

  test('the controller is installed, and is ready when systemd says so', async () => {
    const [release] = releases;
    if (!release) throw new Error('no release');
    await install(controller.machine, release.controller);
    await controller.configure();
    expect(
      (await controller.machine.run('systemctl', ['is-active', 'katafract-controller'])).stdout.trim(),
    ).toBe('active');
    expect((await fetch(`${controller.api}/readyz`)).status).toBe(200);
    await controller.operate('POST', '/v1/admin/regions', {
      id: 'fra',
      name: 'Frankfurt',
      country: 'DE',
      latitude: 50.1,
      longitude: 8.7,
    });
  });

  test('an exit is installed, enrolled and started, and proves itself', async () => {
    const [release] = releases;
    if (!release) throw new Error('no release');
    await install(machine, release.agent);
    // not enrolled: it waits, and nothing has failed
    expect(await active()).toBe('inactive');
    const token = await controller.joinToken('fra-1', exit.endpoint);
    const env = { KATAFRACT_JOIN_TOKEN: token };
    await machine.exec('katafract-agent', ['enroll', '--controller', controller.meshUrl], { env });
    const settings = `KATAFRACT_METRICS_LISTEN=${exit.meshAddress}:9105`;
    await machine.exec('sh', ['-c', `echo ${settings} >>/etc/default/katafract-agent`]);
    await machine.exec('systemctl', ['start', 'katafract-agent']);
    expect(await active()).toBe('active');
    await waitFor('the node', async () => (await controller.node('fra-1'))?.connected === true);
    expect(await machine.exec('katafract-agent', ['verify'])).toMatch(/all \d+ hold/);
    // what of a container's own units fails is none of ours
    const failed = ['list-units', '--failed', '--plain', '--no-legend', 'katafract-*'];
    expect((await machine.exec('systemctl', failed)).trim()).toBe('');
  });

  test('the agent runs as nobody in particular, with one capability and no way to more', async () => {
    const status = await machine.exec('cat', [`/proc/${await agentPid()}/status`]);
    const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1];
    expect(Number(field('Uid')?.split('\t')[0])).toBeGreaterThan(0);
    const netAdmin = (1n << 12n).toString(16).padStart(16, '0');
    for (const set of ['CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) expect(field(set), set).toBe(netAdmin);
    expect(field('NoNewPrivs')).toBe('1');
    expect(field('Seccomp')).toBe('2');
    const modes = await machine.exec('find', [
      '/var/lib/katafract-agent',
      '-type',
      'f',
      '-not',
      '-name',
      '*.result',
      '-printf',
      '%m %u\\n',
    ]);
    expect([...new Set(modes.trim().split('\n'))]).toEqual(['600 katafract-agent']);
    for (const [on, unit] of [
      [machine, 'katafract-agent'],
      [controller.machine, 'katafract-controller'],
    ] as const) {
      const { stdout } = await on.run('systemd-analyze', ['security', '--no-pager', `${unit}.service`]);
      expect(stdout).toMatch(/Overall exposure level for .*: 1\.\d OK/);
    }
  });

  test('the agent hears of changes that others make', async () => {
    const children = async () => machine.exec('ps', ['-o', 'args=', '--ppid', await agentPid()]);
    for (const source of ['xtables-monitor --event', 'ip monitor'])
      await waitFor(source, async () => (await children()).includes(source));
  });

  test('devices are served', async () => {
    const sigil = await controller.mintSigil();
    for (const each of [device, scanner]) {
      const keys = makeKeys();
      const answer = await controller.app('POST', '/v1/peers', sigil, {
        publicKey: keys.publicKey,
        region: 'fra',
      });
      const made = Peer.parse(expectOk(answer, 'POST /v1/peers'));
      await each.up(made.config, keys.privateKey);
      await each.handshake();
      if (each === device) [peer, deviceKey] = [made, keys.privateKey];
    }
    expect(await device.httpGet(`http://${INTERNET.ipv4}/`)).toBe(exit.publicAddress4);
    expect(await device.httpGet(`http://[${INTERNET.ipv6}]/`)).toBe(exit.publicAddress6);
  });

  describe('Haven', () => {
    const haven = {
      upstreams: ['https://dns.example/dns-query', 'tls://dns.example'],
      bootstrap: ['192.0.2.53'],
      rules: ['||ads.example^'],
    };
    const region = (change: object) => controller.operate('PATCH', '/v1/admin/regions/fra', change);
    const verified = async () =>
      JSON.parse((await machine.run('katafract-agent', ['verify', '--json'])).stdout) as {
        id: string;
        holds: boolean;
        expected: string;
        found?: string;
      }[];
    const failing = async () =>
      (await verified())
        .filter(({ holds }) => !holds)
        .map(({ expected, found }) => (found === undefined ? expected : `${expected}: ${found}`));
    const CONFIG = '/var/lib/katafract-haven/AdGuardHome.yaml';

    test('is not wanted, and nothing of it runs', async () => {
      expect(await resolve('example.com')).toBeNull();
      expect(await property('katafract-haven', 'ActiveState')).toBe('inactive');
    });

    test('is wanted where there is no AdGuard Home: that is told', async () => {
      await region({ haven });
      await waitFor('the helper to say so', async () =>
        (await failing()).includes('the DNS filter is set up: haven_missing'),
      );
      await waitFor(
        'the controller to know',
        async () => (await controller.node('fra-1'))?.health?.dns === 'failed',
      );
    });

    test('answers clients, whomever they ask, and nobody else', async () => {
      await unpackAdguard(machine);
      // it would be tried again in a minute; another wish is tried at once
      await region({ haven: { ...haven, queriesPerSecond: 200 } });
      await waitFor('the filter', async () => (await resolve('example.com')) !== null);
      expect(await resolve('example.com')).toBe('198.51.100.80');
      expect(await resolve('example.com', GATEWAY6)).toBe('198.51.100.80');
      expect(await resolve('example.com', INTERNET.ipv4)).toBe('198.51.100.80');
      expect(await resolve('ads.example')).toBe('0.0.0.0');
      for (const address of [exit.publicAddress4, exit.publicAddress6]) {
        expect(await resolve('example.com', address, network.inet)).toBeNull();
        expect(await network.inet.probe(address, 53)).not.toBe('open');
        expect(await network.inet.probe(address, 3053)).not.toBe('open');
      }
      for (const address of ['10.64.0.1', exit.publicAddress4, exit.meshAddress]) {
        expect(await device.probe(address, 3053)).not.toBe('open');
      }
      await waitFor('all of it to hold', async () => (await failing()).length === 0);
      expect((await verified()).filter(({ id }) => id === 'haven').length).toBeGreaterThan(8);
      await waitFor(
        'the controller to know',
        async () => (await controller.node('fra-1'))?.health?.dns === 'ok',
      );
    });

    test('runs as nobody in particular, and may bind low ports', async () => {
      const status = await machine.exec('cat', [
        `/proc/${await property('katafract-haven', 'MainPID')}/status`,
      ]);
      const bind = (1n << 10n).toString(16).padStart(16, '0');
      for (const set of ['CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
        expect(status).toMatch(new RegExp(`^${set}:\\s*${bind}$`, 'm'));
      expect(status).toMatch(/^NoNewPrivs:\s*1$/m);
      expect(await machine.exec('stat', ['-c', '%U %a', CONFIG])).toBe('katafract-haven 600\n');
    });

    test('that somebody makes keep a log is closed until it keeps none, and the log is gone', async () => {
      await machine.exec('systemctl', ['stop', 'katafract-helper.path']);
      const from = await machine.exec('date', ['+%s']);
      const secret = JSON.parse(await machine.exec('cat', ['/var/lib/katafract-agent/haven.json'])) as {
        password: string;
      };
      await machine.exec(
        '/usr/lib/katafract-agent/node',
        [
          '-e',
          `fetch('http://127.0.0.1:3053/control/querylog/config/update', { method: 'PUT', headers: { 'content-type': 'application/json', authorization: 'Basic ' + btoa('katafract:' + process.env.PASSWORD) },
            body: JSON.stringify({ enabled: true, interval: 86400000, anonymize_client_ip: false, ignored: [] }) }).then((r) => process.exit(r.ok ? 0 : 1))`,
        ],
        { env: { PASSWORD: secret.password } },
      );
      await resolve('canary.example');
      await waitFor('the agent to see it', async () =>
        (
          await machine.exec('journalctl', [
            '-u',
            'katafract-agent',
            '-o',
            'cat',
            '--since',
            `@${from.trim()}`,
          ])
        ).includes('"state":"unsafe"'),
      );
      await waitFor('it to answer again', async () => (await resolve('example.com')) !== null);
      const found = await machine.run('grep', [
        '-rl',
        'canary.example',
        '/var',
        '/run',
        '/etc',
        '/tmp',
        '/opt',
      ]);
      expect(found.stdout).toBe('');
      await machine.exec('systemctl', ['start', 'katafract-helper.path']);
    });

    test('whose file somebody changes is as it should be at once', async () => {
      await machine.exec('sh', ['-c', `sed -i 's/ratelimit: 200/ratelimit: 0/' ${CONFIG}`]);
      await waitFor('the helper', async () =>
        (await machine.exec('cat', [CONFIG])).includes('ratelimit: 200'),
      );
      await waitFor('it to answer again', async () => (await resolve('example.com')) !== null);
    });

    test('that answers the internet is closed to clients, and told', async () => {
      // or it would be put right before anybody sees it
      await machine.exec('systemctl', ['mask', '--runtime', '--now', 'katafract-helper.service']);
      await machine.exec('sh', [
        '-c',
        // it writes its file when it stops
        `systemctl stop katafract-haven; sed -i 's/- 10.64.0.1$/- 0.0.0.0/' ${CONFIG} && systemctl start katafract-haven`,
      ]);
      await waitFor('clients to get no answer', async () => (await resolve('example.com')) === null);
      await waitFor('it to be told', async () => (await failing()).includes('DNS filter: exposed'));
      const { code } = await machine.run('katafract-agent', ['verify']);
      expect(code).toBe(3);
      await waitFor(
        'the controller to know',
        async () => (await controller.node('fra-1'))?.health?.dns === 'failed',
      );
      await machine.exec('systemctl', ['unmask', '--runtime', 'katafract-helper.service']);
      await machine.exec('systemctl', ['restart', 'katafract-helper.path', 'katafract-helper.service']);
      await waitFor('it to answer again', async () => (await resolve('example.com')) !== null);
      await waitFor('all of it to hold', async () => (await failing()).length === 0);
    });

    test('restricts SSH to the mesh, once nobody is locked out by that', async () => {
      const login = (from: Host, address: string) => from.probe(address, 22);
      expect(await login(network.inet, exit.publicAddress4)).toBe('open');
      await region({ sshFromMesh: true });
      await waitFor('the helper to say so', async () =>
        (await failing()).includes('SSH is for the mesh alone: lockout_no_key'),
      );
      expect(await login(network.inet, exit.publicAddress4)).toBe('open');
      await machine.exec('sh', [
        '-c',
        'install -d -m 700 /root/.ssh && echo "ssh-ed25519 AAAA operator" >/root/.ssh/authorized_keys',
      ]);
      await region({ sshFromMesh: false });
      await waitFor('all of it to hold', async () => (await failing()).length === 0);
      await region({ sshFromMesh: true });
      // a packet that is dropped gets no answer; while sshd reads its files anew there is a refusal
      await waitFor(
        'nobody from outside to be answered',
        async () => (await login(network.inet, exit.publicAddress4)) === 'timeout',
      );
      await waitFor(
        'the mesh to be answered',
        async () => (await login(network.artemis, exit.meshAddress)) === 'open',
      );
      const effective = (address: string) =>
        machine.exec('sshd', ['-T', '-C', `user=root,host=x,addr=${address}`]);
      expect(await effective('203.0.113.9')).toMatch(/^permitrootlogin no$/m);
      expect(await effective('100.64.0.1')).toMatch(/^permitrootlogin (?:without|prohibit)-password$/m);
      expect(await effective('203.0.113.9')).toMatch(/^passwordauthentication no$/m);
      await waitFor('all of it to hold', async () => (await failing()).length === 0);
    });
  });

  test('privacy: of what a client does, and from where, nothing stands anywhere afterwards', async () => {
    const said = join(network.folder, 'mesh.packets');
    const tap = exit.start('wiretap', 'python3', [WIRETAP, 'mesh0', said]);
    await tap.waitFor(/ready/);
    const since = Number(await machine.exec('date', ['+%s']));
    const word = `canary${Math.random().toString(36).slice(2)}`;
    const visited = '198.51.100.177';
    // what is answered, what is refused, and what is nonsense
    await device.httpGet(`http://${INTERNET.ipv4}/${word}`);
    await device.httpGet(`http://${word}@[${INTERNET.ipv6}]/`);
    await resolve(`${word}.example`);
    await resolve(`${word}.example`, INTERNET.ipv4);
    await device.probe(visited, 443, 300);
    await device.probe(visited, 25, 300);
    await device.probe(visited, 853, 300);
    await device.udp('100.64.0.1', 4242, { payload: word });
    for (const port of [53, 3053, 9105]) await device.udp('10.64.0.1', port, { payload: word });
    await device.down();
    await device.up(peer.config, deviceKey);
    await device.handshake();
    const log = (unit: string) =>
      machine.exec('journalctl', ['-u', unit, '-o', 'cat', '--since', `@${since}`]);
    // it falls over in the middle of it
    await machine.exec('systemctl', ['kill', '--signal', 'ABRT', 'katafract-agent']);
    await waitFor('another agent', async () =>
      (await log('katafract-agent')).includes('the host is as it was held'),
    );
    await waitFor('its heartbeat', async () => {
      const { lastSeenAt, connected } = (await controller.node('fra-1')) ?? {};
      return connected === true && Date.parse(lastSeenAt ?? '') > (since + 2) * 1000;
    });
    await tap.stop('SIGTERM');

    const outside = [device.address4, device.address6];
    const secrets = [word, visited, ...outside];
    const clean = async (what: string, text: string) => {
      for (const secret of secrets) expect(text.includes(secret), `${secret} in ${what}`).toBe(false);
    };
    for (const on of [machine, controller.machine]) {
      const folders = ['/var', '/run', '/etc', '/tmp', '/root', '/opt', '/srv', '/home', '/dev/shm'];
      const words = secrets.flatMap((secret) => ['-e', secret]);
      expect((await on.run('grep', ['-rlaF', ...words, ...folders])).stdout).toBe('');
      await clean('the journal', await on.exec('journalctl', ['-o', 'export', '--no-pager']));
      await clean('the kernel’s log', (await on.run('dmesg')).stdout);
      expect(
        (
          await on.exec('find', ['/', '-xdev', '-name', 'core*', '-size', '+1M', '-not', '-path', '/usr/*'])
        ).trim(),
      ).toBe('');
    }
    // as bytes, too, where ours write
    const bytes = device.address4
      .split('.')
      .map((octet) => `\\x${Number(octet).toString(16).padStart(2, '0')}`);
    const ours = [
      '/var/lib/katafract-agent',
      '/var/lib/katafract-helper',
      '/var/lib/katafract-haven',
      '/var/log',
      '/run/wireguard',
    ];
    expect((await machine.run('grep', ['-rlaP', bytes.join(''), ...ours])).stdout).toBe('');
    await clean('its sockets', await exit.exec('ss', ['-Hanpe']));
    // what is translated must be remembered while it lasts; from where the client came is not
    const tracked =
      (await exit.exec('conntrack', ['-L'])) + (await exit.exec('conntrack', ['-L', '-f', 'ipv6']));
    for (const address of outside) expect(tracked).not.toContain(`=${address} `);
    const packets = readFileSync(said).toString('latin1');
    expect(packets).toContain('"peersRecent"');
    await clean('its messages', packets);
    await clean('what operators see', JSON.stringify(await controller.operate('GET', '/v1/admin/nodes')));
    await clean('its metrics', await exit.metrics());
    await clean('the metrics of the controller', await (await fetch(`${controller.api}/metrics`)).text());
    // the same traps do catch what is there
    await machine.exec('sh', ['-c', `echo ${word} >/var/lib/katafract-agent/found && logger ${word}`]);
    expect((await machine.run('grep', ['-rlaF', word, '/var/lib'])).stdout.trim()).toBe(
      '/var/lib/katafract-agent/found',
    );
    await waitFor('the journal', async () =>
      (await machine.exec('journalctl', ['-o', 'export'])).includes(word),
    );
    await machine.exec('rm', ['/var/lib/katafract-agent/found']);
  });

  describe('tunnels do not notice', () => {
    test('that the agent is killed', () =>
      undisturbed(async () => {
        const before = await agentPid();
        await machine.exec('systemctl', ['kill', '--signal', 'KILL', 'katafract-agent']);
        await waitFor(
          'another agent',
          async () => (await active()) === 'active' && ![before, '0'].includes(await agentPid()),
        );
      }));

    test('that the agent hangs, and is begun anew by the watchdog', () =>
      undisturbed(async () => {
        await machine.exec('sh', [
          '-c',
          'mkdir -p /run/systemd/system/katafract-agent.service.d && printf "[Service]\\nWatchdogSec=2s\\n" >/run/systemd/system/katafract-agent.service.d/short.conf && systemctl daemon-reload && systemctl restart katafract-agent',
        ]);
        const before = await agentPid();
        await machine.exec('kill', ['-STOP', before]);
        await waitFor(
          'another agent',
          async () => (await active()) === 'active' && ![before, '0'].includes(await agentPid()),
        );
        expect(await machine.exec('journalctl', ['-u', 'katafract-agent', '-o', 'cat'])).toContain(
          'Watchdog timeout',
        );
        await machine.exec('sh', [
          '-c',
          'rm /run/systemd/system/katafract-agent.service.d/short.conf && systemctl daemon-reload',
        ]);
      }));

    test('that another release is installed, and the one before again', () =>
      undisturbed(async () => {
        for (const at of [1, 0]) {
          await install(machine, releases[at]?.agent ?? '');
          expect(await active()).toBe('active');
          expect((await machine.exec('katafract-agent', ['--version'])).trim()).toBe(VERSIONS[at]);
          await waitFor(
            'it to say so',
            async () => (await controller.node('fra-1'))?.agentVersion === VERSIONS[at],
          );
        }
      }));

    test('that the controller is upgraded, and goes back', () =>
      undisturbed(async () => {
        for (const at of [1, 0]) {
          await install(controller.machine, releases[at]?.controller ?? '');
          await controller.ready();
        }
        expect(
          (await controller.app<Peer>('GET', `/v1/peers/${peer.id}`, await controller.mintSigil())).status,
        ).toBe(404);
      }));
  });

  test('a reboot with the controller away: peers and rules are back before anything is forwarded', async () => {
    const held = (await peers()).sort();
    expect(held).toHaveLength(2);
    await controller.machine.exec('systemctl', ['stop', 'katafract-controller']);
    const scan = await Scan.start(scanner, [
      { address: peer.addresses.ipv4, at: device },
      { address: peer.addresses.ipv6, at: device },
      { address: '100.64.0.1', at: network.artemis },
      { address: '192.168.7.7', at: network.inet },
    ]);
    await machine.cut();
    await exit.reboot();
    await machine.boot();
    await waitFor('the tunnel', () => device.ping(INTERNET.ipv4, { timeoutMs: 500 }));
    await waitFor('its DNS', async () => (await resolve('example.com')) !== null);
    expect(await network.inet.probe(exit.publicAddress4, 22)).not.toBe('open');
    expect((await peers()).sort()).toEqual(held);
    expect((await scan.stop()).arrived).toEqual({});
    expect(await machine.exec('katafract-agent', ['verify'])).toMatch(/all \d+ hold/);
    await controller.machine.exec('systemctl', ['start', 'katafract-controller']);
    await waitFor('the node', async () => (await controller.node('fra-1'))?.connected === true);
  });

  test('removed, it leaves the tunnels up and held; purged, nothing of it is left on the disk', async () => {
    const rules = await exit.firewall();
    await undisturbed(async () => {
      await machine.exec('dpkg', ['--remove', 'katafract-agent']);
      expect(await active()).not.toBe('active');
      expect(await resolve('example.com')).not.toBeNull();
      await removeAdguard(machine);
      await machine.exec('dpkg', ['--purge', 'katafract-agent']);
    });
    expect(await exit.firewall()).toBe(rules);
    for (const [on, name] of [
      [machine, 'katafract-agent'],
      [controller.machine, 'katafract-controller'],
    ] as const) {
      if (on !== machine) await on.exec('dpkg', ['--purge', name]);
      const elsewhere = ['proc', 'sys', 'run', 'root', 'tmp', 'var/log'].map((folder) => `-path /${folder}`);
      const what = `find / -xdev \\( ${elsewhere.join(' -o ')} \\) -prune -o \\( -iname '*katafract*' -o -nouser \\) -print`;
      const found = await on.exec('sh', ['-c', what]);
      expect(found.trim()).toBe('');
      expect((await on.run('getent', ['passwd', name])).code).not.toBe(0);
      expect((await on.run('systemctl', ['cat', name])).code).not.toBe(0);
    }
  });
});
