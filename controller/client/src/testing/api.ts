/**
 * The app-facing API over node:http with peers in a Map: what the SDK's tests talk to where the controller itself
 * would only be in the way, since faults are put in by hand here. The controller's own answers are held against the
 * SDK by the whole-system tests.
 */
import { randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Exit, Peer } from '@katafract/shared/api';
import { renderWgQuick } from '@katafract/shared/wg-quick';

export const SIGIL = 'test-sigil';

export interface Seen {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
  readonly body: unknown;
}

export interface Reply {
  readonly status: number;
  readonly headers?: Record<string, string>;
  /** Sent as it stands when a string. */
  readonly body?: unknown;
}

/** Answers a request in place of the API: a reply, `drop` (connection cut after the API did its work), or nothing. */
export type Fault = (seen: Seen) => Reply | 'drop' | undefined;

export interface TestApi {
  readonly url: string;
  readonly requests: Seen[];
  readonly peers: Map<string, Peer>;
  /** Used up in order, one a request. */
  readonly faults: Fault[];
  close(): Promise<void>;
}

export interface TestExit {
  readonly node: string;
  readonly region: string;
  readonly endpoint: string;
  readonly publicKey: string;
}

export interface TestApiOptions {
  readonly exits: readonly TestExit[];
  /** A peer was made or its key changed: what an exit would be told. */
  readonly onPeer?: (peer: Peer) => Promise<void>;
}

export function problem(status: number, code: string, extra: Record<string, unknown> = {}): Reply {
  return {
    status,
    headers: { 'content-type': 'application/problem+json' },
    body: { type: `https://docs.example/problems#${code}`, title: code, status, code, ...extra },
  };
}

export async function startTestApi(options: TestApiOptions): Promise<TestApi> {
  const requests: Seen[] = [];
  const peers = new Map<string, Peer>();
  const faults: Fault[] = [];
  const made = new Map<string, string>();
  const store: Store = { peers, made, options };
  const server = createServer((request, response) => {
    handle(request)
      .then(async (seen) => {
        requests.push(seen);
        const fault = faults.shift()?.(seen);
        if (fault !== undefined && fault !== 'drop') return reply(response, fault);
        const answer = await route(store, seen);
        if (fault === 'drop') response.destroy();
        else reply(response, answer);
      })
      .catch((error: unknown) => reply(response, problem(500, 'internal', { detail: String(error) })));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    requests,
    peers,
    faults,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function handle(request: IncomingMessage): Promise<Seen> {
  let text = '';
  for await (const chunk of request) text += chunk;
  return {
    method: request.method ?? '',
    path: request.url ?? '',
    headers: request.headers,
    body: text === '' ? undefined : JSON.parse(text),
  };
}

function reply(response: ServerResponse, { status, headers = {}, body }: Reply): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(body === undefined || typeof body === 'string' ? body : JSON.stringify(body));
}

interface Store {
  readonly peers: Map<string, Peer>;
  /** Peer id by Idempotency-Key. */
  readonly made: Map<string, string>;
  readonly options: TestApiOptions;
}

async function route(store: Store, seen: Seen): Promise<Reply> {
  if (seen.headers.authorization !== `Bearer ${SIGIL}`) return problem(401, 'sigil_invalid');
  const url = new URL(seen.path, 'http://localhost');
  const [, , collection, id, action] = url.pathname.split('/');
  if (collection === 'regions') return regionList(store, seen);
  if (collection === 'sigil') return { status: 200, body: sigilInfo(store) };
  if (collection !== 'peers') return problem(404, 'not_found');
  if (id === undefined) {
    return seen.method === 'POST' ? provision(store, seen) : peerPage(store, url.searchParams.get('cursor'));
  }
  const peer = store.peers.get(id);
  if (peer === undefined) return problem(404, 'peer_unknown');
  if (seen.method === 'DELETE') {
    store.peers.delete(id);
    return { status: 200, body: { id, status: 'removed' } };
  }
  const { publicKey, region } = (seen.body ?? {}) as { publicKey?: string; region?: string };
  if (action === 'key' || action === 'move') {
    const changed = makePeer(store, peer.id, publicKey ?? peer.publicKey, region ?? peer.region);
    if (changed === undefined) return problem(422, 'region_unknown');
    await store.options.onPeer?.(changed);
    return { status: 200, body: changed };
  }
  return { status: 200, body: peer };
}

function sigilInfo({ peers }: Store): unknown {
  const devices = { used: peers.size, limit: 5 };
  const subscription = randomUUID();
  return { subscription, tier: 'plus', expiresAt: '2030-01-01T00:00:00Z', devices, bindings: [] };
}

async function provision(store: Store, seen: Seen): Promise<Reply> {
  const { publicKey, region } = seen.body as { publicKey: string; region: string };
  const key = String(seen.headers['idempotency-key']);
  const earlier = store.peers.get(store.made.get(key) ?? '');
  if (earlier) return { status: 201, body: earlier };
  if ([...store.peers.values()].some((peer) => peer.publicKey === publicKey)) {
    return problem(409, 'public_key_in_use');
  }
  const peer = makePeer(store, randomUUID(), publicKey, region);
  if (peer === undefined) return problem(422, 'region_unknown');
  store.made.set(key, peer.id);
  await store.options.onPeer?.(peer);
  return { status: 201, body: peer };
}

function makePeer(store: Store, id: string, publicKey: string, region: string): Peer | undefined {
  const here = store.options.exits.filter((exit) => exit.region === region);
  const elsewhere = store.options.exits.filter((exit) => exit.region !== region);
  const exits = [...here, ...elsewhere].map((exit, rank) =>
    Exit.parse({ ...exit, role: rank === 0 ? 'primary' : 'standby', status: 'active' }),
  );
  const [primary] = exits;
  if (primary === undefined || here.length === 0) return undefined;
  const index = store.peers.get(id)?.addresses.ipv4 ?? `10.64.0.${store.peers.size + 2}`;
  const addresses = { ipv4: index, ipv6: `fd6b:6174:6166::${index.split('.')[3]}` };
  const dns = ['10.64.0.1', 'fd6b:6174:6166::1'];
  const at = '2026-11-22T04:00:00Z';
  const rest = { config: '', status: 'active', createdAt: at, provisionedAt: at };
  const draft = Peer.parse({ id, publicKey, region, addresses, dns, exits, ...rest });
  const peer = { ...draft, config: renderWgQuick({ ...draft, exit: primary, mtu: 1420 }) };
  store.peers.set(id, peer);
  return peer;
}

/** Two a page, so that three peers prove the paging. */
function peerPage(store: Store, cursor: string | null): Reply {
  const from = Number(cursor ?? 0);
  const items = [...store.peers.values()].slice(from, from + 2);
  const next = from + 2 < store.peers.size ? String(from + 2) : null;
  return { status: 200, body: { items, next } };
}

function regionList(store: Store, seen: Seen): Reply {
  const names = new Set(store.options.exits.map((exit) => exit.region));
  const items = [...names].map((id) => ({
    id,
    name: id.toUpperCase(),
    country: 'DE',
    latitude: 50.1,
    longitude: 8.7,
    available: true,
    exits: store.options.exits.filter((exit) => exit.region === id),
  }));
  const etag = `"${items.length}"`;
  if (seen.headers['if-none-match'] === etag) return { status: 304, headers: { etag } };
  return { status: 200, headers: { etag }, body: { items } };
}
