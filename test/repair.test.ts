/**
 * What somebody changes on an exit by hand is put right within a heartbeat, and counted: in the kernel's peer table, in
 * the firewall, at the interface. Tunnels that were not touched do not notice.
 */
import { HEARTBEAT_SECONDS } from '@katafract/shared/uplink';
import { beforeAll, expect, test } from 'vitest';
import { useDatabase } from './database.ts';
import { type Device, makeKeys } from './lab/device.ts';
import type { Exit } from './lab/exit.ts';
import { INTERNET } from './lab/network.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';

const database = useDatabase();
const fleet = useLab(() => ({
  exits: [{ name: 'fra-1', region: 'fra' }],
  devices: 1,
  database: database.url,
}));
/** One heartbeat is due within this, jitter included; the rest is for a slow machine. */
const deadlineMs = HEARTBEAT_SECONDS * 1000 * 3;

let exit: Exit;
let device: Device;
/** Keys of peers without a device; the table as it should be. */
let spare: string[];
let table: string;
let rules: string;

const tableText = async () =>
  (await exit.peers())
    .map((row) => `${row.publicKey} ${row.allowedIps}`)
    .sort()
    .join('\n');
const repairs = () => exit.metric('katafract_agent_repairs_total');

beforeAll(async () => {
  const { lab } = fleet;
  exit = lab.exit('fra-1');
  const [first] = lab.devices;
  if (!first) throw new Error('no device');
  device = first;
  const sigil = await lab.mintSigil('pro');
  await lab.connectDevice(device, sigil, 'fra');
  spare = [makeKeys().publicKey, makeKeys().publicKey, makeKeys().publicKey];
  for (const key of spare) await lab.provision(sigil, key, 'fra');
  await waitFor('four peers', async () => (await exit.peers()).length === 4);
  table = await tableText();
  rules = await exit.firewall();
});

/**
 * Does something to the exit by hand, and waits until `asBefore` holds again and the repairs are counted. The count is
 * what says that something had changed at all: the agent may be done before anybody can look.
 */
async function repaired(tamper: () => Promise<void>, asBefore: () => Promise<boolean>, atLeast: number) {
  const before = await repairs();
  await tamper();
  await waitFor('the repair', asBefore, { deadlineMs });
  await waitFor('the repair to be counted', async () => (await repairs()) >= before + atLeast, {
    deadlineMs,
  });
}

test('peers added, removed, widened and robbed of their addresses: the table is as it was, others lose nothing', async () => {
  const [removed = '', widened = '', robbed = ''] = spare;
  const addresses =
    table
      .split('\n')
      .find((row) => row.startsWith(robbed))
      ?.split(' ')[1] ?? '';
  const rogues = [makeKeys().publicKey, makeKeys().publicKey] as const;
  const ping = await device.startPing('10.64.0.1', 100);
  const tamper = async () => {
    await exit.wgSet('peer', rogues[0], 'allowed-ips', '10.64.9.9/32');
    await exit.wgSet('peer', removed, 'remove');
    await exit.wgSet('peer', widened, 'allowed-ips', '0.0.0.0/0');
    await exit.wgSet('peer', rogues[1], 'allowed-ips', addresses);
  };
  await repaired(tamper, async () => (await tableText()) === table, 5);
  expect((await ping.stop()).lost).toEqual([]);
});

/**
 * Each tool in one transaction. Command by command, the agent, woken by the first, would mend while the next is at it;
 * and iptables deletes a rule by the handle that it has just read, which a mended rule no longer has.
 */
test.each<[string, Record<'iptables-restore' | 'ip6tables-restore', string[]>]>([
  [
    'emptied chains, a foreign rule inside, a jump taken out',
    {
      'iptables-restore': ['*filter', '-F KATAFRACT-FORWARD', '-D INPUT -j KATAFRACT-INPUT', 'COMMIT'],
      'ip6tables-restore': [
        ...['*filter', '-F KATAFRACT-INPUT', '-I KATAFRACT-FORWARD -j ACCEPT', 'COMMIT'],
        ...['*nat', '-F KATAFRACT-POSTROUTING', 'COMMIT'],
      ],
    },
  ],
  [
    'everything flushed',
    {
      'iptables-restore': ['*filter', '-F', 'COMMIT', '*nat', '-F', 'COMMIT'],
      'ip6tables-restore': ['*filter', '-F', 'COMMIT', '*nat', '-F', 'COMMIT'],
    },
  ],
])('the firewall with %s is as it was', async (_, lines) => {
  const tamper = async () => {
    for (const [tool, text] of Object.entries(lines))
      await exit.exec(tool, ['--noflush'], { input: `${text.join('\n')}\n` });
  };
  await repaired(tamper, async () => (await exit.firewall()) === rules, 1);
});

test("the tunnel's interface, deleted, comes back with address, key and peers; others' rules stay behind ours", async () => {
  const foreign = '-A FORWARD -i wg0 -j ACCEPT\n';
  const jump = '-A FORWARD -j KATAFRACT-FORWARD\n';
  const tamper = async () => {
    await exit.exec('iptables', ['-I', 'FORWARD', '-i', 'wg0', '-j', 'ACCEPT']);
    await exit.exec('sysctl', ['-qw', 'net.ipv4.ip_forward=0']);
    await exit.exec('ip', ['link', 'del', exit.tunnel]);
  };
  const forwards = async () => (await exit.exec('sysctl', ['-n', 'net.ipv4.ip_forward'])).trim() === '1';
  const asBefore = async () =>
    (await tableText()) === table &&
    (await exit.firewall()).includes(`${jump}${foreign}`) &&
    (await forwards());
  await repaired(tamper, asBefore, 3);
  await waitFor('the device to get through', () => device.httpGet(`http://${INTERNET.ipv4}/`), {
    deadlineMs,
  });
  await exit.exec('iptables', ['-D', 'FORWARD', '-i', 'wg0', '-j', 'ACCEPT']);
  expect(await exit.firewall()).toBe(rules);
});

test('the controller hears of the repairs in the heartbeat', async () => {
  const counted = await repairs();
  await waitFor(
    'a heartbeat that says so',
    async () => {
      const { items } = await fleet.lab.controller.operate<{
        items: { health: { repairs: number } | null }[];
      }>('GET', '/v1/admin/nodes');
      return (items[0]?.health?.repairs ?? 0) >= counted;
    },
    { deadlineMs },
  );
});
