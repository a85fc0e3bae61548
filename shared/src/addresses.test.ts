import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { addressesAt, addressPlan, bigintToIpv6, indexOf, ipv6ToBigint } from './addresses.ts';
import { Cidr4, Cidr6, Ipv4, Ipv6 } from './units.ts';

const plan = addressPlan(Cidr4.parse('10.64.0.0/10'), Cidr6.parse('fd4b:6174:6166::/64'));

describe('the pool', () => {
  it('has four million addresses, without network, gateway and broadcast', () => {
    expect([plan.first, plan.last]).toEqual([2, 2 ** 22 - 2]);
    expect(addressesAt(plan, plan.first)).toEqual({ ipv4: '10.64.0.2', ipv6: 'fd4b:6174:6166::2' });
    expect(addressesAt(plan, plan.last)).toEqual({ ipv4: '10.127.255.254', ipv6: 'fd4b:6174:6166::3f:fffe' });
  });

  it('gives every index its own two addresses, in the text that the wire accepts', () => {
    fc.assert(
      fc.property(fc.integer({ min: plan.first, max: plan.last }), (index) => {
        const { ipv4, ipv6 } = addressesAt(plan, index);
        expect(Ipv4.safeParse(ipv4).success && Ipv6.safeParse(ipv6).success).toBe(true);
        expect(indexOf(plan, ipv4)).toBe(index);
        expect(ipv6ToBigint(ipv6) - plan.base6).toBe(BigInt(index));
      }),
    );
  });

  it.each([
    ['10.64.0.1/10', 'fd00::/64'],
    ['10.64.0.0/30', 'fd00::/64'],
    ['10.64.0.0/10', 'fd00::1/64'],
    ['10.64.0.0/10', 'fd00::/112'],
  ])('refuses %s with %s', (four, six) => {
    expect(() => addressPlan(Cidr4.parse(four), Cidr6.parse(six))).toThrow(
      expect.objectContaining({ code: 'address_plan_invalid' }),
    );
  });
});

describe('IPv6 text', () => {
  // RFC 5952, section 4
  it.each([
    ['2001:0db8:0000:0000:0001:0000:0000:0001', '2001:db8::1:0:0:1'],
    ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
    ['0:0:0:0:0:0:0:0', '::'],
    ['0:0:0:0:0:0:0:1', '::1'],
    ['fe80:0:0:0:0:0:0:0', 'fe80::'],
  ])('%s is written %s', (text, canonical) => expect(bigintToIpv6(ipv6ToBigint(text))).toBe(canonical));

  it('comes back as the same number', () => {
    const values = fc.bigInt({ min: 0n, max: 2n ** 128n - 1n });
    fc.assert(
      fc.property(values, (value) => {
        expect(ipv6ToBigint(bigintToIpv6(value))).toBe(value);
      }),
    );
  });
});
