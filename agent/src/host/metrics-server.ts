/**
 * Prometheus metrics over HTTP, for a mesh address only; off unless asked for. Aggregates, read from the agent at the
 * moment of the scrape.
 */
import { createServer } from 'node:http';
import { KatafractError } from '@katafract/shared/errors';
import type { AgentStatus } from '../agent.ts';

export interface Listener {
  readonly port: number;
  close(): Promise<void>;
}

/** prom-client is loaded here and only here: an agent without metrics does not pay for it. */
async function metricsText(
  status: () => AgentStatus,
): Promise<{ type: string; text: () => Promise<string> }> {
  const { Counter, Gauge, Registry } = await import('prom-client');
  const registry = new Registry();
  const gauge = (name: string, help: string, read: (status: AgentStatus) => number) =>
    new Gauge({
      name: `katafract_agent_${name}`,
      help,
      registers: [registry],
      collect() {
        this.set(read(status()));
      },
    });
  const counter = (name: string, help: string, read: (status: AgentStatus) => number) =>
    new Counter({
      name: `katafract_agent_${name}`,
      help,
      registers: [registry],
      collect() {
        this.reset();
        this.inc(read(status()));
      },
    });
  gauge('lineage', 'Lineage of the desired state that is held', ({ position }) => position.lineage);
  gauge('generation', 'Generation of the desired state that is held', ({ position }) => position.generation);
  gauge('applied', '1 while the kernel and the disk have all of it', ({ applied }) => Number(applied));
  gauge('connected', '1 while connected to the broker', ({ connected }) => Number(connected));
  gauge('held_peers', 'Peers that are held', ({ heldPeers }) => heldPeers);
  gauge('kernel_peers', 'Peers in the kernel', ({ lastPass }) => lastPass?.kernel?.peers ?? 0);
  gauge(
    'recent_peers',
    'Peers with a handshake in the last 3 minutes',
    ({ lastPass }) => lastPass?.recent ?? 0,
  );
  gauge('rules_ok', '1 while the firewall is as it should be', ({ lastPass }) =>
    Number(lastPass !== null && lastPass.rules !== 'failed'),
  );
  gauge('dns_failed', '1 while the DNS filter is wanted and not as it should be', ({ lastPass }) =>
    Number(lastPass !== null && ['failed', 'unsafe'].includes(lastPass.haven.state)),
  );
  gauge('dns_open', '0 while clients get no DNS, since the filter keeps or tells something of them', (s) =>
    Number(s.lastPass?.haven.open ?? false),
  );
  gauge(
    'dns_queries',
    'DNS queries of the last hour, of all clients; 0 where none are counted',
    ({ lastPass }) => lastPass?.haven.counts?.queries ?? 0,
  );
  gauge(
    'dns_blocked',
    'Of these, how many were filtered out',
    ({ lastPass }) => lastPass?.haven.counts?.blocked ?? 0,
  );
  gauge('receive_bytes', 'Received by the tunnel', ({ lastHeartbeat }) => lastHeartbeat?.rxBytes ?? 0);
  gauge('transmit_bytes', 'Sent by the tunnel', ({ lastHeartbeat }) => lastHeartbeat?.txBytes ?? 0);
  counter('repairs_total', 'Rows, rules and settings put right', ({ repairs }) => repairs);
  counter(
    'forgotten_total',
    'Idle peers whose endpoint and handshake left the kernel',
    ({ forgotten }) => forgotten,
  );
  counter('failures_total', 'Steps that failed', ({ failures }) => failures);
  new Counter({
    name: 'katafract_agent_refused_total',
    help: 'Desired state refused',
    labelNames: ['reason'],
    registers: [registry],
    collect() {
      this.reset();
      for (const [reason, count] of Object.entries(status().refused)) this.inc({ reason }, count);
    },
  });
  return { type: registry.contentType, text: () => registry.metrics() };
}

/**
 * @param address `host:port`
 * @throws KatafractError `metrics_listen_failed`
 */
export async function serveMetrics(address: string, status: () => AgentStatus): Promise<Listener> {
  const metrics = await metricsText(status);
  const { hostname, port } = new URL(`http://${address}`);
  const server = createServer((request, response) => {
    if (request.method !== 'GET' || request.url !== '/metrics') {
      response.writeHead(404).end();
      return;
    }
    metrics.text().then(
      (text) => response.writeHead(200, { 'content-type': metrics.type }).end(text),
      () => response.writeHead(500).end(),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) =>
      reject(new KatafractError('metrics_listen_failed', 'cannot listen for metrics', { cause })),
    );
    server.listen(Number(port), hostname.replace(/^\[|\]$/g, ''), resolve);
  });
  const bound = server.address();
  return {
    port: typeof bound === 'object' && bound ? bound.port : Number(port),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
