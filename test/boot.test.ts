/**
 * Machines as they are: a systemd that boots, the packages as they ship, and nothing else of ours. An exit and its
 * controller are installed, enrolled, killed, frozen, upgraded, rebooted and taken away again, under a device whose
 * pings all come back and one that scans and reaches nothing.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Peer } from '@katafract/shared/api';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { Scan } from './isolation/scan.ts';
import { expectOk } from './lab/controller.ts';
import { type Device, makeKeys } from './lab/device.ts';
import type { Exit } from './lab/exit.ts';
import { Network } from './lab/lab.ts';
import { INTERNET } from './lab/network.ts';
import { waitFor } from './lab/wait.ts';
import type { Container } from './machine/container.ts';
import { ServiceController } from './machine/service-controller.ts';
import { buildPackages, type Packages, system } from './machine/systems.ts';

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
    (await machine.run('wg', ['show', 'wg0', 'peers'])).stdout.trim().split('\n').filter(Boolean);

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
    await machine.exec('systemctl', ['start', 'katafract-agent']);
    expect(await active()).toBe('active');
    await waitFor('the node', async () => (await controller.node('fra-1'))?.connected === true);
    expect(await machine.exec('katafract-agent', ['verify'])).toMatch(/all \d+ hold/);
    expect((await machine.exec('systemctl', ['--failed', '--plain', '--no-legend'])).trim()).toBe('');
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
      if (each === device) peer = made;
    }
    expect(await device.httpGet(`http://${INTERNET.ipv4}/`)).toBe(exit.publicAddress4);
    expect(await device.httpGet(`http://[${INTERNET.ipv6}]/`)).toBe(exit.publicAddress6);
  });

  describe('tunnels do not notice', () => {
    test('that the agent is killed', () =>
      undisturbed(async () => {
        const before = await agentPid();
        await machine.exec('systemctl', ['kill', '--signal', 'KILL', 'katafract-agent']);
        await waitFor(
          'another agent',
          async () => (await active()) === 'active' && (await agentPid()) !== before,
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
          async () => (await active()) === 'active' && (await agentPid()) !== before,
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
