/**
 * What the command reads of the operators' API, and no more: a controller may say things that this version does not
 * know of, also new words for states. `--json` passes on everything.
 */
import { z } from 'zod';

const time = z.iso.datetime();
const count = z.number();
export const list = <T extends z.ZodType>(item: T) => z.object({ items: z.array(item) });
export const pageOf = <T extends z.ZodType>(item: T) =>
  z.object({ items: z.array(item), next: z.string().nullable() });
/** Of an answer without a body. */
export const Nothing = z.null();

export const Node = z.object({
  id: z.string(),
  region: z.string(),
  state: z.string(),
  lifecycle: z.string(),
  condition: z.object({ state: z.string(), reason: z.string(), since: time }).nullable(),
  provider: z.string().nullable(),
  endpoint: z.string(),
  capacity: count,
  peers: count,
  connected: z.boolean(),
  generation: count,
  applied: count,
  agentVersion: z.string().nullable(),
  lastSeenAt: time.nullable(),
});
export type Node = z.infer<typeof Node>;

export const Drain = z.object({
  node: z.string(),
  state: z.string(),
  wantedBy: z.string(),
  startedAt: time,
  endedAt: time.nullable(),
  deadline: time.nullable(),
  overdue: z.boolean(),
  total: count,
  moved: count,
  waiting: count,
  leaving: count,
  stranded: count,
});
export type Drain = z.infer<typeof Drain>;

const Growth = z.object({
  provider: z.string(),
  location: z.string(),
  size: z.string(),
  capacity: count,
  tunnels: count.optional(),
  maxExits: count,
});
export const Region = z.object({
  id: z.string(),
  name: z.string(),
  country: z.string(),
  timeZone: z.string().nullable(),
  minExits: count,
  growth: Growth.nullable(),
  haven: z.object({ blocklists: z.array(z.unknown()) }).nullable(),
  sshFromMesh: z.boolean(),
});
export const ChangedRegion = z.object({ id: z.string() });

export const Capacity = z.object({
  region: z.string(),
  explained: z.string(),
  exits: count,
  peers: count,
  room: count,
  coming: count,
  trend: count,
  used: count,
  expectedUsed: count,
  decision: z.object({ do: z.string(), reason: z.string() }),
});

export const Machine = z.object({
  id: z.string(),
  region: z.string(),
  node: z.string(),
  provider: z.string(),
  state: z.string(),
  reason: z.string(),
  replaces: z.string().nullable(),
  address: z.string().nullable(),
  problem: z.string().nullable(),
  since: time,
});
export type Machine = z.infer<typeof Machine>;

export const Rollout = z.object({
  id: z.string(),
  version: z.string(),
  state: z.string(),
  standing: z.string(),
  wave: count,
  waves: count,
  startedAt: time,
  reason: z.string().nullable(),
  counts: z.record(z.string(), count),
  nodes: z
    .array(z.object({ node: z.string(), wave: count, state: z.string(), reason: z.string().nullable() }))
    .optional(),
});
export type Rollout = z.infer<typeof Rollout>;

export const Reboot = z.object({
  id: z.string(),
  node: z.string(),
  state: z.string(),
  wantedBy: z.string(),
  wantedAt: time,
  endedAt: time.nullable(),
  reason: z.string().nullable(),
  waitsFor: z.string().nullable(),
});
export type Reboot = z.infer<typeof Reboot>;
export const Reboots = list(Reboot).extend({ stopped: z.string().nullable() });

export const JoinTokenMade = z.object({ token: z.string(), expiresAt: time });
export const SigilMinted = z.object({ id: z.string(), subscription: z.string(), sigil: z.string() });
export const Sigil = z.object({ id: z.string(), revokedAt: time.nullable() });

export const AuditEntry = z.object({
  id: count,
  at: time,
  actor: z.string(),
  action: z.string(),
  subject: z.string(),
  detail: z.record(z.string(), z.unknown()),
});
export const RolledBack = z.object({ entry: count, undone: z.string() });
