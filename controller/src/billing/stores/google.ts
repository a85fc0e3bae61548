/** Google Play as a store. */
import type { Tier } from '@katafract/shared/sigil';
import { type StoreDeps, storeUnavailable } from './call.ts';
import type { StorePort } from './port.ts';

/** The fields we use of a service account's key file. */
export interface ServiceAccount {
  readonly client_email: string;
  /** PEM (PKCS #8), RSA. */
  readonly private_key: string;
  readonly private_key_id?: string;
}

export interface GoogleConfig {
  /** `https://androidpublisher.googleapis.com`, or what stands in for it; no path. */
  readonly apiBase: string;
  /** Where access tokens come from: `https://oauth2.googleapis.com/token`; also the audience of the grant. */
  readonly tokenUrl: string;
  readonly serviceAccount: ServiceAccount;
  readonly packageName: string;
  /** Product id to tier. */
  readonly products: Readonly<Record<string, Tier>>;
  /** What the token of a Pub/Sub push must say. */
  readonly pubsub: {
    readonly audience: string;
    readonly serviceAccountEmail: string;
    /** `https://accounts.google.com` */
    readonly issuer: string;
    /** `https://www.googleapis.com/oauth2/v3/certs` */
    readonly jwksUrl: string;
  };
  /** Whether purchases of licence testers, which nobody pays for, grant anything. Default false. */
  readonly testPurchases?: boolean;
}

export function googleStore(_config: GoogleConfig, _deps: StoreDeps): StorePort {
  throw storeUnavailable('google', 'under construction');
}
