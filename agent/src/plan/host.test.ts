import { describe, expect, test } from 'vitest';
import { hostPort } from '../apply/host.ts';
import { parseRoutes4, parseRoutes6, uplinkOf } from '../observe/routes.ts';
import type { NetworkPort, Tunnels } from '../ports.ts';
import { CONFIG } from '../testing/messages.ts';
import { DEFAULT_CHOICES, OPEN_GATES } from './context.ts';
import { type HostObservation, planHost, settingsOf } from './host.ts';
import { deal, subnet4, subnet6 } from './subnets.ts';
import { TABLE } from './table.ts';
import { planTunnels, type TunnelsSeen, tunnelNames, tunnelOfAddress, wantedTunnels } from './tunnels.ts';

const OWN = { interfaceName: 'wg0', publicKey: 'mine' };
const WISH = { config: CONFIG, choices: DEFAULT_CHOICES, gates: OPEN_GATES, table: TABLE };
const UPLINKS = { uplink4: 'eth0', uplink6: 'eth0', uplinkAddresses: [] };
const BARE: HostObservation = {
  ...UPLINKS,
  links: new Map(),
  routes: new Map(),
  sysctls: new Map(settingsOf('wg0', WISH, UPLINKS).map(({ path }) => [path, '0'])),
  firewall: { 4: '', 6: '' },
};
const plan = (seen: HostObservation) => planHost(OWN, WISH, seen, []);
const kinds = (seen: HostObservation) => plan(seen).map((step) => step.kind);
/** What is written to a setting where it holds a value now; null where nothing is. */
const writes = (path: string, value: string) => {
  const steps = plan({ ...BARE, sysctls: new Map(BARE.sysctls).set(path, value) });
  const step = steps.find((each) => each.kind === 'sysctl' && each.path === path);
  return step?.kind === 'sysctl' ? step.value : null;
};

describe('the order of a first pass', () => {
  test('rules, then the interface, then forwarding', () => {
    const order = kinds(BARE);
    expect(order.lastIndexOf('rules')).toBeLessThan(order.indexOf('create'));
    expect(order.slice(-2)).toEqual(['forwarding', 'forwarding']);
    expect(order.indexOf('create')).toBeLessThan(order.indexOf('private-key'));
    expect(order.indexOf('mtu')).toBeLessThan(order.indexOf('up'));
  });

  test('forwarding is never enabled where the rules did not get in, and ends where it was', async () => {
    const written: string[] = [];
    const network: NetworkPort = {
      links: () => Promise.resolve(new Map()),
      routes: () => Promise.resolve({ 4: [], 6: [] }),
      sysctls: (paths) => Promise.resolve(new Map(paths.map((path) => [path, '0']))),
      setSysctl: (path, value) => Promise.resolve(void written.push(`${path}=${value}`)),
      ip: () => Promise.resolve(),
    };
    const done = () => Promise.resolve();
    const errors: unknown[] = [];
    const port = hostPort(
      {
        tunnel: () => ({ create: done, setPrivateKey: done, setListenPort: done }),
        network,
        // A restore that says it worked, and did not: only reading back finds it.
        firewall: { save: () => Promise.resolve(''), restore: done },
        log: { info: () => undefined, warn: () => undefined, error: (fields) => errors.push(fields) },
      },
      { ...OWN, choices: DEFAULT_CHOICES, table: TABLE },
    );
    const report = await (await port.inspect(CONFIG)).settle([], OPEN_GATES);
    expect(report).toMatchObject({ ready: false, rules: 'failed' });
    expect(written.filter((each) => /forward/.test(each))).toEqual([
      'net/ipv4/ip_forward=0',
      'net/ipv6/conf/all/forwarding=0',
    ]);
    expect(errors).not.toHaveLength(0);
  });
});

test('router advertisements stay believed where they were, and stay off where they were off', () => {
  const at = (value: string) => writes('net/ipv6/conf/eth0/accept_ra', value);
  expect([at('0'), at('1'), at('2')]).toEqual([null, '2', null]);
});

