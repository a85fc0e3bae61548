import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { firewall } from '../host/firewall.ts';
import { type Namespace, namespace } from '../host/testing/namespace.ts';
import type { Family } from '../ports.ts';
import { CONFIG } from '../testing/messages.ts';
import {
  DEFAULT_CHOICES,
  FAMILIES,
  type HostChoices,
  OPEN_GATES,
  type RuleContext,
  ruleContext,
} from './context.ts';
import { planFirewall } from './firewall.ts';
import { TABLE } from './table.ts';

const UPLINKS = {
  uplink4: 'eth0',
  uplink6: 'eth0',
  uplinkAddresses: ['203.0.113.11', '203.0.113.12', '2001:db8:113::b', '2001:db8:113::c'],
};
const context = (family: Family, choices: Partial<HostChoices> = {}) =>
  ruleContext(family, CONFIG, UPLINKS, { ...DEFAULT_CHOICES, ...choices }, OPEN_GATES);

/** Docker's, fail2ban's and a host's own rules, as they stand on machines that have them. */
const FOREIGN: Readonly<Record<Family, string>> = {
  4: foreignRules('172.17.0.0/16', '172.17.0.2', '192.0.2.66/32', 'icmp-port-unreachable'),
  6: foreignRules('fd00:d0c:e2::/64', '[fd00:d0c:e2::2]', '2001:db8::66/128', 'icmp6-port-unreachable'),
};

function foreignRules(net: string, container: string, banned: string, refusal: string): string {
  return `*filter
:INPUT DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
:f2b-sshd - [0:0]
-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "the operator's own" -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j RETURN
-A DOCKER-USER -j RETURN
-A f2b-sshd -s ${banned} -j REJECT --reject-with ${refusal}
-A f2b-sshd -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s ${net} ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination ${container}:80
COMMIT
`;
}

/** Docker puts its jumps to the very head of FORWARD whenever it starts, and takes the ones before away. */
const RELOAD = `*filter
-D FORWARD -j DOCKER-ISOLATION-STAGE-1
-D FORWARD -j DOCKER-USER
-I FORWARD -j DOCKER-ISOLATION-STAGE-1
-I FORWARD -j DOCKER-USER
COMMIT
`;

