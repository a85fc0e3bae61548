/** `wraith` on a device of the lab, as a customer runs it: one program that brings the tunnel up and watches it. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { WRAITH } from './bundles.ts';
import type { Device } from './device.ts';
import type { Lab } from './lab.ts';
import type { Program } from './process.ts';

export interface WraithStatus {
  readonly state: 'up' | 'down' | 'broken';
  readonly exit?: { readonly node: string };
  readonly watch?: { readonly exit: string; readonly reason: string; readonly home: string | null };
}

export class Wraith {
  readonly device: Device;
  readonly #env: NodeJS.ProcessEnv;
  readonly #place: string[];
  #program: Program | undefined;

  constructor(lab: Lab, device: Device, sigil: string) {
    this.device = device;
    const stateDir = join(lab.folder, `${device.name}-wraith`);
    mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    this.#place = [WRAITH, '--api', lab.controller.publicUrl, '--state-dir', stateDir];
    this.#env = { WRAITH_SIGIL: sigil };
  }

  get program(): Program {
    if (!this.#program) throw new Error(`no wraith was started on ${this.device.name}`);
    return this.#program;
  }

  /** Brings the tunnel up and stays; resolves once it watches. */
  async watch(region: string, homeAfterSeconds = 60): Promise<void> {
    const how = ['up', '--watch', '--region', region, '--home-after', String(homeAfterSeconds)];
    this.#program = this.device.start('wraith', process.execPath, [...this.#place, ...how], this.#env);
    await this.#program.waitFor(/ answers\n/);
  }

  /** Ends the watching; the tunnel stays. */
  async leave(): Promise<void> {
    await this.program.stop('SIGTERM');
  }

  async status(): Promise<WraithStatus> {
    const args = [...this.#place, 'status', '--json'];
    const { stdout } = await this.device.run(process.execPath, args, { env: this.#env });
    return JSON.parse(stdout) as WraithStatus;
  }

  /** Takes the tunnel down; `forget` also gives the peer back. */
  async down(forget = false): Promise<void> {
    const args = [...this.#place, 'down', ...(forget ? ['--forget'] : [])];
    await this.device.exec(process.execPath, args, { env: this.#env });
  }
}
