/**
 * What a node does for itself besides serving: which version of the agent it runs, when its system takes security
 * updates, and leave to reboot. Part of its config, so it is signed, ordered and acknowledged like everything else.
 */
import { z } from 'zod';
import { Timestamp } from './units.ts';

export const AgentVersion = z
  .string()
  .regex(/^\d{1,4}\.\d{1,4}\.\d{1,4}(?:[-+][A-Za-z0-9.-]{1,32})?$/, 'a version such as 1.2.3');

export const Upkeep = z.object({
  /** Version of the agent to run; absent: whichever runs. */
  agentVersion: AgentVersion.optional(),
  /** When the system's own unattended-upgrades may install security updates. It never reboots by itself. */
  updates: z
    .object({
      /** Start of the daily window, in minutes after midnight UTC, and its length. */
      fromMinute: z.number().int().min(0).max(1439),
      minutes: z.number().int().min(30).max(720),
    })
    .optional(),
  /** Leave to reboot once, before `until`. A lease that was used is not used again. */
  reboot: z.object({ lease: z.uuid(), until: Timestamp }).optional(),
});
export type Upkeep = z.infer<typeof Upkeep>;

/** What a node says of it, in its heartbeat. */
export const UpkeepReport = z.object({
  /** The system asks for a reboot (/run/reboot-required). */
  rebootNeeded: z.boolean(),
  /** The last lease it rebooted by. */
  lease: z.uuid().optional(),
  /** How the wish for another version of the agent stands; absent where it runs what it should. */
  agentUpdate: z.enum(['requested', 'failed']).optional(),
});
export type UpkeepReport = z.infer<typeof UpkeepReport>;
