import { describe, expect, test } from 'vitest';
import { hostPort } from '../apply/host.ts';
import { parseRoutes4, parseRoutes6, uplinkOf } from '../observe/routes.ts';
import type { NetworkPort } from '../ports.ts';
import { CONFIG } from '../testing/messages.ts';
import { type HostObservation, planHost } from './host.ts';
import { subnet4, subnet6 } from './subnets.ts';
import { FORWARDING, guardSysctls } from './sysctls.ts';

const OWN = { interfaceName: 'wg0', publicKey: 'mine' };
const BARE: HostObservation = {
  uplink4: 'eth0',
  uplink6: 'eth0',
  link: null,
  routes: [],
  sysctls: new Map(
    [...guardSysctls({ tunnel: 'wg0', uplink6: 'eth0' }), ...FORWARDING].map(({ path }) => [path, '0']),
  ),
  firewall: { 4: '', 6: '' },
};
const kinds = (seen: HostObservation) => planHost(OWN, CONFIG, seen, null).map((step) => step.kind);

describe('the order of a first pass', () => {
  test('rules, then the interface, then forwarding', () => {
    const order = kinds(BARE);
    expect(order.lastIndexOf('rules')).toBeLessThan(order.indexOf('create'));
    expect(order.slice(-2)).toEqual(['forwarding', 'forwarding']);
    expect(order.indexOf('create')).toBeLessThan(order.indexOf('private-key'));
    expect(order.indexOf('mtu')).toBeLessThan(order.indexOf('up'));
  });

  test('forwarding is never enabled where the rules did not get in', async () => {
    const written: string[] = [];
    const network: NetworkPort = {
      link: () => Promise.resolve(null),
      routes: () => Promise.resolve({ uplink4: 'eth0', uplink6: null, routes: [] }),
      sysctls: (paths) => Promise.resolve(new Map(paths.map((path) => [path, '0']))),
      setSysctl: (path) => Promise.resolve(void written.push(path)),
      ip: () => Promise.resolve(),
    };
    const done = () => Promise.resolve();
    const errors: unknown[] = [];
    const port = hostPort(
      {
        tunnel: { create: done, setPrivateKey: done, setListenPort: done },
        network,
        // A restore that says it worked, and did not: only reading back finds it.
        firewall: { save: () => Promise.resolve(''), restore: done },
        log: { info: () => undefined, warn: () => undefined, error: (fields) => errors.push(fields) },
      },
      { ...OWN, uplink: null },
    );
    const report = await (await port.inspect()).settle(CONFIG, null);
    expect(report).toMatchObject({ ready: false, rules: 'failed' });
    expect(written).not.toContain('net/ipv4/ip_forward');
    expect(errors).not.toHaveLength(0);
  });
});

test('router advertisements stay believed where they were, and stay off where they were off', () => {
  const at = (value: string) => {
    const sysctls = new Map(BARE.sysctls).set('net/ipv6/conf/eth0/accept_ra', value);
    return planHost(OWN, CONFIG, { ...BARE, sysctls }, null).some(
      (step) => step.kind === 'sysctl' && step.path.endsWith('/eth0/accept_ra'),
    );
  };
  expect([at('0'), at('1'), at('2')]).toEqual([false, true, false]);
});

test('a new gateway address comes before the old one goes', () => {
  const link = { up: true, mtu: CONFIG.mtu, addresses: ['10.64.0.9/10', 'fd4b:6174:6166::1/64'] };
  const order = kinds({ ...BARE, link });
  expect(order.indexOf('add-address')).toBeGreaterThan(-1);
  expect(order.indexOf('add-address')).toBeLessThan(order.indexOf('remove-address'));
});

test('subnets of the gateway addresses', () => {
  expect(subnet4(CONFIG)).toEqual({ gateway: '10.64.0.1/10', host: '10.64.0.1/32', pool: '10.64.0.0/10' });
  expect(subnet6(CONFIG)).toEqual({
    gateway: 'fd4b:6174:6166::1/64',
    host: 'fd4b:6174:6166::1/128',
    pool: 'fd4b:6174:6166::/64',
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
    expect(uplinkOf(routes)).toBe('eth0');
    expect(routes.find((route) => route.device === 'wg0')?.prefix).toBe('10.64.0.0/10');
    expect(routes).toHaveLength(3);
    expect(uplinkOf(parseRoutes6(V6))).toBe('eth0');
    expect(parseRoutes6(V6)[0]).toEqual({ device: 'wg0', prefix: 'fd4b:6174:6166::/64', metric: 256 });
  });

  test('without a default route there is no uplink', () => {
    expect(uplinkOf([])).toBeNull();
    expect(uplinkOf([{ device: 'wg1', prefix: '0.0.0.0/0', metric: 0 }])).toBeNull();
  });
});
