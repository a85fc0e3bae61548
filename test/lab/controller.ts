/** Artemis in the lab: the controller as a process on a host of its own, reached by apps, nodes and tests. */
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CONTROLLER } from './bundles.ts';
import type { Host } from './host.ts';
import type { LogFile, Program } from './process.ts';
import { Hopeless, waitFor } from './wait.ts';

export const API_PORT = 8080;
export const MESH_PORT = 8081;
export const MQTT_PORT = 1883;

export interface ControllerOptions {
  readonly host: Host;
  readonly address: string;
  readonly meshAddress: string;
  readonly folder: string;
  /** The controller's own embedded Postgres where absent. */
  readonly database?: string;
  readonly env: NodeJS.ProcessEnv;
}

/** Longer than any answer may take; a call that hangs must fail, and say which it was. */
const ANSWER_MS = 60_000;

/** An answer of the API. */
export interface ApiResponse<T> {
  readonly status: number;
  readonly headers: Headers;
  readonly body: T;
}

export class Controller {
  readonly publicUrl: string;
  readonly meshUrl: string;
  readonly dataDir: string;
  readonly #options: ControllerOptions;
  #program: Program | undefined;
  #api = '';
  #publicApi = '';

  constructor(options: ControllerOptions) {
    this.#options = options;
    this.publicUrl = `http://${options.address}:${API_PORT}`;
    this.meshUrl = `http://${options.meshAddress}:${MESH_PORT}`;
    this.dataDir = join(options.folder, 'artemis');
    mkdirSync(this.dataDir, { recursive: true, mode: 0o755 });
  }

  /** Opens the ports by which the machine reaches the controller; they outlive its restarts. */
  async connect(): Promise<void> {
    const { host, address, meshAddress } = this.#options;
    this.#publicApi = `http://127.0.0.1:${(await host.forward(address, API_PORT)).port}`;
    this.#api = `http://127.0.0.1:${(await host.forward(meshAddress, MESH_PORT)).port}`;
  }

  /** The listener on the mesh, which has all routes, from the machine's own namespace. */
  get api(): string {
    return this.#api;
  }

  /** The listener on the internet, which has those for apps alone. */
  get publicApi(): string {
    return this.#publicApi;
  }

  get operatorTokenFile(): string {
    return join(this.dataDir, 'operator-token');
  }

  get operatorToken(): string {
    return readFileSync(this.operatorTokenFile, 'utf8').trim();
  }

  get log(): LogFile {
    return this.program.log;
  }

  get program(): Program {
    if (!this.#program) throw new Error('the controller was not started');
    return this.#program;
  }

  #environment(): NodeJS.ProcessEnv {
    const { address, meshAddress, database, env } = this.#options;
    return {
      ...(database === undefined ? {} : { DATABASE_URL: database }),
      KATAFRACT_DATA_DIR: this.dataDir,
      KATAFRACT_API_LISTEN: `${address}:${API_PORT}`,
      KATAFRACT_MESH_LISTEN: `${meshAddress}:${MESH_PORT}`,
      KATAFRACT_PUBLIC_URL: this.publicUrl,
      KATAFRACT_MQTT_LISTEN: `${meshAddress}:${MQTT_PORT}`,
      KATAFRACT_MQTT_PUBLIC_URL: `mqtt://${meshAddress}:${MQTT_PORT}`,
      KATAFRACT_RATE_LIMIT_PER_MINUTE: '0',
      KATAFRACT_ANONYMOUS_LIMIT_PER_MINUTE: '0',
      ...env,
    };
  }

  /** Starts the process and waits until it is ready to serve. */
  async start(): Promise<void> {
    if (this.#program?.running) throw new Error('the controller runs already');
    const program = this.#options.host.start(
      'controller',
      process.execPath,
      [CONTROLLER],
      this.#environment(),
    );
    this.#program = program;
    await this.ready(program);
  }

  /** Waits until /readyz says yes; fails at once where the process has ended. */
  async ready(program = this.program): Promise<void> {
    await waitFor('the controller to be ready', async () => {
      if (!program.running)
        throw new Hopeless(`the controller ended (${await program.ended}):\n${program.log.tail()}`);
      return (await fetch(`${this.api}/readyz`, { signal: AbortSignal.timeout(5000) })).ok;
    });
  }

  /** Asks it to end, as systemd does, and waits until it has. */
  stop(): Promise<number | string> {
    return this.program.stop('SIGTERM');
  }

  /** Ends it without a word of warning. */
  kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<number | string> {
    return this.program.stop(signal);
  }

  /** An operator's call. Throws where the answer is an error. */
  async operate<T>(method: string, path: string, body?: object): Promise<T> {
    return expectOk(await call<T>(this.api, method, path, this.operatorToken, body), `${method} ${path}`);
  }

  /** An app's call with a Sigil, whatever the answer. */
  app<T>(method: string, path: string, sigil: string, body?: object, key?: string): Promise<ApiResponse<T>> {
    return call<T>(this.publicApi, method, path, sigil, body, key);
  }
}

export async function call<T>(
  base: string,
  method: string,
  path: string,
  token: string,
  body?: object,
  key: string = crypto.randomUUID(),
): Promise<ApiResponse<T>> {
  const response = await fetch(`${base}${path}`, {
    method,
    signal: AbortSignal.timeout(ANSWER_MS),
    headers: {
      authorization: `Bearer ${token}`,
      ...(method === 'POST' ? { 'idempotency-key': key } : {}),
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  const parsed = text === '' ? undefined : JSON.parse(text);
  return { status: response.status, headers: response.headers, body: parsed as T };
}

/** The body of an answer that must be a success. */
export function expectOk<T>(answer: ApiResponse<T>, what: string): T {
  if (answer.status < 300) return answer.body;
  throw new Error(`${what}: ${answer.status} ${JSON.stringify(answer.body)}`);
}
