/** Every scheduler of the controller in one table. */
import type { Clock } from '@katafract/shared/clock';
import type { StoreName } from './billing/billing.ts';
import type { Lease } from './platform/lease.ts';
import type { Logger } from './platform/log.ts';
import type { Metrics } from './platform/metrics.ts';

export interface Job {
  readonly name: string;
  readonly everyMs: number;
  /** `fleet`: on one controller at a time, under the lease; `each`: on every one. */
  readonly on: 'fleet' | 'each';
  readonly run: () => Promise<unknown>;
  /** When it has something to do next, in milliseconds since the epoch, should that be before `everyMs` is over. */
  readonly next?: () => Promise<number | null>;
}

/** Takes what has run out off the exits. */
export const BILLING_ENDS = 'billing.end_due';

/** Advisory lock of the lease under which the fleet's jobs run. */
export const JOBS_LEASE = 7_261_004;

const MINUTE = 60_000;
/** A job that says it has more to do at once still lets others run. */
const SOONEST_MS = 20;
/** What has its own time is not left for a whole interval because it failed once. */
const FAILED_MS = 5_000;

/** What the table needs of the domains. */
export interface JobDeps {
  readonly db: { ping(): Promise<void> };
  readonly sigils: { rotateKey(): Promise<boolean>; forgetExpired(): Promise<number> };
  readonly billing: {
    readonly stores: readonly StoreName[];
    kick(): void;
    endDue(): Promise<number>;
    nextEnd(): Promise<number | null>;
    readRenewing(): Promise<number>;
    reconcile(store: StoreName): Promise<number>;
    forgetMessages(): Promise<number>;
  };
  readonly peers: {
    releaseLeft(): Promise<number>;
    forgetKeys(): Promise<number>;
    resumeLeft(): Promise<number>;
    forgetSuspended(): Promise<number>;
    evacuate(): Promise<boolean>;
    mend(): Promise<boolean>;
  };
  readonly fleet: { sweep(): Promise<number>; refresh(): Promise<void> };
  readonly watch: { ask(): Promise<void>; look(): Promise<void> };
  readonly finishDrains: () => Promise<number>;
  readonly rollouts: { pass(): Promise<void>; next(): Promise<number | null> };
  readonly reboots: { pass(): Promise<void>; next(): Promise<number | null>; tellWindows(): Promise<void> };
  readonly machines: {
    sample(): Promise<void>;
    decide(): Promise<void>;
    step(): Promise<void>;
    nextStep(): Promise<number | null>;
    sweep(): Promise<void>;
  };
  /** Of operators. */
  readonly forgetCommands: () => Promise<number>;
}

/** A job that has at once more to do as long as `run` says so. */
function untilDone(name: string, run: () => Promise<boolean>): Job {
  let more = false;
  return {
    name,
    everyMs: 1_000,
    on: 'fleet',
    run: async () => {
      more = await run();
    },
    next: async () => (more ? 0 : null),
  };
}

