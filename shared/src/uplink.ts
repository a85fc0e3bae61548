/**
 * What a node says. Aggregates only: nothing here can name a client, an endpoint or the time of a handshake.
 */
import { z } from 'zod';
import { PROTOCOL } from './topics.ts';
import { Digest, Generation, Lineage, Timestamp } from './units.ts';
import { AgentVersion, UpkeepReport } from './upkeep.ts';

const version = z.literal(PROTOCOL);
/** Random per agent start: tells a reconnect from a restart. */
const BootId = z.string().regex(/^[A-Za-z0-9_-]{8,32}$/);

/** Sent on every connect and after every gap: "this is what I hold, carry me on from here". */
export const Hello = z.object({
  v: version,
  boot: BootId,
  version: AgentVersion,
  lineage: Lineage,
  generation: Generation,
  /** Digest of the HELD set (not of the kernel's). */
  digest: Digest,
  /** `snapshot` after a delta whose digest did not come out: the numbers agree, the history does not. */
  want: z.enum(['delta', 'snapshot']),
});
export type Hello = z.infer<typeof Hello>;

/** Sent only after the kernel took it and the disk has it. */
export const Applied = z.object({
  v: version,
  lineage: Lineage,
  generation: Generation,
  digest: Digest,
});
export type Applied = z.infer<typeof Applied>;

/** `repaired`: it had drifted and was put right since the last heartbeat; `failed`: it could not be. */
export const PartState = z.enum(['ok', 'repaired', 'failed', 'off']);
export type PartState = z.infer<typeof PartState>;

const amount = z.number().min(0).max(Number.MAX_SAFE_INTEGER);
export const Heartbeat = z.object({
  v: version,
  boot: BootId,
  version: AgentVersion,
  at: Timestamp,
  lineage: Lineage,
  generation: Generation,
  /** Digest of what was OBSERVED in the kernel at `generation`. */
  digest: Digest,
  peers: amount.int(),
  /** Peers with a handshake in the last 3 minutes: a count, never which. */
  peersRecent: amount.int(),
  rxBytes: amount.int(),
  txBytes: amount.int(),
  /** Share of all cores busy since the last heartbeat, 0 to 1. */
  cpu: z.number().min(0).max(1),
  memoryUsed: amount.int(),
  memoryTotal: amount.int(),
  load: z.number().min(0).max(1e6),
  uptimeSeconds: amount,
  rules: PartState,
  dns: PartState,
  /** Rows and rules put right since the agent started. */
  repairs: amount.int(),
  /** Messages refused since the agent started, by reason. */
  refused: z.record(z.string().regex(/^[a-z_]{1,32}$/), amount.int()),
  upkeep: UpkeepReport.optional(),
});
export type Heartbeat = z.infer<typeof Heartbeat>;

/** Retained; the last will says `online: false`. */
export const Presence = z.object({ v: version, online: z.boolean() });
export type Presence = z.infer<typeof Presence>;

export const HEARTBEAT_SECONDS = 10;
