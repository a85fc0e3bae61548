/**
 * A stand-in of Hetzner's Cloud API, written from its documentation (https://docs.hetzner.cloud), over real HTTP: the
 * servers, actions and primary IPs that machines need, with pages, label selectors, unique names, limits, actions that
 * run for a while and may fail after the server is there. Time passes in it with every request.
 */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface CloudAction {
  readonly id: number;
  readonly command: string;
  status: 'running' | 'success' | 'error';
  /** Requests until it ends. */
  left: number;
  readonly fails: boolean;
  readonly done: () => void;
}

export interface CloudServer {
  readonly id: number;
  readonly name: string;
  /** As it would be without its deletion, which may fail, and which the end of its creation may overtake. */
  status: string;
  deleting: boolean;
  readonly labels: Record<string, string>;
  /** The request as it came. */
  readonly asked: Readonly<Record<string, unknown>>;
  readonly ipv4: number | null;
  readonly ipv6: number | null;
  readonly actions: CloudAction[];
}

export interface CloudAddress {
  readonly id: number;
  readonly ip: string;
  labels: Record<string, string>;
  assignee_id: number | null;
  auto_delete: boolean;
}

export interface Asked {
  /** 1, 2, … */
  readonly number: number;
  readonly method: string;
  readonly path: string;
}

/**
 * What may go wrong with one request: it is refused undone (`500`, `429`), done and answered with an error
 * (`500 done`), done and never heard of (`cut`), or done and answered too late (`late`).
 */
export type Fault = '500' | '429' | '500 done' | 'cut' | 'late';

export interface Cloud {
  /** Ends in /v1 */
  readonly url: string;
  readonly token: string;
  readonly servers: Map<number, CloudServer>;
  readonly addresses: Map<number, CloudAddress>;
  readonly requests: (Asked & { status: number })[];
  /** Switches; a test sets them. */
  readonly set: {
    fault: (asked: Asked) => Fault | null;
    pageSize: number;
    /** Requests that an action takes. */
    actionLasts: number;
    /** So many of the next servers are made, and then their action fails. */
    creationsFail: number;
    /** So many of the next deletions fail. */
    deletionsFail: number;
    /** Servers vanish as soon as they are made. */
    vanish: boolean;
    /** Addresses outlive their server. */
    addressesStay: boolean;
    /** `type@location` that are sold out. */
    readonly soldOut: Set<string>;
    serverLimit: number;
    /** Called before the server is made, with its name. */
    onCreate: (name: string) => void;
  };
  close(): Promise<void>;
}

/** In every answer to a request that makes a server: a test looks for it where it must not be. */
export const ROOT_PASSWORD = 'YItygq1v3GYjjMomLaKc';

class Refusal extends Error {
  readonly status: number;
  readonly code: string;
  readonly details: unknown;
  constructor(status: number, code: string, details: unknown = null) {
    super(code);
    this.status = status;
    this.code = code;
    this.details = details;
  }
}

const TYPES = new Set(['cx22', 'cpx21']);
const LOCATIONS = new Set(['fsn1', 'hel1', 'ash']);
const notFound = () => new Refusal(404, 'not_found');
const invalid = (field: string) =>
  new Refusal(422, 'invalid_input', { fields: [{ name: field, messages: ['is not known'] }] });

