/** Every scheduler of the controller in one table. */
import type { Clock } from '@katafract/shared/clock';
import type { Lease } from './platform/lease.ts';
import type { Logger } from './platform/log.ts';
import type { Metrics } from './platform/metrics.ts';

export interface Job {
  readonly name: string;
  readonly everyMs: number;
  /** `fleet`: on one controller at a time, under the lease; `each`: on every one. */
  readonly on: 'fleet' | 'each';
  readonly run: () => Promise<unknown>;
}

/** Advisory lock of the lease under which the fleet's jobs run. */
export const JOBS_LEASE = 7_261_004;

const MINUTE = 60_000;

/** What the table needs of the domains. */
export interface JobDeps {
  readonly db: { ping(): Promise<void> };
  readonly sigils: { endLapsed(): Promise<number>; rotateKey(): Promise<boolean> };
  readonly peers: { releaseLeft(): Promise<number>; forgetKeys(): Promise<number> };
  readonly fleet: { sweep(): Promise<number>; refresh(): Promise<void> };
}

export function jobTable(at: JobDeps): Job[] {
  return [
    // notices a primary that was demoted, even while nobody writes
    { name: 'database.watch', everyMs: 5_000, on: 'each', run: () => at.db.ping() },
    // what a lost notification would have said
    { name: 'fleet.refresh', everyMs: MINUTE, on: 'each', run: () => at.fleet.refresh() },
    { name: 'peers.release_left', everyMs: 5_000, on: 'fleet', run: () => at.peers.releaseLeft() },
    { name: 'peers.forget_keys', everyMs: 60 * MINUTE, on: 'fleet', run: () => at.peers.forgetKeys() },
    { name: 'fleet.sweep', everyMs: MINUTE, on: 'fleet', run: () => at.fleet.sweep() },
    { name: 'sigil.end_lapsed', everyMs: MINUTE, on: 'fleet', run: () => at.sigils.endLapsed() },
    { name: 'sigil.rotate_key', everyMs: 60 * MINUTE, on: 'fleet', run: () => at.sigils.rotateKey() },
  ];
}

export interface Jobs {
  start(): void;
  /** Resolves when none is running any more. */
  stop(): Promise<void>;
}

/** Runs each job again and again, the next time `everyMs` after the last has ended: a job never overlaps itself. */
export function createJobs(
  table: readonly Job[],
  deps: { clock: Clock; lease: Lease; log: Logger; metrics: Metrics },
): Jobs {
  const { clock, lease, log, metrics } = deps;
  const cancels = new Map<string, () => void>();
  const running = new Set<Promise<void>>();
  let stopped = false;

  async function attempt(job: Job): Promise<void> {
    try {
      if (job.on === 'fleet' && !(await lease.held())) return;
      await job.run();
      metrics.jobRuns.inc({ job: job.name, outcome: 'done' });
    } catch (err) {
      metrics.jobRuns.inc({ job: job.name, outcome: 'failed' });
      log.error({ job: job.name, err }, 'a job failed; it runs again at its next time');
    }
  }

  function schedule(job: Job, inMs: number): void {
    if (stopped) return;
    const cancel = clock.after(inMs, () => {
      const run: Promise<void> = attempt(job).finally(() => {
        running.delete(run);
        schedule(job, job.everyMs);
      });
      running.add(run);
    });
    cancels.set(job.name, cancel);
  }

  return {
    start() {
      for (const job of table) schedule(job, Math.min(job.everyMs, 1000));
    },
    async stop() {
      stopped = true;
      for (const cancel of cancels.values()) cancel();
      await Promise.all(running);
      await lease.release();
    },
  };
}
