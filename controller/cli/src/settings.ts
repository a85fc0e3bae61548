/** Where the controller is and who asks: from the environment or files, never from argv, which everybody can read. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { KatafractError } from '@katafract/shared/errors';
import { Api } from './api.ts';
import type { Io } from './io.ts';

/** What the controller listens on where nobody said. */
const DEFAULT_URL = 'http://127.0.0.1:8080';

/** What is missing or wrong before anything was asked: exit code 2. */
export class UsageError extends KatafractError {}

export async function apiFrom(io: Io): Promise<Api> {
  const url = io.env.KATAFRACT_URL || DEFAULT_URL;
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol))
    throw new UsageError('url_invalid', 'KATAFRACT_URL must be an http or https URL');
  return new Api(io, url, await tokenFrom(io));
}

async function tokenFrom({ env }: Io): Promise<string> {
  const path = env.KATAFRACT_OPERATOR_TOKEN_FILE;
  const text = path ? await readText(path, 'token_unreadable') : env.KATAFRACT_OPERATOR_TOKEN;
  const token = text?.trim();
  if (!token)
    throw new UsageError(
      'token_missing',
      'name the file with the operator token in KATAFRACT_OPERATOR_TOKEN_FILE, or set KATAFRACT_OPERATOR_TOKEN',
    );
  // a header can carry nothing else, and its error would quote the token
  if (!/^[\x21-\x7e]+$/.test(token)) throw new UsageError('token_invalid', 'the operator token is no token');
  return token;
}

export function keyFile({ env, home }: Io): string {
  return env.KATAFRACT_OPERATOR_KEY_FILE || join(home, '.config', 'katafract', 'operator-key.json');
}

/** @throws UsageError with `code`: it cannot be read */
export async function readText(path: string, code: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw new UsageError(code, `cannot read ${path}`, { cause });
  }
}

/** @throws UsageError `key_file_open`: others may read or change it */
export async function mustBePrivate(path: string): Promise<void> {
  const { mode } = await stat(path);
  if ((mode & 0o077) !== 0)
    throw new UsageError('key_file_open', `${path} must be for you alone (mode 0600)`);
}
