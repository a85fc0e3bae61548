/** What the root helper needs of the machine. */
import type { Exec } from '../host/exec.ts';
import type { Log } from '../ports.ts';
import type { RequestName, Result } from './requests.ts';

/** The folder in which the agent leaves its requests. It belongs to the agent, so nothing in it is trusted. */
export interface RequestsPort {
  /**
   * Content of a file as JSON; undefined where there is none.
   * @throws KatafractError `request_refused` where it is no plain small file of the folder's owner, or no JSON
   */
  take(name: string): Promise<unknown>;
  remove(name: string): Promise<void>;
  answer(name: RequestName, result: Result): Promise<void>;
}

/** What the helper must remember over its own death: root's alone. */
export interface MemoryPort {
  read(name: string): Promise<unknown>;
  /** Durable once it resolves; null forgets. */
  write(name: string, value: object | null): Promise<void>;
}

/** Files of the system, by their paths below the root. */
export interface SystemFilesPort {
  /** null where there is none. @throws KatafractError `file_refused` where it is no plain file of a sane size */
  read(path: string): Promise<string | null>;
  /** Replaces it. @param how `private`: of the owner of its folder, and his alone; everybody may read others */
  write(path: string, text: string, how?: 'private'): Promise<void>;
  remove(path: string): Promise<void>;
}

export interface HelperPorts {
  readonly exec: Exec;
  readonly requests: RequestsPort;
  readonly memory: MemoryPort;
  readonly files: SystemFilesPort;
  readonly now: () => number;
  readonly sleep: (ms: number) => Promise<void>;
  readonly log: Log;
  /** How long another version of the agent may take to speak with the controller, in ms. */
  readonly patienceMs: number;
}
