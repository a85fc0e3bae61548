/**
 * `wraith` against real WireGuard exits, between namespaces: what `up` makes works, and nothing of it stays after
 * `down`, wherever either was cut short.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { KatafractError } from '@katafract/shared/errors';
import { build } from 'esbuild';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type Client, createClient } from '../sdk.ts';
import { problem, SIGIL, startTestApi, type TestApi } from '../testing/api.ts';
import { FAR, inNamespace, makeTunnelLab, type TunnelLab, tellExits } from '../testing/tunnel-lab.ts';
import { down, forget, qr, status, type UpWish, up } from './commands.ts';
import { readDevice } from './device.ts';
import { hostPorts, locked } from './host.ts';
import type { Command, Exec, Ports } from './ports.ts';

const execute = promisify(execFile);

/** Changes the machine, in contrast to a look at it. */
function changes({ program, args }: Command): boolean {
  const words = [program, ...args].join(' ');
  return /^(?:ip .*\b(?:add|delete|set)\b|wireguard-go|wg setconf|sysctl -q|\S+-restore|resolvconf)/.test(
    words,
  );
}

class Killed extends Error {}

/** Dies right after its n-th change, and does nothing more, as a process killed there would. */
function dyingExec(exec: Exec, afterChanges: number): Exec {
  let left = afterChanges;
  return {
    async run(command) {
      if (left === 0) throw new Killed();
      const output = await exec.run(command);
      if (changes(command) && --left === 0) throw new Killed();
      return output;
    },
  };
}

