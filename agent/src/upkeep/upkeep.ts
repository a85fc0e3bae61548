/** Keeps the machine's upkeep as it is wanted: looks, plans, leaves requests, and says how it stands. */
import type { UpkeepReport } from '@katafract/shared/upkeep';
import type { Log } from '../ports.ts';
import {
  type MachineWish,
  planUpkeep,
  reportUpkeep,
  sshGuarded,
  type UpkeepAction,
  type UpkeepFacts,
} from './plan.ts';

export interface UpkeepPort {
  look(): Promise<UpkeepFacts>;
  /** Durable once it resolves. */
  act(action: UpkeepAction): Promise<void>;
}

export interface UpkeepState {
  readonly version: string;
  readonly connected: boolean;
  readonly now: number;
}

export interface Settled {
  readonly report: UpkeepReport;
  /** SSH is restricted to the mesh, and nobody was locked out by that. */
  readonly sshGuarded: boolean;
}

/**
 * One pass. A machine that cannot be looked at is said nothing of, and a request that could not be left is left with
 * the next pass: neither is worth a tunnel.
 */
export async function settleUpkeep(
  port: UpkeepPort,
  wanted: MachineWish,
  state: UpkeepState,
  log: Log,
): Promise<Settled | null> {
  try {
    const seen = { ...(await port.look()), ...state };
    for (const action of planUpkeep(wanted, seen)) {
      if (action.do === 'request') log.info({ request: action.name }, 'asked of the helper');
      await port.act(action);
    }
    return { report: reportUpkeep(wanted, seen), sshGuarded: sshGuarded(wanted.sshFromMesh, seen.requests) };
  } catch (error) {
    log.error({ err: error }, 'upkeep: a step failed; it is tried again');
    return null;
  }
}
