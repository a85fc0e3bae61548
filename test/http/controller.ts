/**
 * A whole controller in this process, as main.ts wires it: every domain on a database of its own, the embedded broker
 * and the HTTP listener on free ports. Nothing in it is replaced; only the clock and the log's destination may be
 * given. What it answers with an error is checked on the way: a problem document, of a code that is documented.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadConfig } from '@katafract/controller/config';
import { type Context, createContext } from '@katafract/controller/context';
import { EmbeddedBroker } from '@katafract/controller/fleet/embedded-broker';
import { createHttp } from '@katafract/controller/http';
import { createLogger } from '@katafract/controller/platform/log';
import { PROBLEM_CODES } from '@katafract/controller/platform/problem-codes';
import { listenHttp } from '@katafract/controller/platform/server';
import type { Peer } from '@katafract/shared/api';
import type { Clock } from '@katafract/shared/clock';
import { PROBLEM_TYPE, Problem } from '@katafract/shared/problem';
import type { Tier } from '@katafract/shared/sigil';

/** An answer of the API with its body read. */
export interface Answer<T = unknown> {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** Null where the body was empty or no JSON. */
  readonly body: T;
  /** Of a problem document; null otherwise. */
  readonly code: string | null;
}

export interface Call {
  readonly token?: string;
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface Minted {
  readonly id: string;
  readonly subscription: string;
  readonly sigil: string;
}

/** The API as seen from outside: by a URL and an operator token, in this process or another. */
export class Api {
  readonly url: string;
  readonly operatorToken: string;

  constructor(url: string, operatorToken: string) {
    this.url = url;
    this.operatorToken = operatorToken;
  }

  async call<T = unknown>(
    method: string,
    path: string,
    { token, body, headers }: Call = {},
  ): Promise<Answer<T>> {
    const response = await fetch(`${this.url}${path}`, {
      method,
      headers: {
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
    });
    return answerOf<T>(response);
  }

  /** An operator's call that must succeed. */
  async operate<T = unknown>(method: string, path: string, body?: unknown): Promise<T> {
    const answer = await this.call<T>(method, path, { token: this.operatorToken, body });
    if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${answer.text}`);
    return answer.body;
  }

  async addRegion(id: string, latitude = 50, longitude = 8): Promise<void> {
    await this.operate('POST', '/v1/admin/regions', {
      id,
      name: `Region ${id}`,
      country: 'DE',
      latitude,
      longitude,
    });
  }

  /** A Sigil for a new subscription, or for one that is there. */
  mint(tier: Tier, options: { subscription?: string; days?: number } = {}): Promise<Minted> {
    const { days = 30, ...rest } = options;
    const expiresAt = new Date(Date.now() + days * 86_400_000).toISOString();
    return this.operate('POST', '/v1/admin/sigils', { tier, expiresAt, ...rest });
  }

  provision(
    sigil: string,
    publicKey: string,
    region: string,
    idempotencyKey?: string,
  ): Promise<Answer<Peer>> {
    const headers = idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey };
    return this.call('POST', '/v1/peers', { token: sigil, body: { publicKey, region }, headers });
  }

  async metrics(): Promise<string> {
    return (await this.call('GET', '/metrics')).text;
  }

  /** Sum of a metric over the series whose labels contain `labels`; 0 where there is none. */
  async metric(name: string, labels = ''): Promise<number> {
    const lines = (await this.metrics()).split('\n');
    const series = lines.filter((line) => /^[a-z_]+/.exec(line)?.[0] === name && line.includes(labels));
    return series.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }
}

/** Reads an answer; throws where an error is no problem document, or one with a code that nobody documented. */
async function answerOf<T>(response: Response): Promise<Answer<T>> {
  const { status, headers } = response;
  const text = await response.text();
  const json = headers.get('content-type')?.includes('json') && text !== '';
  const body = json ? JSON.parse(text) : null;
  if (status < 400) return { status, headers, text, body, code: null };
  const problem = headers.get('content-type') === PROBLEM_TYPE ? Problem.safeParse(body) : null;
  if (!problem?.success || problem.data.status !== status || !(problem.data.code in PROBLEM_CODES)) {
    throw new Error(`an error that is no documented problem: ${status} ${text}`);
  }
  return { status, headers, text, body, code: problem.data.code };
}

export interface StartOptions {
  /** Beside what the fixture sets. */
  readonly env?: Readonly<Record<string, string>>;
  readonly clock?: Clock;
  /** Also takes the secrets from another controller's data directory: two controllers of one fleet. */
  readonly beside?: TestController;
}

export class TestController extends Api {
  readonly ctx: Context;
  /** Every line logged, at debug level. */
  readonly logs: readonly string[];
  readonly dataDir: string;
  readonly close: () => Promise<void>;

  constructor(url: string, token: string, at: Pick<TestController, 'ctx' | 'logs' | 'dataDir' | 'close'>) {
    super(url, token);
    this.ctx = at.ctx;
    this.logs = at.logs;
    this.dataDir = at.dataDir;
    this.close = at.close;
  }

  get brokerUrl(): string {
    const { bus } = this.ctx;
    if (!(bus instanceof EmbeddedBroker)) throw new TypeError('the broker is a foreign one');
    return `mqtt://127.0.0.1:${bus.port}`;
  }
}

/** No limits, since a test is one very busy client; the limits have a test of their own. */
const DEFAULTS = {
  KATAFRACT_API_LISTEN: '127.0.0.1:0',
  KATAFRACT_PUBLIC_URL: 'http://artemis.test',
  KATAFRACT_MQTT_LISTEN: '127.0.0.1:0',
  KATAFRACT_RATE_LIMIT_PER_MINUTE: '0',
  KATAFRACT_ANONYMOUS_LIMIT_PER_MINUTE: '0',
};

export async function startController(database: string, options: StartOptions = {}): Promise<TestController> {
  const { env, clock, beside } = options;
  const dataDir = beside?.dataDir ?? (await mkdtemp(join(tmpdir(), 'katafract-http-')));
  const config = loadConfig({ ...DEFAULTS, DATABASE_URL: database, KATAFRACT_DATA_DIR: dataDir, ...env });
  const logs: string[] = [];
  const log = createLogger('debug', { write: (line) => void logs.push(line) });
  const ctx = await createContext(config, { log, ...(clock === undefined ? {} : { clock }) });
  const onFault = (err: unknown) => log.error({ err }, 'a request failed outside of the app');
  const listener = await listenHttp(createHttp(ctx), config.apiListen, true, onFault);
  const token = (await readFile(config.operatorToken.path, 'utf8')).trim();
  const close = async () => {
    ctx.state.draining = true;
    await listener.drain(5000);
    await ctx.close();
    if (!beside) await rm(dataDir, { recursive: true });
  };
  return new TestController(listener.url, token, { ctx, logs, dataDir, close });
}
