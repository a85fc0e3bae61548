/** The signature beside the region list, made again only when the list, the key or a minute has changed. */
import { REGIONS_TYP, signBody } from '@katafract/shared/signed-body';
import type { Keyring } from '../platform/keyring.ts';

/** A client refuses a list that was signed before the one it has: of several controllers none may lag for long. */
const SIGNED_ANEW_MS = 60_000;

export function listSigner(deps: {
  readonly keyring: Pick<Keyring, 'sigil'>;
  readonly now: () => number;
}): (body: string) => Promise<string> {
  let last: { body: string; kid: string; at: number; signature: Promise<string> } | undefined;
  return (body) => {
    const now = deps.now();
    const { kid, privateKey: key } = deps.keyring.sigil();
    if (last?.body !== body || last.kid !== kid || now - last.at >= SIGNED_ANEW_MS) {
      last = { body, kid, at: now, signature: signBody(body, { key, kid, typ: REGIONS_TYP, now }) };
    }
    return last.signature;
  };
}
