import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  ADDRESS_PARTS,
  addressesAt,
  addressPlan,
  bigintToIpv6,
  endpointAfter,
  indexOf,
  indexOfDraw,
  ipv6ToBigint,
  isInNet4,
  partsOf,
  poolSize,
  tunnelOf,
} from './addresses.ts';
import { Cidr4, Cidr6, Endpoint, Ipv4, Ipv6 } from './units.ts';

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

describe('draws', () => {
  const small = addressPlan(Cidr4.parse('10.0.0.0/22'), Cidr6.parse('fd00::/112'));

  it('give each index of the pool once, and of each part one in turn', () => {
    const all = Array.from({ length: poolSize(small) }, (_, draw) => indexOfDraw(small, draw));
    expect([...all].sort((a, b) => a - b)).toEqual(all.map((_, at) => at));
    const parts = all.map((index) => tunnelOf(small, index, ADDRESS_PARTS));
    expect(parts.slice(0, 10)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 0, 1]);
    const groups = all.slice(0, 8).map((index) => index % 8);
    expect(new Set(groups).size).toBe(8);
  });

  it('belong to the interface whose parts they lie in, in both families', () => {
    const prefixes = (tunnel: number, tunnels: number) => partsOf(plan, tunnel, tunnels);
    const holds = (prefix: string, ipv6: Ipv6) => {
      const [base = '', length = '0'] = prefix.split('/');
      const size = 1n << BigInt(128 - Number(length));
      return ipv6ToBigint(ipv6) / size === ipv6ToBigint(base) / size;
    };
    fc.assert(
      fc.property(
        fc.integer({ min: plan.first, max: plan.last }),
        fc.integer({ min: 1, max: ADDRESS_PARTS }),
        (index, tunnels) => {
          const { ipv4, ipv6 } = addressesAt(plan, index);
          for (let tunnel = 0; tunnel < tunnels; tunnel++) {
            const own = tunnelOf(plan, index, tunnels) === tunnel;
            const parts = prefixes(tunnel, tunnels);
            expect(parts.some((part) => isInNet4(ipv4, part.ipv4))).toBe(own);
            expect(parts.some((part) => holds(part.ipv6, ipv6))).toBe(own);
          }
        },
      ),
    );
  });

  it('of an endpoint are ports further on', () => {
    const at = (text: string, ports: number) => endpointAfter(Endpoint.parse(text), ports);
    expect(at('203.0.113.7:51820', 0)).toBe('203.0.113.7:51820');
    expect(at('[2001:db8::51820]:51820', 3)).toBe('[2001:db8::51820]:51823');
    expect(at('a.example:9', 1)).toBe('a.example:10');
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
