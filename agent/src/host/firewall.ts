/** The firewall through iptables and ip6tables: read as text, replaced as text. */
import type { FirewallPort } from '../ports.ts';
import type { Exec } from './exec.ts';

const PREFIX = { 4: 'iptables', 6: 'ip6tables' } as const;

export function firewall(exec: Exec): FirewallPort {
  return {
    save: (family) => exec.run(`${PREFIX[family]}-save`, []),
    async restore(family, text) {
      await exec.run(`${PREFIX[family]}-restore`, ['--noflush', '--wait', '5'], { stdin: text });
    },
  };
}
