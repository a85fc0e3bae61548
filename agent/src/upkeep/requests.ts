/**
 * What the agent may ask of the machine it runs on. The agent has no rights of its own: it leaves a request as a small
 * file, and a helper that runs as root (serve.ts) takes it up if it is one of these, and leaves its result beside it.
 * This vocabulary is all that an agent which has been taken over could make root do.
 */
import { Timestamp } from '@katafract/shared/units';
import { AgentVersion } from '@katafract/shared/upkeep';
import { z } from 'zod';

export const REQUESTS = {
  /** Another version of the agent's own package. */
  update: z.strictObject({ version: AgentVersion }),
  /** One reboot, before `until`. */
  reboot: z.strictObject({ lease: z.uuid(), until: Timestamp }),
  /** When the system takes security updates: minutes after midnight UTC, and the window's length. */
  updates: z.strictObject({
    fromMinute: z.number().int().min(0).max(1439),
    minutes: z.number().int().min(30).max(720),
  }),
} as const;
export type RequestName = keyof typeof REQUESTS;
export type Request<Name extends RequestName = RequestName> = z.infer<(typeof REQUESTS)[Name]>;
export const REQUEST_NAMES = ['updates', 'update', 'reboot'] as const satisfies readonly RequestName[];

/** What became of a request, which it repeats. */
export const Result = z.strictObject({
  request: z.unknown(),
  outcome: z.enum(['done', 'failed']),
  /** Stable word of what went wrong; absent where nothing did. */
  code: z.string().max(64).optional(),
  at: Timestamp,
});
export type Result = z.infer<typeof Result>;

/** The agent's sign that it runs and speaks with the controller, for which the helper waits after an update. */
export const Alive = z.strictObject({ version: AgentVersion });

/** Larger files are no requests. In bytes. */
export const LARGEST_REQUEST = 4096;

/** Whether two requests ask for the same. Both were read by the schemas above, whose objects are flat. */
export function sameRequest(one: unknown, other: unknown): boolean {
  const flat = (value: unknown) => JSON.stringify(Object.entries(value ?? {}).sort());
  return flat(one) === flat(other);
}
