/**
 * The agent's side of the DNS filter against AdGuard Home's stand-in, over loopback: whatever can be wrong with it is
 * seen, says what it would allow, and is put right over its API; and no wrong password is tried until we are locked out.
 * (With the file, the service and the tunnels around it: test/boot.test.ts.)
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checksOf } from '@katafract/agent/haven/checks';
import { haven, havenRequest, type SocketsPort } from '@katafract/agent/haven/haven';
import { adguardConfig } from '@katafract/agent/helper/adguard';
import { adguard, type HavenSecret, havenSecret } from '@katafract/agent/host/adguard';
import { resolver, sockets } from '@katafract/agent/host/dns';
import type { HavenPort } from '@katafract/agent/ports';
import { NodeConfig } from '@katafract/shared/desired';
import { KatafractError } from '@katafract/shared/errors';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Program } from '../lab/process.ts';
import { waitFor } from '../lab/wait.ts';
import { VirtualClock } from '../model/virtual-clock.ts';
import { freePort } from '../ports.ts';

const STAND_IN = fileURLToPath(new URL('../haven/adguard.ts', import.meta.url));
const quiet = { info: () => undefined, warn: () => undefined, error: () => undefined };

const config = NodeConfig.parse({
  listenPort: 51820,
  mtu: 1420,
  // whoever asks over loopback comes from inside
  gateway4: '127.77.0.1/8',
  gateway6: '::1/128',
  haven: {
    upstreams: ['https://dns.example/dns-query', 'tls://dns.example'],
    bootstrap: ['192.0.2.53'],
    blocklists: [{ name: 'ads', url: 'https://lists.example/ads.txt' }],
    rules: ['||ads.example^'],
    queriesPerSecond: 100,
    statistics: false,
    probe: 'probe.example',
  },
});

let folder: string;
let port: number;
let secret: HavenSecret;
let program: Program | undefined;
let clock: VirtualClock;
/** Of the API: what was asked for. */
let asked: string[];
let filter: HavenPort;

const send: typeof fetch = (url, init) => {
  asked.push(`${init?.method} ${new URL(String(url)).pathname.replace('/control', '')}`);
  return fetch(String(url).replace(':3053/', `:${port}/`), init);
};

/** The stand-in on the file as the helper writes it, with changes. */
async function start(change: (file: ReturnType<typeof wanted>) => object = (file) => file): Promise<void> {
  await program?.stop();
  writeFileSync(join(folder, 'AdGuardHome.yaml'), JSON.stringify(change(wanted())));
  const flags = ['--config', join(folder, 'AdGuardHome.yaml'), '--work-dir', folder];
  program = new Program(
    process.execPath,
    ['--import', 'tsx', STAND_IN, ...flags],
    join(folder, 'adguard.log'),
    {
      cwd: fileURLToPath(new URL('../..', import.meta.url)),
    },
  );
  const running = program;
  await waitFor('the stand-in', async () => {
    if (!running.running) throw new Error(running.log.tail());
    return fetch(`http://127.0.0.1:${port}/control/status`).then(
      () => true,
      () => false,
    );
  });
}

function wanted() {
  const request = havenRequest(config, secret.hash);
  if (!request) throw new Error('a filter is wanted');
  const file = adguardConfig(request);
  return { ...file, http: { ...file.http, address: `127.0.0.1:${port}` } };
}

/** As an operator who is logged in, or somebody with his password. */
const api = adguardOf(() => secret.password);
function adguardOf(password: () => string) {
  return {
    read: (path: string) => adguard(password(), send).read(path),
    call: (...call: Parameters<ReturnType<typeof adguard>['call']>) =>
      adguard(password(), send).call(...call),
  };
}
const put = (path: string, body?: object) => api.call({ method: 'PUT', path, ...(body ? { body } : {}) });
const post = (path: string, body?: object) => api.call({ method: 'POST', path, ...(body ? { body } : {}) });

const look = async (of = filter) => {
  const view = await of.look(config);
  if (!view) throw new Error('a filter is wanted');
  return { ...view, wrong: view.findings.filter(({ holds }) => !holds).map(({ id }) => id) };
};
const portOf = (password: string, bound: SocketsPort = sockets) =>
  haven({ adguard: adguard(password, send), resolver, sockets: bound, clock, log: quiet }, secret.hash);

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'katafract-haven-'));
  port = await freePort();
  secret = await havenSecret(folder, null);
  await start();
});
afterAll(async () => {
  await program?.stop();
  rmSync(folder, { recursive: true });
});
beforeEach(() => {
  clock = new VirtualClock(0);
  asked = [];
  filter = portOf(secret.password);
});

