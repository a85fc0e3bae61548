/** SSH for the mesh alone, and who is saved from locking himself out. What sshd makes of it: test/boot.test.ts. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { HelperBed } from '../testing/helper-bed.ts';
import { DROP_IN } from './ssh.ts';

const KEYS = 'root/.ssh/authorized_keys';
const link = (address: string, flags = ['UP']) => ({ flags, addr_info: [{ local: address }] });
const session = (peer: string) => `0 0 10.0.0.1:22 ${peer}\n`;

let bed: HelperBed;
/** What `ip` and `ss` say. */
let links: object[];
let sessions: string[];
beforeEach(() => {
  bed = new HelperBed();
  bed.write(KEYS, '# ours\nssh-ed25519 AAAA admin\n');
  links = [link('203.0.113.7'), link('100.64.0.11'), link('fe80::1')];
  sessions = [session('100.64.0.9:51022')];
  bed.prints = (command) => {
    if (command.startsWith('ip ')) return JSON.stringify(links);
    return command.startsWith('ss ') ? sessions.join('') : '';
  };
});
afterEach(() => bed.close());

async function ask(fromMesh: boolean): Promise<string | undefined> {
  bed.commands = [];
  bed.leave('ssh', { fromMesh });
  await bed.help();
  const { outcome, code } = bed.resultOf('ssh');
  return outcome === 'done' ? 'done' : code;
}

describe('the restriction', () => {
  it('is written, checked by sshd before it counts, and taken away again', async () => {
    expect(await ask(true)).toBe('done');
    expect(bed.read(DROP_IN)).toMatch(/^PasswordAuthentication no$/m);
    expect(bed.commands.slice(-2)).toEqual(['sshd -t', 'systemctl reload ssh.service']);
    // asked once more it has nothing to do, and does not look who is logged in
    expect(await ask(true)).toBe('done');
    expect(bed.commands).toEqual([]);
    expect(await ask(false)).toBe('done');
    expect(bed.read(DROP_IN)).toBeNull();
    expect(bed.commands.at(-1)).toBe('systemctl reload ssh.service');
  });

  it('is as it was before where sshd does not take it', async () => {
    bed.fails = (command) => command === 'sshd -t';
    expect(await ask(true)).toBe('sshd_refused');
    expect(bed.read(DROP_IN)).toBeNull();
    expect(bed.commands).not.toContain('systemctl reload ssh.service');
  });
});

describe('nobody locks himself out', () => {
  it.each([
    ['without an address in the mesh', () => links.splice(1), 'lockout_no_mesh'],
    ['with the mesh down', () => links.splice(1, 1, link('100.64.0.11', [])), 'lockout_no_mesh'],
    ['without keys', () => bed.write(KEYS, ''), 'lockout_no_key'],
    ['with a key that is a comment', () => bed.write(KEYS, '# ssh-ed25519 AAAA admin\n'), 'lockout_no_key'],
    ['logged in from outside', () => sessions.push(session('203.0.113.9:50000')), 'lockout_session'],
    [
      'logged in from outside by IPv6',
      () => sessions.push(session('[2001:db8::9]:50000')),
      'lockout_session',
    ],
  ])('%s', async (_, make, code) => {
    make();
    expect(await ask(true)).toBe(code);
    expect(bed.read(DROP_IN)).toBeNull();
    expect(bed.commands).not.toContain('systemctl reload ssh.service');
  });

  it.each(['100.64.0.9:51022', '[::ffff:100.64.0.9]:51022', '127.0.0.1:4000', '[::1]:4000'])(
    'who is logged in from %s may go on',
    async (peer) => {
      sessions = [session(peer)];
      expect(await ask(true)).toBe('done');
    },
  );
});
