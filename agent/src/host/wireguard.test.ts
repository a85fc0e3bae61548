import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { allowedIps } from '@katafract/shared/digest';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { peer, peers } from '../testing/messages.ts';
import { systemExec } from './exec.ts';
import { type Namespace, namespace } from './testing/namespace.ts';
import { wireguard } from './wireguard.ts';

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
