/** The lab itself: its wires carry what they should, it leaves the machine alone, and it leaves nothing behind. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { makeKeys } from './lab/device.ts';
import { Network } from './lab/lab.ts';
import { INTERNET } from './lab/network.ts';
import { exec } from './lab/process.ts';
import { waitFor } from './lab/wait.ts';

/** Interfaces, addresses and routes of the machine's own namespace. */
const machine = async () =>
  [await exec('ip', ['-br', 'link']), await exec('ip', ['-br', 'address']), await exec('ip', ['route'])].join(
    '',
  );

describe('a network of hosts', () => {
  let before: string;
  let network: Network;
  beforeAll(async () => {
    before = await machine();
    const exits = [
      { name: 'fra-1', region: 'fra' },
      { name: 'hel-1', region: 'hel' },
    ];
    network = await Network.start({ exits, devices: 2 });
  });
  afterAll(() => network?.close());

  test('the machine has nothing new in its own namespace', async () => {
    expect(await machine()).toBe(before);
  });

  test('a page on the internet sees the address of whoever asks', async () => {
    const [device] = network.devices;
    expect(await device?.httpGet(`http://${INTERNET.ipv4}/`)).toBe(device?.address4);
    expect(await device?.httpGet(`http://[${INTERNET.ipv6}]/`)).toBe(device?.address6);
    const exit = network.exit('hel-1');
    expect(await exit.httpGet(`http://${INTERNET.ipv4}/`)).toBe(exit.publicAddress4);
    const seen = await network.webRequests();
    expect(seen.ipv4).toEqual([device?.address4, exit.publicAddress4]);
    expect(seen.ipv6).toEqual([device?.address6]);
  });

  test('a device has no way to the mesh', async () => {
    const [device] = network.devices;
    expect(await device?.ping('100.64.0.1', { timeoutMs: 500 })).toBe(false);
    expect(await network.exit('fra-1').ping('100.64.0.1')).toBe(true);
  });

  test('a port on the machine leads into a host', async () => {
    await network.artemis.listen({ port: 8080, address: '127.0.0.1', reply: 'peer' });
    const { port } = await network.artemis.forward('127.0.0.1', 8080);
    const answer = await fetch(`http://127.0.0.1:${port}/`);
    expect(await answer.text()).toBe('127.0.0.1');
  });

  test('a tunnel made by hand carries both families, and its pings are all accounted for', async () => {
    const [device] = network.devices;
    const exit = network.exit('fra-1');
    const keys = { exit: makeKeys(), device: makeKeys() };
    await exit.exec('wireguard-go', ['wg0'], { env: { LOG_LEVEL: '' } });
    const key = await exit.exec(
      'sh',
      [
        '-c',
        'umask 77 && cat >"$1" && wg set wg0 private-key "$1" listen-port 51820',
        'sh',
        `${exit.stateDir}/key`,
      ],
      { input: keys.exit.privateKey },
    );
    expect(key).toBe('');
    await exit.wgSet('peer', keys.device.publicKey, 'allowed-ips', '10.64.0.2/32,fd00::2/128');
    for (const address of ['10.64.0.1/10', 'fd00::1/64'])
      await exit.exec('ip', ['addr', 'add', address, 'dev', 'wg0']);
    await exit.exec('ip', ['link', 'set', 'wg0', 'up']);
    const config = `[Interface]\nPrivateKey =\nAddress = 10.64.0.2/32, fd00::2/128\nDNS = 10.64.0.1\n\n[Peer]\nPublicKey = ${keys.exit.publicKey}\nEndpoint = ${exit.endpoint}\nAllowedIPs = 0.0.0.0/0, ::/0\n`;
    await device?.up(config, keys.device.privateKey);
    await device?.handshake();
    expect(await device?.ping('fd00::1')).toBe(true);
    const ping = await device?.startPing('10.64.0.1', 20);
    await waitFor('20 answers', () => (ping?.received() ?? 0) >= 20);
    await exit.exec('ip', ['link', 'set', 'wg0', 'down']);
    const before = ping?.received() ?? 0;
    await waitFor(
      'some lost packets',
      async () => (await exit.exec('ip', ['-s', 'link', 'show', 'wg0'])) && true,
    );
    const broken = await ping?.stop(1000);
    expect(broken?.received).toBeLessThanOrEqual(before + 1);
    expect(broken?.lost.length).toBeGreaterThan(0);
    await device?.down();
  });

  test('a rebooted host is as new, and its state directory is not', async () => {
    const exit = network.exit('fra-1');
    await exit.exec('iptables', ['-N', 'LEFTOVER']);
    await exit.exec('touch', [`${exit.stateDir}/kept`]);
    await exit.reboot();
    expect(await exit.exec('iptables-save')).not.toContain('LEFTOVER');
    expect(await exit.exec('ip', ['-br', 'link'])).not.toContain('wg0');
    expect(existsSync(`${exit.stateDir}/kept`)).toBe(true);
    await waitFor('the mesh', () => exit.ping('100.64.0.1', { timeoutMs: 500 }));
  });
});

describe('an owner that is killed', () => {
  const script = fileURLToPath(new URL('lab/abandon.ts', import.meta.url));
  const left = async (id: string) => (await exec('ip', ['netns', 'list'])).includes(`kf${id}-`);

  async function abandon(): Promise<{ owner: ChildProcess; id: string; folder: string }> {
    const owner = spawn(process.execPath, ['--import', 'tsx', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [line] = await once(owner.stdout, 'data');
    const [id = '', folder = ''] = String(line).trim().split(' ');
    return { owner, id, folder };
  }

  test.each(['SIGKILL', 'SIGTERM', 'SIGINT'] as const)('%s: its lab goes with it', async (signal) => {
    const { owner, id, folder } = await abandon();
    expect(await left(id)).toBe(true);
    owner.kill(signal);
    await waitFor('namespaces to go', async () => !(await left(id)) && !existsSync(folder), {
      deadlineMs: 30_000,
    });
  });

  test('and its janitor as well: the next lab clears up', async () => {
    const { owner, id, folder } = await abandon();
    const janitor = (await exec('pgrep', ['-f', `janitor.sh ${id} `])).trim();
    process.kill(Number(janitor), 'SIGKILL');
    owner.kill('SIGKILL');
    await once(owner, 'exit');
    expect(await left(id)).toBe(true);
    const next = await Network.start({ exits: [], devices: 0 });
    expect(await left(id)).toBe(false);
    expect(existsSync(folder)).toBe(false);
    await next.close();
    expect(await left(next.id)).toBe(false);
  });
});
