/**
 * The push that this system replaces: `wg set` on the exit by SSH, from the controller's host. Three ways: a cold
 * session each time; a command over a connection that is kept open (ControlPersist), which still starts a session and
 * a shell each time; and one shell kept open and fed with lines, the least that SSH can cost.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { BARE, randomKey } from './exit.ts';

export interface SshTarget {
  readonly host: string;
  readonly port: number;
  readonly key: string;
  readonly knownHosts: string;
  /** Where the kept connection's socket lies. */
  readonly control: string;
}

const ALLOWED = '10.255.255.2/32,fd00:bead::2/128';
const add = (key: string) => `wg set ${BARE} peer ${key} allowed-ips ${ALLOWED}`;
const remove = (key: string) => `wg set ${BARE} peer ${key} remove`;

function options({ port, key, knownHosts }: SshTarget): string[] {
  const settings = {
    BatchMode: 'yes',
    IdentitiesOnly: 'yes',
    IdentityFile: key,
    UserKnownHostsFile: knownHosts,
    StrictHostKeyChecking: 'yes',
    GSSAPIAuthentication: 'no',
    LogLevel: 'ERROR',
  };
  return [
    '-F',
    'none',
    '-p',
    String(port),
    ...Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]),
  ];
}

function finished(args: readonly string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn('ssh', args, { stdio: ['ignore', 'ignore', 'inherit'] });
    child.on('error', reject);
    child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`ssh ended with ${code}`))));
  });
}

export function sshOperations() {
  let target: SshTarget | undefined;
  let shell: ChildProcessWithoutNullStreams | undefined;
  const at = (): SshTarget => {
    if (!target) throw new Error('openSsh comes first');
    return target;
  };
  const kept = (command: string) =>
    finished([...options(at()), '-o', 'ControlMaster=no', '-S', at().control, `root@${at().host}`, command]);
  const cold = (command: string) =>
    finished([
      ...options(at()),
      '-o',
      'ControlMaster=no',
      '-o',
      'ControlPath=none',
      `root@${at().host}`,
      command,
    ]);

  /** Sends one line to the open shell and waits for what it prints after it. */
  function tell(command: string): Promise<void> {
    return new Promise((resolve, reject) => {
      if (!shell) throw new Error('openSsh comes first');
      shell.stdout.once('data', (text) =>
        String(text).trim() === '0' ? resolve() : reject(new Error(`the shell said ${text}`)),
      );
      shell.stdin.write(`${command}; echo $?\n`);
    });
  }

  async function times(count: number, push: (command: string) => Promise<void>): Promise<number[]> {
    const taken: number[] = [];
    for (let done = 0; done < count; done++) {
      const key = randomKey();
      const started = performance.now();
      await push(add(key));
      taken.push(performance.now() - started);
      await tell(remove(key));
    }
    return taken;
  }

  return {
    /** Opens what is kept open, and proves that every way works. */
    async openSsh(to: SshTarget): Promise<void> {
      target = to;
      await finished([
        ...options(to),
        '-M',
        '-S',
        to.control,
        '-o',
        'ControlPersist=600',
        '-fN',
        `root@${to.host}`,
      ]);
      shell = spawn('ssh', [
        ...options(to),
        '-o',
        'ControlPath=none',
        '-T',
        `root@${to.host}`,
        'exec /bin/sh',
      ]);
      await tell('true');
    },
    sshCold: ({ count }: { count: number }): Promise<number[]> => times(count, cold),
    sshKept: ({ count }: { count: number }): Promise<number[]> => times(count, kept),
    sshShell: ({ count }: { count: number }): Promise<number[]> => times(count, tell),
    async closeSsh(): Promise<void> {
      shell?.stdin.end();
      await finished([...options(at()), '-q', '-S', at().control, '-O', 'exit', `root@${at().host}`]);
    },
  };
}
