/** Aggregate figures of the machine, from /proc. */
import { readFile } from 'node:fs/promises';
import type { Telemetry, TelemetryPort } from '../ports.ts';

interface CpuTimes {
  readonly busy: number;
  readonly total: number;
}

/** @param tunnels names of the interfaces whose bytes are counted */
export function telemetry(tunnels: readonly string[]): TelemetryPort {
  let last: CpuTimes = { busy: 0, total: 0 };
  return {
    async read() {
      const names = ['stat', 'meminfo', 'loadavg', 'uptime', 'net/dev'];
      const texts = await Promise.all(names.map((name) => readFile(`/proc/${name}`, 'utf8')));
      const [stat = '', meminfo = '', loadavg = '', uptime = '', devices = ''] = texts;
      const now = parseCpu(stat);
      const elapsed = now.total - last.total;
      const cpu = elapsed > 0 ? Math.min(1, Math.max(0, (now.busy - last.busy) / elapsed)) : 0;
      last = now;
      return {
        cpu,
        ...parseMemory(meminfo),
        load: Number.parseFloat(loadavg),
        uptimeSeconds: Number.parseFloat(uptime),
        ...parseTraffic(devices, tunnels),
      };
    },
  };
}

/** user nice system idle iowait irq softirq steal, in ticks over all cores. */
export function parseCpu(stat: string): CpuTimes {
  const line = stat.slice(0, stat.indexOf('\n'));
  const ticks = line.trim().split(/\s+/).slice(1, 9).map(Number);
  const total = ticks.reduce((sum, value) => sum + value, 0);
  const idle = (ticks[3] ?? 0) + (ticks[4] ?? 0);
  return { busy: total - idle, total };
}

function parseMemory(meminfo: string): Pick<Telemetry, 'memoryUsed' | 'memoryTotal'> {
  const bytes = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(meminfo)?.[1] ?? 0) * 1024;
  const memoryTotal = bytes('MemTotal');
  return { memoryTotal, memoryUsed: Math.max(0, memoryTotal - bytes('MemAvailable')) };
}

/** Received and sent by the tunnels since they were made. */
export function parseTraffic(
  devices: string,
  tunnels: readonly string[],
): Pick<Telemetry, 'rxBytes' | 'txBytes'> {
  const sum = { rxBytes: 0, txBytes: 0 };
  for (const line of devices.split('\n')) {
    const [name = '', fields = ''] = line.split(':');
    if (!tunnels.includes(name.trim())) continue;
    const values = fields.trim().split(/\s+/).map(Number);
    sum.rxBytes += values[0] ?? 0;
    sum.txBytes += values[8] ?? 0;
  }
  return sum;
}
