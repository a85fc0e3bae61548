/**
 * Who may operate the fleet. For now whoever holds the bootstrap token, which lies in a file that only the
 * controller's user can read. Customer tokens mean nothing here: a Sigil is compared like any other wrong token.
 */
import { randomBytes } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import type { OperatorIdentity } from '../platform/api.ts';
import { bearerToken, createSecretFile, readSecretFile, sameDigest, sha256 } from '../platform/secrets.ts';

export { type OperatorKeysDeps, operatorKeyOf, signerOf } from './keys.ts';

export interface Operators {
  /** @throws KatafractError `unauthorized` (401) */
  authenticate(authorization: string | undefined): OperatorIdentity;
}

/** Shorter ones could be guessed. */
const SHORTEST = 32;

/**
 * Reads the bootstrap token, making one first where `create` says so and there is none.
 * @throws KatafractError `operator_token_invalid`: shorter than 32 characters, or not of a bearer token's alphabet
 */
export async function readOperatorToken(path: string, create: boolean): Promise<string> {
  if (create) await createSecretFile(path, `kfo1_${randomBytes(32).toString('base64url')}`);
  const token = await readSecretFile(path);
  if (token.length < SHORTEST || bearerToken(`Bearer ${token}`) === null)
    throw new KatafractError(
      'operator_token_invalid',
      `${path} must hold one token of ${SHORTEST} characters or more`,
    );
  return token;
}

/** Keeps only the hash: two tokens are compared by their digests, so neither length nor prefix shows in the time. */
export function createOperators(bootstrapToken: string): Operators {
  const expected = sha256(bootstrapToken);
  return {
    authenticate(authorization) {
      const token = bearerToken(authorization);
      if (token === null || !sameDigest(sha256(token), expected))
        throw new KatafractError('unauthorized', 'an operator token is required', { status: 401 });
      return { name: 'bootstrap' };
    },
  };
}