test('a fresh host gets this text, IPv4', () => {
  expect(planFirewall('', context(4), TABLE)).toMatchInlineSnapshot(`
    "*raw
    :KATAFRACT-PREROUTING - [0:0]
    :KATAFRACT-OUTPUT - [0:0]
    -I PREROUTING 1 -j KATAFRACT-PREROUTING
    -I OUTPUT 1 -j KATAFRACT-OUTPUT
    -A KATAFRACT-PREROUTING ! -i wg+ -p udp -m udp --dport 51820 -m addrtype --dst-type LOCAL -j CT --notrack
    -A KATAFRACT-OUTPUT -p udp -m udp --sport 51820 -j CT --notrack
    COMMIT
    *mangle
    :KATAFRACT-INPUT - [0:0]
    :KATAFRACT-FORWARD - [0:0]
    -I INPUT 1 -j KATAFRACT-INPUT
    -I FORWARD 1 -j KATAFRACT-FORWARD
    -A KATAFRACT-INPUT ! -i wg+ -j RETURN
    -A KATAFRACT-INPUT -i wg+ -m conntrack --ctstate NEW -m connlimit --connlimit-above 2048 --connlimit-mask 32 --connlimit-saddr -j DROP
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p udp -m udp --dport 53 -j RETURN
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p tcp -m tcp --dport 53 -j RETURN
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p icmp -m icmp --icmp-type 8 -j RETURN
    -A KATAFRACT-INPUT -i wg+ -j DROP
    -A KATAFRACT-FORWARD -i wg+ -o eth0 -m connmark --mark 0x464e0000/0xffff0000 -j RETURN
    -A KATAFRACT-FORWARD -i eth0 -o wg+ -m connmark --mark 0x464e0000/0xffff0000 -j RETURN
    -A KATAFRACT-FORWARD -i wg+ -o wg+ -j DROP
    -A KATAFRACT-FORWARD ! -i wg+ -o wg+ -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP
    -A KATAFRACT-FORWARD -i wg+ -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
    -A KATAFRACT-FORWARD -o wg+ -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
    -A KATAFRACT-FORWARD -i wg+ ! -o eth0 -j DROP
    -A KATAFRACT-FORWARD -d 10.0.0.0/8 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 100.64.0.0/10 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 168.63.129.16/32 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 169.254.0.0/16 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 172.16.0.0/12 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 192.0.0.0/24 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 192.168.0.0/16 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 198.18.0.0/15 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -d 224.0.0.0/3 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -i wg+ -p udp -m udp --sport 51820 -j DROP
    -A KATAFRACT-FORWARD -i wg+ -m conntrack --ctstate INVALID -j DROP
    -A KATAFRACT-FORWARD -i wg+ -m conntrack --ctstate NEW -m connlimit --connlimit-above 2048 --connlimit-mask 32 --connlimit-saddr -j DROP
    -A KATAFRACT-FORWARD -i wg+ -o eth0 -m conntrack --ctstate ESTABLISHED -j CONNMARK --set-xmark 0x464e0000/0xffff0000
    COMMIT
    *nat
    :KATAFRACT-PREROUTING - [0:0]
    :KATAFRACT-POSTROUTING - [0:0]
    -I PREROUTING 1 -j KATAFRACT-PREROUTING
    -I POSTROUTING 1 -j KATAFRACT-POSTROUTING
    -A KATAFRACT-PREROUTING ! -d 10.64.0.1/32 -i wg+ -p udp -m udp --dport 53 -j DNAT --to-destination 10.64.0.1
    -A KATAFRACT-PREROUTING ! -d 10.64.0.1/32 -i wg+ -p tcp -m tcp --dport 53 -j DNAT --to-destination 10.64.0.1
    -A KATAFRACT-POSTROUTING -s 10.64.0.0/10 -o eth0 -p tcp -j MASQUERADE --to-ports 10000-49999 --random-fully
    -A KATAFRACT-POSTROUTING -s 10.64.0.0/10 -o eth0 -p udp -j MASQUERADE --to-ports 10000-49999 --random-fully
    -A KATAFRACT-POSTROUTING -s 10.64.0.0/10 -o eth0 -j MASQUERADE --random-fully
    COMMIT
    *filter
    :FORWARD DROP [0:0]
    :KATAFRACT-INPUT - [0:0]
    :KATAFRACT-FORWARD - [0:0]
    -I INPUT 1 -j KATAFRACT-INPUT
    -I FORWARD 1 -j KATAFRACT-FORWARD
    -A KATAFRACT-INPUT ! -i wg+ -p udp -m udp --dport 51820 -j ACCEPT
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p udp -m udp --dport 53 -j ACCEPT
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p tcp -m tcp --dport 53 -j ACCEPT
    -A KATAFRACT-INPUT -d 10.64.0.1/32 -i wg+ -p icmp -m icmp --icmp-type 8 -j ACCEPT
    -A KATAFRACT-FORWARD -i eth0 -o wg+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A KATAFRACT-FORWARD -i wg+ -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
    -A KATAFRACT-FORWARD -i wg+ -p tcp -m tcp --dport 853 -j REJECT --reject-with tcp-reset
    -A KATAFRACT-FORWARD -i wg+ -p udp -m udp --dport 853 -j REJECT --reject-with icmp-port-unreachable
    -A KATAFRACT-FORWARD -s 10.64.0.0/10 -i wg+ -o eth0 -j ACCEPT
    COMMIT
    "
  `);
});

