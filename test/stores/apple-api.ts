/** The routes of the App Store Server API that billing uses, over what a stand-in holds. */
import type { KeyObject } from 'node:crypto';
import type { AppleConfig } from '@katafract/controller/billing/stores/apple';
import { errors, jwtVerify } from 'jose';
import { BUNDLE, renewalOf, STATUS, type Subscription, transactionOf } from './apple-life.ts';
import { type Asked, page, type Reply } from './stand-in.ts';

export interface Holdings {
  readonly now: () => number;
  readonly pageSize: () => number;
  readonly sign: (payload: object) => Promise<string>;
  readonly subscriptions: Map<string, Subscription>;
  /** Oldest first. */
  readonly history: { at: number; signedPayload: string }[];
}

const DAY_MS = 86_400_000;

export const fault = (status: number, errorCode: number, errorMessage: string): Reply => ({
  status,
  json: { errorCode, errorMessage },
});

/** Answers what bears a token of `publicKey`'s owner. */
export function appleApi(
  held: Holdings,
  config: () => Pick<AppleConfig, 'issuerId' | 'keyId'>,
  publicKey: KeyObject,
): (asked: Asked) => Promise<Reply> {
  return async (asked) => {
    if (!(await authorized(asked, config(), publicKey))) return { status: 401 };
    const { method, path, query, body } = asked;
    const id = /^\/inApps\/v1\/subscriptions\/([^/]+)$/.exec(path)?.[1];
    if (method === 'GET' && id !== undefined) return statuses(held, id);
    if (method === 'POST' && path === '/inApps/v1/notifications/history') {
      return past(held, query, JSON.parse(body));
    }
    return { status: 404 };
  };
}

async function authorized(
  { headers }: Asked,
  { issuerId, keyId }: Pick<AppleConfig, 'issuerId' | 'keyId'>,
  publicKey: KeyObject,
): Promise<boolean> {
  const token = /^Bearer (.+)$/.exec(headers.authorization ?? '')?.[1] ?? '';
  try {
    const { payload, protectedHeader } = await jwtVerify(token, publicKey, {
      algorithms: ['ES256'],
      audience: 'appstoreconnect-v1',
      issuer: issuerId,
      maxTokenAge: 3600,
    });
    return protectedHeader.kid === keyId && payload.bid === BUNDLE;
  } catch (error) {
    if (error instanceof errors.JOSEError) return false;
    throw error;
  }
}

async function statuses(held: Holdings, id: string): Promise<Reply> {
  if (!/^\d+$/.test(id)) return fault(400, 4000006, 'Invalid transaction id.');
  const it = [...held.subscriptions.values()].find(
    (each) => each.originalTransactionId === id || each.transactionId === id,
  );
  if (it === undefined) return fault(404, 4040010, 'Transaction id not found.');
  // the other subscription of the group is an older one
  const older = { ...it, originalTransactionId: '1', transactionId: '1', standing: 'expired' as const };
  const lastTransactions = await Promise.all([older, it].map((each) => lastTransaction(held, each)));
  const data = [{ subscriptionGroupIdentifier: '21', lastTransactions }];
  return { status: 200, json: { environment: 'Production', bundleId: BUNDLE, appAppleId: 41234, data } };
}

export async function lastTransaction({ sign, now }: Holdings, it: Subscription) {
  return {
    originalTransactionId: it.originalTransactionId,
    status: STATUS[it.standing],
    signedTransactionInfo: await sign(transactionOf(it, now())),
    signedRenewalInfo: await sign(renewalOf(it, now())),
  };
}

function past(held: Holdings, query: URLSearchParams, wish: { startDate: number; endDate: number }): Reply {
  if (wish.startDate >= wish.endDate) return fault(400, 4000013, 'The end date precedes the start date.');
  if (wish.startDate < held.now() - 180 * DAY_MS) return fault(400, 4000012, 'The start date is too early.');
  const token = query.get('paginationToken');
  const from = token === null ? 0 : Number(/^page_(\d+)$/.exec(token)?.[1] ?? Number.NaN);
  if (Number.isNaN(from)) return fault(400, 4000014, 'The pagination token is invalid.');
  const inside = held.history.filter(({ at }) => at >= wish.startDate && at <= wish.endDate);
  const { rows, more } = page(inside, from, Math.min(20, held.pageSize()));
  const notificationHistory = rows.map(({ signedPayload, at }) => ({
    signedPayload,
    sendAttempts: [{ attemptDate: at, sendAttemptResult: 'TIMED_OUT' }],
  }));
  const next = more ? { paginationToken: `page_${from + rows.length}` } : {};
  return { status: 200, json: { hasMore: more, ...next, notificationHistory } };
}
