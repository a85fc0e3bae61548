/**
 * A machine of a cloud: a tree of files that systemd boots in a container, in a network namespace of its own with one
 * cable to the cloud. Its user data come from cloud-init's NoCloud seed.
 */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Host } from '../lab/host.ts';
import { exec, type Output, run } from '../lab/process.ts';
import { Container } from './container.ts';

export interface MachineOptions {
  readonly name: string;
  readonly cloud: Host;
  /** The machine's own address in the cloud's 203.0.113.0/24. */
  readonly address: string;
  readonly gateway: string;
  readonly image: string;
  readonly folder: string;
  readonly userData: string;
  /** Where it gets Debian's own packages. */
  readonly mirror: string;
}

export class Machine {
  readonly root: string;
  readonly console: string;
  readonly #options: MachineOptions;
  readonly #namespace: string;
  readonly #container: Container;

  constructor(options: MachineOptions) {
    this.#options = options;
    this.root = join(options.folder, options.name);
    this.console = join(options.folder, `${options.name}.console`);
    this.#namespace = `${options.cloud.namespace}-${options.name}`;
    const { name } = options;
    this.#container = new Container({
      name,
      root: this.root,
      namespace: this.#namespace,
      console: this.console,
    });
  }

  /** Writes its disk. */
  async install(): Promise<void> {
    const { image, userData, name, mirror } = this.#options;
    await exec('cp', ['--archive', image, this.root]);
    const seed = join(this.root, 'var/lib/cloud/seed/nocloud');
    mkdirSync(seed, { recursive: true });
    writeFileSync(join(seed, 'user-data'), userData, { mode: 0o600 });
    writeFileSync(join(seed, 'meta-data'), `instance-id: ${name}\n`);
    // as a cloud's image is set; the network comes with the namespace
    const settings = 'datasource_list: [NoCloud, None]\nnetwork: {config: disabled}\nlocale: C.UTF-8\n';
    writeFileSync(join(this.root, 'etc/cloud/cloud.cfg.d/99-machine.cfg'), settings);
    writeFileSync(join(this.root, 'etc/apt/sources.list'), `deb [trusted=yes] ${mirror} stable main\n`);
    rmSync(join(this.root, 'etc/resolv.conf'), { force: true });
    writeFileSync(join(this.root, 'etc/machine-id'), '');
  }

  /** What its cloud-init has to say against its user data; empty where nothing. */
  async complaints(): Promise<string> {
    const seed = '/var/lib/cloud/seed/nocloud/user-data';
    const { code, stdout, stderr } = await run('chroot', [
      this.root,
      'cloud-init',
      'schema',
      '--config-file',
      seed,
    ]);
    return code === 0 ? '' : `${stdout}${stderr}`;
  }

  /** Plugs the cable in and boots. The network is new each time, as after a power cut. */
  async boot(): Promise<void> {
    const { cloud, address, gateway, name } = this.#options;
    await exec('ip', ['netns', 'add', this.#namespace]);
    const inside = (...args: string[]) => exec('ip', ['-n', this.#namespace, ...args]);
    await exec('ip', [
      'link',
      'add',
      'eth0',
      'netns',
      this.#namespace,
      'type',
      'veth',
      'peer',
      'name',
      name,
      'netns',
      cloud.namespace,
    ]);
    await inside('address', 'add', `${address}/24`, 'dev', 'eth0');
    await inside('link', 'set', 'lo', 'up');
    await inside('link', 'set', 'eth0', 'up');
    await cloud.exec('ip', ['link', 'set', name, 'up', 'master', 'cloud0']);
    await inside('route', 'add', 'default', 'via', gateway);
    await this.#container.boot();
  }

  /** Runs a command in it, whatever comes of it. */
  run(command: string, args: readonly string[] = []): Promise<Output> {
    return this.#container.run(command, args);
  }

  /** Switches it off and pulls the cable. */
  async off(): Promise<void> {
    await this.#container.off();
    await run('ip', ['netns', 'del', this.#namespace]);
  }

  async destroy(): Promise<void> {
    await this.off();
    rmSync(this.root, { recursive: true, force: true });
  }
}