export async function hetznerCloud(): Promise<Cloud> {
  const token = 'LRK9DAWQ1ZAEFSrCNEEzLCUwhYX1U3g7wMg4dTlkkDC96fyDuyJ39nVbVjCKSDfj';
  const servers = new Map<number, CloudServer>();
  const addresses = new Map<number, CloudAddress>();
  const actions = new Map<number, CloudAction>();
  const requests: Cloud['requests'] = [];
  const set: Cloud['set'] = {
    fault: () => null,
    pageSize: 50,
    actionLasts: 2,
    creationsFail: 0,
    deletionsFail: 0,
    vanish: false,
    addressesStay: false,
    soldOut: new Set(),
    serverLimit: 100,
    onCreate: () => undefined,
  };
  let lastId = 100;

  const act = (command: string, fails: boolean, done: () => void): CloudAction => {
    const action: CloudAction = {
      id: ++lastId,
      command,
      status: 'running',
      left: set.actionLasts,
      fails,
      done,
    };
    actions.set(action.id, action);
    return action;
  };
  const timePasses = () => {
    for (const action of actions.values()) {
      if (action.status !== 'running' || action.left-- > 0) continue;
      action.status = action.fails ? 'error' : 'success';
      action.done();
    }
  };
  const look = ({ id, command, status }: CloudAction) => ({
    id,
    command,
    status,
    progress: status === 'running' ? 50 : 100,
    error: status === 'error' ? { code: 'action_failed', message: 'Action failed' } : null,
  });
  const shown = (server: CloudServer) => {
    const address = (id: number | null) => (id === null ? null : { id, ip: addresses.get(id)?.ip ?? '' });
    const { id, name, deleting, labels, ipv4, ipv6 } = server;
    const status = deleting ? 'deleting' : server.status;
    return { id, name, status, labels, public_net: { ipv4: address(ipv4), ipv6: address(ipv6) } };
  };
  const newAddress = (assignee_id: number, wanted: boolean, ip: string) => {
    if (!wanted) return null;
    const id = ++lastId;
    addresses.set(id, { id, ip, labels: {}, assignee_id, auto_delete: !set.addressesStay });
    return id;
  };

  const create = (asked: Record<string, unknown>) => {
    set.onCreate(String(asked.name));
    const { name, server_type, location, labels, user_data, public_net } = asked;
    if (typeof name !== 'string' || !/^[a-z0-9][a-z0-9.-]{0,62}$/i.test(name)) throw invalid('name');
    if (!TYPES.has(String(server_type))) throw invalid('server_type');
    if (!LOCATIONS.has(String(location))) throw invalid('location');
    if (Buffer.byteLength(String(user_data)) > 32_768) throw invalid('user_data');
    if ([...servers.values()].some((server) => server.name === name))
      throw new Refusal(409, 'uniqueness_error');
    if (servers.size >= set.serverLimit) throw new Refusal(403, 'resource_limit_exceeded');
    if (set.soldOut.has(`${server_type}@${location}`)) throw new Refusal(412, 'resource_unavailable');
    const id = ++lastId;
    const fails = set.creationsFail-- > 0;
    const { enable_ipv4, enable_ipv6 } = public_net as Record<string, boolean>;
    const server: CloudServer = {
      id,
      name,
      status: 'initializing',
      deleting: false,
      labels: labels as Record<string, string>,
      asked,
      ipv4: newAddress(id, enable_ipv4 !== false, `198.51.100.${id % 250}`),
      ipv6: newAddress(id, enable_ipv6 !== false, `2001:db8:${id}::/64`),
      actions: [],
    };
    servers.set(id, server);
    const made = act('create_server', fails, () => {
      server.status = fails ? 'off' : 'running';
      if (set.vanish) discard(server);
    });
    server.actions.push(
      made,
      act('start_server', false, () => undefined),
    );
    const [action, ...next] = server.actions.map(look);
    return {
      status: 201,
      body: { server: shown(server), action, next_actions: next, root_password: ROOT_PASSWORD },
    };
  };

  const discard = (server: CloudServer) => {
    servers.delete(server.id);
    for (const address of [...addresses.values()].filter(({ assignee_id }) => assignee_id === server.id)) {
      address.assignee_id = null;
      if (address.auto_delete && !set.addressesStay) addresses.delete(address.id);
    }
  };

  const remove = (id: number) => {
    const server = servers.get(id);
    if (!server) throw notFound();
    if (server.deleting) throw new Refusal(423, 'locked');
    server.deleting = true;
    const fails = set.deletionsFail-- > 0;
    const action = act('delete_server', fails, () => {
      if (fails) server.deleting = false;
      else discard(server);
    });
    return { status: 200, body: { action: look(action) } };
  };

  const listed = <T extends { labels: Record<string, string> }>(
    field: string,
    rows: T[],
    query: URLSearchParams,
  ) => {
    const wanted = (query.get('label_selector') ?? '').split(',').filter((part) => part !== '');
    const matching = rows.filter(({ labels }) =>
      wanted.every((part) => {
        const [key = '', value] = part.split('==');
        return labels[key] === value;
      }),
    );
    return paged(field, matching, query);
  };

  const paged = (field: string, rows: unknown[], query: URLSearchParams) => {
    const page = Number(query.get('page') ?? 1);
    const size = Math.min(set.pageSize, Number(query.get('per_page') ?? 25));
    const last_page = Math.max(1, Math.ceil(rows.length / size));
    const next_page = page < last_page ? page + 1 : null;
    const pagination = { page, per_page: size, next_page, last_page, total_entries: rows.length };
    return {
      status: 200,
      body: { [field]: rows.slice((page - 1) * size, page * size), meta: { pagination } },
    };
  };

  const answer = (
    method: string,
    url: URL,
    body: Record<string, unknown>,
  ): { status: number; body?: unknown } => {
    const [, , resource = '', idText = '', below = ''] = url.pathname.split('/');
    const id = Number(idText);
    const query = url.searchParams;
    switch (`${method} ${resource}${idText && '/id'}${below && `/${below}`}`) {
      case 'GET servers':
        return listed('servers', [...servers.values()].map(shown), query);
      case 'POST servers':
        return create(body);
      case 'DELETE servers/id':
        return remove(id);
      case 'GET servers/id/actions': {
        const server = servers.get(id);
        if (!server) throw notFound();
        return paged('actions', server.actions.map(look), query);
      }
      case 'GET actions/id': {
        const action = actions.get(id);
        if (!action) throw notFound();
        return { status: 200, body: { action: look(action) } };
      }
      case 'GET primary_ips':
        return listed('primary_ips', [...addresses.values()], query);
      case 'PUT primary_ips/id': {
        const address = addresses.get(id);
        if (!address) throw notFound();
        Object.assign(address, body);
        return { status: 200, body: { primary_ip: address } };
      }
      case 'DELETE primary_ips/id': {
        const address = addresses.get(id);
        if (!address) throw notFound();
        if (address.assignee_id !== null) throw new Refusal(422, 'must_be_unassigned');
        addresses.delete(id);
        return { status: 204 };
      }
      default:
        throw notFound();
    }
  };

  const refusal = (error: unknown) => {
    if (!(error instanceof Refusal)) throw error;
    const { status, code, details } = error;
    // as a careless service might, it repeats what it was sent
    return { status, body: { error: { code, message: `${code} (${token})`, details } } };
  };
  const effect = (method: string, url: URL, body: Record<string, unknown>, authorized: boolean) => {
    try {
      if (!authorized) throw new Refusal(401, 'unauthorized');
      return answer(method, url, body);
    } catch (error) {
      return refusal(error);
    }
  };

  const http = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const url = new URL(request.url ?? '/', 'http://cloud');
      const method = request.method ?? 'GET';
      const asked = { number: requests.length + 1, method, path: url.pathname };
      const fault = set.fault(asked);
      timePasses();
      const text = Buffer.concat(chunks).toString();
      const body = text === '' ? {} : (JSON.parse(text) as Record<string, unknown>);
      const authorized = request.headers.authorization === `Bearer ${token}`;
      const undone = fault === '500' || fault === '429';
      const result = undone ? null : effect(method, url, body, authorized);
      const status = fault === '429' ? 429 : fault?.startsWith('500') ? 500 : (result?.status ?? 0);
      requests.push({ ...asked, status });
      if (fault === 'cut') return request.socket.destroy();
      if (fault === 'late') return;
      const failure = {
        error: { code: status === 429 ? 'rate_limit_exceeded' : 'server_error', message: text },
      };
      const content = fault === null ? result?.body : failure;
      response.writeHead(status, {
        'content-type': 'application/json',
        'ratelimit-limit': '3600',
        'ratelimit-remaining': status === 429 ? '0' : '3599',
        'ratelimit-reset': String(Math.ceil(Date.now() / 1000) + 3600),
      });
      response.end(content === undefined ? '' : JSON.stringify(content));
    });
  });
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
  const { port } = http.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/v1`,
    token,
    servers,
    addresses,
    requests,
    set,
    close: () =>
      new Promise((resolve, reject) => {
        http.close((error) => (error ? reject(error) : resolve()));
        http.closeAllConnections();
      }),
  };
}
