/** The lab's side of resident.mjs: sockets opened, listened on and forwarded inside a host. */
import { type ChildProcess, spawn } from 'node:child_process';
import { connect, createServer, type Server } from 'node:net';
import { fileURLToPath } from 'node:url';

const SCRIPT = fileURLToPath(new URL('resident.mjs', import.meta.url));

export interface HttpRequest {
  readonly url: string;
  readonly method?: string;
  readonly headers?: Record<string, string>;
  readonly body?: string;
  readonly timeoutMs?: number;
}
export interface HttpResponse {
  readonly status: number;
  readonly headers: Record<string, string | string[] | undefined>;
  readonly body: string;
}
export interface ListenOptions {
  readonly transport?: 'tcp' | 'udp';
  /** 0 or absent: any free one. */
  readonly port?: number;
  readonly address?: string;
  /** `peer` answers with the address the call came from (over TCP as a web server), `echo` with what came; else the text itself. */
  readonly reply?: string;
}
export interface Received {
  readonly count: number;
  /** Addresses and ports they came from. */
  readonly peers: readonly string[];
  readonly ports: readonly number[];
}
/** A TCP connection that is kept open. */
export interface Connection {
  readonly localPort: number;
  /** What comes back on something that is said; null where nothing does in that time. */
  say(text: string, timeoutMs?: number): Promise<string | null>;
  close(): Promise<void>;
}
export interface Listener {
  readonly port: number;
  /** Connections or datagrams that arrived. */
  received(options?: { reset?: boolean }): Promise<Received>;
  close(): Promise<void>;
}
export interface Forward {
  /** In the root namespace, on 127.0.0.1. */
  readonly port: number;
}

interface Answer {
  readonly id: number;
  readonly result?: unknown;
  readonly error?: string;
}

export class Resident {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<
    number,
    { resolve: (value: unknown) => void; reject: (error: Error) => void }
  >();
  #next = 1;

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.on('message', (message, handle) => this.#settle(message as Answer, handle as Server | undefined));
    child.once('exit', (code, signal) => {
      for (const { reject } of this.#waiting.values())
        reject(new Error(`resident ended (${code ?? signal})`));
      this.#waiting.clear();
    });
  }

  /** @param enter command and arguments that enter the host's namespaces and run what follows them there */
  static start(enter: readonly string[]): Promise<Resident> {
    const [command = '', ...args] = [...enter, process.execPath, SCRIPT];
    const child = spawn(command, args, {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      detached: true,
    });
    return new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code) => reject(new Error(`the resident did not start (${code})`)));
      child.once('message', () => {
        child.removeAllListeners('exit');
        // idle residents must not keep the owner alive
        child.unref();
        child.channel?.unref();
        resolve(new Resident(child));
      });
    });
  }

  #settle(answer: Answer, handle?: Server): void {
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if (this.#waiting.size === 0) this.#child.channel?.unref();
    if (answer.error === undefined) waiting?.resolve(handle ?? answer.result);
    else waiting?.reject(new Error(answer.error));
  }

  #ask<T>(op: string, details: object, handle?: Server): Promise<T> {
    const id = this.#next++;
    return new Promise<T>((resolve, reject) => {
      this.#waiting.set(id, { resolve: (value) => resolve(value as T), reject });
      this.#child.channel?.ref();
      this.#child.send({ ...details, id, op }, handle, {}, (error) => error && reject(error));
    });
  }

  /** An HTTP request from this host. Rejects with the error code of a connection that failed. */
  http(call: HttpRequest): Promise<HttpResponse> {
    return this.#ask('http', call);
  }

  /** `open`, `timeout`, or the code of the refusal. */
  probe(address: string, port: number, timeoutMs = 1000): Promise<string> {
    return this.#ask('probe', { address, port, timeoutMs });
  }

  /** Sends datagrams, each longer than the one before; with `replyMs`, resolves with the first answer, or null where none came in that time. */
  udp(
    address: string,
    port: number,
    options: {
      payload?: string;
      count?: number;
      localAddress?: string;
      localPort?: number;
      replyMs?: number;
    } = {},
  ): Promise<string | null> {
    return this.#ask('udp', { address, port, ...options });
  }

  /** One datagram from each of so many ports. */
  async flows(address: string, port: number, count: number): Promise<void> {
    await this.#ask('flows', { address, port, count });
  }

  /** Ports that the system gives to so many sockets which ask for none in particular. */
  ports(count: number): Promise<number[]> {
    return this.#ask('ports', { count });
  }

  /** Opens a TCP connection and keeps it. Rejects with the code of the refusal, or `ETIMEDOUT`. */
  async hold(address: string, port: number, timeoutMs = 3000): Promise<Connection> {
    const opened = await this.#ask<{ connection: number; localPort: number }>('hold', {
      address,
      port,
      timeoutMs,
    });
    const { connection } = opened;
    return {
      localPort: opened.localPort,
      say: (text, waitMs = 1000) => this.#ask('say', { connection, text, timeoutMs: waitMs }),
      close: async () => {
        await this.#ask('hangUp', { connection });
      },
    };
  }

  async listen(options: ListenOptions = {}): Promise<Listener> {
    const { transport = 'tcp', port = 0, address, reply } = options;
    const opened = await this.#ask<{ listener: number; port: number }>('listen', {
      transport,
      port,
      address,
      reply,
    });
    const { listener } = opened;
    return {
      port: opened.port,
      received: (how = {}) => this.#ask('received', { listener, ...how }),
      close: async () => {
        await this.#ask('close', { listener });
      },
    };
  }

  /**
   * Opens a port in the namespace of the caller that leads to `address:port` inside this host: the listening socket
   * is made here and handed over, and a socket stays in the network it was made in.
   */
  async forward(address: string, port: number): Promise<Forward> {
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(0, '127.0.0.1', resolve);
    });
    const bound = server.address();
    if (bound === null || typeof bound === 'string') throw new Error('no port');
    await this.#ask('forward', { address, port }, server);
    await new Promise((resolve) => server.close(resolve));
    return { port: bound.port };
  }

  /** Makes a port of the caller's own 127.0.0.1 reachable inside this host, on the same port of its 127.0.0.1. */
  async expose(port: number): Promise<void> {
    const server = await this.#ask<Server>('expose', { port });
    server.on('connection', (inside) => {
      const outside = connect({ host: '127.0.0.1', port });
      const end = () => {
        inside.destroy();
        outside.destroy();
      };
      inside.on('error', end).on('close', end);
      outside.on('error', end).on('close', end);
      inside.pipe(outside);
      outside.pipe(inside);
    });
    server.unref();
  }
}
