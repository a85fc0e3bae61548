/** Whoever calls the API: an app on a device. One call with its time, or many callers at once for a while. */
import { Agent, type IncomingMessage, request } from 'node:http';
import { type Summary, summarize } from '../stats.ts';
import { randomKey } from './exit.ts';

export interface Call {
  readonly url: string;
  readonly method: string;
  readonly token?: string;
  readonly body?: object;
  /** For a POST that creates. */
  readonly idempotencyKey?: string;
}
export interface Called {
  readonly status: number;
  readonly ms: number;
  readonly body: string;
}

export interface LoadOptions {
  readonly url: string;
  readonly callers: number;
  readonly seconds: number;
  /** One for each caller; a route without authentication takes none. */
  readonly tokens: readonly string[];
  /** In turn; a route without regions takes none. */
  readonly regions: readonly string[];
}
export interface LoadResult {
  /** Answers 201 a second, of those `active` or without a status. */
  readonly perSecond: number;
  readonly ms: Summary;
  /** Everything else, by status. */
  readonly others: Readonly<Record<string, number>>;
}

function call(agent: Agent, { url, method, token, body, idempotencyKey }: Call): Promise<Called> {
  const text = body === undefined ? undefined : JSON.stringify(body);
  const headers = {
    ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    ...(text === undefined
      ? {}
      : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
    ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
  };
  return new Promise((resolve, reject) => {
    const started = performance.now();
    const received = (response: IncomingMessage) => {
      let answer = '';
      response.setEncoding('utf8').on('data', (chunk) => {
        answer += chunk;
      });
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, ms: performance.now() - started, body: answer }),
      );
    };
    request(url, { agent, method, headers }, received).on('error', reject).end(text);
  });
}

/** What an answer of the load counts as: `done`, or what it was instead. */
function kindOf({ status, body }: Called): string {
  if (status !== 201) return String(status);
  const { status: placed } = JSON.parse(body) as { status?: string };
  return placed === undefined || placed === 'active' ? 'done' : placed;
}

async function load(options: LoadOptions): Promise<LoadResult> {
  const { url, callers, seconds, tokens, regions } = options;
  const agent = new Agent({ keepAlive: true, maxSockets: callers });
  const times: number[] = [];
  const others: Record<string, number> = {};
  const started = performance.now();
  const end = started + seconds * 1000;
  const caller = async (index: number) => {
    const token = tokens[index];
    for (let turn = index; performance.now() < end; turn++) {
      const region = regions[turn % regions.length];
      const body = { publicKey: randomKey(), ...(region === undefined ? {} : { region }) };
      const answer = await call(agent, {
        url,
        method: 'POST',
        body,
        ...(token === undefined ? {} : { token, idempotencyKey: crypto.randomUUID() }),
      });
      const kind = kindOf(answer);
      if (kind === 'done') times.push(answer.ms);
      else others[kind] = (others[kind] ?? 0) + 1;
    }
  };
  await Promise.all(Array.from({ length: callers }, (_, index) => caller(index)));
  const took = (performance.now() - started) / 1000;
  agent.destroy();
  return { perSecond: times.length / took, ms: summarize(times), others };
}

export function callerOperations() {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  return {
    call: (what: Call): Promise<Called> => call(agent, what),
    load,
  };
}