test("the WireGuard port joins the reserved ports, and others' stay", () => {
  const at = (value: string) => writes('net/ipv4/ip_local_reserved_ports', value);
  expect(at('')).toBe('51820');
  expect(at('8080,9000-9005')).toBe('8080,9000-9005,51820');
  expect([at('51820'), at('51000-52000,60000')]).toEqual([null, null]);
});

test('a range is the same however the kernel sets its blanks', () => {
  const at = (value: string) => writes('net/ipv4/ip_local_port_range', value);
  expect([at('32768\t60999'), at('50000\t65535')]).toEqual(['50000 65535', null]);
});

test('a new gateway address comes before the old one goes', () => {
  const link = { up: true, mtu: CONFIG.mtu, addresses: ['10.64.0.9/10', 'fd4b:6174:6166::1/64'] };
  const order = kinds({ ...BARE, links: new Map([['wg0', link]]) });
  expect(order.indexOf('add-address')).toBeGreaterThan(-1);
  expect(order.indexOf('add-address')).toBeLessThan(order.indexOf('remove-address'));
});

describe('several tunnel interfaces', () => {
  const config = { ...CONFIG, tunnels: 3 };
  const up = { up: true, mtu: CONFIG.mtu, addresses: [] as string[] };
  const gateway = { ...up, addresses: [CONFIG.gateway4, CONFIG.gateway6] };
  const wanted = wantedTunnels('wg0', config);
  const settled: TunnelsSeen = {
    links: new Map(wanted.map(({ name }, at) => [name, at === 0 ? gateway : up])),
    routes: new Map(wanted.map(({ name, routes }) => [name, routes.map(({ prefix }) => prefix)])),
  };
  const tunnels = wanted.map(({ listenPort }) => ({ publicKey: 'mine', listenPort }));
  const steps = (seen: TunnelsSeen, there: Tunnels = tunnels) =>
    planTunnels(wanted, 'mine', CONFIG.mtu, seen, there).map(({ kind, device }) => `${kind} ${device}`);

  test('have ports and names one after the other, and each of the pool its part', () => {
    expect(wanted.map(({ name, listenPort }) => `${name} ${listenPort}`)).toEqual([
      'wg0 51820',
      'wg1 51821',
      'wg2 51822',
    ]);
    expect(tunnelNames('wg-exit', config)).toEqual(['wg-exit', 'wg-exit1', 'wg-exit2']);
    expect(tunnelNames('wg7', config)).toEqual(['wg7', 'wg8', 'wg9']);
    // parts 2 and 5 of eight
    expect(wanted[2]?.routes.map(({ prefix }) => prefix)).toEqual([
      '10.80.0.0/13',
      'fd4b:6174:6166::10:0/109',
      '10.104.0.0/13',
      'fd4b:6174:6166::28:0/109',
    ]);
  });

  test('that are right are left alone', () => {
    expect(steps(settled)).toEqual([]);
  });

  test('are made in their order, the gateway before the routes that speak from it', () => {
    const order = steps({ links: new Map(), routes: new Map() }, [null, null, null]);
    expect(order.filter((step) => step.startsWith('create'))).toEqual([
      'create wg0',
      'create wg1',
      'create wg2',
    ]);
    expect(order.lastIndexOf('add-address wg0')).toBeLessThan(order.indexOf('route wg1'));
    expect(order.filter((step) => step === 'route wg1')).toHaveLength(6);
    const settings = planHost(OWN, { ...WISH, config }, BARE, []).flatMap((step) =>
      step.kind === 'sysctl' && step.path.endsWith('rp_filter') ? [step.path] : [],
    );
    expect(settings).toHaveLength(3);
  });

  test('get only what is missing', () => {
    const routes = new Map([
      ...settled.routes,
      ['wg1', wanted[1]?.routes.slice(1).map(({ prefix }) => prefix) ?? []],
    ]);
    expect(steps({ ...settled, routes })).toEqual(['route wg1']);
    const other = [tunnels[0] ?? null, { publicKey: 'mine', listenPort: 9 }, tunnels[2] ?? null];
    expect(steps(settled, other)).toEqual(['listen-port wg1']);
    const links = new Map([...settled.links, ['wg2', { ...up, addresses: ['10.0.0.1/8'] }]]);
    expect(steps({ ...settled, links })).toEqual(['remove-address wg2']);
  });

  test('get their routes anew where the gateway was away, since the kernel took its address from them', () => {
    const links = new Map([...settled.links, ['wg0', up]]);
    expect(steps({ ...settled, links }).filter((step) => step.startsWith('route'))).toHaveLength(10);
  });

  test('have each client by its address, and nobody who is not of the pool', () => {
    const of = tunnelOfAddress(config);
    expect(['10.64.0.2', '10.72.0.0', '10.80.0.9', '10.88.0.0', '10.127.255.254'].map(of)).toEqual([
      0, 1, 2, 0, 1,
    ]);
    expect(['10.128.0.1', '192.0.2.1', '', '(none)'].map(of)).toEqual([null, null, null, null]);
  });
});

