/** The App Store as a store. */
import type { Tier } from '@katafract/shared/sigil';
import { type StoreDeps, storeUnavailable } from './call.ts';
import type { StorePort } from './port.ts';

export interface AppleConfig {
  /** `https://api.storekit.apple.com` (sandbox: `https://api.storekit-sandbox.apple.com`), or what stands in for it; no path. */
  readonly apiBase: string;
  /** Of the In-App Purchase key, from App Store Connect. */
  readonly issuerId: string;
  readonly keyId: string;
  /** PEM (PKCS #8) of that key. */
  readonly privateKey: string;
  readonly bundleId: string;
  /** Required in Production. */
  readonly appAppleId?: number;
  /** Pinned here; nothing that arrives chooses it. */
  readonly environment: 'Production' | 'Sandbox';
  /** DER (or PEM) of the roots that Apple's chains may end in. */
  readonly rootCertificates: readonly Uint8Array[];
  /** Product id to tier. */
  readonly products: Readonly<Record<string, Tier>>;
  /** Whether what arrives from outside is also held against OCSP and today's date; needs a way to Apple's OCSP. */
  readonly onlineChecks: boolean;
}

export function appleStore(_config: AppleConfig, _deps: StoreDeps): StorePort {
  throw storeUnavailable('apple', 'under construction');
}
