/**
 * A stand-in exit that does as its upkeep says: it leaves, and comes back as another version of itself or from a reboot,
 * or as whatever a bad release makes of it.
 */
import type { Desired } from '@katafract/shared/desired';
import type { Upkeep, UpkeepReport } from '@katafract/shared/upkeep';
import type { Heartbeat } from '@katafract/shared/uplink';
import type { FakeExit } from './fake-exit.ts';

/**
 * What becomes of an exit that is told a version: `good`; `restored`: it does not speak, and its helper puts the old one
 * back; `sick`: it speaks, and its firewall is not in place; `gone`: nothing is ever heard of it again.
 */
export type Release = 'good' | 'restored' | 'sick' | 'gone';

export class UpkeepExit {
  readonly exit: FakeExit;
  readonly #brokerUrl: string;
  readonly #releases: (version: string) => Release;
  readonly #timer: NodeJS.Timeout;
  #stopped = false;
  version = '0.1.0';
  /** Versions it became, in order, and reboots. */
  readonly history: string[] = [];
  rebootNeeded = false;
  #failed: string | null = null;
  #lease: string | null = null;
  #read = 0;
  #wanted: Upkeep = {};
  #busy = false;

  constructor(exit: FakeExit, brokerUrl: string, releases: (version: string) => Release) {
    this.exit = exit;
    this.#brokerUrl = brokerUrl;
    this.#releases = releases;
    const plain = exit.heartbeat.bind(exit);
    exit.heartbeat = (): Heartbeat => ({
      ...plain(),
      version: this.version,
      rules: this.#releases(this.version) === 'sick' ? 'failed' : 'ok',
      upkeep: this.#report(),
    });
    const greeting = exit.hello.bind(exit);
    exit.hello = () => ({ ...greeting(), version: this.version });
    this.#timer = setInterval(() => void this.#look(), 100);
  }

  #report(): UpkeepReport {
    const { agentVersion } = this.#wanted;
    const failed = agentVersion !== undefined && agentVersion === this.#failed;
    return {
      rebootNeeded: this.rebootNeeded,
      ...(this.#lease === null ? {} : { lease: this.#lease }),
      ...(agentVersion === undefined || agentVersion === this.version
        ? {}
        : { agentUpdate: failed ? 'failed' : 'requested' }),
    };
  }

  async #look(): Promise<void> {
    const { heard } = this.exit;
    for (; this.#read < heard.length; this.#read++) {
      const [, payload = ''] = (heard[this.#read] ?? '').split('.');
      const { config } = JSON.parse(Buffer.from(payload, 'base64url').toString()) as Desired;
      if (config) this.#wanted = config.upkeep ?? {};
    }
    if (this.#busy) return;
    this.#busy = true;
    const { agentVersion, reboot } = this.#wanted;
    if (agentVersion && agentVersion !== this.version && agentVersion !== this.#failed) {
      await this.#become(agentVersion);
    } else if (reboot && reboot.lease !== this.#lease && Date.now() < reboot.until) {
      this.history.push('reboot');
      this.#lease = reboot.lease;
      this.rebootNeeded = false;
      await this.#away();
    }
    this.#busy = false;
  }

  async #become(version: string): Promise<void> {
    const release = this.#releases(version);
    if (release === 'gone') {
      this.stop();
      return this.exit.leave();
    }
    if (release === 'restored') this.#failed = version;
    else this.version = version;
    this.history.push(this.version);
    await this.#away();
  }

  /** Silent for a moment, which its last will announces. */
  async #away(): Promise<void> {
    await this.exit.leave();
    // the broker may be away just then, as while its controller is killed
    const connected = () =>
      this.exit.connect(this.#brokerUrl).then(
        () => true,
        () => false,
      );
    while (!(await connected())) {
      if (this.#stopped) return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await this.exit.idle();
    this.exit.beat();
  }

  stop(): void {
    this.#stopped = true;
    clearInterval(this.#timer);
  }
}