test('a fresh host without an IPv6 uplink gets this text, IPv6', () => {
  const text = planFirewall('', { ...context(6), uplink: null }, TABLE);
  expect(text).toMatchInlineSnapshot(`
    "*raw
    :KATAFRACT-PREROUTING - [0:0]
    :KATAFRACT-OUTPUT - [0:0]
    -I PREROUTING 1 -j KATAFRACT-PREROUTING
    -I OUTPUT 1 -j KATAFRACT-OUTPUT
    -A KATAFRACT-PREROUTING ! -i wg+ -p udp -m udp --dport 51820 -m addrtype --dst-type LOCAL -j CT --notrack
    -A KATAFRACT-OUTPUT -p udp -m udp --sport 51820 -j CT --notrack
    COMMIT
    *mangle
    :KATAFRACT-INPUT - [0:0]
    :KATAFRACT-FORWARD - [0:0]
    -I INPUT 1 -j KATAFRACT-INPUT
    -I FORWARD 1 -j KATAFRACT-FORWARD
    -A KATAFRACT-INPUT ! -i wg+ -j RETURN
    -A KATAFRACT-INPUT ! -s fd4b:6174:6166::/64 -i wg+ -j DROP
    -A KATAFRACT-INPUT -i wg+ -m conntrack --ctstate NEW -m connlimit --connlimit-above 2048 --connlimit-mask 128 --connlimit-saddr -j DROP
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p udp -m udp --dport 53 -j RETURN
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p tcp -m tcp --dport 53 -j RETURN
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j RETURN
    -A KATAFRACT-INPUT -i wg+ -j DROP
    -A KATAFRACT-FORWARD -i wg+ -o wg+ -j DROP
    -A KATAFRACT-FORWARD ! -i wg+ -o wg+ -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP
    -A KATAFRACT-FORWARD -i wg+ -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
    -A KATAFRACT-FORWARD -o wg+ -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
    -A KATAFRACT-FORWARD ! -d 2000::/3 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -i wg+ -p udp -m udp --sport 51820 -j DROP
    -A KATAFRACT-FORWARD -i wg+ -m conntrack --ctstate INVALID -j DROP
    -A KATAFRACT-FORWARD ! -s fd4b:6174:6166::/64 -i wg+ -j DROP
    -A KATAFRACT-FORWARD -i wg+ -m conntrack --ctstate NEW -m connlimit --connlimit-above 2048 --connlimit-mask 128 --connlimit-saddr -j DROP
    COMMIT
    *nat
    :KATAFRACT-PREROUTING - [0:0]
    :KATAFRACT-POSTROUTING - [0:0]
    -I PREROUTING 1 -j KATAFRACT-PREROUTING
    -I POSTROUTING 1 -j KATAFRACT-POSTROUTING
    -A KATAFRACT-PREROUTING ! -d fd4b:6174:6166::1/128 -i wg+ -p udp -m udp --dport 53 -j DNAT --to-destination fd4b:6174:6166::1
    -A KATAFRACT-PREROUTING ! -d fd4b:6174:6166::1/128 -i wg+ -p tcp -m tcp --dport 53 -j DNAT --to-destination fd4b:6174:6166::1
    COMMIT
    *filter
    :FORWARD DROP [0:0]
    :KATAFRACT-INPUT - [0:0]
    :KATAFRACT-FORWARD - [0:0]
    -I INPUT 1 -j KATAFRACT-INPUT
    -I FORWARD 1 -j KATAFRACT-FORWARD
    -A KATAFRACT-INPUT ! -i wg+ -p udp -m udp --dport 51820 -j ACCEPT
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p udp -m udp --dport 53 -j ACCEPT
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p tcp -m tcp --dport 53 -j ACCEPT
    -A KATAFRACT-INPUT -d fd4b:6174:6166::1/128 -i wg+ -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
    -A KATAFRACT-FORWARD -i wg+ -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
    -A KATAFRACT-FORWARD -i wg+ -p tcp -m tcp --dport 853 -j REJECT --reject-with tcp-reset
    -A KATAFRACT-FORWARD -i wg+ -p udp -m udp --dport 853 -j REJECT --reject-with icmp6-port-unreachable
    -A KATAFRACT-FORWARD -i wg+ -j REJECT --reject-with icmp6-no-route
    COMMIT
    "
  `);
});

