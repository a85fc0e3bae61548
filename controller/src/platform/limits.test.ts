import { describe, expect, it } from 'vitest';
import { addressGroup, clientAddress, proxyList } from './limits.ts';

describe('the address a limit counts', () => {
  const trusted = proxyList(['100.64.0.0/10', 'fd00::1', '127.0.0.1']);

  it('is that of the connection, whatever a stranger claims', () => {
    expect(clientAddress('203.0.113.9', '198.51.100.1', trusted)).toBe('203.0.113.9');
  });

  it('is, behind proxies we trust, the last hop that is not one of them', () => {
    const forwarded = '192.0.2.1, 198.51.100.7, 100.64.3.3';
    expect(clientAddress('100.64.1.1', forwarded, trusted)).toBe('198.51.100.7');
    expect(clientAddress('fd00::1', '2001:db8::7', trusted)).toBe('2001:db8::7');
    expect(clientAddress('127.0.0.1', undefined, trusted)).toBe('127.0.0.1');
    expect(clientAddress('::ffff:127.0.0.1', '198.51.100.7', trusted)).toBe('198.51.100.7');
    expect(clientAddress('127.0.0.1', 'not an address', trusted)).toBe('127.0.0.1');
  });

  it('is a /64 in IPv6, of which one subscriber has many addresses', () => {
    expect(addressGroup('2001:db8:1:2:3:4:5:6')).toBe(addressGroup('2001:db8:1:2::9'));
    expect(addressGroup('2001:db8:1:2::9')).not.toBe(addressGroup('2001:db8:1:3::9'));
    expect(addressGroup('::ffff:192.0.2.1')).toBe('192.0.2.1');
    expect(addressGroup('192.0.2.1')).toBe('192.0.2.1');
  });
});
