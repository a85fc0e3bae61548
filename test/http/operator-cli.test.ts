/** The operators' command against a whole controller: what it asks for, shows, and ends with. */
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as bodies from '@katafract/cli/bodies';
import { run } from '@katafract/cli/program';
import { JoinToken } from '@katafract/shared/enroll';
import { RegisteredKey } from '@katafract/shared/operator-command';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { freePort } from '../ports.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

const database = useDatabase();
const exits = new Map<string, FakeExit>();
/** Everything that any command of this file wrote. */
const written: string[] = [];
let controller: TestController;
let folder: string;
let env: Record<string, string>;

beforeAll(async () => {
  const port = await freePort();
  controller = await startController(database.url, {
    // a port that is known beforehand, since operators are told of it
    env: {
      KATAFRACT_MOVE_GRACE_SECONDS: '0',
      KATAFRACT_MQTT_LISTEN: `127.0.0.1:${port}`,
      KATAFRACT_AGENT_DEB_URL: 'https://packages.test/agent.deb',
      KATAFRACT_AGENT_DEB_SHA256: '0'.repeat(64),
    },
  });
  folder = await mkdtemp(join(tmpdir(), 'katafract-cli-'));
  const tokenFile = join(folder, 'token');
  await writeFile(tokenFile, `${controller.operatorToken}\n`, { mode: 0o600 });
  env = { KATAFRACT_URL: controller.url, KATAFRACT_OPERATOR_TOKEN_FILE: tokenFile };
  await controller.addRegion('fra');
  for (const node of ['fra-1', 'fra-2'])
    exits.set(node, await startExit(controller, { node, region: 'fra' }));
  await waitFor('the exits', () =>
    [...exits.values()].every(({ node }) => controller.ctx.fleet.roster.node(node).state === 'active'),
  );
});
afterAll(async () => {
  for (const exit of exits.values()) await exit.leave();
  await controller.close();
  await rm(folder, { recursive: true });
});

async function katafract(
  argv: readonly string[],
  overrides: Record<string, string | undefined> = {},
): Promise<Ended> {
  const [out, err]: [string[], string[]] = [[], []];
  const code = await run(argv, {
    env: { ...env, ...overrides },
    home: folder,
    clock: {
      now: () => Date.now(),
      after(ms, task) {
        const timer = setTimeout(task, ms);
        return () => clearTimeout(timer);
      },
    },
    out: (text) => void out.push(text),
    err: (text) => void err.push(text),
    live: null,
  });
  written.push(...out, ...err);
  return { code, out: out.join('\n'), err: err.join('\n') };
}
/** A command in words, which must succeed. */
async function does(line: string): Promise<Ended> {
  const ended = await katafract(line.split(' '));
  if (ended.code !== 0) throw new Error(`katafract ${line}: ${ended.code} ${ended.err}`);
  return ended;
}
/** The same for machines, its output read by a schema. */
async function tells<T>(line: string, schema: { parse(value: unknown): T }): Promise<T> {
  return schema.parse(JSON.parse((await does(`${line} --json`)).out));
}
const fails = async (line: string) => {
  const { code, err } = await katafract(line.split(' '));
  return [code, /\((\w+)\)$/m.exec(err)?.[1] ?? err];
};
const words = (line: string | undefined) => line?.trim().split(/ {2,}/);

