/** The registry that every domain hangs its own metrics on. One per controller, so that tests can run several. */
import { Counter, Histogram, Registry } from 'prom-client';

export interface Metrics {
  /** Pass as `registers: [metrics.registry]` to any further metric. */
  readonly registry: Registry;
  readonly httpSeconds: Histogram<'method' | 'route' | 'status'>;
  /** Problem documents answered, by stable code. */
  readonly problems: Counter<'code'>;
  readonly rateLimited: Counter<'scope'>;
  /** Failures that were survived rather than passed on, by where. */
  readonly survived: Counter<'where'>;
  readonly jobRuns: Counter<'job' | 'outcome'>;
  readonly jobSeconds: Histogram<'job'>;
}

export function createMetrics(): Metrics {
  const registry = new Registry();
  const registers = [registry];
  return {
    registry,
    httpSeconds: new Histogram({
      name: 'katafract_http_request_seconds',
      help: 'Duration of HTTP requests by route pattern',
      labelNames: ['method', 'route', 'status'],
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers,
    }),
    problems: new Counter({
      name: 'katafract_http_problems_total',
      help: 'Problem documents answered, by code',
      labelNames: ['code'],
      registers,
    }),
    rateLimited: new Counter({
      name: 'katafract_http_rate_limited_total',
      help: 'Requests refused by a rate limit, by whose limit it was',
      labelNames: ['scope'],
      registers,
    }),
    survived: new Counter({
      name: 'katafract_survived_failures_total',
      help: 'Failures that were worked around, by where they happened',
      labelNames: ['where'],
      registers,
    }),
    jobRuns: new Counter({
      name: 'katafract_job_runs_total',
      help: 'Runs of scheduled jobs by outcome',
      labelNames: ['job', 'outcome'],
      registers,
    }),
    jobSeconds: new Histogram({
      name: 'katafract_job_seconds',
      help: 'Duration of runs of scheduled jobs',
      labelNames: ['job'],
      buckets: [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60],
      registers,
    }),
  };
}

/**
 * For gauges whose values come from one read: each collects by what this returns, so that all of them show the same
 * read, and there is one for each scrape. A failure leaves them as they were: the rest of the metrics matter most while
 * the database is away.
 */
export function readTogether(
  read: () => Promise<void>,
  failed: (error: unknown) => void,
): () => Promise<void> {
  let running: Promise<void> | null = null;
  return () => {
    running ??= read()
      .catch(failed)
      .finally(() => {
        running = null;
      });
    return running;
  };
}
