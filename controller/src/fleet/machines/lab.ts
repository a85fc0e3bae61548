/**
 * Machines of a lab, for tests and demonstrations: a few lines of JSON over HTTP to whoever plays the provider.
 *
 *   PUT    /machines/<id>  {node, region, location, size, userData} → {ref, address}  makes it, or finds it
 *   DELETE /machines/<id>                                           → 204, also where it is gone
 *   GET    /machines                                                → {items: [{machine, ref, address}]}
 */
import { KatafractError } from '@katafract/shared/errors';
import { z } from 'zod';
import type { Provider } from './provider.ts';

const TIMEOUT_MS = 10_000;
const Made = z.object({ ref: z.string().min(1).max(128), address: z.ipv4().nullable() });
const Listed = z.object({ items: z.array(Made.extend({ machine: z.string().max(64) })) });

export function labProvider({ url }: { url: string }): Provider {
  const ask = async (method: string, path: string, body?: object): Promise<unknown> => {
    let response: Response;
    try {
      response = await fetch(`${url}${path}`, {
        method,
        signal: AbortSignal.timeout(TIMEOUT_MS),
        ...(body === undefined
          ? {}
          : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
      });
      if (response.ok) return response.status === 204 ? null : await response.json();
    } catch (cause) {
      throw new KatafractError('provider_unavailable', 'the lab does not answer', { cause });
    }
    throw refusal(response.status);
  };
  return {
    name: 'lab',
    automatic: true,
    async create({ machine, node, region, location, size, userData }) {
      const body = { node, region, location, size, userData };
      return { machine, ...understood(Made, await ask('PUT', `/machines/${machine}`, body)) };
    },
    async remove(machine) {
      await ask('DELETE', `/machines/${machine}`).catch((error: KatafractError) => {
        if (error.status !== 404) throw error;
      });
    },
    list: async () => understood(Listed, await ask('GET', '/machines')).items,
  };
}

function refusal(status: number): KatafractError {
  if (status === 401)
    return new KatafractError('provider_unauthorized', 'the lab does not know us', { status });
  const code = status >= 500 || status === 429 ? 'provider_unavailable' : 'provider_refused';
  return new KatafractError(code, `the lab answered ${status}`, { status });
}

function understood<S extends z.ZodType>(schema: S, answer: unknown): z.output<S> {
  const read = schema.safeParse(answer);
  if (read.success) return read.data;
  throw new KatafractError('provider_unavailable', 'the lab answered something else than it should');
}
