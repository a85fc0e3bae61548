/**
 * What operators say over the broker, on `kf/1/<node>/drain`: a compact JWS (EdDSA, typ `kf-command+jws`) by a key of
 * the operator's own, named by its thumbprint. The broker is not trusted, so everything that a command means is inside
 * the signature: which fleet, which node, when, and an id by which it works once. Who may speak at the broker at all is
 * another matter, and another token (mintOperatorToken): that one only opens a connection.
 */
import { CompactSign, type CryptoKey, compactVerify, decodeProtectedHeader } from 'jose';
import { z } from 'zod';
import { KatafractError } from './errors.ts';
import { LEEWAY_SECONDS, mintIdentityToken, verifyIdentityToken } from './identity-token.ts';
import { NodePublicJwk } from './node-token.ts';
import { PROTOCOL } from './topics.ts';
import { NodeId, Timestamp } from './units.ts';

/** Whose key it is; `bootstrap` is whoever holds the bootstrap token, and no name of a person. */
export const OperatorName = z
  .string()
  .regex(/^[a-z][a-z0-9-]{0,30}[a-z0-9]$/, 'an operator’s name is 2 to 32 of a-z, 0-9 and hyphen')
  .refine((name) => name !== 'bootstrap' && name !== 'system', 'a name that means something else')
  .brand<'OperatorName'>();
export type OperatorName = z.infer<typeof OperatorName>;

/** RFC 7638, of an Ed25519 key. */
export const KeyThumbprint = z.string().regex(/^[A-Za-z0-9_-]{43}$/, 'a thumbprint is 43 of base64url');

/** The longest a command may be good for, in milliseconds. */
export const COMMAND_LIFE_MS = 300_000;
/** Of operators' clocks that are fast, so much is forgiven, in milliseconds. */
export const COMMAND_LEEWAY_MS = LEEWAY_SECONDS * 1000;

export const OPERATOR_COMMANDS = ['drain', 'pause', 'resume', 'cancel'] as const;
/** Years 2000 to 3000: Postgres could keep others too, and they can only be a slip. */
const Deadline = z.number().int().min(946_684_800_000).max(32_503_680_000_000);

/** Strict: a restriction that this version does not know must not be passed over. */
export const OperatorCommand = z
  .strictObject({
    v: z.literal(PROTOCOL),
    /** Works once. */
    id: z.uuid(),
    at: Timestamp,
    /** At most COMMAND_LIFE_MS after `at`. */
    expiresAt: Timestamp,
    /** The fleet: the public URL of its controller. */
    audience: z.string().min(1).max(512),
    node: NodeId,
    command: z.enum(OPERATOR_COMMANDS),
    /** For `drain`: when the node should be empty. */
    deadline: Deadline.optional(),
  })
  .refine(({ at, expiresAt }) => expiresAt > at && expiresAt - at <= COMMAND_LIFE_MS, 'lives too long')
  .refine(
    ({ command, deadline }) => command === 'drain' || deadline === undefined,
    'a deadline is of a drain',
  );
export type OperatorCommand = z.infer<typeof OperatorCommand>;

const TYP = 'kf-command+jws';
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

/** @param thumbprint of the operator's public key */
export function signCommand(command: OperatorCommand, key: CryptoKey, thumbprint: string): Promise<string> {
  return new CompactSign(encoder.encode(JSON.stringify(command)))
    .setProtectedHeader({ alg: 'EdDSA', typ: TYP, kid: thumbprint })
    .sign(key);
}

/** Why a command was refused before anything was looked at that it would do; stable, and a counter's label. */
export type CommandRefusal =
  | 'unknown_key'
  | 'signature'
  | 'version'
  | 'schema'
  | 'node'
  | 'audience'
  | 'early'
  | 'expired';

/** @throws KatafractError `command_refused` with `detail.reason` */
export function commandRefused(reason: string, cause?: unknown): KatafractError {
  return new KatafractError('command_refused', `an operator's command was refused: ${reason}`, {
    status: 403,
    cause,
    detail: { reason },
  });
}

/** The thumbprint of the key that a command says it is signed with: not to be believed before `verifyCommand`. */
export function commandKey(jws: string): string {
  try {
    const { typ, alg, kid } = decodeProtectedHeader(jws);
    if (typ !== TYP || alg !== 'EdDSA') throw new Error('wrong typ or alg');
    return KeyThumbprint.parse(kid);
  } catch (cause) {
    throw commandRefused('signature', cause);
  }
}

