/** How long each job's passes took on the wall's clock, as the controller's own metric has it. */
import type { Metrics } from '@katafract/controller/platform/metrics';

export interface Passes {
  readonly job: string;
  readonly count: number;
  /** In ms. */
  readonly mean: number;
  readonly max: number;
}

interface Sum {
  count: number;
  seconds: number;
  /** The longest; where several ended between two looks, their mean. */
  max: number;
}

export class PassTimes {
  readonly #metric: Metrics['jobSeconds'];
  readonly #jobs = new Map<string, Sum>();

  constructor(metric: Metrics['jobSeconds']) {
    this.#metric = metric;
  }

  async look(): Promise<void> {
    const now = new Map<string, { count: number; seconds: number }>();
    for (const { metricName, labels, value } of (await this.#metric.get()).values) {
      const job = String(labels.job);
      const at = now.get(job) ?? { count: 0, seconds: 0 };
      now.set(job, at);
      if (metricName?.endsWith('_sum')) at.seconds = value;
      if (metricName?.endsWith('_count')) at.count = value;
    }
    for (const [job, { count, seconds }] of now) {
      const was = this.#jobs.get(job) ?? { count: 0, seconds: 0, max: 0 };
      const runs = count - was.count;
      const max = runs > 0 ? Math.max(was.max, (seconds - was.seconds) / runs) : was.max;
      this.#jobs.set(job, { count, seconds, max });
    }
  }

  /** Those that took longest in all first. */
  async all(): Promise<Passes[]> {
    await this.look();
    return [...this.#jobs]
      .sort(([, a], [, b]) => b.seconds - a.seconds)
      .map(([job, { count, seconds, max }]) => ({
        job,
        count,
        mean: (seconds / count) * 1000,
        max: max * 1000,
      }));
  }
}
