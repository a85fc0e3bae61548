/** A machine that systemd boots from a tree of files, in a container, on a network namespace that is there already. */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs';
import { exec, type Output, type RunOptions, run } from '../lab/process.ts';
import { waitFor } from '../lab/wait.ts';

/** What a shell of root's has; nothing of whoever runs the tests. */
const ENVIRONMENT = {
  HOME: '/root',
  LC_ALL: 'C',
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
};

export interface ContainerOptions {
  readonly name: string;
  /** The tree; it is written to. */
  readonly root: string;
  /** Name of the network namespace, of which the machine is the master. */
  readonly namespace: string;
  /** File that gets what its console says. */
  readonly console: string;
}

/** As udev makes it: open to everybody, since what makes a tunnel is a capability. */
async function tunDevice(path: string): Promise<string> {
  rmSync(path, { force: true });
  await exec('mknod', ['--mode=0666', path, 'c', '10', '200']);
  return path;
}

export class Container {
  readonly root: string;
  readonly #options: ContainerOptions;
  #nspawn: ChildProcess | undefined;
  #init = 0;

  constructor(options: ContainerOptions) {
    this.#options = options;
    this.root = options.root;
  }

  /** Resolves when it takes commands; what systemd starts may still be starting. */
  async boot(): Promise<void> {
    const { name, root, namespace, console } = this.#options;
    const options = ['--quiet', '--register=no', '--keep-unit', '--console=pipe', `--machine=${name}`];
    // of its own network it is the master, as a machine is
    const network = ['--capability=CAP_NET_ADMIN', `--bind=${await tunDevice(`${root}.tun`)}:/dev/net/tun`];
    const where = ['--directory', root, `--network-namespace-path=/run/netns/${namespace}`];
    const log = openSync(console, 'a');
    const nspawn = spawn('systemd-nspawn', [...options, ...network, ...where, '--boot'], {
      stdio: ['ignore', log, log],
      detached: true,
      env: { ...process.env, SYSTEMD_NSPAWN_API_VFS_WRITABLE: 'network' },
    });
    closeSync(log);
    this.#nspawn = nspawn;
    // its first child only prepares the container and ends: which one is the init shows when it answers
    const child = () => readFileSync(`/proc/${nspawn.pid}/task/${nspawn.pid}/children`, 'utf8').split(' ')[0];
    const awake = async () => {
      this.#init = Number(child());
      const { stdout } = await this.run('systemctl', ['is-system-running']);
      return /running|degraded|starting/.test(stdout);
    };
    await waitFor(`${name} to take commands`, awake, { deadlineMs: 300_000, everyMs: 100 });
  }

  /** Runs a command in it, whatever comes of it. */
  run(command: string, args: readonly string[] = [], options: RunOptions = {}): Promise<Output> {
    const enter = ['--target', String(this.#init), '--mount', '--uts', '--ipc', '--net', '--pid', '--cgroup'];
    const { env = {}, ...rest } = options;
    const words = Object.entries({ ...ENVIRONMENT, ...env }).map(([name, value]) => `${name}=${value}`);
    return run('nsenter', [...enter, '--', 'env', '-i', ...words, command, ...args], rest);
  }

  /** Runs a command in it that must succeed. */
  async exec(command: string, args: readonly string[] = [], options: RunOptions = {}): Promise<string> {
    const { code, stdout, stderr } = await this.run(command, args, options);
    if (code !== 0) throw new Error(`${command} ${args.join(' ')}: ${code}\n${stdout}${stderr}`);
    return stdout;
  }

  /** Switches it off: systemd shuts down as at the press of the button. */
  off(): Promise<void> {
    return this.#end(() => run('kill', ['-s', 'RTMIN+4', String(this.#init)]));
  }

  /** Pulls the plug. */
  cut(): Promise<void> {
    return this.#end(() => run('kill', ['-s', 'KILL', String(this.#init)]));
  }

  async #end(how: () => Promise<unknown>): Promise<void> {
    const nspawn = this.#nspawn;
    if (!nspawn) return;
    this.#nspawn = undefined;
    const ended = new Promise((resolve) => nspawn.once('exit', resolve));
    await how();
    const late = setTimeout(() => nspawn.kill('SIGKILL'), 60_000);
    if (nspawn.exitCode === null && nspawn.signalCode === null) await ended;
    clearTimeout(late);
  }
}
