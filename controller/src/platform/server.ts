/** An HTTP listener that can be drained: it stops taking connections, and what is under way gets time to finish. */
import { createServer, type Server } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { getRequestListener, RequestError } from '@hono/node-server';
import { KatafractError } from '@katafract/shared/errors';
import { PROBLEM_TYPE } from '@katafract/shared/problem';
import type { Api } from './api.ts';
import { problemOf, publicError } from './problems.ts';

export interface Listen {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
}

export interface HttpListener {
  readonly url: string;
  /** Resolves when every request has been answered, or `deadlineMs` later with the rest cut off. */
  drain(deadlineMs: number): Promise<void>;
}

/** What the HTTP parser itself refuses never reaches the app; it too gets a problem document. */
const PARSER_ERRORS: Readonly<Record<string, [number, string, string]>> = {
  HPE_HEADER_OVERFLOW: [431, 'headers_too_large', 'the header fields are too large'],
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'request_timeout', 'the request did not arrive in time'],
};

function refuse(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || error.code === 'ECONNRESET') return void socket.destroy();
  const [status, code, message] = PARSER_ERRORS[error.code ?? ''] ?? [400, 'bad_request', 'not valid HTTP'];
  const problem = problemOf(new KatafractError(code, message, { status }));
  const body = JSON.stringify(problem);
  socket.end(
    `HTTP/1.1 ${status} ${problem.title}\r\nContent-Type: ${PROBLEM_TYPE}\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
  );
}

/** What fails before it meets the app: a target or Host that makes no URL is the client's fault, all else is ours. */
function withoutApp(error: unknown, onFault: (error: unknown) => void): Response {
  const theirs = error instanceof RequestError;
  if (!theirs) onFault(error);
  const refusal = new KatafractError('bad_request', 'not a valid request target or Host', { status: 400 });
  const problem = problemOf(theirs ? refusal : publicError(error));
  return Response.json(problem, { status: problem.status, headers: { 'Content-Type': PROBLEM_TYPE } });
}

/**
 * @param mesh whether routes for the mesh are served here
 * @param onFault a request failed outside of the app, which logs what fails inside
 * @throws the listen error of Node, such as EADDRINUSE
 */
export async function listenHttp(
  api: Api,
  at: Listen,
  mesh: boolean,
  onFault: (error: unknown) => void,
): Promise<HttpListener> {
  const server = createServer(
    { headersTimeout: 10_000, requestTimeout: 30_000, keepAliveTimeout: 65_000 },
    getRequestListener((request, env) => api.fetch(request, { ...env, mesh }), {
      errorHandler: (error) => withoutApp(error, onFault),
    }),
  );
  server.on('clientError', refuse);
  // any expectation but 100-continue (RFC 9110 10.1.1); Node's own answer has no body
  server.on('checkExpectation', (_request, response) => {
    const refusal = new KatafractError('expectation_failed', 'no such expectation', { status: 417 });
    response.writeHead(417, { 'Content-Type': PROBLEM_TYPE, Connection: 'close' });
    response.end(JSON.stringify(problemOf(refusal)));
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(at.port, at.host, () => {
      server.off('error', reject);
      resolve();
    });
  });
  const { port } = server.address() as AddressInfo;
  const host = at.host.includes(':') ? `[${at.host}]` : at.host;
  return { url: `http://${host}:${port}`, drain: (deadlineMs) => drain(server, deadlineMs) };
}

function drain(server: Server, deadlineMs: number): Promise<void> {
  return new Promise((resolve) => {
    const cut = setTimeout(() => server.closeAllConnections(), deadlineMs);
    server.close(() => {
      clearTimeout(cut);
      resolve();
    });
    // kept-alive connections end as they fall idle, instead of holding the door open until the deadline
    const sweep = setInterval(() => server.closeIdleConnections(), 50);
    server.once('close', () => clearInterval(sweep));
  });
}
