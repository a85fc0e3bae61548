import { expect, test } from 'vitest';
import type { AgentStatus } from '../agent.ts';
import { position } from '../report.ts';
import { serveMetrics } from './metrics-server.ts';

test('metrics are aggregates of the moment of the scrape', async () => {
  const speaker = { boot: 'abcdefgh', version: '1.0.0', enrolledLineage: 3 as never };
  const status: AgentStatus = {
    position: position(null, speaker),
    received: false,
    heldPeers: 7,
    applied: false,
    connected: true,
    lastPassAge: null,
    lastPass: null,
    lastHeartbeat: null,
    repairs: 2,
    failures: 0,
    forgotten: 0,
    refused: { digest: 4 },
  };
  let repairs = 2;
  const server = await serveMetrics('127.0.0.1:0', () => ({ ...status, repairs }));
  const scrape = async (path: string) => fetch(`http://127.0.0.1:${server.port}${path}`);
  const text = await (await scrape('/metrics')).text();
  expect(text).toContain('katafract_agent_lineage 3');
  expect(text).toContain('katafract_agent_held_peers 7');
  expect(text).toContain('katafract_agent_refused_total{reason="digest"} 4');
  repairs = 5;
  expect(await (await scrape('/metrics')).text()).toContain('katafract_agent_repairs_total 5');
  expect((await scrape('/')).status).toBe(404);
  await server.close();
  await expect(serveMetrics('203.0.113.1:9', () => status)).rejects.toMatchObject({
    code: 'metrics_listen_failed',
  });
});
