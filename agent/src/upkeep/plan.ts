/**
 * What the agent asks of its machine, pure: what the controller wants of it besides serving, and what is there, give
 * the requests to leave. Repeating a plan that was carried out asks for nothing, so it can run after any crash.
 */
import type { Upkeep, UpkeepReport } from '@katafract/shared/upkeep';
import {
  type HavenRequest,
  REQUEST_NAMES,
  type Request,
  type RequestName,
  type Result,
  sameRequest,
} from '../helper/requests.ts';

export interface RequestSeen {
  /** Left and not taken up yet; null where there is none, or none that can be read. */
  readonly pending: unknown;
  readonly result: Result | null;
}

/** What is there, as files and facts of the machine say. */
export interface UpkeepFacts {
  readonly requests: Readonly<Record<RequestName, RequestSeen>>;
  /** The last lease that was acted on, and the boot in which it was. */
  readonly lease: { readonly lease: string; readonly boot: string } | null;
  /** The kernel's id of this boot. */
  readonly boot: string;
  /** The system asks for a reboot. */
  readonly rebootNeeded: boolean;
  /** Version whose sign of life stands. */
  readonly alive: string | null;
}

export interface UpkeepSeen extends UpkeepFacts {
  /** The version that runs. */
  readonly version: string;
  readonly connected: boolean;
  /** Milliseconds since the epoch, by this machine. */
  readonly now: number;
}

export type UpkeepAction =
  | { readonly do: 'request'; readonly name: RequestName; readonly request: Request }
  /** Takes a request and its result away. */
  | { readonly do: 'forget'; readonly name: RequestName }
  /** Writes down that a lease is acted on, before it is. */
  | { readonly do: 'remember'; readonly lease: string; readonly boot: string }
  | { readonly do: 'alive'; readonly version: string };

/** What is wanted of the machine besides tunnels and rules. */
export interface MachineWish {
  readonly upkeep?: Upkeep | undefined;
  /** null: no filter of ours. */
  readonly haven: HavenRequest | null;
  readonly sshFromMesh: boolean;
}

const MINUTE_MS = 60_000;
/** After a failure the same is asked for again, but not at once. */
export const RETRY_MS: Readonly<Record<RequestName, number>> = {
  update: 30 * MINUTE_MS,
  reboot: 30 * MINUTE_MS,
  updates: 30 * MINUTE_MS,
  haven: MINUTE_MS,
  ssh: 5 * MINUTE_MS,
};

/** Carried out in this order. */
export function planUpkeep(wanted: MachineWish, seen: UpkeepSeen): UpkeepAction[] {
  const wishes = wishesOf(wanted, seen);
  const actions: UpkeepAction[] = [];
  if (seen.connected && seen.alive !== seen.version) actions.push({ do: 'alive', version: seen.version });
  for (const name of REQUEST_NAMES) {
    const wish = wishes[name];
    const at = seen.requests[name];
    if (wish === null) {
      // what the helper has not taken up yet is withdrawn; of an update even the result, so that it can be asked anew
      if (at.pending !== null || (name === 'update' && at.result)) actions.push({ do: 'forget', name });
    } else if (!sameRequest(at.pending, wish) && !settled(name, wish, at, seen.now)) {
      if ('lease' in wish && seen.lease?.lease !== wish.lease) {
        actions.push({ do: 'remember', lease: wish.lease, boot: seen.boot });
      }
      actions.push({ do: 'request', name, request: wish });
    }
  }
  return actions;
}

/** What should be asked for now; null where nothing is. */
function wishesOf(wanted: MachineWish, seen: UpkeepSeen): Record<RequestName, Request | null> {
  const { agentVersion, updates, reboot } = wanted.upkeep ?? {};
  // what was never asked for need not be taken back
  const asked = (name: RequestName) =>
    seen.requests[name].pending !== null || seen.requests[name].result !== null;
  const otherVersion = agentVersion !== undefined && agentVersion !== seen.version;
  const rebooted = seen.lease !== null && seen.lease.lease === reboot?.lease && seen.lease.boot !== seen.boot;
  return {
    update: otherVersion ? { version: agentVersion } : null,
    reboot: reboot && !rebooted && seen.now < reboot.until ? reboot : null,
    updates: updates ?? null,
    haven: wanted.haven ?? (asked('haven') ? { off: true } : null),
    ssh: wanted.sshFromMesh || asked('ssh') ? { fromMesh: wanted.sshFromMesh } : null,
  };
}

/** Whether a wish has its answer already. */
function settled(name: RequestName, wish: Request, { result }: RequestSeen, now: number): boolean {
  if (!result || !sameRequest(result.request, wish)) return false;
  // a lease is good for one try, whatever came of it
  if (name === 'reboot') return true;
  if (result.outcome === 'failed') return now - result.at < RETRY_MS[name];
  // an update that is done and does not run was undone by somebody else
  return name !== 'update';
}

/** What the heartbeat says of it. */
export function reportUpkeep(wanted: MachineWish, seen: UpkeepSeen): UpkeepReport {
  const wish = wishesOf(wanted, seen).update;
  const { result } = seen.requests.update;
  const failed = result?.outcome === 'failed' && sameRequest(result.request, wish);
  const used = seen.lease !== null && seen.lease.boot !== seen.boot;
  return {
    rebootNeeded: seen.rebootNeeded,
    ...(used && seen.lease ? { lease: seen.lease.lease } : {}),
    ...(wish === null ? {} : { agentUpdate: failed ? ('failed' as const) : ('requested' as const) }),
  };
}

/** Whether the helper has restricted SSH, so that the rules may as well: it has seen that nobody is locked out. */
export function sshGuarded(wanted: boolean, requests: UpkeepFacts['requests']): boolean {
  const { result } = requests.ssh;
  return wanted && result?.outcome === 'done' && sameRequest(result.request, { fromMesh: true });
}
