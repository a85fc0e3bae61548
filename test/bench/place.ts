/** The bench's side of its processes inside hosts (worker.ts, work/spawner.mjs): where an operation is run, and how. */
import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Host } from '../lab/host.ts';
import type { Answer, Question } from './messages.ts';
import type { SshTarget } from './sshd.ts';
import type { AgentOperations } from './work/agents.ts';
import type { WorkerOperations } from './worker.ts';

type Times = (argument: { count: number }) => Promise<number[]>;
/** What work/spawner.mjs does. */
export interface SpawnerOperations {
  makeBare(argument: undefined): Promise<void>;
  removeBare(argument: undefined): Promise<void>;
  wgSet: Times;
  wgSetconf(argument: { file: string }): Promise<number>;
  openSsh(argument: SshTarget): Promise<void>;
  sshCold: Times;
  sshKept: Times;
  sshShell: Times;
  closeSsh(argument: undefined): Promise<void>;
}

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
/** Node with TypeScript, wherever it is started: hosts' programs start in `/`. */
export const NODE_TYPESCRIPT = [process.execPath, '--import', import.meta.resolve('tsx')] as const;

type Operations<T> = { [K in keyof T]: (argument: never) => Promise<unknown> };
type Argument<T extends Operations<T>, K extends keyof T> = Parameters<T[K]>[0];
type Result<T extends Operations<T>, K extends keyof T> = Awaited<ReturnType<T[K]>>;

interface Waiting {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

export class Place<T extends Operations<T>> {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, Waiting>();
  #next = 1;

  private constructor(child: ChildProcess, name: string) {
    this.#child = child;
    child.on('message', (message) => this.#settle(message as Answer));
    child.once('exit', (code, signal) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`${name} ended (${code ?? signal})`));
      this.#waiting.clear();
    });
  }

  static worker(host: Host): Promise<Place<WorkerOperations>> {
    return Place.#start<WorkerOperations>(host, [...NODE_TYPESCRIPT, path('worker.ts')]);
  }

  static spawner(host: Host): Promise<Place<SpawnerOperations>> {
    return Place.#start<SpawnerOperations>(host, [process.execPath, path('work/spawner.mjs')]);
  }

  /** On the machine itself, outside of any lab. */
  static agents(): Promise<Place<AgentOperations>> {
    const machine = { name: 'the machine', enter: () => ['env'] };
    return Place.#start<AgentOperations>(machine, [...NODE_TYPESCRIPT, path('agents-worker.ts')]);
  }

  static #start<T extends Operations<T>>(
    host: Pick<Host, 'name' | 'enter'>,
    program: readonly string[],
  ): Promise<Place<T>> {
    const [command = '', ...args] = [...host.enter(), ...program];
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], cwd: '/' });
    return new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code) => reject(new Error(`no worker on ${host.name} (${code})`)));
      child.once('message', () => {
        child.removeAllListeners('exit');
        resolve(new Place<T>(child, `the worker on ${host.name}`));
      });
    });
  }

  #settle(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if ('error' in answer) waiting?.reject(new Error(answer.error));
    else waiting?.resolve(answer.result);
  }

  /** Runs one operation there. */
  do<K extends keyof T & string>(operation: K, argument: Argument<T, K>): Promise<Result<T, K>> {
    const question: Question = { id: this.#next++, operation, argument };
    return new Promise<Result<T, K>>((resolve, reject) => {
      this.#waiting.set(question.id, { resolve: (value) => resolve(value as Result<T, K>), reject });
      this.#child.send(question, (error) => error && reject(error));
    });
  }

  async end(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.disconnect();
    await ended;
  }
}
