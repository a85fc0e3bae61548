/** The bench's side of worker.ts: a place inside a host where operations can be run. */
import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Host } from '../lab/host.ts';
import type { Answer, Operations, Question } from './worker.ts';

const WORKER = fileURLToPath(new URL('worker.ts', import.meta.url));
/** Node with TypeScript, wherever it is started: hosts' programs start in `/`. */
export const NODE_TYPESCRIPT = [process.execPath, '--import', import.meta.resolve('tsx')] as const;

type Result<K extends keyof Operations> = Awaited<ReturnType<Operations[K]>>;
interface Waiting {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

export class Place {
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

  static start(host: Host): Promise<Place> {
    const [command = '', ...args] = [...host.enter(), ...NODE_TYPESCRIPT, WORKER];
    const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], cwd: '/' });
    return new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code) => reject(new Error(`no worker on ${host.name} (${code})`)));
      child.once('message', () => {
        child.removeAllListeners('exit');
        resolve(new Place(child, `the worker on ${host.name}`));
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
  do<K extends keyof Operations>(operation: K, argument: Parameters<Operations[K]>[0]): Promise<Result<K>> {
    const question: Question = { id: this.#next++, operation, argument };
    return new Promise<Result<K>>((resolve, reject) => {
      this.#waiting.set(question.id, { resolve: (value) => resolve(value as Result<K>), reject });
      this.#child.send(question, (error) => error && reject(error));
    });
  }

  async end(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.disconnect();
    await ended;
  }
}