/**
 * Opens a command that came on the topic of `node`.
 * @param key the one that `commandKey` names
 * @param expected now: milliseconds since the epoch, by the clock of whoever obeys
 * @throws KatafractError `command_refused`, see CommandRefusal
 */
export async function verifyCommand(
  jws: string,
  key: CryptoKey,
  expected: { readonly node: NodeId; readonly audience: string; readonly now: number },
): Promise<OperatorCommand> {
  const refuse = (reason: CommandRefusal, cause?: unknown) => commandRefused(reason, cause);
  let payload: Uint8Array;
  try {
    if (decodeProtectedHeader(jws).typ !== TYP) throw new Error('wrong typ');
    ({ payload } = await compactVerify(jws, key, { algorithms: ['EdDSA'] }));
  } catch (cause) {
    throw refuse('signature', cause);
  }
  let json: unknown;
  try {
    json = JSON.parse(decoder.decode(payload));
  } catch (cause) {
    throw refuse('schema', cause);
  }
  if ((json as { v?: unknown } | null)?.v !== PROTOCOL) throw refuse('version');
  const parsed = OperatorCommand.safeParse(json);
  if (!parsed.success) throw refuse('schema', parsed.error);
  const { node, audience, at, expiresAt } = parsed.data;
  if (node !== expected.node) throw refuse('node');
  if (audience !== expected.audience) throw refuse('audience');
  if (at > expected.now + COMMAND_LEEWAY_MS) throw refuse('early');
  if (expiresAt <= expected.now) throw refuse('expired');
  return parsed.data;
}

const TOKEN_TYP = 'kf-operator+jwt';
const TOKEN_AUDIENCE = 'katafract-broker-operator';

/** How an operator is called at a broker, and in the audit log: a name that no node can have. */
export const operatorUsername = (name: OperatorName) => `operator:${name}`;
/** The client id an operator must use. */
export const operatorClientId = (name: OperatorName) => `kf-operator-${name}`;

/** The password of an operator's connection to the broker. @param now milliseconds since the epoch */
export function mintOperatorToken(key: CryptoKey, name: OperatorName, now: number): Promise<string> {
  return mintIdentityToken(
    key,
    { typ: TOKEN_TYP, name: operatorUsername(name), audience: TOKEN_AUDIENCE },
    now,
  );
}

/** @throws KatafractError `operator_proof_invalid` (401), whatever the reason; the cause says which. */
export function verifyOperatorToken(
  token: string,
  key: CryptoKey,
  expected: { readonly name: OperatorName; readonly now: number },
): Promise<{ expiresAt: number }> {
  const kind = { typ: TOKEN_TYP, name: operatorUsername(expected.name), audience: TOKEN_AUDIENCE };
  const refusal = ['operator_proof_invalid', 'the proof of the operator is not valid'] as const;
  return verifyIdentityToken(token, key, kind, expected.now, refusal);
}

/** POST /v1/admin/operator-keys. */
export const OperatorKeyRequest = z.strictObject({ name: OperatorName, publicJwk: NodePublicJwk });
export type OperatorKeyRequest = z.infer<typeof OperatorKeyRequest>;

/** A key as it is listed. */
export const OperatorKey = z.object({
  name: OperatorName,
  thumbprint: KeyThumbprint,
  createdBy: z.string(),
  createdAt: z.iso.datetime(),
  revokedAt: z.iso.datetime().nullable(),
});
export type OperatorKey = z.infer<typeof OperatorKey>;

/** What whoever registered a key needs to use it. */
export const RegisteredKey = z.object({
  name: OperatorName,
  thumbprint: KeyThumbprint,
  /** For the commands. */
  audience: z.string().max(512),
  broker: z.object({
    url: z.string().max(512),
    /** PEM of the CA to pin, where the broker speaks TLS with a private one. */
    ca: z.string().max(16_384).optional(),
    /** Set where a foreign broker takes the token only after the controller has been shown it (POST here first). */
    sessionUrl: z.string().max(512).optional(),
  }),
});
export type RegisteredKey = z.infer<typeof RegisteredKey>;
