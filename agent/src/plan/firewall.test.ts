import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { firewall } from '../host/firewall.ts';
import { type Namespace, namespace } from '../host/testing/namespace.ts';
import type { Family } from '../ports.ts';
import { CONFIG } from '../testing/messages.ts';
import { planFirewall } from './firewall.ts';
import { FAMILIES, RULES, type RuleContext, ruleContext } from './rules.ts';

const UPLINKS = { uplink4: 'eth0', uplink6: 'eth0' };
const context = (family: Family) => ruleContext(family, CONFIG, UPLINKS);

test('a fresh host gets this text, IPv4', () => {
  expect(planFirewall('', context(4))).toMatchInlineSnapshot(`
    "*filter
    :KATAFRACT-FORWARD - [0:0]
    :KATAFRACT-INPUT - [0:0]
    -I FORWARD 1 -j KATAFRACT-FORWARD
    -I INPUT 1 -j KATAFRACT-INPUT
    -A KATAFRACT-FORWARD -i wg+ -o wg+ -j DROP
    -A KATAFRACT-FORWARD -d 10.0.0.0/8 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 100.64.0.0/10 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 168.63.129.16/32 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 169.254.0.0/16 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 172.16.0.0/12 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 192.0.0.0/24 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 192.168.0.0/16 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 198.18.0.0/15 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 224.0.0.0/4 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 240.0.0.0/4 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -s 10.64.0.0/10 -i wg+ -o eth0 -j ACCEPT
    -A KATAFRACT-FORWARD -i eth0 -o wg+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A KATAFRACT-FORWARD -i wg+ -j DROP
    -A KATAFRACT-FORWARD -o wg+ -j DROP
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p udp -m udp --dport 53 -j ACCEPT
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p tcp -m tcp --dport 53 -j ACCEPT
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p icmp -m icmp --icmp-type 8 -j ACCEPT
    -A KATAFRACT-INPUT -i wg+ -j DROP
    COMMIT
    *nat
    :KATAFRACT-POSTROUTING - [0:0]
    -I POSTROUTING 1 -j KATAFRACT-POSTROUTING
    -A KATAFRACT-POSTROUTING -s 10.64.0.0/10 -o eth0 -j MASQUERADE
    COMMIT
    "
  `);
});

test('a fresh host without an IPv6 uplink gets this text, IPv6', () => {
  const text = planFirewall('', ruleContext(6, CONFIG, { uplink4: 'eth0', uplink6: null }));
  expect(text).toMatchInlineSnapshot(`
    "*filter
    :KATAFRACT-FORWARD - [0:0]
    :KATAFRACT-INPUT - [0:0]
    -I FORWARD 1 -j KATAFRACT-FORWARD
    -I INPUT 1 -j KATAFRACT-INPUT
    -A KATAFRACT-FORWARD -i wg+ -o wg+ -j DROP
    -A KATAFRACT-FORWARD -d ::ffff:0.0.0.0/96 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 64:ff9b::/96 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d fc00::/7 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d fe80::/10 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d ff00::/8 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -i wg+ -j REJECT --reject-with icmp6-no-route
    -A KATAFRACT-FORWARD -i wg+ -j DROP
    -A KATAFRACT-FORWARD -o wg+ -j DROP
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p udp -m udp --dport 53 -j ACCEPT
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p tcp -m tcp --dport 53 -j ACCEPT
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
    -A KATAFRACT-INPUT -i wg+ -j DROP
    COMMIT
    *nat
    :KATAFRACT-POSTROUTING - [0:0]
    -I POSTROUTING 1 -j KATAFRACT-POSTROUTING
    COMMIT
    "
  `);
});

test('the table says of every rule which attack it stops and why it stands there', () => {
  for (const row of RULES) {
    expect(row.attack.length, row.id).toBeGreaterThan(10);
    expect(row.why.length, row.id).toBeGreaterThan(10);
  }
  expect(new Set(RULES.map((row) => row.id)).size).toBe(RULES.length);
});

