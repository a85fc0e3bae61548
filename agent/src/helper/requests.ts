/**
 * What the agent may ask of the machine it runs on. The agent has no rights of its own: it leaves a request as a small
 * file, and a helper that runs as root (serve.ts) takes it up if it is one of these, and leaves its result beside it.
 * This vocabulary is all that an agent which has been taken over could make root do.
 */
import { Haven } from '@katafract/shared/haven';
import { Cidr4, Cidr6, Ipv4, Ipv6, Timestamp } from '@katafract/shared/units';
import { AgentVersion } from '@katafract/shared/upkeep';
import { z } from 'zod';

/** RFC 1918 and 6598: an address that nobody on the internet can ask. */
const PRIVATE4 = /^(?:10\.|172\.(?:1[6-9]|2\d|3[01])\.|192\.168\.|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.)/;
/** RFC 4193. */
const PRIVATE6 = /^f[cd][0-9a-f]{2}:/;
export const isPrivate4 = (text: string) => PRIVATE4.test(text);
export const isPrivate6 = (text: string) => PRIVATE6.test(text);

/** The DNS filter as it should run. */
export const HavenRequest = z.strictObject({
  settings: Haven,
  /** Where it answers: the tunnel's gateway, and never an address that the internet knows. */
  gateway4: Ipv4.refine(isPrivate4, 'not a private address'),
  gateway6: Ipv6.refine(isPrivate6, 'not a private address'),
  /** Whom it answers. */
  pool4: Cidr4.refine(isPrivate4, 'not a private net'),
  pool6: Cidr6.refine(isPrivate6, 'not a private net'),
  /** bcrypt hash of the password that its interface asks for. */
  password: z.string().regex(/^\$2[aby]\$(?:0[4-9]|1\d)\$[./A-Za-z0-9]{53}$/, 'not a bcrypt hash'),
});
export type HavenRequest = z.infer<typeof HavenRequest>;

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
  /** The DNS filter, or none. */
  haven: z.union([z.strictObject({ off: z.literal(true) }), HavenRequest]),
  /** Whether SSH is for the mesh alone, or for whom the machine's own configuration says. */
  ssh: z.strictObject({ fromMesh: z.boolean() }),
} as const;
export type RequestName = keyof typeof REQUESTS;
export type Request<Name extends RequestName = RequestName> = z.infer<(typeof REQUESTS)[Name]>;
export const REQUEST_NAMES = [
  'ssh',
  'haven',
  'updates',
  'update',
  'reboot',
] as const satisfies readonly RequestName[];

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

/** Larger files are no requests; the largest honest one is a filter with all the rules it may have. In bytes. */
export const LARGEST_REQUEST = 262_144;

/** Whether two requests ask for the same, in whatever order their fields come. */
export function sameRequest(one: unknown, other: unknown): boolean {
  return canonical(one) === canonical(other);
}

function canonical(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) =>
    part !== null && typeof part === 'object' && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  );
}
