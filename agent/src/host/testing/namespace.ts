/**
 * A host of its own for tests that need real interfaces and rules (root): a network namespace, and a mount namespace
 * with its own /run/wireguard, since wireguard-go's sockets of equal names would collide. Both go with their process.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type Exec, systemExec } from '../exec.ts';

export interface Namespace {
  /** Runs commands on that host. */
  readonly exec: Exec;
  /** The command line that runs `command` there. */
  within(command: readonly string[]): string[];
  close(): Promise<void>;
}

const SETUP = `
mkdir -p /run/wireguard
mount -t tmpfs tmpfs /run/wireguard
ip link set lo up
ip link add eth0 type veth peer name internet
ip link set internet up
ip link set eth0 up
ip address add 192.0.2.2/24 dev eth0
ip route add default via 192.0.2.1
echo ready
sleep infinity & wait # as the first process it also buries wireguard-go, which runs as nobody's child
`;

const UNSHARE = ['unshare', '--net', '--mount', '--pid', '--fork', '--mount-proc', '--kill-child'] as const;

export async function namespace(): Promise<Namespace> {
  const [program, ...flags] = UNSHARE;
  const child = spawn(program, [...flags, 'sh', '-ec', SETUP], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  // `unshare --fork` stays outside of the process namespace; its child is the first process inside.
  const inside = (await systemExec.run('pgrep', ['-P', String(child.pid)])).trim();
  const within = (command: readonly string[]) => [
    'nsenter',
    '-t',
    inside,
    '-n',
    '-m',
    '-p',
    '--',
    ...command,
  ];
  return {
    within,
    exec: {
      run(program, args, options) {
        const [first = '', ...rest] = within([program, ...args]);
        return systemExec.run(first, rest, options);
      },
    },
    async close() {
      const gone = once(child, 'exit');
      child.kill('SIGKILL'); // and with it, by --kill-child and the process namespace, everything inside
      await gone;
    },
  };
}
