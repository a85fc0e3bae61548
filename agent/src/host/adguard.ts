/** AdGuard Home's API on this machine, by HTTP Basic; and the password that it asks for. */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import { hash } from 'bcryptjs';
import { z } from 'zod';
import type { Call } from '../haven/checks.ts';
import type { AdguardPort } from '../haven/haven.ts';
import { API_PORT, API_USER } from '../helper/adguard.ts';
import { readText, writeDurably } from './files.ts';

const TIMEOUT_MS = 2000;
const LARGEST_ANSWER = 4 << 20;

export interface HavenSecret {
  readonly password: string;
  /** bcrypt, which is all that anybody else is told. */
  readonly hash: string;
}

const Stored = z.strictObject({ password: z.string(), hash: z.string() });
/**
 * Of bcrypt: AdGuard works it out for every request, and a password of 256 random bits needs no more to be safe.
 */
const ROUNDS = 4;

/**
 * The node's own password for its filter, made on first use, kept in the state directory.
 * @param file where an operator's secrets manager puts one instead (a systemd credential, for instance); null: none
 */
export async function havenSecret(directory: string, file: string | null): Promise<HavenSecret> {
  const path = join(directory, 'haven.json');
  const text = await readText(path);
  const before = text === null ? null : Stored.safeParse(JSON.parse(text));
  const given = file === null ? null : ((await readText(file)) ?? '').trim();
  if (given === '') throw new KatafractError('haven_password_missing', `there is no password in ${file}`);
  if (before?.success && (given === null || given === before.data.password)) return before.data;
  const password = given ?? randomBytes(32).toString('base64url');
  const secret = { password, hash: await hash(password, ROUNDS) };
  await writeDurably(path, `${JSON.stringify(secret)}\n`);
  return secret;
}

export function adguard(password: string, send: typeof fetch = fetch): AdguardPort {
  const authorization = `Basic ${Buffer.from(`${API_USER}:${password}`).toString('base64')}`;

  async function ask(path: string, method: string, body?: object): Promise<string> {
    let response: Response;
    try {
      response = await send(`http://127.0.0.1:${API_PORT}/control${path}`, {
        method,
        redirect: 'error',
        signal: AbortSignal.timeout(TIMEOUT_MS),
        headers: { authorization, ...(body ? { 'content-type': 'application/json' } : {}) },
        ...(body ? { body: JSON.stringify(body) } : {}),
      });
    } catch (cause) {
      throw new KatafractError('adguard_away', 'AdGuard Home does not answer', { cause });
    }
    const text = await response.text();
    if (response.status === 401 || response.status === 403) {
      throw new KatafractError('adguard_login', `AdGuard Home does not let us in (${response.status})`);
    }
    if (!response.ok || text.length > LARGEST_ANSWER) {
      // its errors are plain text
      const why = text.slice(0, 200).trim();
      throw new KatafractError('adguard_refused', `${method} ${path}: ${response.status} ${why}`);
    }
    return text;
  }

  return {
    async read(path) {
      const text = await ask(path, 'GET');
      try {
        return JSON.parse(text) as unknown;
      } catch (cause) {
        throw new KatafractError('adguard_refused', `${path}: no JSON`, { cause });
      }
    },
    async call({ method, path, body }: Call) {
      await ask(path, method, body);
    },
  };
}
