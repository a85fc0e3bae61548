/** The routes of the Play Developer API and of Google's token endpoint that billing uses, over what a stand-in holds. */
import { type KeyObject, randomBytes } from 'node:crypto';
import type { GoogleConfig } from '@katafract/controller/billing/stores/google';
import { errors, type JSONWebKeySet, jwtVerify } from 'jose';
import { purchaseObject, type Subscription } from './google-life.ts';
import { type Asked, page, type Reply } from './stand-in.ts';

export interface Holdings {
  readonly now: () => number;
  readonly pageSize: () => number;
  readonly subscriptions: Map<string, Subscription>;
  /** In the order in which they were voided. */
  readonly voided: { at: number; token: string; order: string }[];
  readonly accessTokens: Set<string>;
}

export const PACKAGE = 'com.example.vpn';
const SCOPE = 'https://www.googleapis.com/auth/androidpublisher';
const GRANT = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
const DAY_MS = 86_400_000;

export const fault = (code: number, status: string, message: string): Reply => ({
  status: code,
  json: {
    error: { code, message, status, errors: [{ message, domain: 'androidpublisher', reason: status }] },
  },
});
const invalidToken = fault(400, 'INVALID_ARGUMENT', 'The purchase token is not valid.');

/** @param keySet what the issuer of pushes publishes, at `/certs` */
export function googleApi(
  held: Holdings,
  config: () => GoogleConfig,
  accountKey: KeyObject,
  keySet: JSONWebKeySet,
): (asked: Asked) => Promise<Reply> | Reply {
  return (asked) => {
    if (asked.path === '/certs') return { status: 200, json: keySet };
    if (asked.path === '/token') return token(held, config(), accountKey, asked);
    const bearer = /^Bearer (.+)$/.exec(asked.headers.authorization ?? '')?.[1] ?? '';
    if (!held.accessTokens.has(bearer)) return fault(401, 'UNAUTHENTICATED', 'Invalid credentials.');
    return route(held, asked);
  };
}

async function token(held: Holdings, config: GoogleConfig, key: KeyObject, { body }: Asked): Promise<Reply> {
  const form = new URLSearchParams(body);
  if (form.get('grant_type') !== GRANT) return { status: 400, json: { error: 'unsupported_grant_type' } };
  try {
    const { payload } = await jwtVerify(form.get('assertion') ?? '', key, {
      algorithms: ['RS256'],
      issuer: config.serviceAccount.client_email,
      audience: config.tokenUrl,
      currentDate: new Date(held.now()),
    });
    if (payload.scope !== SCOPE) return { status: 400, json: { error: 'invalid_scope' } };
  } catch (error) {
    if (error instanceof errors.JOSEError) return { status: 400, json: { error: 'invalid_grant' } };
    throw error;
  }
  const accessToken = `ya29.${randomBytes(24).toString('base64url')}`;
  held.accessTokens.add(accessToken);
  return { status: 200, json: { access_token: accessToken, expires_in: 3599, token_type: 'Bearer' } };
}

function route(held: Holdings, { method, path, query }: Asked): Reply {
  const rest = new RegExp(`^/androidpublisher/v3/applications/${PACKAGE}/(.+)$`).exec(path)?.[1];
  if (rest === undefined)
    return fault(404, 'NOT_FOUND', 'No application was found for the given package name.');
  const part = (pattern: RegExp) => pattern.exec(rest)?.slice(1).map(decodeURIComponent);
  const [purchase] = part(/^purchases\/subscriptionsv2\/tokens\/([^/]+)$/) ?? [];
  const [order] = part(/^orders\/([^/]+)$/) ?? [];
  const acknowledged = part(/^purchases\/subscriptions\/([^/]+)\/tokens\/([^/]+):acknowledge$/);
  if (method === 'GET' && purchase !== undefined) return purchaseReply(held, purchase);
  if (method === 'GET' && order !== undefined) return orderReply(held, order);
  if (method === 'GET' && rest === 'purchases/voidedpurchases') return voidedReply(held, query);
  if (method === 'POST' && acknowledged !== undefined) return acknowledge(held, acknowledged);
  return fault(404, 'NOT_FOUND', 'Not found.');
}

function purchaseReply(held: Holdings, id: string): Reply {
  const it = held.subscriptions.get(id);
  if (it === undefined) return invalidToken;
  if (it.state === 'EXPIRED' && it.expiryTime < held.now() - 60 * DAY_MS) {
    return fault(
      410,
      'GONE',
      'The subscription purchase is no longer available: it has been expired for too long.',
    );
  }
  // `fields` is ignored: what was not asked for must not stay either
  return { status: 200, json: purchaseObject(it) };
}

function orderReply(held: Holdings, id: string): Reply {
  const it = [...held.subscriptions.values()].find((each) => each.order === id);
  if (it === undefined) return fault(404, 'NOT_FOUND', 'Order not found.');
  const { name, email, cardLast4 } = it.payer;
  const buyerAddress = { buyerState: name, buyerPostcode: cardLast4, buyerCountry: email };
  const state = it.voided ? 'REFUNDED' : 'PROCESSED';
  return { status: 200, json: { orderId: id, purchaseToken: it.token, state, buyerAddress } };
}

function voidedReply(held: Holdings, query: URLSearchParams): Reply {
  const next = query.get('token');
  const startTime = Number(query.get('startTime') ?? held.now() - 30 * DAY_MS);
  if (next === null && startTime < held.now() - 30 * DAY_MS) {
    return fault(400, 'INVALID_ARGUMENT', 'The start time is older than 30 days.');
  }
  const [from = 0, since = 0] = next === null ? [0, startTime] : next.split(':').map(Number);
  // only with type 1 are subscriptions listed
  const inside = query.get('type') === '1' ? held.voided.filter(({ at }) => at >= since) : [];
  const size = Math.min(Number(query.get('maxResults') ?? 1000), held.pageSize());
  const { rows, more } = page(inside, from, size);
  const tokenPagination = { nextPageToken: `${from + rows.length}:${since}` };
  const voidedPurchases = rows.map((row) => ({
    kind: 'androidpublisher#voidedPurchase',
    purchaseToken: row.token,
    orderId: row.order,
    voidedTimeMillis: String(row.at),
    voidedSource: 0,
    voidedReason: 1,
  }));
  return { status: 200, json: { ...(more ? { tokenPagination } : {}), voidedPurchases } };
}

function acknowledge(held: Holdings, [product, id = '']: string[]): Reply {
  const it = held.subscriptions.get(id);
  if (it === undefined || it.product !== product) return invalidToken;
  if (it.state === 'PENDING') return fault(400, 'FAILED_PRECONDITION', 'The purchase is pending.');
  it.acknowledged = true;
  return { status: 204 };
}
