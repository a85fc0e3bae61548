/** What billing counts. Every label is of a fixed vocabulary; nothing here is about a payer or a purchase. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import { readTogether } from '../platform/metrics.ts';
import type { Backlog } from './inbox.ts';
import type { CallOutcome } from './stores/call.ts';
import { STORES, type StoreName } from './stores/port.ts';

export interface BillingMetrics {
  readonly signals: Counter<'store' | 'type'>;
  readonly readings: Counter<'store' | 'outcome'>;
  readonly acknowledgements: Counter<'store' | 'outcome'>;
  readonly claims: Counter<'outcome'>;
  /** Told of every try of a call to a store. */
  readonly observeCall: (store: StoreName, outcome: CallOutcome, seconds: number) => void;
}

export function createBillingMetrics(
  registry: Registry,
  deps: { backlog: () => Promise<Backlog[]>; now: () => number; failed: (error: unknown) => void },
): BillingMetrics {
  const registers = [registry];
  const counter = <L extends string>(name: string, help: string, ...labelNames: L[]) =>
    new Counter({ name: `katafract_billing_${name}_total`, help, labelNames, registers });
  const gauge = (name: string, help: string) =>
    new Gauge({
      name: `katafract_billing_${name}`,
      help,
      labelNames: ['store'],
      registers,
      collect: () => collect(),
    });
  const oldest = gauge('oldest_seconds', 'How long the oldest purchase has waited to be read at its store');
  const backlog = gauge('backlog', 'Purchases that wait to be read at their store');
  const collect = readTogether(async () => {
    const waiting = await deps.backlog();
    for (const store of STORES) {
      const at = waiting.find((one) => one.store === store);
      backlog.set({ store }, at?.count ?? 0);
      oldest.set({ store }, at ? Math.max(0, deps.now() - at.oldest) / 1000 : 0);
    }
  }, deps.failed);
  const calls = new Histogram({
    name: 'katafract_store_call_seconds',
    help: 'Calls to the stores, by outcome',
    labelNames: ['store', 'outcome'],
    buckets: [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
    registers,
  });
  return {
    signals: counter('signals', 'Verified messages of stores, by type', 'store', 'type'),
    readings: counter('readings', 'Purchases read at their store, by outcome', 'store', 'outcome'),
    acknowledgements: counter('acknowledgements', 'Purchases acknowledged, by outcome', 'store', 'outcome'),
    claims: counter('claims', 'Claims of apps, by outcome', 'outcome'),
    observeCall: (store, outcome, seconds) => calls.observe({ store, outcome }, seconds),
  };
}
