import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Namespace, namespace } from './testing/namespace.ts';

/** By its path: the host's working directory is not ours. */
const TSX = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
const WATCHER = fileURLToPath(new URL('testing/watcher.ts', import.meta.url));

describe.skipIf(process.getuid?.() !== 0)('a change by somebody else', () => {
  let host: Namespace;
  beforeAll(async () => {
    host = await namespace();
  });
  afterAll(() => host.close());

  test.each([
    ['of the IPv4 rules', 'iptables -I FORWARD -j ACCEPT'],
    ['of the IPv6 rules', 'ip6tables -t mangle -N FOREIGN'],
    ['of a policy', 'iptables -P FORWARD DROP'],
    ['of a route', 'ip route add 198.51.100.0/24 via 192.0.2.1'],
    ['of an address', 'ip address add 192.0.2.9/24 dev eth0'],
  ])('%s is heard of at once', async (_, command) => {
    const [program = '', ...args] = host.within([process.execPath, '--import', TSX, WATCHER]);
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    let said = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    const ended = once(child, 'exit');
    const gone = ended.then(() => Promise.reject(new Error('the watcher ended')));
    gone.catch(() => undefined);
    const says = async (word: string) => {
      while (!said.includes(word)) await Promise.race([once(child.stdout, 'data'), gone]);
    };
    await says('ready');
    // the sources take a moment until they listen: the change is made again until one of it was heard
    const undo = command.replace(/-I FORWARD|add /, (word) => (word === 'add ' ? 'delete ' : '-D FORWARD'));
    const again = setInterval(() => {
      void host.exec.run('sh', ['-c', `{ ${undo}; ${command}; } 2>/dev/null || true`]);
    }, 200);
    await host.exec.run('sh', ['-c', command]);
    await says('changed');
    clearInterval(again);
    expect(said).not.toContain('why');
    await host.exec.run('pkill', ['-KILL', '-f', 'watcher[.]ts']);
    await ended;
    // what it listened by ends with it
    const left = async () => (await host.exec.run('sh', ['-c', 'pgrep -f "[m]onitor" || true'])).trim();
    for (let asked = 0; asked < 100 && (await left()) !== ''; asked++)
      await new Promise((resolve) => setTimeout(resolve, 20));
    expect(await left()).toBe('');
  });
});
