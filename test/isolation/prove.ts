/**
 * Every row of the table of an exit, in one family, with real packets of real WireGuard clients: with the whole table
 * each promise holds; with one single rule, policy or setting taken out, a promise that leans on it does not. One test
 * file a family, since the two can run side by side.
 */
import { TABLE, type Table } from '@katafract/agent/plan/table';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { waitFor } from '../lab/wait.ts';
import { FOREIGN_ACCEPT, PLAIN_NAT, POOL_NAT, shakesHandsDespiteShadow } from './attempts.ts';
import { Bed, type Enforcement, FAMILIES, type Family, GATEWAY, tool, WEB } from './bed.ts';
import { mutations } from './mutations.ts';
import { SCENARIOS, type Scenario } from './scenarios.ts';

export const scenariosOf = (family: Family) =>
  SCENARIOS.filter(({ families = FAMILIES }) => families.includes(family));

/** A table without some of its rows. */
function without(table: Table, ids: readonly string[]): Table {
  const kept = <Row extends { id: string }>(rows: readonly Row[]) =>
    rows.filter(({ id }) => !ids.includes(id));
  return { ...table, rules: kept(table.rules), settings: kept(table.settings) };
}

/** The four that stop Port Shadow, each alone. */
const SHADOW_ROWS = [
  'wireguard-untracked-in',
  'wireguard-untracked-out',
  'wireguard-port-as-source',
  'translate',
];
const but = (...ids: string[]) => SHADOW_ROWS.filter((id) => !ids.includes(id));
const SHADOW_DEFENCES: readonly (readonly [string, boolean, readonly string[], Enforcement])[] = [
  ['nothing', false, SHADOW_ROWS, { foreign: PLAIN_NAT }],
  ['ports of their own', true, SHADOW_ROWS, { foreign: POOL_NAT('--to-ports 10000-49999') }],
  ['random ports', true, SHADOW_ROWS, { foreign: POOL_NAT('--random-fully') }],
  ['the drop by source port', true, but('wireguard-port-as-source'), { foreign: PLAIN_NAT }],
  [
    'a tunnel that is not tracked',
    true,
    but('wireguard-untracked-in', 'wireguard-untracked-out'),
    { foreign: PLAIN_NAT },
  ],
];