it('finds the filter that the helper has written to be as it is wanted', async () => {
  expect(await look()).toMatchObject({ state: 'ok', known: true, wrong: [], counts: null });
});

describe('what somebody does to it', () => {
  const hours = (n: number) => n * 3_600_000;
  const log = { enabled: true, interval: hours(24), anonymize_client_ip: false, ignored: [] };
  /** Name, how, which check must see it, and whether clients are in danger until it is put right. */
  const drifts: readonly [string, () => Promise<void>, string, 'unsafe' | 'failed'][] = [
    ['keeps a query log', () => put('/querylog/config/update', log), 'query-log', 'unsafe'],
    [
      'shows addresses of clients',
      () => put('/querylog/config/update', { ...log, enabled: false }),
      'query-log',
      'failed',
    ],
    [
      'counts names',
      () => put('/stats/config/update', { enabled: true, interval: hours(24), ignored: [] }),
      'statistics',
      'unsafe',
    ],
    [
      'knows a device',
      () => post('/clients/add', { name: 'phone', ids: ['10.64.0.9'] }),
      'clients',
      'unsafe',
    ],
    [
      'asks another resolver',
      () => post('/dns_config', { upstream_dns: ['8.8.8.8'] }),
      'resolving',
      'unsafe',
    ],
    [
      'falls back on one in the clear',
      () => post('/dns_config', { fallback_dns: ['9.9.9.9'] }),
      'resolving',
      'unsafe',
    ],
    [
      'tells whose question it is',
      () => post('/dns_config', { edns_cs_enabled: true }),
      'resolving',
      'unsafe',
    ],
    ['answers without end', () => post('/dns_config', { ratelimit: 0 }), 'resolving', 'failed'],
    [
      'counts a net as one client',
      () => post('/dns_config', { ratelimit_subnet_len_ipv4: 24 }),
      'resolving',
      'failed',
    ],
    ['believes forged answers', () => post('/dns_config', { dnssec_enabled: false }), 'resolving', 'failed'],
    ['asks AdGuard about names', () => post('/safebrowsing/enable'), 'safebrowsing', 'unsafe'],
    ['asks AdGuard about names again', () => post('/parental/enable'), 'parental', 'unsafe'],
    ['filters nothing', () => post('/protection', { enabled: false, duration: 0 }), 'binding', 'failed'],
    [
      'answers everybody',
      () => post('/access/set', { allowed_clients: [], disallowed_clients: [], blocked_hosts: [] }),
      'access',
      'failed',
    ],
    ['has no rules', () => post('/filtering/set_rules', { rules: [] }), 'filters', 'failed'],
    [
      'has a list too many',
      () => post('/filtering/add_url', { name: 'x', url: 'https://x.example/', whitelist: false }),
      'filters',
      'failed',
    ],
    [
      'lets a list through',
      () => post('/filtering/add_url', { name: 'x', url: 'https://x.example/', whitelist: true }),
      'filters',
      'failed',
    ],
    [
      'misses a list',
      () => post('/filtering/remove_url', { url: 'https://lists.example/ads.txt', whitelist: false }),
      'filters',
      'failed',
    ],
    [
      'ignores a list',
      () =>
        post('/filtering/set_url', {
          url: 'https://lists.example/ads.txt',
          whitelist: false,
          data: { name: 'ads', url: 'https://lists.example/ads.txt', enabled: false },
        }),
      'filters',
      'failed',
    ],
    [
      'is switched off',
      () => post('/filtering/config', { enabled: false, interval: 24 }),
      'filters',
      'failed',
    ],
  ];

  it.each(drifts)('it %s: seen, and put right', async (_, drift, id, state) => {
    await drift();
    const view = await look();
    expect(view).toMatchObject({ state, known: true });
    expect(view.wrong).toEqual([id]);
    expect(view.findings.find((finding) => finding.id === id)?.attack).toMatch(/\w+ \w+/);
    expect(await view.settle()).toBe(1);
    expect(await look()).toMatchObject({ state: 'ok', wrong: [] });
  });

  it('is tried for every check that the API can put right', () => {
    const request = havenRequest(config, secret.hash);
    const ids = request ? checksOf(request).map(({ id }) => id) : [];
    expect(new Set(drifts.map(([, , id]) => id))).toEqual(new Set(ids));
  });

  it('is gone from its disk with the query log', async () => {
    await put('/querylog/config/update', log);
    await resolver.ask('127.77.0.1', 'canary.example');
    const path = join(wanted().querylog.dir_path, 'querylog.json');
    expect(readFileSync(path, 'utf8')).toContain('canary.example');
    await (await look()).settle();
    expect(existsSync(path)).toBe(false);
  });
});

