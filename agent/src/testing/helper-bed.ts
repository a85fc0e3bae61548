/** The root helper over real files in a folder of its own, with commands that are written down instead of run. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import type { MemoryPort } from '../helper/ports.ts';
import { HavenRequest, Result } from '../helper/requests.ts';
import { serve } from '../helper/serve.ts';
import { helperMemory, openRequests, systemFiles } from '../host/requests.ts';

/** A filter as an agent asks for it. */
export const FILTER = HavenRequest.parse({
  settings: {
    upstreams: ['https://dns.example/dns-query'],
    bootstrap: ['192.0.2.53'],
    blocklists: [{ name: 'ads: "all" # of them', url: 'https://lists.example/ads.txt' }],
    rules: ['||ads.example^', '- not: a list', "it's"],
    queriesPerSecond: 50,
    statistics: false,
    probe: 'example.com',
  },
  gateway4: '10.64.0.1',
  gateway6: 'fd4b::1',
  pool4: '10.64.0.0/10',
  pool6: 'fd4b::/64',
  password: `$2b$04$${'a'.repeat(53)}`,
});

const quiet = { info: () => undefined, warn: () => undefined, error: () => undefined };

export class HelperBed {
  readonly folder = mkdtempSync(join(tmpdir(), 'katafract-helper-'));
  readonly state = join(this.folder, 'state');
  /** In the place of the system's. */
  readonly root = join(this.folder, 'root');
  /** Every command that was run, as a line. */
  commands: string[] = [];
  now = 1_000_000;
  /** Version of the agent's package. */
  installed = '1.0.0';
  /** Which commands fail; by default none. */
  fails: (command: string) => boolean = () => false;
  /** What a command prints; by default nothing. */
  prints: (command: string) => string = () => '';
  /** Called for each pause while the helper waits. */
  meanwhile: () => void = () => undefined;

  constructor() {
    mkdirSync(join(this.state, 'requests'), { recursive: true });
    mkdirSync(this.root);
  }

  get memory(): MemoryPort {
    return helperMemory(this.root);
  }

  leave(name: string, content: object | string): void {
    const text = typeof content === 'string' ? content : JSON.stringify(content);
    writeFileSync(join(this.state, 'requests', name), text);
  }

  resultOf(name: string): Result {
    return Result.parse(JSON.parse(readFileSync(join(this.state, 'requests', `${name}.result`), 'utf8')));
  }

  /** A file of the system, if it is there. */
  read(path: string): string | null {
    try {
      return readFileSync(join(this.root, path), 'utf8');
    } catch {
      return null;
    }
  }

  write(path: string, text: string): void {
    mkdirSync(dirname(join(this.root, path)), { recursive: true });
    writeFileSync(join(this.root, path), text);
  }

  mode(path: string): number {
    return statSync(join(this.root, path)).mode & 0o777;
  }

  /** Paths of all files of the system. */
  files(): string[] {
    return readdirSync(this.root, { recursive: true, withFileTypes: true })
      .filter((entry) => !entry.isDirectory())
      .map((entry) => join(entry.parentPath, entry.name).slice(this.root.length + 1))
      .sort();
  }

  /** One pass. @returns how many requests were answered */
  async help(): Promise<number> {
    const requests = await openRequests(this.state);
    if (!requests) return 0;
    try {
      return await serve({
        exec: { run: async (program, args) => this.#run(program, args) },
        requests,
        memory: this.memory,
        files: systemFiles(this.root),
        now: () => this.now,
        sleep: async (ms) => {
          this.now += ms;
          this.meanwhile();
        },
        log: quiet,
        patienceMs: 10_000,
      });
    } finally {
      await requests.close();
    }
  }

  #run(program: string, args: readonly string[]): string {
    const command = [program, ...args].join(' ');
    this.commands.push(command);
    if (this.fails(command)) throw new KatafractError('command_failed', `${program} failed`);
    if (program === 'apt-get' && args[0] === 'install') this.installed = args.at(-1)?.split('=')[1] ?? '';
    return program === 'dpkg-query' ? this.installed : this.prints(command);
  }

  close(): void {
    rmSync(this.folder, { recursive: true });
  }
}