export function jobTable(at: JobDeps): Job[] {
  return [
    // notices a primary that was demoted, even while nobody writes
    { name: 'database.watch', everyMs: 5_000, on: 'each', run: () => at.db.ping() },
    // what a lost notification would have said
    { name: 'fleet.refresh', everyMs: MINUTE, on: 'each', run: () => at.fleet.refresh() },
    // a node that is late may answer this controller or another
    { name: 'fleet.ask', everyMs: 1_000, on: 'each', run: () => at.watch.ask() },
    { name: 'fleet.look', everyMs: 1_000, on: 'fleet', run: () => at.watch.look() },
    untilDone('peers.evacuate', () => at.peers.evacuate()),
    untilDone('peers.mend', () => at.peers.mend()),
    { name: 'fleet.finish_drains', everyMs: 1_000, on: 'fleet', run: () => at.finishDrains() },
    {
      name: 'upkeep.rollout',
      everyMs: 5_000,
      on: 'fleet',
      run: () => at.rollouts.pass(),
      next: () => at.rollouts.next(),
    },
    {
      name: 'upkeep.reboots',
      everyMs: 15_000,
      on: 'fleet',
      run: () => at.reboots.pass(),
      next: () => at.reboots.next(),
    },
    { name: 'upkeep.windows', everyMs: 10 * MINUTE, on: 'fleet', run: () => at.reboots.tellWindows() },
    { name: 'peers.release_left', everyMs: 5_000, on: 'fleet', run: () => at.peers.releaseLeft() },
    { name: 'peers.forget_keys', everyMs: 60 * MINUTE, on: 'fleet', run: () => at.peers.forgetKeys() },
    { name: 'machines.sample', everyMs: 5 * MINUTE, on: 'fleet', run: () => at.machines.sample() },
    { name: 'machines.decide', everyMs: 5_000, on: 'fleet', run: () => at.machines.decide() },
    {
      name: 'machines.step',
      everyMs: 5_000,
      on: 'fleet',
      run: () => at.machines.step(),
      next: () => at.machines.nextStep(),
    },
    { name: 'machines.sweep', everyMs: 10 * MINUTE, on: 'fleet', run: () => at.machines.sweep() },
    { name: 'fleet.sweep', everyMs: MINUTE, on: 'fleet', run: () => at.fleet.sweep() },
    { name: 'peers.resume_left', everyMs: 5_000, on: 'fleet', run: () => at.peers.resumeLeft() },
    {
      name: 'peers.forget_suspended',
      everyMs: 60 * MINUTE,
      on: 'fleet',
      run: () => at.peers.forgetSuspended(),
    },
    // at the very time that the next subscription ends; the interval is for what no notification told
    {
      name: BILLING_ENDS,
      everyMs: MINUTE,
      on: 'fleet',
      run: () => at.billing.endDue(),
      next: () => at.billing.nextEnd(),
    },
    // purchases whose reader died with another controller
    { name: 'billing.read', everyMs: 5_000, on: 'each', run: async () => at.billing.kick() },
    { name: 'billing.read_renewing', everyMs: MINUTE, on: 'fleet', run: () => at.billing.readRenewing() },
    // a job for each store: one that is down keeps none of the others waiting
    ...at.billing.stores.map((store) => ({
      name: `billing.reconcile_${store}`,
      everyMs: 30 * MINUTE,
      on: 'fleet' as const,
      run: () => at.billing.reconcile(store),
    })),
    {
      name: 'billing.forget_messages',
      everyMs: 60 * MINUTE,
      on: 'fleet',
      run: () => at.billing.forgetMessages(),
    },
    { name: 'operators.forget_commands', everyMs: 10 * MINUTE, on: 'fleet', run: () => at.forgetCommands() },
    { name: 'sigil.rotate_key', everyMs: 60 * MINUTE, on: 'fleet', run: () => at.sigils.rotateKey() },
    { name: 'sigil.forget_expired', everyMs: 10 * MINUTE, on: 'fleet', run: () => at.sigils.forgetExpired() },
  ];
}

export interface Jobs {
  start(): void;
  /** Has a job run at once, or once more where it runs just now. */
  wake(name: string): void;
  /** Resolves when none is running any more. */
  stop(): Promise<void>;
}

/**
 * Runs each job again and again, the next time `everyMs` after the last has ended, or earlier where the job says so:
 * a job never overlaps itself.
 */
export function createJobs(
  table: readonly Job[],
  deps: { clock: Clock; lease: Lease; log: Logger; metrics: Metrics },
): Jobs {
  const { clock, lease, log, metrics } = deps;
  const cancels = new Map<string, () => void>();
  const running = new Map<string, Promise<void>>();
  const woken = new Set<string>();
  let stopped = false;

  /** @returns in how many ms it is to run again */
  async function attempt(job: Job): Promise<number> {
    try {
      if (job.on === 'fleet' && !(await lease.held())) return job.everyMs;
      const stop = metrics.jobSeconds.startTimer({ job: job.name });
      await job.run();
      stop();
      metrics.jobRuns.inc({ job: job.name, outcome: 'done' });
      const at = (await job.next?.()) ?? Number.POSITIVE_INFINITY;
      return Math.min(job.everyMs, Math.max(SOONEST_MS, at - clock.now()));
    } catch (err) {
      metrics.jobRuns.inc({ job: job.name, outcome: 'failed' });
      log.error({ job: job.name, err }, 'a job failed; it runs again at its next time');
      return Math.min(job.everyMs, job.next ? FAILED_MS : job.everyMs);
    }
  }

  function schedule(job: Job, inMs: number): void {
    if (stopped) return;
    const cancel = clock.after(inMs, () => {
      const run = attempt(job).then((againMs) => {
        running.delete(job.name);
        schedule(job, woken.delete(job.name) ? 0 : againMs);
      });
      running.set(job.name, run);
    });
    cancels.set(job.name, cancel);
  }

  return {
    start() {
      for (const job of table) schedule(job, Math.min(job.everyMs, 1000));
    },
    wake(name) {
      const job = table.find((one) => one.name === name);
      if (running.has(name)) woken.add(name);
      else if (job && cancels.has(name)) {
        cancels.get(name)?.();
        schedule(job, 0);
      }
    },
    async stop() {
      stopped = true;
      for (const cancel of cancels.values()) cancel();
      await Promise.all(running.values());
      await lease.release();
    },
  };
}
