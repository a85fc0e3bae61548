/** The program itself, on a host of its own: what it makes, what it puts right, and what it leaves alone. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Lineage } from '@katafract/shared/units';
import { build } from 'esbuild';
import { exportJWK, generateKeyPair } from 'jose';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openLedger } from './desired/ledger.ts';
import { receive } from './desired/receive.ts';
import { systemExec } from './host/exec.ts';
import { ledgerFiles, writeDurably } from './host/files.ts';
import { type Namespace, namespace } from './host/testing/namespace.ts';
import { CONFIG, NODE, peer, peers, whole } from './testing/messages.ts';
import { VERSION } from './version.ts';

const REQUIRE =
  "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);";
const QUIET = { info: () => undefined, warn: () => undefined, error: () => undefined };
const MAIN = fileURLToPath(new URL('main.ts', import.meta.url));

test('the version is that of the package', () => {
  const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  expect(VERSION).toBe(manifest.version);
});

describe.skipIf(process.getuid?.() !== 0)('katafract-agent', () => {
  let host: Namespace;
  let directory = '';
  let secrets: string[] = [];
  let said = '';

  const agent = (...args: string[]) =>
    new Promise<{ status: number; output: string }>((resolve) => {
      const [program = '', ...rest] = host.within([
        process.execPath,
        join(directory, 'main.mjs'),
        ...args,
        '--state-dir',
        directory,
      ]);
      execFile(program, rest, (error, stdout, stderr) => {
        const output = stdout + stderr;
        said += output;
        resolve({ status: error ? Number(error.code) : 0, output });
      });
    });

  /** A node as `enroll` leaves it. */
  async function enrolled(): Promise<void> {
    const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
    const privateKey = (await systemExec.run('wg', ['genkey'])).trim();
    const publicKey = (await systemExec.run('wg', ['pubkey'], { stdin: privateKey })).trim();
    const identity = await exportJWK(pair.privateKey);
    const stateKey = { kty: 'OKP', crv: 'Ed25519', x: identity.x };
    const node = {
      v: 1,
      publicKey,
      node: NODE,
      region: 'fra',
      lineage: 1,
      endpoint: '192.0.2.2:51820',
      stateKey,
      broker: { url: 'mqtt://127.0.0.1:1883' },
      config: CONFIG,
    };
    await writeDurably(join(directory, 'node.json'), JSON.stringify(node));
    await writeDurably(join(directory, 'identity.jwk'), JSON.stringify(identity));
    await writeDurably(join(directory, 'wireguard.key'), `${privateKey}\n`);
    secrets = [privateKey, String(identity.d)];
  }

  async function holds(rows: ReturnType<typeof peers>, generation = 1): Promise<void> {
    const disk = ledgerFiles(directory);
    const ledger = await openLedger(disk, NODE, QUIET);
    const verdict = receive(
      { held: ledger.held, enrolledLineage: 1 as Lineage, staging: null },
      whole(1, generation, rows),
    );
    if (verdict.kind !== 'accept') throw new Error('not accepted');
    ledger.accept(verdict.change);
    await ledger.flush();
    await disk.close();
  }

  const shown = async () =>
    (await host.exec.run('wg', ['show', 'wg0', 'allowed-ips'])).trim().split('\n').sort();
  const wanted = (rows: ReturnType<typeof peers>) =>
    rows.map(({ publicKey, ipv4, ipv6 }) => `${publicKey}\t${ipv4}/32 ${ipv6}/128`).sort();

  beforeAll(async () => {
    host = await namespace();
    directory = mkdtempSync(join(tmpdir(), 'katafract-main-'));
    // Bundled, since many starts through a loader take long.
    const outfile = join(directory, 'main.mjs');
    await build({
      entryPoints: [MAIN],
      outfile,
      bundle: true,
      platform: 'node',
      format: 'esm',
      banner: { js: REQUIRE },
    });
    await enrolled();
    await holds(peers(2, 30));
  });
  afterAll(async () => {
    for (const secret of secrets) expect(said).not.toContain(secret);
    for (const row of peers(2, 30)) {
      expect(said).not.toContain(row.publicKey);
      expect(said).not.toContain(`${row.ipv4}/`);
    }
    await host.close();
    rmSync(directory, { recursive: true });
  });

  test('looks without touching', async () => {
    const status = await agent('status', '--json');
    expect(status.status).toBe(3);
    expect(JSON.parse(status.output)).toMatchObject({
      holds: { generation: 1, peers: 29 },
      observes: { tunnel: false, uplink4: 'eth0', uplink6: null },
      differs: { peersToSet: 29, peersToRemove: 0 },
    });
    expect((await agent('plan')).output).toContain('create');
    expect(await host.exec.run('iptables-save', [])).not.toContain('KATAFRACT');
  });

  describe('after one pass', () => {
    beforeEach(async () => {
      expect((await agent('run', '--once')).status).toBe(0);
    });

    test('the host is as it was held, and a second pass has nothing to do', async () => {
      expect(await shown()).toEqual(wanted(peers(2, 30)));
      expect((await agent('plan')).output).toBe('nothing to do\n');
      const status = await agent('status');
      expect(status).toMatchObject({ status: 0, output: expect.stringContaining('29 peers') });
      const address = await host.exec.run('ip', ['-br', 'address', 'show', 'dev', 'wg0']);
      expect(address).toContain('10.64.0.1/10 fd4b:6174:6166::1/64');
      expect(
        await host.exec.run('sysctl', ['-n', 'net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding']),
      ).toBe('1\n1\n');
    });

    test('whatever was changed by hand is put right, and the interface is not made anew', async () => {
      const index = await host.exec.run('sh', ['-c', 'ip -o link show dev wg0 | cut -d: -f1']);
      const [, lost, changed] = peers(2, 30);
      const rogue = peer(500);
      for (const command of [
        `wg set wg0 peer ${lost?.publicKey} remove`,
        `wg set wg0 peer ${changed?.publicKey} allowed-ips 10.64.9.9/32`,
        `wg set wg0 peer ${rogue.publicKey} allowed-ips ${peer(10).ipv4}/32`,
        'wg set wg0 listen-port 4000',
        'iptables -F KATAFRACT-FORWARD',
        'ip6tables -t nat -D POSTROUTING 1',
        'ip address delete 10.64.0.1/10 dev wg0',
        'ip address add 10.1.1.1/24 dev wg0',
        'ip link set wg0 mtu 1300',
        'ip -6 route delete fd4b:6174:6166::/64 dev wg0',
        'sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.wg0.send_redirects=1',
      ]) {
        await host.exec.run('sh', ['-c', command]);
      }
      expect((await agent('status')).status).toBe(3);
      expect((await agent('run', '--once')).status).toBe(0);
      expect((await agent('plan')).output).toBe('nothing to do\n');
      expect(await shown()).toEqual(wanted(peers(2, 30)));
      expect(await host.exec.run('sh', ['-c', 'ip -o link show dev wg0 | cut -d: -f1'])).toBe(index);
    });

    test('is proved row by row, and says what each missing one would allow', async () => {
      const proved = await agent('verify');
      expect(proved).toMatchObject({ status: 0, output: expect.stringMatching(/all \d+ hold\n$/) });
      for (const command of [
        'iptables -t mangle -D KATAFRACT-FORWARD -d 169.254.0.0/16 -i wg+ -j DROP',
        'ip6tables -I KATAFRACT-FORWARD -j ACCEPT',
        'iptables -I FORWARD -j ACCEPT',
        'ip6tables -P FORWARD ACCEPT',
        'sysctl -qw net.ipv4.conf.wg0.rp_filter=0',
      ]) {
        await host.exec.run('sh', ['-c', command]);
      }
      const { status, output } = await agent('verify');
      expect(status).toBe(3);
      const failing = output.split('\n').filter((line) => line.startsWith('FAIL'));
      expect(failing.map((line) => line.replace(/ +/g, ' '))).toEqual([
        'FAIL private-destinations IPv4 mangle FORWARD: -d 169.254.0.0/16 -i wg+ -j DROP',
        'FAIL jump IPv4 filter FORWARD: -j KATAFRACT-FORWARD, once and before everything else',
        'FAIL chain IPv6 filter FORWARD: these rules and no others, in this order',
        'FAIL forward-policy IPv6 filter FORWARD: policy DROP',
        'FAIL forged-source-4 IPv4 net/ipv4/conf/wg0/rp_filter = 1',
      ]);
      expect(output).toContain("without: a client reaches the operator's private networks");
      expect(output).toContain('found:   -j ACCEPT');
      const found = JSON.parse((await agent('verify', '--json')).output) as { holds: boolean }[];
      expect(found.filter(({ holds }) => !holds)).toHaveLength(5);
      // looking is not repairing
      expect((await agent('verify')).status).toBe(3);
    });

    test('a lost interface comes back with everything on it', async () => {
      await host.exec.run('sh', [
        '-c',
        'ip link delete wg0; while pgrep -x wireguard-go; do sleep 0.1; done',
      ]);
      expect((await agent('run', '--once')).status).toBe(0);
      expect(await shown()).toEqual(wanted(peers(2, 30)));
      expect((await agent('status')).status).toBe(0);
    });

    test('a held state that cannot be read takes no peer away', async () => {
      const file = join(directory, 'held.snapshot');
      const text = readFileSync(file, 'utf8');
      writeFileSync(file, text.replace('10.64.0.2', '10.64.0.3'));
      const pass = await agent('run', '--once');
      writeFileSync(file, text);
      expect(pass.output).toContain('snapshot_corrupt');
      expect(await shown()).toEqual(wanted(peers(2, 30)));
    });
  });

  test('runs once a tunnel, and leaves it as it is when it is stopped', async () => {
    const [program = '', ...args] = host.within([
      process.execPath,
      join(directory, 'main.mjs'),
      'run',
      '--state-dir',
      directory,
    ]);
    const running = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    const ended = once(running, 'exit');
    await new Promise<void>((resolve) => {
      running.stdout.setEncoding('utf8').on('data', (text: string) => {
        said += text;
        if (text.includes('connection to the broker failed')) resolve(); // nobody listens: it tries again
      });
    });
    expect((await agent('run', '--once')).output).toContain('already_running');
    const inside = (await host.exec.run('pgrep', ['-f', '^[^ ]*node .* run --state-dir'])).trim();
    await host.exec.run('kill', ['-TERM', inside]);
    expect((await ended)[0]).toBe(0);
    expect(await shown()).toEqual(wanted(peers(2, 30)));
    expect((await agent('status')).status).toBe(0);
  });

  test('refuses a tunnel name that its rules would not cover, and a machine that is no node', async () => {
    expect((await agent('run', '--once', '--interface', 'tun0')).output).toContain('interface_invalid');
    const node = readFileSync(join(directory, 'node.json'), 'utf8');
    rmSync(join(directory, 'node.json'));
    const unknown = await agent('run', '--once');
    writeFileSync(join(directory, 'node.json'), node);
    expect(unknown).toMatchObject({ status: 1, output: expect.stringContaining('not_enrolled') });
  });
});