describe.skipIf(process.getuid?.() !== 0)('wraith', () => {
  let lab: TunnelLab;
  let before: string;
  beforeAll(async () => {
    lab = await makeTunnelLab();
    before = await lab.state();
  });
  afterAll(() => lab?.destroy());

  describe('in this process', () => {
    let api: TestApi;
    let client: Client;
    let stateDir: string;
    let ports: Ports;
    let notes: string[];
    const commands: Command[] = [];
    let wish: UpWish;

    beforeAll(async () => {
      api = await startTestApi({ exits: lab.exits, onPeer: tellExits(lab.interfaces) });
      client = createClient({ baseUrl: api.url, sigil: SIGIL, retry: { attempts: 1 } });
    });
    afterAll(() => api?.close());
    beforeEach(async () => {
      stateDir = await mkdtemp(join(tmpdir(), 'wraith-'));
      notes = [];
      const host = await hostPorts(stateDir);
      const recorded: Exec = {
        run: (command) => {
          commands.push(command);
          return inNamespace(lab.device, host.exec).run(command);
        },
      };
      ports = { ...host, exec: recorded, note: (line) => notes.push(line) };
      const nothing = { exit: undefined, mtu: undefined, dns: false, newKey: false };
      wish = { ...nothing, api: api.url, region: 'eu-de', interface: lab.tunnel };
    });
    afterEach(async () => {
      await down(ports);
      await rm(stateDir, { recursive: true });
      api.faults.length = 0;
      expect(await lab.state()).toBe(before);
    });

    it('carries IPv4 and IPv6 through the exit, leaves the local network alone, and leaves nothing behind', async () => {
      expect(await lab.reach(FAR.ipv4)).toEqual({ answers: true, by: 'up0' });
      const exit = await up(ports, client, wish);
      expect(exit.node).toBe('fra-1');
      expect(await lab.reach(FAR.ipv4)).toEqual({ answers: true, by: lab.tunnel });
      expect(await lab.reach(FAR.ipv6)).toEqual({ answers: true, by: lab.tunnel });
      expect(await lab.reach('192.0.2.1')).toEqual({ answers: true, by: 'up0' });
      expect(await lab.inside('ip', 'link', 'show', 'dev', lab.tunnel)).toContain('mtu 1420');
      const now = await status(ports);
      expect(now).toMatchObject({ state: 'up', exit: { node: 'fra-1' }, standbys: [{ node: 'ams-1' }] });
      expect(now.handshakeAgeMs).toBeLessThan(60_000);
      expect(now.rxBytes).toBeGreaterThan(0);
      expect(await down(ports)).toBe(true);
      expect(await lab.state()).toBe(before);
      expect(await lab.reach(FAR.ipv4)).toEqual({ answers: true, by: 'up0' });
      expect(await down(ports)).toBe(false);
    });

    it('answers at its tunnel address inside the tunnel only', async () => {
      await up(ports, client, wish);
      const { ipv4, ipv6 } = (await readDevice(ports.files))?.peer?.addresses ?? { ipv4: '', ipv6: '' };
      expect(await lab.answersBeside(ipv4)).toBe(false);
      expect(await lab.answersBeside(ipv6)).toBe(false);
      // It is the rule that does it.
      await lab.inside('iptables', '-t', 'raw', '-F');
      await lab.inside('ip6tables', '-t', 'raw', '-F');
      expect(await lab.answersBeside(ipv4)).toBe(true);
      expect(await lab.answersBeside(ipv6)).toBe(true);
      expect(await status(ports)).toMatchObject({ state: 'broken' });
    });

    it('switches exit, region and key in place: routes and rules are not touched', async () => {
      await up(ports, client, wish);
      const first = await readDevice(ports.files);
      const mark = commands.length;
      expect(await up(ports, client, wish)).toMatchObject({ node: 'fra-1' });
      expect(commands.slice(mark).filter(changes)).toEqual([]);
      expect(await up(ports, client, { ...wish, exit: 'ams-1' })).toMatchObject({ node: 'ams-1' });
      expect(await up(ports, client, { ...wish, region: 'eu-nl' })).toMatchObject({ node: 'ams-1' });
      expect(await up(ports, client, { ...wish, newKey: true })).toMatchObject({ node: 'fra-1' });
      const second = await readDevice(ports.files);
      expect(second?.peer?.id).toBe(first?.peer?.id);
      expect(second?.keys.publicKey).not.toBe(first?.keys.publicKey);
      expect(second?.nextKeys).toBeUndefined();
      expect(await lab.reach(FAR.ipv4)).toEqual({ answers: true, by: lab.tunnel });
      const made = commands.slice(mark).filter(changes);
      expect(new Set(made.map(({ program, args }) => `${program} ${args[0]}`))).toEqual(
        new Set(['wg setconf']),
      );
      await expect(up(ports, client, { ...wish, exit: 'lon-1' })).rejects.toMatchObject({
        code: 'exit_unknown',
      });
    });

    it('holds traffic back when the interface dies, until `up` or `down`', async () => {
      await up(ports, client, wish);
      await lab.inside('ip', 'link', 'delete', lab.tunnel);
      expect(await status(ports)).toMatchObject({ state: 'broken' });
      expect((await lab.reach(FAR.ipv4)).answers).toBe(false);
      expect((await lab.reach(FAR.ipv6)).answers).toBe(false);
      await up(ports, client, wish);
      expect(await lab.reach(FAR.ipv4)).toEqual({ answers: true, by: lab.tunnel });
      await lab.inside('ip', 'link', 'delete', lab.tunnel);
      await down(ports);
      expect(await lab.reach(FAR.ipv4)).toEqual({ answers: true, by: 'up0' });
    });

    it('killed after any change of `up` or of `down`: the next `down` leaves the machine as it was', async () => {
      const dying = (n: number): Ports => ({ ...ports, exec: dyingExec(ports.exec, n) });
      const killed = (task: Promise<unknown>) =>
        task.then(
          () => false,
          (error: unknown) => {
            if (error instanceof Killed) return true;
            throw error;
          },
        );
      let makes = 0;
      while (await killed(up(dying(makes + 1), client, wish))) {
        makes++;
        await down(ports);
        expect(await lab.state(), `up killed after change ${makes}`).toBe(before);
      }
      let undoes = 0;
      while (await killed(down(dying(undoes + 1)))) {
        undoes++;
        await down(ports);
        expect(await lab.state(), `down killed after change ${undoes}`).toBe(before);
        await up(ports, client, wish);
      }
      // Link, keys, 2 addresses, mtu, 4 routes, 4 firewall tables, mark check, 4 rules; all but 6 need undoing.
      expect({ makes, undoes }).toEqual({ makes: 18, undoes: 12 });
      await expect(up(dying(9), client, wish)).rejects.toThrow(Killed);
      await up(ports, client, wish);
      expect(await lab.reach(FAR.ipv4)).toEqual({ answers: true, by: lab.tunnel });
    });

    it('undoes by itself what it made before a step failed', async () => {
      const failing: Exec = {
        async run(command) {
          if (command.args.join(' ').startsWith('-6 rule add'))
            throw new KatafractError('command_failed', 'refused');
          return ports.exec.run(command);
        },
      };
      await expect(up({ ...ports, exec: failing }, client, wish)).rejects.toThrow('refused');
      expect(await lab.state()).toBe(before);
      expect(await status(ports)).toMatchObject({ state: 'down' });
    });

    it('does not touch an interface that is not its own, and takes a free table', async () => {
      await lab.inside('ip', 'link', 'add', lab.tunnel, 'type', 'veth');
      await expect(up(ports, client, wish)).rejects.toMatchObject({ code: 'interface_taken' });
      expect(await lab.inside('ip', '-o', 'link')).toContain(`: ${lab.tunnel}@`);
      await lab.inside('ip', 'link', 'delete', lab.tunnel);
      await lab.inside('ip', 'route', 'add', 'unreachable', '203.0.113.0/24', 'table', '51820');
      await up(ports, client, wish);
      expect(await lab.inside('ip', 'rule')).toContain('lookup 51821');
      expect(await lab.reach(FAR.ipv4)).toEqual({ answers: true, by: lab.tunnel });
      await down(ports);
      await lab.inside('ip', 'route', 'delete', 'unreachable', '203.0.113.0/24', 'table', '51820');
    });

    it('an answer that got lost, also across a crash, makes no second peer', async () => {
      const made = api.peers.size;
      api.faults.push(() => 'drop');
      await expect(up(ports, client, wish)).rejects.toMatchObject({ code: 'unreachable' });
      expect((await readDevice(ports.files))?.peer).toBeUndefined();
      expect(await up(ports, client, { ...wish, region: 'eu-nl' })).toMatchObject({ node: 'ams-1' });
      expect(api.peers.size).toBe(made + 1);
      // The same for a key: the API took it, the answer was lost.
      api.faults.push(
        () => undefined,
        () => 'drop',
      );
      const newKey = { ...wish, region: undefined, newKey: true };
      await expect(up(ports, client, newKey)).rejects.toMatchObject({ code: 'unreachable' });
      const { nextKeys, peer } = (await readDevice(ports.files)) ?? {};
      await up(ports, client, { ...wish, region: undefined });
      const settled = await readDevice(ports.files);
      expect(settled?.keys).toEqual(nextKeys);
      expect(settled?.peer?.id).toBe(peer?.id);
    });

    it('comes up without the API by the peer it has, and starts anew where the API lost it', async () => {
      await up(ports, client, wish);
      await down(ports);
      api.faults.push(() => problem(503, 'unavailable'));
      expect(await up(ports, client, { ...wish, region: undefined, exit: 'ams-1' })).toMatchObject({
        node: 'ams-1',
      });
      expect(notes.at(-1)).toContain('out of reach');
      api.faults.push(() => problem(503, 'unavailable'));
      await expect(up(ports, client, { ...wish, region: 'eu-nl' })).rejects.toMatchObject({
        code: 'unavailable',
      });
      const old = (await readDevice(ports.files))?.peer?.id ?? '';
      api.peers.delete(old);
      await up(ports, client, { ...wish, region: undefined });
      expect((await readDevice(ports.files))?.peer?.id).not.toBe(old);
      await down(ports);
      await forget(ports, client);
      expect(await readDevice(ports.files)).toBeNull();
      await expect(up(ports, client, { ...wish, region: undefined })).rejects.toMatchObject({
        code: 'region_missing',
      });
    });

    it('sets resolvers by resolvconf alone, and refuses --dns without it before anything changes', async () => {
      const bin = await mkdtemp(join(tmpdir(), 'wraith-bin-'));
      const path = process.env.PATH;
      try {
        const script = `#!/bin/sh\ncase $1 in -a) cat > ${bin}/$2.conf;; -d) rm ${bin}/$2.conf;; esac\n`;
        await writeFile(join(bin, 'resolvconf'), script);
        await chmod(join(bin, 'resolvconf'), 0o755);
        process.env.PATH = `${bin}:${path}`;
        await up(ports, client, { ...wish, dns: true });
        const written = await readFile(join(bin, `${lab.tunnel}.conf`), 'utf8');
        expect(written).toBe('nameserver 10.64.0.1\nnameserver fd6b:6174:6166::1\n');
        await down(ports);
        expect(await readdir(bin)).toEqual(['resolvconf']);
      } finally {
        process.env.PATH = path;
        await rm(bin, { recursive: true });
      }
      const installed = await lab.inside('sh', '-c', 'command -v resolvconf').catch(() => '');
      if (installed !== '') return;
      const dns = { ...wish, dns: true };
      await expect(up(ports, client, dns)).rejects.toMatchObject({ code: 'dns_unsupported' });
    });

    it('keeps state to itself: 0600 files in a 0700 directory, one wraith at a time', async () => {
      await up(ports, client, wish);
      await expect(qr(ports, client, wish, 'text')).rejects.toMatchObject({ code: 'device_in_use' });
      for (const name of await readdir(stateDir)) {
        expect((await stat(join(stateDir, name))).mode & 0o777, name).toBe(0o600);
      }
      await down(ports);
      expect(await readdir(stateDir)).toEqual(['device.json']);
      expect(await qr(ports, client, wish, 'text')).toContain('█');
      await locked(stateDir, async () => {
        await expect(locked(stateDir, async () => undefined)).rejects.toMatchObject({ code: 'busy' });
      });
      await locked(stateDir, async () => undefined);
      await chmod(stateDir, 0o755);
      await expect(hostPorts(stateDir)).rejects.toMatchObject({ code: 'state_dir_open' });
      await writeFile(join(stateDir, 'device.json'), '{"keys":{"privateKey":"SECRET"}}');
      const error = await status(ports).catch((caught: unknown) => caught);
      expect(error).toMatchObject({ code: 'state_invalid' });
      expect(String(error)).not.toContain('SECRET');
    });

    it('never had a secret in argv', async () => {
      const secrets = commands.flatMap(({ secret = '' }) => [...secret.matchAll(/^PrivateKey = (\S+)/gm)]);
      expect(secrets.length).toBeGreaterThan(10);
      const argv = commands.map(({ program, args }) => [program, ...args].join(' ')).join('\n');
      for (const [, key = ''] of secrets) expect(argv).not.toContain(key);
      expect(argv).not.toContain(SIGIL);
    });
  });

  it('as a command: up, status, regions, down, with the Sigil from a file or the environment', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'wraith-cli-'));
    const bundle = join(directory, 'wraith.mjs');
    const state = join(directory, 'state');
    await build({
      entryPoints: [new URL('./main.ts', import.meta.url).pathname],
      bundle: true,
      platform: 'node',
      format: 'esm',
      banner: {
        js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);",
      },
      outfile: bundle,
      logLevel: 'silent',
    });
    await writeFile(join(directory, 'sigil'), `${SIGIL}\n`, { mode: 0o600 });
    const server = await serve(lab);
    const wraith = (args: string[], env: Record<string, string> = {}) =>
      execute('ip', ['netns', 'exec', lab.device, process.execPath, bundle, '--state-dir', state, ...args], {
        env: { PATH: process.env.PATH, ...env },
      });
    try {
      await expect(wraith(['regions'])).rejects.toMatchObject({
        stderr: expect.stringContaining('(api_missing)'),
      });
      const WRAITH_API = server.url;
      const bare = wraith(['regions'], { WRAITH_API });
      await expect(bare).rejects.toMatchObject({
        code: 1,
        stderr: expect.stringContaining('(sigil_missing)'),
      });
      const apart = ['--state-dir', join(directory, 'apart')];
      const unclaimed = wraith([...apart, 'claim'], { WRAITH_API });
      await expect(unclaimed).rejects.toMatchObject({ stderr: expect.stringContaining('(secret_missing)') });
      const shown = await wraith([...apart, 'key']);
      expect(shown.stdout).toMatch(/^[A-Za-z0-9_-]{43}\n$/);
      expect((await wraith([...apart, 'key'])).stdout).toBe(shown.stdout);
      expect((await stat(join(directory, 'apart', 'sigil.json'))).mode & 0o777).toBe(0o600);
      const regions = await wraith(['regions'], { WRAITH_API, WRAITH_SIGIL: SIGIL });
      expect(regions.stdout).toMatch(/^eu-de .*1 exit$/m);
      await expect(wraith(['status'])).rejects.toMatchObject({ code: 3, stdout: 'down\n' });
      const file = ['--sigil-file', join(directory, 'sigil')];
      const options = ['--region', 'eu-de', '--interface', lab.tunnel];
      const raised = await wraith(['--api', server.url, 'up', ...options], { WRAITH_SIGIL: SIGIL });
      expect(raised.stderr).toBe('up through fra-1 (eu-de)\n');
      expect(await lab.reach(FAR.ipv6)).toEqual({ answers: true, by: lab.tunnel });
      expect((await wraith(['status'])).stdout).toMatch(
        /: up\n {2}exit {7}fra-1 .*\n {2}handshake {2}\d+ s ago\n/,
      );
      expect(JSON.parse((await wraith(['status', '--json'])).stdout)).toMatchObject({ state: 'up' });
      for (const environment of await environmentsOf(`wireguard-go ${lab.tunnel}`)) {
        expect(environment).not.toContain(SIGIL);
      }
      // The API's address is remembered.
      await wraith([...file, 'down', '--forget']);
      expect(await lab.state()).toBe(before);
      expect((await readdir(state)).sort()).toEqual([]);
    } finally {
      await wraith(['down']).catch(() => undefined);
      server.child.stdin?.end();
      await rm(directory, { recursive: true });
    }
  });
});

async function serve({
  device,
  exits,
  interfaces,
}: TunnelLab): Promise<{ url: string; child: ChildProcess }> {
  const script = new URL('../testing/serve.ts', import.meta.url).pathname;
  const tsx = import.meta.resolve('tsx');
  const argument = JSON.stringify({ exits, interfaces });
  const args = ['netns', 'exec', device, process.execPath, '--import', tsx, script, argument];
  const child = spawn('ip', args, { stdio: ['pipe', 'pipe', 'inherit'] });
  for await (const url of createInterface({ input: child.stdout })) return { url, child };
  throw new Error('the test API did not start');
}

/** Environments of the processes with this command line; none where the kernel has WireGuard. */
async function environmentsOf(commandLine: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    // A process may end while it is looked at.
    const words = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (words.replaceAll('\0', ' ').trim() !== commandLine) continue;
    found.push(await readFile(`/proc/${pid}/environ`, 'utf8'));
  }
  return found;
}
