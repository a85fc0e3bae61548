/** The App Store Server API by Apple's own client, through our one way out; and what its failures become. */
import {
  APIError,
  APIException,
  AppStoreServerAPIClient,
  type Environment,
} from '@apple/app-store-server-library';
import { KatafractError } from '@katafract/shared/errors';
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

/**
 * What Apple answers, or null where it knows no such transaction.
 * @throws KatafractError `store_unavailable`: without the text that Apple sent
 */
export async function askedApple<T>(answer: Promise<T>): Promise<T | null> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof KatafractError) throw error;
    if (!(error instanceof APIException)) throw storeUnavailable('apple', 'an answer that cannot be read');
    if (NONE.has(Number(error.apiError))) return null;
    throw storeUnavailable('apple', `status ${error.httpStatusCode}, code ${Number(error.apiError)}`);
  }
}