describe('nodes', () => {
  it('are listed and shown', async () => {
    await waitFor('their reports', async () => (await does('nodes')).out.match(/ago$/gm)?.length === 2);
    const { out } = await does('nodes');
    const lines = out.split('\n');
    expect(words(lines[0])).toEqual([
      'NODE',
      'REGION',
      'STATE',
      'WHY',
      'PEERS',
      'CAPACITY',
      'BEHIND',
      'VERSION',
      'SEEN',
    ]);
    expect(words(lines[1])).toEqual([
      'fra-1',
      'fra',
      'active',
      '-',
      '0',
      '10000',
      '0',
      '0.1.0',
      expect.stringContaining('ago'),
    ]);
    const { items } = await tells('nodes', bodies.list(bodies.Node));
    expect(items.map(({ id }) => id)).toEqual(['fra-1', 'fra-2']);
    expect((await does('node fra-1')).out).toMatch(/^peers +0 of 10000$/m);
    expect(JSON.parse((await does('node fra-1 --json')).out)).toMatchObject({
      node: { id: 'fra-1' },
      drain: null,
    });
    expect(await fails('node nowhere')).toEqual([1, 'node_unknown']);
  });

  it('are cordoned and let go on', async () => {
    expect((await does('cordon fra-1')).out).toBe('fra-1 is cordoned');
    expect(controller.ctx.fleet.roster.node(exits.get('fra-1')?.node ?? expect.fail()).state).toBe(
      'cordoned',
    );
    expect((await tells('uncordon fra-1', bodies.Node)).lifecycle).toBe('active');
  });

  it('are drained while one looks on, halted, gone on with, and retired', async () => {
    const exit = await startExit(controller, { node: 'fra-3', region: 'fra' });
    exits.set('fra-3', exit);
    await waitFor('the exit', () => controller.ctx.fleet.roster.node(exit.node).state === 'active');
    for (const node of ['fra-1', 'fra-2']) await does(`cordon ${node}`);
    const { sigil } = await controller.mint('free');
    expect((await controller.provision(sigil, newKey(), 'fra')).status).toBe(201);
    for (const node of ['fra-1', 'fra-2']) await does(`uncordon ${node}`);
    expect(await fails('retire fra-3')).toEqual([1, 'node_has_peers']);
    expect(await fails('drain fra-3 --pause')).toEqual([1, 'drain_unknown']);
    // the others say nothing, so it may not let go
    for (const node of ['fra-1', 'fra-2']) exits.get(node)?.pause();
    const late = await katafract('drain fra-3 --deadline 2h --wait 1s'.split(' '));
    expect(late.code).toBe(3);
    expect(late.err).toMatch(/^fra-3: running: \d of 1 peers moved[\s\S]*not reached within 1 s/);
    expect((await tells('drain fra-3 --pause', bodies.Drain)).state).toBe('paused');
    expect((await does('drain fra-3 --resume')).out).toMatch(/^fra-3: running: /);
    const deadline = new Date(Date.now() + 3_600_000).toISOString();
    for (const node of ['fra-1', 'fra-2']) exits.get(node)?.resume();
    const done = await tells(`drain fra-3 --deadline ${deadline} --wait`, bodies.Drain);
    expect(done).toMatchObject({ state: 'done', moved: 1, total: 1, deadline });
    expect(await fails('drain fra-3 --cancel')).toEqual([1, 'drain_over']);
    expect((await does('retire fra-3')).out).toBe('fra-3 is retired');
    expect((await does('node fra-3')).out).toMatch(/^drain +done: 1 of 1 peers moved$/m);
  });

  it('join by a token that is shown once, alone on standard output', async () => {
    const { out, err } = await does('join-token fra-9 --region fra --endpoint 192.0.2.9:51820 --expires 30m');
    expect(JoinToken.safeParse(out).success).toBe(true);
    expect(err).toBe('good once, ends in 30 min');
    expect(await fails('join-token fra-1 --region fra')).toEqual([1, 'node_exists']);
  });
});

