/** HTTP/1.1 by hand over a TCP connection of its own: sends exactly the bytes it is given, also those no client would. */
import { once } from 'node:events';
import { connect } from 'node:net';

export interface RawRequest {
  readonly method: string;
  /** Request target; each character is one byte (latin1). */
  readonly target: string;
  readonly headers: readonly (readonly [string, string])[];
  readonly body: Buffer | null;
  /** In chunks, without a length; otherwise with the true length. */
  readonly chunked?: boolean;
}

export interface RawAnswer {
  readonly status: number;
  /** Names in lower case. */
  readonly headers: ReadonlyMap<string, string>;
  readonly body: string;
}

function bytes({ method, target, headers, body, chunked = false }: RawRequest): Buffer {
  const length = chunked ? ['Transfer-Encoding', 'chunked'] : ['Content-Length', String(body?.length ?? 0)];
  const framing = body === null ? [] : [length];
  const all = [['Host', 'artemis.test'], ['Connection', 'close'], ...framing, ...headers];
  const head = [`${method} ${target} HTTP/1.1`, ...all.map(([name, value]) => `${name}: ${value}`), '', ''];
  const tail = body === null ? [] : chunked ? chunks(body) : [body];
  return Buffer.concat([Buffer.from(head.join('\r\n'), 'latin1'), ...tail]);
}

const chunks = (body: Buffer) => {
  const end = Buffer.from('0\r\n\r\n');
  return body.length === 0
    ? [end]
    : [Buffer.from(`${body.length.toString(16)}\r\n`), body, Buffer.from('\r\n'), end];
};

/** @throws where the connection ended without a whole answer */
export async function send(url: string, request: RawRequest): Promise<RawAnswer> {
  const { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname);
  const parts: Buffer[] = [];
  socket.on('data', (part) => parts.push(part));
  socket.on('error', () => undefined); // a server may refuse without reading on; whether it answered is what counts
  socket.write(bytes(request));
  await once(socket, 'close');
  return parse(Buffer.concat(parts), request);
}

function parse(answer: Buffer, { method, target }: Pick<RawRequest, 'method' | 'target'>): RawAnswer {
  const end = answer.indexOf('\r\n\r\n');
  const [first = '', ...lines] = answer.subarray(0, Math.max(0, end)).toString('latin1').split('\r\n');
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(first)?.[1]);
  if (end < 0 || Number.isNaN(status)) throw new Error(`no answer to ${method} ${target}`);
  const headers = new Map(
    lines.map((line) => {
      const colon = line.indexOf(':');
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
    }),
  );
  const rest = answer.subarray(end + 4);
  if (status === 100) return parse(rest, { method, target });
  const body = headers.get('transfer-encoding') === 'chunked' ? unchunk(rest) : rest;
  return { status, headers, body: body.toString('utf8') };
}

function unchunk(data: Buffer): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; ; ) {
    const line = data.indexOf('\r\n', at);
    const size = Number.parseInt(data.subarray(at, line).toString('latin1'), 16);
    if (line < 0 || Number.isNaN(size)) throw new Error('a chunk without its length');
    if (size === 0) return Buffer.concat(parts);
    parts.push(data.subarray(line + 2, line + 2 + size));
    at = line + 2 + size + 2;
  }
}
