/** The App Store Server API by Apple's own client, through our one way out; and what its failures become. */
import {
  APIError,
  APIException,
  AppStoreServerAPIClient,
  type Environment,
} from '@apple/app-store-server-library';
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import { type StoreCall, type StoreDeps, storeCall, storeUnavailable } from './call.ts';

/** What the library's own fetch answers; of it the library reads `ok`, `status` and `json()`. */
type LibraryResponse = Awaited<ReturnType<AppStoreServerAPIClient['makeFetchRequest']>>;

/** Apple's client has its addresses built in and no time limit: both are given at the one method that fetches. */
export class AppleClient extends AppStoreServerAPIClient {
  readonly #apiBase: string;
  readonly #call: StoreCall;

  constructor(
    config: { apiBase: string; privateKey: string; keyId: string; issuerId: string; bundleId: string },
    environment: Environment,
    deps: StoreDeps,
  ) {
    super(config.privateKey, config.keyId, config.issuerId, config.bundleId, environment);
    this.#apiBase = config.apiBase.replace(/\/+$/, '');
    this.#call = storeCall('apple', deps);
  }

  protected override async makeFetchRequest(
    path: string,
    query: URLSearchParams,
    method: string,
    body: string | Buffer | undefined,
    headers: Record<string, string>,
  ): Promise<LibraryResponse> {
    const init = { method, headers, ...(body === undefined ? {} : { body: body.toString() }) };
    const response = await this.#call.fetch(`${this.#apiBase}${path}?${query}`, init);
    return response as unknown as LibraryResponse;
  }
}

/** Nothing of this name, or no name at all. */
const NONE = new Set<number | null>([
  APIError.ACCOUNT_NOT_FOUND,
  APIError.ORIGINAL_TRANSACTION_ID_NOT_FOUND,
  APIError.TRANSACTION_ID_NOT_FOUND,
  APIError.INVALID_TRANSACTION_ID,
  APIError.INVALID_ORIGINAL_TRANSACTION_ID,
]);

const text = z.string().optional();
const StatusItem = z.object({
  originalTransactionId: text,
  status: z.number().optional(),
  signedTransactionInfo: text,
  signedRenewalInfo: text,
});
export type StatusItem = z.infer<typeof StatusItem>;
export const Statuses = z.object({
  data: z.array(z.object({ lastTransactions: z.array(StatusItem).optional() })),
});
export const History = z.object({
  hasMore: z.boolean(),
  paginationToken: text,
  notificationHistory: z.array(z.object({ signedPayload: text })).optional(),
});

/**
 * What Apple answers, or null where it knows no such transaction. The library checks an answer's outline only: it
 * takes a text for a list.
 * @throws KatafractError `store_unavailable`: without the text that Apple sent
 */
export async function askedApple<S extends z.ZodType>(
  schema: S,
  answer: Promise<unknown>,
): Promise<z.infer<S> | null> {
  try {
    return schema.parse(await answer);
  } catch (error) {
    if (error instanceof KatafractError) throw error;
    if (!(error instanceof APIException)) throw storeUnavailable('apple', 'an answer that cannot be read');
    if (NONE.has(Number(error.apiError))) return null;
    throw storeUnavailable('apple', `status ${error.httpStatusCode}, code ${Number(error.apiError)}`);
  }
}
