/** Whoever calls the API: an app on a device. One call with its time, or many callers at once for a while. */
import { type Summary, summarize } from '../stats.ts';
import { randomKey } from './exit.ts';
import { type Called, Connection } from './http.ts';

export interface Call {
  readonly url: string;
  readonly method: string;
  readonly token: string;
  readonly body?: object;
  /** For a POST that creates. */
  readonly idempotencyKey?: string;
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

/** What an answer of the load counts as: `done`, or what it was instead. */
function kindOf({ status, body }: Called): string {
  if (status !== 201) return String(status);
  const { status: placed } = JSON.parse(body) as { status?: string };
  return placed === undefined || placed === 'active' ? 'done' : placed;
}

/** What one caller sends in its turn. */
function requestOf({ tokens, regions }: LoadOptions, caller: number, turn: number) {
  const token = tokens[caller];
  const region = regions[turn % regions.length];
  return {
    headers: {
      ...(token === undefined
        ? {}
        : { authorization: `Bearer ${token}`, 'idempotency-key': crypto.randomUUID() }),
    },
    body: JSON.stringify({ publicKey: randomKey(), ...(region === undefined ? {} : { region }) }),
  };
}

async function load(options: LoadOptions): Promise<LoadResult> {
  const { origin, pathname } = new URL(options.url);
  const connections = await Promise.all(
    Array.from({ length: options.callers }, () => Connection.open(origin)),
  );
  const times: number[] = [];
  const others: Record<string, number> = {};
  const started = performance.now();
  const end = started + options.seconds * 1000;
  const caller = async (connection: Connection, index: number) => {
    for (let turn = index; performance.now() < end; turn++) {
      const { headers, body } = requestOf(options, index, turn);
      const answer = await connection.send('POST', pathname, headers, body);
      const kind = kindOf(answer);
      if (kind === 'done') times.push(answer.ms);
      else others[kind] = (others[kind] ?? 0) + 1;
    }
  };
  await Promise.all(connections.map(caller));
  const took = (performance.now() - started) / 1000;
  for (const connection of connections) connection.close();
  return { perSecond: times.length / took, ms: summarize(times), others };
}

export function callerOperations() {
  const open = new Map<string, Promise<Connection>>();
  return {
    /** Over a connection that is kept, as an app keeps it. */
    async call({ url, method, token, body, idempotencyKey }: Call): Promise<Called> {
      const { origin, pathname } = new URL(url);
      const connecting = open.get(origin) ?? Connection.open(origin);
      open.set(origin, connecting);
      const headers = {
        authorization: `Bearer ${token}`,
        ...(idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }),
      };
      const text = body === undefined ? undefined : JSON.stringify(body);
      return (await connecting).send(method, pathname, headers, text);
    },
    load,
  };
}
