/**
 * The least of an HTTP/1.1 client: one kept connection, one request at a time, bodies of known length. Node's own costs
 * more than half a millisecond a call, which would count as the API's, and takes the cores from what is measured.
 */
import { connect, type Socket } from 'node:net';

export interface Called {
  readonly status: number;
  /** From the first byte written to the last one read. */
  readonly ms: number;
  readonly body: string;
}

const HEAD_END = '\r\n\r\n';

export class Connection {
  readonly #socket: Socket;
  readonly #host: string;
  #received: Buffer = Buffer.alloc(0);
  #look: () => void = () => undefined;
  #failed: (error: Error) => void = () => undefined;

  private constructor(socket: Socket, host: string) {
    this.#socket = socket;
    this.#host = host;
    socket.setNoDelay(true);
    socket.on('data', (chunk) => {
      this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk]);
      this.#look();
    });
    socket.on('error', (error) => this.#failed(error));
    socket.on('close', () => this.#failed(new Error('the server closed the connection')));
  }

  /** @param origin e.g. `http://203.0.113.2:8080` */
  static open(origin: string): Promise<Connection> {
    const { hostname, port, host } = new URL(origin);
    return new Promise((resolve, reject) => {
      const socket = connect({ host: hostname, port: Number(port) });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new Connection(socket, host));
      });
    });
  }

  /** @throws Error where the connection ends, or the answer does not say how long it is */
  send(method: string, path: string, headers: Readonly<Record<string, string>>, body = ''): Promise<Called> {
    const lines = [`${method} ${path} HTTP/1.1`, `host: ${this.#host}`];
    for (const [name, value] of Object.entries(headers)) lines.push(`${name}: ${value}`);
    if (body !== '') lines.push('content-type: application/json');
    lines.push(`content-length: ${Buffer.byteLength(body)}`);
    const request = `${lines.join('\r\n')}${HEAD_END}${body}`;
    return new Promise((resolve, reject) => {
      const started = performance.now();
      this.#failed = reject;
      this.#look = () => {
        try {
          const answer = this.#take();
          if (answer) resolve({ ...answer, ms: performance.now() - started });
        } catch (error) {
          reject(error as Error);
        }
      };
      this.#socket.write(request);
    });
  }

  /** One whole answer off what has been received; null while it is not all there. */
  #take(): Omit<Called, 'ms'> | null {
    const end = this.#received.indexOf(HEAD_END);
    if (end < 0) return null;
    const head = this.#received.toString('latin1', 0, end);
    const length = head.match(/\r\ncontent-length: *(\d+)/i)?.[1];
    const status = Number(head.slice(9, 12));
    if (length === undefined && status !== 204) throw new Error(`an answer without a length:\n${head}`);
    const start = end + HEAD_END.length;
    const stop = start + Number(length ?? 0);
    if (this.#received.length < stop) return null;
    const body = this.#received.toString('utf8', start, stop);
    this.#received = this.#received.subarray(stop);
    return { status, body };
  }

  close(): void {
    this.#failed = () => undefined;
    this.#socket.destroy();
  }
}
