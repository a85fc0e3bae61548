/** What the fleet counts. Aggregates of the control plane's own work; nothing here is about a client. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import type { NodePublisher } from './publisher.ts';

export interface FleetMetrics {
  readonly refused: Counter<'reason'>;
  /** What was heard of nodes and understood. */
  readonly heard: Counter<'leaf'>;
  /** Nodes in one write of what they said. */
  readonly reportRows: Histogram;
  readonly messages: Counter<'kind'>;
  readonly bytes: Counter<'kind'>;
  readonly retransmissions: Counter;
  readonly publishFailures: Counter;
  readonly mismatches: Counter;
  readonly lineageRaised: Counter;
}

export function createFleetMetrics(
  registry: Registry,
  publishers: () => Iterable<NodePublisher>,
): FleetMetrics {
  const registers = [registry];
  const counter = (name: string, help: string) => new Counter({ name: `katafract_${name}`, help, registers });
  const lag = new Gauge({
    name: 'katafract_node_lag_generations',
    help: 'Generations a node is behind its newest desired state',
    labelNames: ['node'],
    registers,
    collect() {
      for (const { node, head, acked } of publishers()) {
        lag.set(
          { node },
          Math.max(0, head.generation - (acked.lineage === head.lineage ? acked.generation : 0)),
        );
      }
    },
  });
  const connected = new Gauge({
    name: 'katafract_node_connected',
    help: 'Whether the node has a session at the broker',
    labelNames: ['node'],
    registers,
    collect() {
      for (const publisher of publishers())
        connected.set({ node: publisher.node }, publisher.connected ? 1 : 0);
    },
  });
  return {
    refused: new Counter({
      name: 'katafract_broker_refused_total',
      help: 'Messages and connections refused, by reason',
      labelNames: ['reason'],
      registers,
    }),
    heard: new Counter({
      name: 'katafract_node_messages_total',
      help: 'Messages of nodes, by kind',
      labelNames: ['leaf'],
      registers,
    }),
    reportRows: new Histogram({
      name: 'katafract_report_rows',
      help: 'Nodes whose reports went to the database in one statement',
      buckets: [1, 4, 16, 64, 256, 1024, 4096],
      registers,
    }),
    messages: new Counter({
      name: 'katafract_desired_messages_total',
      help: 'Updates sent to nodes',
      labelNames: ['kind'],
      registers,
    }),
    bytes: new Counter({
      name: 'katafract_desired_bytes_total',
      help: 'Bytes of desired state sent to nodes',
      labelNames: ['kind'],
      registers,
    }),
    retransmissions: counter('desired_retransmissions_total', 'Updates sent again for want of an answer'),
    publishFailures: counter(
      'desired_failures_total',
      'Updates that could not be read, signed or handed to the broker',
    ),
    mismatches: counter(
      'digest_mismatches_total',
      'Heartbeats whose observed digest was not the desired one',
    ),
    lineageRaised: counter('lineage_raised_total', 'Times a node showed that this database had lost history'),
  };
}