export function prove(family: Family): void {
  let bed: Bed;
  beforeAll(async () => {
    bed = await Bed.make();
  });
  afterAll(() => bed.close());

  async function holds(table: Table, { given = {}, holds: held }: Scenario): Promise<boolean> {
    await bed.enforce(without(table, given.without ?? []), given);
    return held(bed, family);
  }

  describe(`IPv${family}, with the whole table`, () => {
    for (const scenario of scenariosOf(family)) {
      test(scenario.id, async () => {
        expect(await holds(TABLE, scenario)).toBe(true);
      });
    }
  });

  describe(`IPv${family}, a promise breaks without`, () => {
    const all = mutations(TABLE, family, Bed.contexts(family), Bed.settingContext);
    for (const { row, spares, what, table } of all) {
      const proofs = scenariosOf(family).filter(({ proves }) => proves.includes(row));
      test(spares ? `(none, it only spares time) ${what}` : what, async () => {
        let broken = false;
        for (const scenario of proofs) broken ||= !(await holds(table, scenario));
        expect(proofs.length, `nothing is tried for ${row}`).toBeGreaterThan(0);
        expect(broken).toBe(!spares);
      });
    }
  });

  describe(`IPv${family}, Port Shadow`, () => {
    test.each(SHADOW_DEFENCES)('against %s: the victim gets its tunnel: %s', async (_, safe, ids, given) => {
      await bed.enforce(without(TABLE, ids), given);
      expect(await shakesHandsDespiteShadow(bed, family)).toBe(safe);
    });

    test('with all of them the exit answers 100 of 100', async () => {
      await bed.enforce(TABLE);
      expect(await shakesHandsDespiteShadow(bed, family)).toBe(true);
      const ping = await bed.bob.device.startPing(GATEWAY[family], 10);
      for (const give of [1, 2, 3, 4, 5]) await shadowAgain(bed, family, give);
      await waitFor('100 answers', () => ping.received() >= 100);
      expect((await ping.stop()).lost).toEqual([]);
    });
  });

  test(`IPv${family}, what was opened while somebody had flushed the rules ends when they are back`, async () => {
    const { alice, bob } = bed;
    const any = family === 4 ? '0.0.0.0' : '::';
    const service = await bob.device.listen({ port: 7400, address: any, reply: 'echo' });
    await bed.enforce({ rules: [], policies: [], settings: [], forwarding: TABLE.forwarding });
    const connection = await alice.device.hold(bob.address[family], 7400);
    expect(await connection.say('before')).toBe('before');
    await bed.enforce(TABLE, { keep: true });
    expect(await connection.say('after')).toBeNull();
    await service.close();
  });

  test(`IPv${family}, what other rules let through meets these when they come`, async () => {
    const { alice, inet } = bed;
    const target = family === 4 ? '10.200.0.1' : 'fd99::1';
    await inet.exec('ip', ['address', 'add', `${target}/${family === 4 ? 32 : 128}`, 'dev', 'lo']);
    const service = await inet.listen({ port: 7401, address: target, reply: 'echo' });
    await bed.enforce(without(TABLE, ['private-destinations']));
    const connection = await alice.device.hold(target, 7401);
    for (const word of ['one', 'two']) expect(await connection.say(word)).toBe(word);
    expect(await checkedPackets(bed, family)).toBeGreaterThan(0);
    await bed.enforce(TABLE, { keep: true });
    expect(await connection.say('three')).toBeNull();
    await service.close();
    await inet.exec('ip', ['address', 'delete', `${target}/${family === 4 ? 32 : 128}`, 'dev', 'lo']);
  });

  test(`IPv${family}, what was let through by the uplink does not go by another way when routes change`, async () => {
    const { alice, artemis, exit } = bed;
    await bed.enforce(TABLE, { foreign: FOREIGN_ACCEPT });
    const connection = await alice.device.hold(WEB[family], 7);
    for (const word of ['one', 'two']) expect(await connection.say(word)).toBe(word);
    expect(await checkedPackets(bed, family)).toBeGreaterThan(0);
    const route = [WEB[family], 'via', bed.meshHost[family], 'dev', 'mesh0'];
    const arrived = await artemis.countPackets(['-p', 'tcp'], family);
    const asked = await exit.countPackets(['-i', 'wg0', '-p', 'tcp', '--dport', '7'], family);
    await exit.exec('ip', [`-${family}`, 'route', 'replace', ...route]);
    expect(await connection.say('three', 1500)).toBeNull();
    await exit.exec('ip', [`-${family}`, 'route', 'delete', ...route]);
    expect(await asked()).toBeGreaterThan(0);
    expect(await arrived()).toBe(0);
  });

  test(`IPv${family}, clients are dealt out over the exit's addresses, and keep theirs`, async () => {
    const second = family === 4 ? '203.0.113.200' : '2001:db8:113::200';
    await bed.exit.exec('ip', ['address', 'add', `${second}/${family === 4 ? 24 : 64}`, 'dev', 'eth0']);
    await bed.enforce(TABLE, { context: { exitAddresses: [bed.public[family], second] }, only: family });
    const worn = async (index: number) => {
      const client = bed.clients[index];
      const url = family === 4 ? `http://${WEB[4]}/` : `http://[${WEB[6]}]/`;
      const answers = new Set<string>();
      for (let asked = 0; asked < 5; asked++) answers.add((await client?.device.httpGet(url)) ?? '');
      return [...answers];
    };
    // addresses that end in 2, 3 and 4, of eight groups over two addresses
    expect([await worn(0), await worn(1), await worn(2)]).toEqual([
      [bed.public[family]],
      [second],
      [bed.public[family]],
    ]);
  });
}

/** Packets that the rules were spared, since their connection had passed them. */
async function checkedPackets(bed: Bed, family: Family): Promise<number> {
  const listing = await bed.exit.exec(tool(family), ['-w', '-t', 'mangle', '-vnxL', 'KATAFRACT-FORWARD']);
  const rows = listing.split('\n').filter((row) => /RETURN .*connmark/.test(row));
  return rows.reduce((sum, row) => sum + Number(row.trim().split(/\s+/)[0]), 0);
}

/** The attack once more, towards ports that the victim may use next. */
async function shadowAgain(bed: Bed, family: Family, give: number): Promise<void> {
  const { alice, bob } = bed;
  const ends = { source: alice.address[family], destination: bob.outside[family] };
  const port = { sourcePort: 51820, port: 41404 + give, interface: 'wg0' };
  await bed.forge(
    alice.device,
    { kind: 'udp', ...ends, ...port },
    { kind: 'udp', ...ends, ...port, port: 41404 },
  );
  await new Promise((resolve) => setTimeout(resolve, 150)); // the pings go on
}
