import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { allowedIps } from '@katafract/shared/digest';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { peer, peers } from '../testing/messages.ts';
import { systemExec } from './exec.ts';
import { type Namespace, namespace } from './testing/namespace.ts';
import { peerTable, wireguard } from './wireguard.ts';

describe.skipIf(process.getuid?.() !== 0)('wg on a real interface', () => {
  let host: Namespace;
  let directory = '';
  let keyFile = '';
  // A name for each test: a wireguard-go that loses its interface needs a moment to let go of the name.
  let number = 0;
  const port = () => wireguard(host.exec, `wg${number}`, keyFile);

  beforeAll(async () => {
    host = await namespace();
    directory = mkdtempSync(join(tmpdir(), 'katafract-wg-'));
    keyFile = join(directory, 'wireguard.key');
    writeFileSync(keyFile, await systemExec.run('wg', ['genkey']), { mode: 0o600 });
  });
  afterAll(async () => {
    await host.close();
    rmSync(directory, { recursive: true });
  });
  beforeEach(() => {
    number++;
    return port().create();
  });

  const table = async () => {
    const rows = new Map<string, string>();
    const tunnel = await port().dump((key, allowed, handshake) => {
      expect(handshake).toBe(0);
      rows.set(key, allowed);
    });
    return { tunnel, rows };
  };

  test('the key and the port are set, and read back', async () => {
    await port().setPrivateKey();
    await port().setListenPort(51821);
    const publicKey = (await systemExec.run('sh', ['-c', `wg pubkey < ${keyFile}`])).trim();
    expect((await table()).tunnel).toEqual({ publicKey, listenPort: 51821 });
  });

  test('a table of many commands and many chunks of output comes back as it was set', async () => {
    const many = peers(2, 4700);
    await port().set({ remove: [], set: many });
    const { rows } = await table();
    expect(rows).toEqual(new Map(many.map((row) => [row.publicKey, allowedIps(row)])));
  });

  test('of several interfaces each has its own peers, and one that is elsewhere is seen, and moved', async () => {
    // peer(n) has the address of that number: even ones are of the first, odd ones of the second
    const first = port();
    number++;
    const second = port();
    await second.create();
    const both = peerTable([first, second], (ipv4) => Number(ipv4.split('.')[3]) % 2);
    const rows = async () => {
      const seen: string[] = [];
      const name = new Map([2, 3, 4].map((at) => [peer(at).publicKey as string, at]));
      await both.dump((key, allowed) =>
        seen.push(`${name.get(key)} ${allowed.split(' ').slice(1).join(' ')}`),
      );
      return seen.map((row) => row.trim()).sort();
    };
    await both.set({ remove: [], set: [peer(2), peer(3)] });
    expect(await rows()).toEqual(['2', '3']);
    await first.set({ remove: [], set: [peer(3)] });
    await second.set({ remove: [], set: [peer(4)] });
    expect(await rows()).toEqual(['2', '3', '3 on interface 0', '4 on interface 1']);
    await both.set({ remove: [], set: [peer(3), peer(4)] });
    expect(await rows()).toEqual(['2', '3', '4']);
    // a key that comes back with an address of the other
    await both.set({ remove: [], set: [peer(2, 5)] });
    expect((await table()).rows.has(peer(2).publicKey)).toBe(true);
    expect((await both.dump(() => undefined)).every((tunnel) => tunnel !== null)).toBe(true);
    await both.set({ remove: [2, 3, 4].map((at) => peer(at).publicKey), set: [] });
    expect(await rows()).toEqual([]);
    const missing = peerTable([first, wireguard(host.exec, 'wg-none', keyFile)], () => 0);
    await expect(missing.set({ remove: [peer(2).publicKey], set: [] })).rejects.toMatchObject({
      code: 'tunnel_missing',
    });
    expect((await missing.dump(() => undefined)).map((tunnel) => tunnel === null)).toEqual([false, true]);
  });

  test('one batch removes before it sets: an address passes from one key to another', async () => {
    await port().set({ remove: [], set: [peer(2), peer(3)] });
    await port().set({ remove: [peer(2).publicKey, peer(77).publicKey], set: [peer(4, 2), peer(3, 9)] });
    const { rows } = await table();
    expect([...rows].sort()).toEqual(
      [peer(3, 9), peer(4, 2)].map((row) => [row.publicKey, allowedIps(row)]).sort(),
    );
  });

  test('two keys swap their addresses in one batch', async () => {
    await port().set({ remove: [], set: [peer(2), peer(3)] });
    await port().set({ remove: [], set: [peer(2, 3), peer(3, 2)] });
    const { rows } = await table();
    expect(rows.get(peer(2).publicKey)).toBe(allowedIps(peer(2, 3)));
    expect(rows.get(peer(3).publicKey)).toBe(allowedIps(peer(3, 2)));
  });

  test('a missing interface is null to look at and a code to write to', async () => {
    await host.exec.run('ip', ['link', 'delete', `wg${number}`]);
    expect((await table()).tunnel).toBeNull();
    await expect(port().set({ remove: [], set: [peer(2)] })).rejects.toMatchObject({
      code: 'tunnel_missing',
    });
  });

  test('an error tells the command, not all of it', async () => {
    const wrong = { ...peer(2), publicKey: 'x' as ReturnType<typeof peer>['publicKey'] };
    const failing = port().set({ remove: [], set: [wrong, ...peers(3, 500)] });
    await expect(failing).rejects.toMatchObject({ code: 'command_failed' });
    await failing.catch((error: Error) => expect(error.message.length).toBeLessThan(500));
  });
});
