/** The Play Developer API: a service account's access token (RFC 7523) by jose, and JSON through our one way out. */
import { createPrivateKey } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import { SignJWT } from 'jose';
import { z } from 'zod';
import { type StoreCall, type StoreDeps, storeCall, storeUnavailable } from './call.ts';

/** The fields we use of a service account's key file. */
export interface ServiceAccount {
  readonly client_email: string;
  /** PEM (PKCS #8), RSA. */
  readonly private_key: string;
  readonly private_key_id?: string;
}

export interface GoogleApi {
  /**
   * @param path below `/androidpublisher/v3/applications/<package>/`, its parts encoded
   * @returns the answer as `schema` reads it; null where Google knows no such thing (400, 404, 410)
   * @throws KatafractError `store_unavailable` (503)
   */
  readonly get: <S extends z.ZodType>(
    schema: S,
    path: string,
    query: Record<string, string>,
  ) => Promise<z.infer<S> | null>;
  /** @returns false where Google knows no such thing */
  readonly post: (path: string) => Promise<boolean>;
}

const SCOPE = 'https://www.googleapis.com/auth/androidpublisher';
const GRANT = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
/** A token is renewed this long before it ends, ms. */
const RENEW_EARLY_MS = 60_000;
const NOT_THERE = new Set([400, 404, 410]);

const Token = z.object({ access_token: z.string().min(1), expires_in: z.number().positive() });

/** @throws KatafractError `config_invalid` */
export function googleApi(
  config: { apiBase: string; tokenUrl: string; packageName: string; serviceAccount: ServiceAccount },
  deps: StoreDeps,
): GoogleApi {
  const call = storeCall('google', deps);
  const token = accessToken(config, call, deps);
  const base = `${config.apiBase.replace(/\/+$/, '')}/androidpublisher/v3/applications/${encodeURIComponent(config.packageName)}`;

  const ask = async (url: string, init: RequestInit): Promise<Response> => {
    const once = async () =>
      call.fetch(url, {
        ...init,
        headers: { ...init.headers, authorization: `Bearer ${await token.get()}` },
      });
    const response = await once();
    if (response.status !== 401) return response;
    // revoked before its time; a new one is tried once
    token.drop();
    return once();
  };

  return {
    async get(schema, path, query) {
      const response = await ask(`${base}/${path}?${new URLSearchParams(query)}`, { method: 'GET' });
      if (NOT_THERE.has(response.status)) return null;
      if (!response.ok) throw storeUnavailable('google', `status ${response.status}`);
      return parsed(schema, response);
    },
    async post(path) {
      const headers = { 'content-type': 'application/json' };
      const response = await ask(`${base}/${path}`, { method: 'POST', headers, body: '{}' });
      if (NOT_THERE.has(response.status)) return false;
      if (!response.ok) throw storeUnavailable('google', `status ${response.status}`);
      return true;
    },
  };
}

async function parsed<S extends z.ZodType>(schema: S, response: Response): Promise<z.infer<S>> {
  try {
    return schema.parse(await response.json());
  } catch {
    // what cannot be read may hold anything: nothing of it is passed on
    throw storeUnavailable('google', 'an answer that cannot be read');
  }
}

function accessToken(
  config: { tokenUrl: string; serviceAccount: ServiceAccount },
  call: StoreCall,
  deps: StoreDeps,
): { get: () => Promise<string>; drop: () => void } {
  const { client_email: email, private_key: pem, private_key_id: kid } = config.serviceAccount;
  const key = rsaKey(pem);
  let held: { token: Promise<string>; until: number } | null = null;

  const grant = async (): Promise<{ token: string; until: number }> => {
    const now = Math.floor(deps.clock.now() / 1000);
    const assertion = await new SignJWT({ scope: SCOPE })
      .setProtectedHeader({ alg: 'RS256', typ: 'JWT', ...(kid === undefined ? {} : { kid }) })
      .setIssuer(email)
      .setAudience(config.tokenUrl)
      .setIssuedAt(now)
      .setExpirationTime(now + 3600)
      .sign(key);
    const response = await call.fetch(config.tokenUrl, {
      method: 'POST',
      body: new URLSearchParams({ grant_type: GRANT, assertion }),
    });
    if (!response.ok) throw storeUnavailable('google', `no access token, status ${response.status}`);
    const answer = await parsed(Token, response);
    return { token: answer.access_token, until: (now + answer.expires_in) * 1000 - RENEW_EARLY_MS };
  };

  return {
    get() {
      if (held !== null && deps.clock.now() < held.until) return held.token;
      const granted = grant();
      // whoever asks meanwhile waits for the same grant
      const mine = { token: granted.then(({ token }) => token), until: Number.POSITIVE_INFINITY };
      held = mine;
      granted.then(
        ({ until }) => {
          mine.until = until;
        },
        () => {
          // its caller is told; the next one asks anew
          if (held === mine) held = null;
        },
      );
      return mine.token;
    },
    drop() {
      held = null;
    },
  };
}

function rsaKey(pem: string) {
  const wrong = new KatafractError(
    'config_invalid',
    'Google Play needs a service account with an RSA key in PEM',
  );
  try {
    const key = createPrivateKey(pem);
    if (key.asymmetricKeyType === 'rsa') return key;
  } catch {
    // the reason might quote the key
    throw wrong;
  }
  throw wrong;
}
