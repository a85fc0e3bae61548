/**
 * What the stand-ins of the three stores have in common, so that one test can drive them alike: subscriptions that
 * live through what the store documents, each step with the messages the store would send for it and with what the
 * subscription is worth afterwards; faults that can be switched; and a record of what was asked.
 */
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { StoreDeps } from '@katafract/controller/billing/stores/call';
import type { Standing, StoreName, StorePort } from '@katafract/controller/billing/stores/port';
import type { Tier } from '@katafract/shared/sigil';

/** Who pays, as only the store may know it: planted in everything the stand-in sends. */
export interface Payer {
  readonly name: string;
  readonly email: string;
  readonly cardLast4: string;
  readonly deviceId: string;
}

/** A signed message, as the store would post it. */
export interface Webhook {
  /** The store's own id of the message, by which it is applied once. */
  readonly eventId: string;
  readonly body: Uint8Array<ArrayBuffer>;
  readonly headers: Readonly<Record<string, string>>;
}

export const ACTIONS = [
  'complete',
  'abandon',
  'renew',
  'cancel',
  'resume',
  'failPayment',
  'hold',
  'pause',
  'recover',
  'expire',
  'refund',
  'reverseRefund',
  'dispute',
  'winDispute',
  'loseDispute',
  'revoke',
] as const;
/**
 * What may happen to a subscription. `complete`, `abandon`: of a purchase that was pending. `cancel`: it will not
 * renew, `resume`: it will again. `failPayment`: a renewal failed, with grace; `hold`: and the grace is over; `recover`:
 * paid, or no longer paused. Not every store knows all of them.
 */
export type Action = (typeof ACTIONS)[number];

/** What a StoreView of the subscription must say. */
export interface Expected {
  readonly standing: Standing;
  readonly renews: boolean;
  readonly tier: Tier | null;
}

export interface Step {
  readonly reference: string;
  /** In the order in which the store would send them. */
  readonly webhooks: readonly Webhook[];
  readonly expected: Expected;
}

export interface Purchase {
  /** Hex hash of the claim secret. */
  readonly claim: string;
  readonly tier: Tier;
  readonly payer: Payer;
  /** Not paid for yet (a bank transfer, cash): `complete` or `abandon` follow. Not at Apple. */
  readonly pending?: boolean;
}

/** Switches; a test sets them. */
export interface Faults {
  /** Every request waits this long, ms. */
  delayMs: number;
  /** Every request is answered 503. */
  outage: boolean;
  /** Every connection is cut without an answer. */
  cut: boolean;
  /** So many requests are answered 429 with Retry-After. */
  rateLimited: number;
  /** Of those, seconds. */
  retryAfter: number;
  /** So many requests are answered 500. */
  failing: number;
  /** Lists have at most so many rows. */
  pageSize: number;
}

export interface StandIn {
  readonly name: StoreName;
  /** Base URL, no path. */
  readonly url: string;
  readonly faults: Faults;
  /** Of requests, with the status they were answered with, oldest first; empty it at will. */
  readonly requests: { method: string; path: string; status: number }[];
  readonly create: (purchase: Purchase) => Promise<Step>;
  /** What may happen to it now. */
  readonly actions: (reference: string) => Action[];
  /** @throws Error where it is none of `actions` now */
  readonly act: (reference: string, action: Action) => Promise<Step>;
  readonly expected: (reference: string) => Expected;
  /** Messages that pretend to be about it, by what is wrong with them: not one may be accepted. */
  readonly forgeries: (reference: string) => Promise<Readonly<Record<string, Webhook>>>;
  /** A genuine message of a type that the store may add one day. */
  readonly unknown: () => Promise<Webhook>;
  /** The adapter, configured for this stand-in. */
  readonly store: (deps: StoreDeps) => StorePort;
  readonly close: () => Promise<void>;
}

export const PERIOD_MS = 30 * 86_400_000;

export interface Reply {
  readonly status: number;
  readonly json?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: IncomingMessage['headers'];
  readonly body: string;
}

/** How a store words its faults: these differ, and the adapters must not lean on one wording. */
export interface Wording {
  readonly rateLimited: (retryAfter: number) => Reply;
  readonly failing: (status: 500 | 503) => Reply;
}

export interface Served {
  readonly url: string;
  readonly faults: Faults;
  readonly requests: StandIn['requests'];
  readonly close: () => Promise<void>;
}

/** A loopback HTTP server with the faults above. */
export async function serve(
  wording: Wording,
  answer: (asked: Asked) => Promise<Reply> | Reply,
): Promise<Served> {
  const faults: Faults = {
    delayMs: 0,
    outage: false,
    cut: false,
    rateLimited: 0,
    retryAfter: 1,
    failing: 0,
    pageSize: 100,
  };
  const requests: StandIn['requests'] = [];

  const reply = async (asked: Asked): Promise<Reply> => {
    if (faults.delayMs > 0) await new Promise((resolve) => setTimeout(resolve, faults.delayMs));
    if (faults.outage) return wording.failing(503);
    if (faults.failing > 0) {
      faults.failing--;
      return wording.failing(500);
    }
    if (faults.rateLimited > 0) {
      faults.rateLimited--;
      return wording.rateLimited(faults.retryAfter);
    }
    return answer(asked);
  };

  const server = createServer((request, response) => {
    handle(request, reply, faults).then(
      (done) => {
        const method = request.method ?? '';
        requests.push({ method, path: request.url ?? '', status: done?.status ?? 0 });
        if (done === null) return request.socket.destroy();
        response.writeHead(done.status, { 'content-type': 'application/json', ...done.headers });
        response.end(done.json === undefined ? '' : JSON.stringify(done.json));
      },
      (error: unknown) => {
        // a fault of the stand-in itself must not look like one of the store
        console.error('stand-in:', error);
        response.writeHead(599).end();
      },
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, faults, requests, close: () => closed(server) };
}

async function handle(
  request: IncomingMessage,
  reply: (asked: Asked) => Promise<Reply>,
  faults: Faults,
): Promise<Reply | null> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  if (faults.cut) return null;
  const url = new URL(request.url ?? '/', 'http://stand-in');
  return reply({
    method: request.method ?? 'GET',
    path: url.pathname,
    query: url.searchParams,
    headers: request.headers,
    body: Buffer.concat(chunks).toString('utf8'),
  });
}

function closed(server: Server): Promise<void> {
  return new Promise((resolve, reject) => {
    server.close((error) => (error ? reject(error) : resolve()));
    server.closeAllConnections();
  });
}

export function bytes(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

/** One page of a list, after the row of id `after`. */
export function page<T>(rows: readonly T[], from: number, size: number): { rows: T[]; more: boolean } {
  return { rows: rows.slice(from, from + size), more: rows.length > from + size };
}

/** What a test writes rather than `as`: the value must be there. */
export function found<T>(value: T | undefined | null, what: string): T {
  if (value === undefined || value === null) throw new Error(`no such ${what}`);
  return value;
}

/** Payer fields, for errors that quote what they are about. */
export function payersOf(subscriptions: ReadonlyMap<string, { readonly payer: Payer }>): string {
  return [...subscriptions.values()]
    .map(({ payer }) => `${payer.name} <${payer.email}> ${payer.cardLast4}`)
    .join();
}