describe.skipIf(process.getuid?.() !== 0).each(FAMILIES)('on a real host, IPv%i', (family) => {
  let host: Namespace;
  const rules = () => firewall(host.exec);
  const iptables = family === 4 ? 'iptables' : 'ip6tables';
  const plan = async (wanted: RuleContext = context(family)) =>
    planFirewall(await rules().save(family), wanted);
  const repair = async (wanted: RuleContext = context(family)) => {
    const text = await plan(wanted);
    if (text !== null) await rules().restore(family, text);
    return text;
  };

  beforeAll(async () => {
    host = await namespace();
  });
  afterAll(() => host.close());
  beforeEach(() => repair());

  test('what was written is what is read: a second plan is empty', async () => {
    expect(await plan()).toBeNull();
  });

  test('also without an uplink, and with another one', async () => {
    for (const uplink of [null, 'eth0.100', 'ens3']) {
      const wanted = { ...context(family), uplink };
      expect(await repair(wanted)).not.toBeNull();
      expect(await plan(wanted)).toBeNull();
    }
  });

  test.each([
    ['the jump is gone', ['-D', 'FORWARD', '-j', 'KATAFRACT-FORWARD']],
    ['the jump is there twice', ['-A', 'INPUT', '-j', 'KATAFRACT-INPUT']],
    ['something stands before the jump', ['-I', 'FORWARD', '1', '-j', 'ACCEPT']],
    ['a jump has a condition', ['-I', 'FORWARD', '1', '-i', 'eth9', '-j', 'KATAFRACT-FORWARD']],
    ['a chain was flushed', ['-F', 'KATAFRACT-INPUT']],
    ['a rule was added', ['-A', 'KATAFRACT-FORWARD', '-j', 'ACCEPT']],
    ['a rule was removed', ['-D', 'KATAFRACT-FORWARD', '1']],
    ['the masquerade was removed', ['-t', 'nat', '-F', 'KATAFRACT-POSTROUTING']],
    ['a chain is called from elsewhere', ['-A', 'OUTPUT', '-j', 'KATAFRACT-FORWARD']],
  ])('%s: put right in one step', async (_what, change) => {
    await host.exec.run(iptables, change);
    expect(await repair()).not.toBeNull();
    expect(await plan()).toBeNull();
  });

  test('everything of the kind at once, and a chain of another version', async () => {
    await host.exec.run(`${iptables}-restore`, [], {
      stdin: '*filter\n:INPUT DROP [0:0]\nCOMMIT\n*nat\nCOMMIT\n',
    });
    await host.exec.run(iptables, ['-N', 'KATAFRACT-OLD']);
    await host.exec.run(iptables, ['-A', 'KATAFRACT-OLD', '-j', 'ACCEPT']);
    await host.exec.run(iptables, ['-A', 'FORWARD', '-j', 'KATAFRACT-OLD']);
    await host.exec.run(iptables, ['-t', 'mangle', '-N', 'KATAFRACT-MANGLE']);
    await repair();
    expect(await plan()).toBeNull();
    expect(await rules().save(family)).not.toMatch(/OLD|MANGLE/);
  });

  test('rules of others stay', async () => {
    await host.exec.run(iptables, ['-N', 'DOCKER']);
    await host.exec.run(iptables, ['-A', 'DOCKER', '-i', 'docker0', '-j', 'ACCEPT']);
    await host.exec.run(iptables, ['-I', 'FORWARD', '-j', 'DOCKER']);
    await repair();
    const saved = await rules().save(family);
    expect(saved).toContain('-A DOCKER -i docker0 -j ACCEPT');
    expect(saved).toMatch(/-A FORWARD -j KATAFRACT-FORWARD\n-A FORWARD -j DOCKER/);
  });

  test('a text that cannot be taken changes nothing', async () => {
    const before = await rules().save(family);
    const bad = '*filter\n:KATAFRACT-FORWARD - [0:0]\n-A KATAFRACT-FORWARD -j NOWHERE\nCOMMIT\n';
    await expect(rules().restore(family, bad)).rejects.toMatchObject({ code: 'command_failed' });
    const strip = (text: string) => text.replaceAll(/^#.*$/gm, '');
    expect(strip(await rules().save(family))).toBe(strip(before));
  });
});