test('the table says of every rule which attack it stops and why it stands there', () => {
  const rows = Object.values(TABLE).flat();
  for (const row of rows) {
    expect(row.attack.length, row.id).toBeGreaterThan(10);
    expect(row.why.length, row.id).toBeGreaterThan(10);
  }
  expect(new Set(rows.map((row) => row.id)).size).toBe(rows.length);
});

describe.skipIf(process.getuid?.() !== 0).each(FAMILIES)('on a real host, IPv%i', (family) => {
  let host: Namespace;
  const rules = () => firewall(host.exec);
  const iptables = family === 4 ? 'iptables' : 'ip6tables';
  const plan = async (wanted: RuleContext = context(family)) =>
    planFirewall(await rules().save(family), wanted, TABLE);
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

  test('also without an uplink, with another one, with exit addresses, another port, another limit', async () => {
    const others: readonly RuleContext[] = [
      { ...context(family), uplink: null },
      { ...context(family), uplink: 'eth0.100' },
      context(family, { exitAddresses: UPLINKS.uplinkAddresses.slice(1, 3) }),
      context(family, { exitAddresses: UPLINKS.uplinkAddresses }),
      context(family, { connectionsPerClient: 7 }),
      { ...context(family), listenPorts: [443, 51820] },
      { ...context(family), dnsOpen: false },
      { ...context(family), sshPort: 2222 },
    ];
    for (const wanted of others) {
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
    ['the drops were removed', ['-t', 'mangle', '-F']],
    ['the policy was changed', ['-P', 'FORWARD', 'ACCEPT']],
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

  test("others' rules survive 100 reconciles byte for byte, also when they are loaded again under us", async () => {
    const foreign = async () => {
      const saved = await rules().save(family);
      return saved
        .split('\n')
        .filter((line) => !/KATAFRACT|^#/.test(line))
        .map((line) => line.replace(/\[\d+:\d+\]/, ''))
        .join('\n');
    };
    await host.exec.run(`${iptables}-restore`, ['--noflush'], { stdin: FOREIGN[family] });
    let before = await foreign();
    expect(before).toContain('DOCKER-USER');
    expect(before).toContain('f2b-sshd');
    for (let round = 0; round < 100; round++) {
      const theirs = round % 10 === 3 || round % 10 === 7;
      // what Docker does when it starts again, fail2ban when it bans, a host's firewall when it is reloaded
      if (round % 10 === 3) {
        await host.exec.run(`${iptables}-restore`, ['--noflush'], { stdin: RELOAD });
      } else if (round % 10 === 7) {
        await host.exec.run(iptables, ['-D', 'INPUT', '-i', 'lo', '-j', 'ACCEPT']);
        await host.exec.run(iptables, ['-A', 'INPUT', '-i', 'lo', '-j', 'ACCEPT']);
      } else {
        // ours change, and change back
        await repair(
          round % 2 === 0 ? { ...context(family), connectionsPerClient: round + 2 } : context(family),
        );
      }
      if (theirs) before = await foreign();
      await repair();
      expect(await plan()).toBeNull();
      expect(await foreign()).toBe(before);
    }
  });

  test('a text that cannot be taken changes nothing', async () => {
    const before = await rules().save(family);
    const bad = '*filter\n:KATAFRACT-FORWARD - [0:0]\n-A KATAFRACT-FORWARD -j NOWHERE\nCOMMIT\n';
    await expect(rules().restore(family, bad)).rejects.toMatchObject({ code: 'command_failed' });
    const strip = (text: string) => text.replaceAll(/^#.*$/gm, '');
    expect(strip(await rules().save(family))).toBe(strip(before));
  });
});
