/**
 * Upkeep of an exit as systemd and apt do it on a real one: the agent's real helper is started when a request appears,
 * and finds an `apt-get` that installs releases from a folder and restarts the agent, and a `systemctl` that reboots the
 * host. Everything between the controller and these two is what ships.
 */
import {
  copyFileSync,
  existsSync,
  type FSWatcher,
  mkdirSync,
  readdirSync,
  rmSync,
  watch,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AGENT, HELPER } from './bundles.ts';
import type { Exit } from './exit.ts';
import { exec, type Program } from './process.ts';

const BUILD = fileURLToPath(new URL('../../build.mjs', import.meta.url));

/** Another release of the agent, from the sources as they are. */
export async function buildRelease(version: string, outfile: string): Promise<string> {
  await exec(process.execPath, [BUILD, 'agent', version, outfile]);
  return outfile;
}

/** An order is a file, made before it takes its name, so that it is never seen half-written. */
const ORDER = (what: string) => `t=$(mktemp -p "$here") && mv "$t" "$here/orders/${what}"`;
const COMMANDS = {
  'dpkg-query': 'cat "$here/installed"',
  'apt-get': `
    [ "$1" = install ] || exit 0
    for last; do :; done
    version=\${last#*=}
    [ -f "$here/releases/$version.mjs" ] || exit 100
    cp "$here/releases/$version.mjs" "$here/agent.mjs.new" && mv "$here/agent.mjs.new" "$here/agent.mjs"
    printf %s "$version" >"$here/installed.new" && mv "$here/installed.new" "$here/installed"
    ${ORDER('restart')}`,
  systemctl: `
    case "$*" in
      reboot) ${ORDER('reboot')} ;;
      'restart katafract-agent.service') ${ORDER('restart')} ;;
    esac`,
} as const;

export class Maintenance {
  readonly #exit: Exit;
  readonly #folder: string;
  readonly #patience: number;
  readonly #watchers: FSWatcher[] = [];
  #helper: Program | undefined;
  #again = false;
  #work: Promise<void> = Promise.resolve();
  /** How often the agent was restarted and the host rebooted. */
  readonly done: string[] = [];
  /** What went wrong in the stand-ins themselves. */
  readonly faults: string[] = [];

  /** @param patienceSeconds for a release to reach the controller */
  constructor(exit: Exit, patienceSeconds: number) {
    this.#exit = exit;
    this.#patience = patienceSeconds;
    this.#folder = `${exit.stateDir}-system`;
    const requests = join(exit.stateDir, 'requests');
    for (const folder of [requests, ...['bin', 'orders', 'releases'].map((name) => this.#path(name))]) {
      mkdirSync(folder, { recursive: true, mode: 0o700 });
    }
    for (const [name, script] of Object.entries(COMMANDS)) {
      const text = `#!/bin/sh\nhere='${this.#folder}'\n${script}\n`;
      writeFileSync(this.#path('bin', name), text, { mode: 0o755 });
    }
    this.#watchers.push(watch(requests, () => this.#serve()));
    this.#watchers.push(watch(this.#path('orders'), () => this.#obey()));
  }

  #path(...names: string[]): string {
    return join(this.#folder, ...names);
  }

  /** What is installed now. */
  installed(version: string): this {
    this.offer(version, AGENT);
    writeFileSync(this.#path('installed'), version);
    return this;
  }

  /** A release that apt-get finds from now on. */
  offer(version: string, bundle: string): this {
    copyFileSync(bundle, this.#path('releases', `${version}.mjs`));
    return this;
  }

  /** The .path unit: the helper runs while there is a request, one at a time. */
  #serve(): void {
    const names = ['update', 'reboot', 'updates'];
    if (!names.some((name) => existsSync(join(this.#exit.stateDir, 'requests', name)))) return;
    if (this.#helper?.running) {
      this.#again = true;
      return;
    }
    const place = ['--state-dir', this.#exit.stateDir, '--root', this.#path('root')];
    const own = ['--commands', this.#path('bin'), '--patience-seconds', String(this.#patience)];
    this.#helper = this.#exit.start('helper', process.execPath, [HELPER, ...place, ...own]);
    void this.#helper.ended.then(() => {
      if (!this.#again) return;
      this.#again = false;
      this.#serve();
    });
  }

  /** Carries out what the stand-ins were asked for, one after the other. */
  #obey(): void {
    for (const order of readdirSync(this.#path('orders'))) {
      rmSync(this.#path('orders', order));
      this.#work = this.#work
        .then(() => this.#carryOut(order))
        .catch((error: unknown) => void this.faults.push(String(error)));
    }
  }

  async #carryOut(order: string): Promise<void> {
    const exit = this.#exit;
    if (existsSync(this.#path('agent.mjs'))) exit.agentBundle = this.#path('agent.mjs');
    if (order === 'reboot') await exit.reboot();
    else await exit.stopAgent();
    exit.startAgent();
    this.done.push(order);
  }

  async close(): Promise<void> {
    for (const watcher of this.#watchers) watcher.close();
    await this.#work;
  }
}