describe('what only its file can put right', () => {
  it('is another address that it answers on', async () => {
    await start((file) => ({ ...file, dns: { ...file.dns, bind_hosts: ['127.77.0.1'] } }));
    const view = await look();
    expect(view).toMatchObject({ state: 'unsafe', known: true });
    expect(view.wrong).toEqual(['binding', 'answers']);
    expect(await view.settle()).toBe(0);
  });

  it('is that it answers the internet, which the kernel shows also where it cannot be asked', async () => {
    for (const address of ['0.0.0.0', '203.0.113.7', '::', '2001:db8::7']) {
      const open = portOf('wrong', { boundTo: async () => ['10.64.0.1', address] });
      expect((await look(open)).wrong).toContain('exposed');
      expect(await look(open)).toMatchObject({ state: 'unsafe', known: true });
    }
    const inside = ['10.64.0.1', '127.0.0.53', '100.64.0.7', '::1', 'fd00::1', 'fe80::1'];
    expect((await look(portOf(secret.password, { boundTo: async () => inside }))).wrong).not.toContain(
      'exposed',
    );
  });

  it('is an upstream that is away: clients get no names, and nothing leaks', async () => {
    await start();
    writeFileSync(join(folder, 'upstream'), 'down');
    const view = await look();
    expect(view).toMatchObject({ state: 'failed', known: true });
    expect(view.wrong).toEqual(['answers']);
    rmSync(join(folder, 'upstream'));
  });
});

describe('a password that is not the right one', () => {
  it('is tried once and then not for a while, so that nobody is locked out', async () => {
    const filter = portOf('wrong');
    for (let looks = 0; looks < 10; looks++) {
      expect(await look(filter)).toMatchObject({ state: 'failed', known: false });
    }
    expect(asked).toEqual(['GET /querylog/config']);
    await clock.advance(20_000);
    await look(filter);
    expect(asked).toHaveLength(2);
    expect((await look()).state).toBe('ok');
  });

  it('locks the address out after five tries, and then even the right one is refused until a new start', async () => {
    const login = (password: string) =>
      adguard(password, send)
        .read('/status')
        .then(
          () => 'in',
          (error: unknown) => (error instanceof KatafractError ? error.code : error),
        );
    for (let tries = 0; tries < 5; tries++) expect(await login(`wrong-${tries}`)).toBe('adguard_login');
    expect(await login(secret.password)).toBe('adguard_login');
    await start();
    expect(await login(secret.password)).toBe('in');
  });
});

describe('its answers', () => {
  it.each([
    ['text where something is missing', 'PUT', '/querylog/config/update', {}, /: 422 enabled is null$/],
    ['text where there is no such thing', 'POST', '/nothing', {}, /: 404 404 page not found$/],
  ] as const)('%s', async (_, method, path, body, message) => {
    await expect(api.call({ method, path, body })).rejects.toMatchObject({
      code: 'adguard_refused',
      message: expect.stringMatching(message) as string,
    });
  });

  it.each([
    ['a body that is not said to be JSON', { body: '{}', headers: {} }],
    ['an empty body that is', { headers: { 'content-type': 'application/json' } }],
  ])('415 for %s, which ours never is', async (_, request) => {
    const authorization = `Basic ${Buffer.from(`katafract:${secret.password}`).toString('base64')}`;
    const headers = { authorization, ...request.headers };
    const url = `http://127.0.0.1:${port}/control/filtering/config`;
    expect((await fetch(url, { method: 'POST', ...request, headers })).status).toBe(415);
  });

  it('none at all', async () => {
    await program?.stop();
    await expect(api.read('/status')).rejects.toMatchObject({ code: 'adguard_away' });
    expect(await look()).toMatchObject({ state: 'failed', known: false });
    await start();
  });

  it('with a count of queries, where one is wanted, and nothing else of them', async () => {
    const counting = NodeConfig.parse({ ...config, haven: { ...config.haven, statistics: true } });
    await (await filter.look(counting))?.settle();
    await resolver.ask('127.77.0.1', 'ads.example');
    const view = await filter.look(counting);
    expect(view?.state).toBe('ok');
    expect(view?.counts?.blocked).toBe(1);
    expect(view?.counts?.queries).toBeGreaterThan(1);
    await (await look()).settle();
  });
});