describe('the operator’s key', () => {
  it('is made, registered, used over the broker, and revoked', async () => {
    expect(await fails('drain fra-2 --mqtt')).toEqual([2, 'key_unreadable']);
    const { out } = await does('key make');
    const path = join(folder, '.config/katafract/operator-key.json');
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    const { d } = JSON.parse(await readFile(path, 'utf8')).privateJwk;
    expect(await fails('key make')).toEqual([2, 'key_exists']);
    expect(await fails('drain fra-2 --mqtt')).toEqual([2, 'key_not_registered']);
    const registered = await tells('key register eve', RegisteredKey);
    expect(out).toContain(registered.thumbprint);
    expect((await stat(path)).mode & 0o777).toBe(0o600);

    const drained = await tells('drain fra-2 --mqtt --wait', bodies.Drain);
    expect(drained).toMatchObject({ state: 'done', wantedBy: 'eve' });
    // again, and not taken for the one before
    await does('uncordon fra-2');
    expect((await does('drain fra-2 --mqtt --deadline 1h')).out).toMatch(
      /^the broker has it: drain fra-2 \(command /,
    );
    await waitFor(
      'another drain',
      async () => (await tells('drain fra-2 --mqtt --wait', bodies.Drain)).state === 'done',
    );
    await does('uncordon fra-2');

    expect(words((await does('key list')).out.split('\n')[1])?.slice(0, 2)).toEqual([
      'eve',
      registered.thumbprint,
    ]);
    await does('key revoke eve');
    expect(await fails('drain fra-2 --mqtt')).toEqual([1, 'broker_refused']);
    const actors = await tells(
      'audit --subject node:fra-2 --action drain.started',
      bodies.pageOf(bodies.AuditEntry).partial(),
    );
    expect(new Set(actors.items?.map(({ actor }) => actor))).toEqual(new Set(['operator:eve']));
    expect(written.join('\n')).not.toContain(d);
  });

  it('is refused where others could read it, or it is none', async () => {
    const path = join(folder, 'key.json');
    await katafract(['key', 'make'], { KATAFRACT_OPERATOR_KEY_FILE: path });
    const text = await readFile(path, 'utf8');
    for (const [content, mode, code] of [
      [text, 0o644, 'key_file_open'],
      [text.slice(0, 90), 0o600, 'key_malformed'],
    ] as const) {
      await rm(path);
      await writeFile(path, content, { mode });
      const { code: exit, err } = await katafract(['key', 'register', 'bob'], {
        KATAFRACT_OPERATOR_KEY_FILE: path,
      });
      expect([exit, err]).toEqual([2, expect.stringContaining(code)]);
      expect(err).not.toContain(JSON.parse(text).privateJwk.d);
    }
  });
});

describe('regions and machines', () => {
  it('are set up, changed and listed', async () => {
    expect(await fails('region set ams --name Amsterdam')).toEqual([1, 'region_unknown']);
    const argv = 'region set ams --name Amsterdam --country NL --latitude 52.4 --longitude 4.9 --min-exits 1';
    expect((await does(argv)).out).toBe('ams is set');
    expect(await fails('region set ams --exit-capacity 10')).toEqual([2, 'options_missing']);
    expect(await fails('region set ams --grow manual')).toEqual([2, 'options_missing']);
    await does(
      'region set ams --grow manual --exit-capacity 1000 --max-exits 3 --tunnels 2 --time-zone Europe/Amsterdam',
    );
    const ams = async () =>
      (await tells('regions', bodies.list(bodies.Region))).items.find(({ id }) => id === 'ams');
    expect(await ams()).toMatchObject({ minExits: 1, timeZone: 'Europe/Amsterdam', growth: { maxExits: 3 } });
    expect((await ams())?.growth?.tunnels).toBe(2);
    expect((await does('regions')).out).toMatch(/^ams +Amsterdam +NL +Europe\/Amsterdam +1 +- +- +manual/m);
    await does('region set ams --no-grow --min-exits 0');
    expect(await ams()).toMatchObject({ minExits: 0, growth: null });
    expect(await fails('region set ams --time-zone Mars/Olympus')).toEqual([1, 'bad_request']);
  });

  it('filter DNS, and answer SSH to the mesh alone, where that is wanted', async () => {
    const file = join(folder, 'haven.json');
    const blocklists = [{ name: 'Ads', url: 'https://lists.example/ads.txt' }];
    const haven = { upstreams: ['https://dns.example/dns-query'], bootstrap: ['9.9.9.9'], blocklists };
    const fra = async () =>
      (await controller.operate<{ items: { id: string }[] }>('GET', '/v1/admin/regions')).items.find(
        ({ id }) => id === 'fra',
      );
    expect(await fails(`region set fra --haven ${file}`)).toEqual([2, 'haven_unreadable']);
    await writeFile(file, 'upstreams: https://dns.example/dns-query');
    expect(await fails(`region set fra --haven ${file}`)).toEqual([2, 'haven_malformed']);
    await writeFile(file, JSON.stringify({ ...haven, upstreams: ['9.9.9.9'] }));
    expect(await fails(`region set fra --haven ${file}`)).toEqual([1, 'bad_request']);
    await writeFile(file, JSON.stringify(haven));
    await does(`region set fra --haven ${file} --ssh-from-mesh`);
    expect(await fra()).toMatchObject({ haven: { ...haven, statistics: false }, sshFromMesh: true });
    expect((await does('regions')).out).toMatch(/^fra .* lists: 1 +mesh/m);
    // what is not said stays
    await does('region set fra --min-exits 0');
    expect(await fra()).toMatchObject({ haven, sshFromMesh: true });
    await does('region set fra --no-haven --no-ssh-from-mesh');
    expect(await fra()).toMatchObject({ haven: null, sshFromMesh: false });
  });

  it('say what they need', async () => {
    const { items } = await tells('capacity', bodies.list(bodies.Capacity));
    expect(items.map(({ region }) => region)).toContain('fra');
    expect((await does('capacity')).out).toMatch(/^fra +2 +0 +/m);
    expect((await does('capacity --explain')).out).toContain(items[0]?.explained);
  });

  it('are ordered, prepared by a person, and given back', async () => {
    const machine = await tells('machines order fra', bodies.Machine);
    expect(machine).toMatchObject({ region: 'fra', provider: 'manual' });
    expect((await does('machines --open')).out).toContain(machine.id);
    const { out: document } = await does(`machines cloud-init ${machine.id}`);
    expect(document).toMatch(/^#cloud-config\n[\s\S]*kfj1_/);
    expect((await does(`machines remove ${machine.id}`)).out).toContain(machine.id);
    expect(await fails(`machines remove ${crypto.randomUUID()}`)).toEqual([1, 'machine_unknown']);
    const late = await katafract('replace fra-2 --wait 1s --json'.split(' '));
    expect(late.code).toBe(3);
    expect(late.err).toContain('takes the place of fra-2');
    const { id, replaces } = bodies.Machine.parse(JSON.parse(late.out));
    expect(replaces).toBe('fra-2');
    await does(`machines remove ${id}`);
  });
});

describe('upkeep', () => {
  it('rolls a release out, halts it, goes on, and takes it back', async () => {
    expect(await fails('rollout status')).toEqual([1, 'rollout_unknown']);
    expect(await fails('rollout start latest')).toEqual([1, 'bad_request']);
    const started = await tells('rollout start 9.9.9 --soak 1m --timeout 1h', bodies.Rollout);
    expect(started).toMatchObject({ version: '9.9.9', state: 'running' });
    expect((await does('rollout status --nodes')).out).toMatch(/^version +9\.9\.9$[\s\S]*^fra-1 +1|^NODE/m);
    expect((await tells('rollout status', bodies.Rollout)).nodes?.length).toBeGreaterThan(0);
    expect((await tells('rollout pause --wait', bodies.Rollout)).state).toBe('paused');
    expect((await does('rollout resume')).out).toMatch(/^9\.9\.9: running, wave 1 of/);
    expect(await fails('rollout start 9.9.8')).toEqual([1, expect.stringMatching(/^rollout_/)]);
    expect((await tells(`rollout cancel ${started.id} --wait`, bodies.Rollout)).state).toBe('cancelled');
    expect(await fails('rollout rollback')).toEqual([1, expect.stringMatching(/^rollout_/)]);
  });

  it('has nodes rebooted, or not after all', async () => {
    const wanted = await tells('reboot fra-1', bodies.Reboot);
    expect(wanted).toMatchObject({ node: 'fra-1', wantedBy: expect.stringContaining('bootstrap') });
    expect((await does('reboots')).out).toContain(wanted.id);
    const { code, out } = await katafract(['reboots', 'cancel', wanted.id, '--json']);
    if (code === 0) expect(bodies.Reboot.parse(JSON.parse(out)).state).toBe('cancelled'); // else it is night there
    expect((await tells('reboots', bodies.Reboots)).items.map(({ id }) => id)).toContain(wanted.id);
    expect(await fails(`reboots clear ${crypto.randomUUID()}`)).toEqual([1, 'reboot_unknown']);
  });
});

describe('accounts', () => {
  it('get Sigils, which are shown alone, and revoked', async () => {
    const { out, err } = await does('sigil mint --tier pro --expires 30d');
    expect(out.split('.')).toHaveLength(3);
    const [, id = ''] = /^sigil (\S+) of subscription/.exec(err) ?? [];
    expect((await does(`sigil revoke ${id}`)).out).toBe(`${id} is revoked`);
    expect((await controller.call('GET', '/v1/sigil', { token: out })).code).toBe('sigil_revoked');
  });

  it('are looked up, and what was done to them is undone', async () => {
    const { sigil } = await tells('sigil mint --tier free --expires 1d', bodies.SigilMinted);
    const { body } = await controller.provision(sigil, newKey(), 'fra');
    const { out } = await does(`audit --subject peer:${body.id}`);
    const [entry = ''] = words(out.split('\n')[1]) ?? [];
    expect((await tells(`rollback ${entry}`, bodies.RolledBack)).entry).toBe(Number(entry));
    expect((await controller.call('GET', `/v1/peers/${body.id}`, { token: sigil })).code).toBe(
      'peer_unknown',
    );
    expect(await fails(`rollback ${entry}`)).toEqual([1, 'already_rolled_back']);
    // more than one page, and no more than asked for
    const { items = [] } = await tells('audit --limit 3', bodies.pageOf(bodies.AuditEntry).partial());
    expect(items).toHaveLength(3);
    const all = await tells('audit --limit 150', bodies.pageOf(bodies.AuditEntry).partial());
    const ids = all.items?.map(({ id }) => id) ?? [];
    expect(ids).toEqual([...new Set(ids)].toSorted((a, b) => b - a));
  });
});

describe('what goes wrong', () => {
  it('ends with the same codes always', async () => {
    for (const line of [
      '',
      'nonsense',
      'drain',
      'drain x',
      'drain fra-1 --pause --cancel',
      'nodes --token secret',
    ])
      expect((await katafract(line === '' ? [] : line.split(' '))).code, line).toBe(2);
    const noToken = { KATAFRACT_OPERATOR_TOKEN_FILE: undefined };
    expect(await katafract(['nodes'], noToken)).toMatchObject({ code: 2, out: '' });
    expect(
      await katafract(['nodes'], { ...noToken, KATAFRACT_OPERATOR_TOKEN: controller.operatorToken }),
    ).toMatchObject({
      code: 0,
    });
    expect(await katafract(['nodes'], { KATAFRACT_OPERATOR_TOKEN_FILE: '/nowhere' })).toMatchObject({
      code: 2,
    });
    expect(await katafract(['nodes'], { KATAFRACT_URL: 'ftp://x' })).toMatchObject({ code: 2 });
    expect((await katafract(['nodes'], { KATAFRACT_URL: 'http://127.0.0.1:1' })).err).toMatch(
      /\(unreachable\)$/,
    );
    const wrong = { ...noToken, KATAFRACT_OPERATOR_TOKEN: 'kfo1_of-another-place' };
    const { code, err } = await katafract(['nodes', '--json'], wrong);
    expect([code, JSON.parse(err)]).toEqual([
      1,
      expect.objectContaining({ code: 'unauthorized', status: 401 }),
    ]);
    expect(err).not.toContain('kfo1_');
  });

  it('is named field by field, and explained by --help', async () => {
    const { err } = await katafract('region set ams --latitude 95 --country nl'.split(' '));
    expect(err).toMatch(/\(bad_request\)\n {2}json\.country: .*\n {2}json\.latitude: /);
    for (const line of ['--help', 'drain --help', 'rollout start --help', 'help machines']) {
      const { code, out } = await katafract(line.split(' '));
      expect([code, out], line).toEqual([0, expect.stringContaining('Usage: katafract')]);
    }
    expect((await katafract(['--help'])).out).toMatchSnapshot();
  });

  it('cannot steer the terminal, nor be taken for an answer', async () => {
    const serve = async (body: string, type: string): Promise<Server> => {
      const server = createServer((_, response) => response.setHeader('content-type', type).end(body));
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      return server;
    };
    const node = (await controller.operate<{ items: object[] }>('GET', '/v1/admin/nodes')).items[0];
    const evil = { ...node, agentVersion: '1\u001b[2J\u202e\n0' };
    for (const [body, type, expected] of [
      [JSON.stringify({ items: [evil] }), 'application/json', [0, expect.stringMatching(/ 1\[2J0 /)]],
      ['<html>', 'text/html', [1, '']],
      ['{"items":[{}]}', 'application/json', [1, '']],
    ] as const) {
      const server = await serve(body, type);
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const { code, out } = await katafract(['nodes'], { KATAFRACT_URL: url });
      expect([code, out]).toEqual(expected);
      server.closeAllConnections();
      server.close();
    }
  });

  it('never says the operator’s token', () => {
    expect(written.length).toBeGreaterThan(50);
    expect(written.join('\n')).not.toContain(controller.operatorToken);
  });
});