test('subnets of the gateway addresses', () => {
  expect(subnet4(CONFIG)).toEqual({
    address: '10.64.0.1',
    gateway: '10.64.0.1/10',
    host: '10.64.0.1/32',
    pool: '10.64.0.0/10',
  });
  expect(subnet6(CONFIG)).toEqual({
    address: 'fd4b:6174:6166::1',
    gateway: 'fd4b:6174:6166::1/64',
    host: 'fd4b:6174:6166::1/128',
    pool: 'fd4b:6174:6166::/64',
  });
});

test('clients are dealt out over exit addresses by the last bits of their address, the same in both families', () => {
  expect(deal('10.64.0.0/10', [])).toEqual([{ source: '10.64.0.0/10', address: null }]);
  expect(deal('10.64.0.0/10', ['203.0.113.5'])).toEqual([{ source: '10.64.0.0/10', address: '203.0.113.5' }]);
  const four = deal('10.64.0.0/10', ['a', 'b', 'c']);
  expect(four.map(({ address }) => address).join('')).toBe('abcabcab');
  expect(four[6]?.source).toBe('10.64.0.6/255.192.0.7');
  expect(deal('fd4b:6174:6166::/64', ['a', 'b'])[7]).toEqual({
    source: 'fd4b:6174:6166::7/ffff:ffff:ffff:ffff::7',
    address: 'b',
  });
});

describe('the routes of the kernel', () => {
  const V4 = `Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth1\t00000000\t0102A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
wg0\t0000400A\t00000000\t0001\t0\t0\t0\t0000C0FF\t0\t0\t0
*\t0000000A\t00000000\t0200\t0\t0\t0\t000000FF\t0\t0\t0
`;
  const V6 = `fd4b6174616600000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001      wg0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
`;

  test('name the uplink of the lowest metric, and what leads into the tunnel', () => {
    const routes = parseRoutes4(V4);
    expect(uplinkOf(routes, null)).toBe('eth0');
    expect(routes.find((route) => route.device === 'wg0')?.prefix).toBe('10.64.0.0/10');
    expect(routes).toHaveLength(3);
    expect(uplinkOf(parseRoutes6(V6), null)).toBe('eth0');
    expect(parseRoutes6(V6)[0]).toEqual({ device: 'wg0', prefix: 'fd4b:6174:6166::/64', metric: 256 });
  });

  test('a fixed uplink is one only where a default route leads there', () => {
    const routes = parseRoutes4(V4);
    expect(uplinkOf(routes, 'eth1')).toBe('eth1');
    expect(uplinkOf(routes, 'mesh0')).toBeNull();
  });

  test('without a default route there is no uplink', () => {
    expect(uplinkOf([], null)).toBeNull();
    expect(uplinkOf([{ device: 'wg1', prefix: '0.0.0.0/0', metric: 0 }], null)).toBeNull();
  });
});
