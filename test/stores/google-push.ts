/** Pub/Sub pushes of Play's notifications, signed by an issuer of the test's own; and forged ones. */
import { generateKeyPairSync, type KeyObject, randomBytes } from 'node:crypto';
import type { GoogleConfig } from '@katafract/controller/billing/stores/google';
import { SignJWT, UnsecuredJWT } from 'jose';
import { PACKAGE } from './google-api.ts';
import { rfc3339 } from './google-life.ts';
import { bytes, found, type Webhook } from './stand-in.ts';

/** @param claims replace those of the token */
export type Push = (
  notification: object,
  options?: { claims?: object; key?: KeyObject; kid?: string; at?: number },
) => Promise<Webhook>;

export const PUSH_KEY_ID = 'push-1';
export const rsa = () => generateKeyPairSync('rsa', { modulusLength: 2048 });

export function pusher({ pubsub }: GoogleConfig, issuerKey: KeyObject, now: () => number): Push {
  const { audience, serviceAccountEmail, issuer: iss } = pubsub;
  const base = {
    iss,
    aud: audience,
    sub: '1136',
    azp: '1136',
    email: serviceAccountEmail,
    email_verified: true,
  };
  return async (notification, options = {}) => {
    const { claims = {}, key = issuerKey, kid = PUSH_KEY_ID, at = now() } = options;
    const iat = Math.floor(at / 1000);
    const token = await new SignJWT({ ...base, iat, exp: iat + 3600, ...claims })
      .setProtectedHeader({ alg: 'RS256', kid, typ: 'JWT' })
      .sign(key);
    return pushed(notification, token, now());
  };
}

function pushed(notification: object, token: string, now: number): Webhook {
  const messageId = String(randomBytes(6).readUIntBE(0, 6));
  const data = Buffer.from(JSON.stringify(notification)).toString('base64');
  const message = { data, messageId, message_id: messageId, publishTime: rfc3339(now) };
  return {
    eventId: messageId,
    body: bytes(JSON.stringify({ message, subscription: 'projects/project/subscriptions/rtdn' })),
    headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
  };
}

export function notificationOf(over: object, now: number): object {
  return { version: '1.0', packageName: PACKAGE, eventTimeMillis: String(now), ...over };
}

export async function forgeries(
  message: object,
  push: Push,
  config: GoogleConfig,
  publicKey: KeyObject,
  now: number,
): Promise<Record<string, Webhook>> {
  const claims = (over: object) => push(message, { claims: over });
  const genuine = await push(message);
  const authorization = found(genuine.headers.authorization, 'authorization');
  return {
    'another key under the same id': await push(message, { key: rsa().privateKey }),
    'another key under another id': await push(message, { key: rsa().privateKey, kid: 'push-2' }),
    'alg none': pushed(message, unsecured(config, now), now),
    'HS256 with the public key': pushed(message, await symmetric(publicKey, config, now), now),
    'tampered token': { ...genuine, headers: { authorization: tampered(authorization) } },
    'no token': { ...genuine, headers: {} },
    'another audience': await claims({ aud: 'https://other.example/' }),
    'another issuer': await claims({ iss: 'https://accounts.example' }),
    'another sender': await claims({ email: 'somebody@project.iam.gserviceaccount.com' }),
    'e-mail not verified': await claims({ email_verified: false }),
    'e-mail verified in words': await claims({ email_verified: 'true' }),
    'stale token': await push(message, { at: now - 3_700_000 }),
    'token of the future': await push(message, { at: now + 900_000 }),
    'token without end': await claims({ exp: undefined }),
    'another package': await push({ ...message, packageName: 'com.example.other' }),
  };
}

function unsecured({ pubsub }: GoogleConfig, now: number): string {
  return new UnsecuredJWT({ email: pubsub.serviceAccountEmail, email_verified: true })
    .setIssuer(pubsub.issuer)
    .setAudience(pubsub.audience)
    .setIssuedAt(Math.floor(now / 1000))
    .setExpirationTime(Math.floor(now / 1000) + 3600)
    .encode();
}

/** The old trick: the public key as the secret of an HMAC. */
function symmetric(publicKey: KeyObject, { pubsub }: GoogleConfig, now: number): Promise<string> {
  return new SignJWT({ email: pubsub.serviceAccountEmail, email_verified: true })
    .setProtectedHeader({ alg: 'HS256', kid: PUSH_KEY_ID })
    .setIssuer(pubsub.issuer)
    .setAudience(pubsub.audience)
    .setIssuedAt(Math.floor(now / 1000))
    .setExpirationTime(Math.floor(now / 1000) + 3600)
    .sign(bytes(publicKey.export({ type: 'spki', format: 'pem' }).toString()));
}

/** The same signature under a token that ends later. */
function tampered(authorization: string): string {
  const [header = '', payload = '', signature = ''] = authorization.split('.');
  const claims = JSON.parse(Buffer.from(payload, 'base64url').toString('utf8')) as { exp: number };
  const changed = Buffer.from(JSON.stringify({ ...claims, exp: claims.exp + 1 })).toString('base64url');
  return [header, changed, signature].join('.');
}
