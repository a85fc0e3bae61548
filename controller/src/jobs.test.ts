import { KatafractError } from '@katafract/shared/errors';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../../test/database.ts';
import { waitFor } from '../../test/lab/wait.ts';
import { createJobs, type Job } from './jobs.ts';
import { connect, type Database, openDatabase } from './platform/db.ts';
import { createLease } from './platform/lease.ts';
import { createLogger } from './platform/log.ts';
import { createMetrics } from './platform/metrics.ts';

const database = useDatabase();
const log = createLogger('silent');
const LOCK = 4711;
let db: Database;
beforeAll(async () => {
  db = await openDatabase(database.url, log, { max: 2 });
});
afterAll(() => db.close());

/** A clock whose tasks run when the test says so. */
function manualClock() {
  const tasks = new Set<() => void>();
  const clock = {
    now: () => 0,
    after(_ms: number, task: () => void) {
      tasks.add(task);
      return () => tasks.delete(task);
    },
  };
  const tick = () => {
    for (const task of [...tasks]) {
      tasks.delete(task);
      task();
    }
  };
  return { clock, tick, waiting: () => tasks.size };
}

function controller(run: () => Promise<unknown>, on: Job['on'] = 'fleet') {
  const { clock, tick, waiting } = manualClock();
  const metrics = createMetrics();
  const jobs = createJobs([{ name: 'job', everyMs: 1000, on, run }], {
    clock,
    lease: createLease(db, LOCK),
    log,
    metrics,
  });
  jobs.start();
  /** Runs the job once, if it is this controller's turn. */
  const turn = async () => {
    tick();
    await waitFor('the next time', () => waiting() === 1, { everyMs: 5 });
  };
  const outcomes = async () => (await metrics.jobRuns.get()).values.map(({ labels }) => labels.outcome);
  return { jobs, tick, turn, outcomes };
}

it('runs a job of the fleet on one controller, and on another when that one is gone', async () => {
  const ran: string[] = [];
  const one = controller(async () => ran.push('one'));
  const two = controller(async () => ran.push('two'));
  for (const turn of [one.turn, two.turn, one.turn, two.turn]) await turn();
  expect(ran).toEqual(['one', 'one']);
  await one.jobs.stop();
  await waitFor('the lease to be free', async () => {
    await two.turn();
    return ran.includes('two');
  });
  await two.jobs.stop();
});

it('notices that the connection that held the lease was lost', async () => {
  const ran: string[] = [];
  const one = controller(async () => ran.push('one'));
  await one.turn();
  const thief = connect(database.url, { max: 1 });
  await thief`select pg_terminate_backend(pid, 5000) from pg_locks where locktype = 'advisory' and objid = ${LOCK}`;
  expect(await thief`select pg_try_advisory_lock(${LOCK}) as mine`).toEqual([{ mine: true }]);
  await one.turn();
  await one.turn();
  expect(ran).toEqual(['one']);
  await thief.end();
  await waitFor('the lease', async () => {
    await one.turn();
    return ran.length > 1;
  });
  await one.jobs.stop();
});

it('counts a job that fails, and runs it again', async () => {
  const fails = controller(async () => {
    throw new KatafractError('no', 'no');
  }, 'each');
  await fails.turn();
  await fails.turn();
  expect(await fails.outcomes()).toEqual(['failed']);
  await fails.jobs.stop();
});

it('stops only when what runs has ended', async () => {
  let finish = () => undefined as undefined;
  let ended = false;
  const slow = controller(
    () =>
      new Promise<void>((resolve) => {
        finish = () => void resolve();
      }).then(() => {
        ended = true;
      }),
    'each',
  );
  slow.tick();
  const stopped = slow.jobs.stop();
  finish();
  await stopped;
  expect(ended).toBe(true);
});

describe('a job with a time of its own', () => {
  function timed(next: () => Promise<number | null>, everyMs = 60_000) {
    const waits: number[] = [];
    const tasks: (() => void)[] = [];
    const clock = {
      now: () => 1000,
      after(ms: number, task: () => void) {
        waits.push(ms);
        tasks.push(task);
        return () => void tasks.splice(tasks.indexOf(task), 1);
      },
    };
    let runs = 0;
    let hold: Promise<void> = Promise.resolve();
    const run = async () => {
      runs++;
      await hold;
    };
    const jobs = createJobs([{ name: 'job', everyMs, on: 'each', run, next }], {
      clock,
      lease: createLease(db, LOCK),
      log,
      metrics: createMetrics(),
    });
    jobs.start();
    const tick = () => tasks.shift()?.();
    const again = (count: number) => waitFor('the next time', () => waits.length === count, { everyMs: 5 });
    const pause = () => {
      let resume: () => void = () => undefined;
      hold = new Promise((resolve) => {
        resume = resolve;
      });
      return () => resume();
    };
    return { jobs, tick, again, waits, pause, runs: () => runs, waiting: () => tasks.length };
  }

  it('runs when that has come, at the latest after its interval, and never without pause', async () => {
    const times = [5000, null, 900_000, 0];
    const job = timed(async () => times.shift() ?? null);
    for (const count of [2, 3, 4, 5]) {
      job.tick();
      await job.again(count);
    }
    expect(job.waits).toEqual([1000, 4000, 60_000, 60_000, 20]);
    await job.jobs.stop();
  });

  it('runs soon again where its time could not be told', async () => {
    const job = timed(() => Promise.reject(new KatafractError('no', 'no')));
    job.tick();
    await job.again(2);
    expect(job.waits).toEqual([1000, 5000]);
    await job.jobs.stop();
  });

  it('runs at once when it is woken, and once more when that happens while it runs', async () => {
    const job = timed(async () => null);
    job.jobs.wake('no such job');
    job.jobs.wake('job');
    expect(job.waits).toEqual([1000, 0]);
    expect(job.waiting(), 'the earlier time is off').toBe(1);
    const resume = job.pause();
    job.tick();
    job.jobs.wake('job');
    job.jobs.wake('job');
    resume();
    await job.again(3);
    expect(job.waits).toEqual([1000, 0, 0]);
    job.tick();
    await job.again(4);
    expect(job.waits.at(-1)).toBe(60_000);
    expect(job.runs()).toBe(2);
    await job.jobs.stop();
    job.jobs.wake('job');
    expect(job.waiting()).toBe(0);
  });
});
