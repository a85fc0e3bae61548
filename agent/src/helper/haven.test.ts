/** AdGuard Home's file and service, as the helper keeps them. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parse, stringify } from 'yaml';
import { HelperBed, FILTER as request } from '../testing/helper-bed.ts';
import { adguardConfig, CONFIG_PATH, differences } from './adguard.ts';

const START = 'systemctl start katafract-haven.service';
const STOP = 'systemctl stop katafract-haven.service';

let bed: HelperBed;
let running: boolean;
beforeEach(() => {
  bed = new HelperBed();
  running = false;
  bed.fails = (command) => {
    if (command === START) running = true;
    if (command === STOP) running = false;
    return command.includes('is-active') && !running;
  };
});
afterEach(() => bed.close());

const file = () => parse(bed.read(CONFIG_PATH) ?? 'null') as unknown;
async function setUp(): Promise<void> {
  bed.leave('haven', request);
  await bed.help();
  bed.commands = [];
}
const changes = () => bed.commands.filter((command) => command === START || command === STOP);

describe('a filter that is wanted', () => {
  it('is written for its owner alone, and started', async () => {
    await setUp();
    expect(bed.resultOf('haven')).toMatchObject({ outcome: 'done' });
    expect(file()).toEqual(adguardConfig(request));
    expect(bed.mode(CONFIG_PATH)).toBe(0o600);
    expect(running).toBe(true);
  });

  it('is left alone by every pass while it is as it was written, and as AdGuard itself writes it back', async () => {
    await setUp();
    await bed.help();
    expect(changes()).toEqual([]);
    const more = { ...(file() as object), language: 'en', schema_version: 35 };
    bed.write(CONFIG_PATH, stringify(more));
    await bed.help();
    expect(changes()).toEqual([]);
  });

  it('is written anew while AdGuard is stopped, whatever somebody made of its file', async () => {
    const config = adguardConfig(request);
    const others: readonly [string, string][] = [
      ['its addresses', stringify({ ...config, dns: { ...config.dns, bind_hosts: ['0.0.0.0'] } })],
      ['its log', stringify({ ...config, querylog: { ...config.querylog, enabled: true } })],
      ['one user more', stringify({ ...config, users: [...config.users, { name: 'x', password: 'y' }] })],
      ['a device', stringify({ ...config, clients: { ...config.clients, persistent: [{ name: 'x' }] } })],
      ['no YAML', '{{{'],
      ['many aliases', `a: &a [x]\nb: [${'*a,'.repeat(2000)}*a]`],
      ['nothing', ''],
    ];
    for (const [what, text] of others) {
      await setUp();
      bed.write(CONFIG_PATH, text);
      await bed.help();
      expect(changes(), what).toEqual([STOP, START]);
      expect(file(), what).toEqual(config);
    }
  });

  it('is started where it does not run, without touching its file', async () => {
    await setUp();
    running = false;
    await bed.help();
    expect(running).toBe(true);
    expect(file()).toEqual(adguardConfig(request));
  });

  it('is as it was before where AdGuard does not start with what is wanted now', async () => {
    await setUp();
    const before = bed.read(CONFIG_PATH);
    let starts = 0;
    bed.fails = (command) => command === START && starts++ === 0;
    bed.leave('haven', { ...request, settings: { ...request.settings, upstreams: ['tls://other.example'] } });
    await bed.help();
    expect(bed.resultOf('haven')).toMatchObject({ outcome: 'failed', code: 'haven_refused' });
    expect(bed.read(CONFIG_PATH)).toBe(before);
    expect(changes().at(-1)).toBe(START);
  });

  it('says so where there is no AdGuard Home', async () => {
    bed.fails = (command) => command.startsWith('test ') || command.includes('is-active');
    await setUp();
    expect(bed.resultOf('haven')).toMatchObject({ outcome: 'failed', code: 'haven_missing' });
    expect(bed.read(CONFIG_PATH)).toBeNull();
  });

  it('is stopped and gone with its file when it is not wanted any more', async () => {
    await setUp();
    bed.leave('haven', { off: true });
    await bed.help();
    expect(bed.resultOf('haven')).toMatchObject({ outcome: 'done' });
    expect([running, bed.read(CONFIG_PATH)]).toEqual([false, null]);
    bed.commands = [];
    await bed.help();
    expect(bed.commands).toEqual([]);
  });
});

it.each([
  ['an address that the internet knows', { gateway4: '203.0.113.7' }],
  ['every address', { gateway4: '0.0.0.0' }],
  ['every address', { gateway6: '::' }],
  ['a global address', { gateway6: '2001:db8::1' }],
  ['everybody as a client', { pool4: '0.0.0.0/0' }],
  ['no password', { password: '' }],
  ['a password that is none', { password: 'katafract' }],
  ['a resolver in the clear', { settings: { ...request.settings, upstreams: ['9.9.9.9'] } }],
  ['no resolver', { settings: { ...request.settings, upstreams: [] } }],
  [
    'a list that is a file',
    { settings: { ...request.settings, blocklists: [{ name: 'x', url: 'file:///etc/shadow' }] } },
  ],
  ['a rule of two lines', { settings: { ...request.settings, rules: ['a\nb'] } }],
  ['a log', { querylog: true }],
])('%s is refused', async (_, change) => {
  bed.leave('haven', { ...request, ...change });
  await bed.help();
  expect(bed.resultOf('haven')).toMatchObject({ outcome: 'failed', code: 'request_refused' });
  expect(bed.commands).toEqual([]);
  expect(bed.files()).toEqual([]);
});

it('says of a file what is not as it is wanted, by its path', () => {
  const config = adguardConfig(request);
  expect(differences(config, config)).toEqual([]);
  expect(differences(config, null)).toEqual(['']);
  const other = { ...config, dns: { ...config.dns, port: 5353, upstream_dns: ['https://other.example'] } };
  expect(differences(config, other)).toEqual(['dns.port', 'dns.upstream_dns.0']);
  expect(differences(config, { ...config, users: [] })).toEqual(['users']);
});
