/**
 * (m) What the rules of an exit cost its clients: throughput in both directions and new connections a second through a
 * tunnel with the whole table, against the same tunnel with nothing but address translation. Rounds of both take turns.
 */

import { fileURLToPath } from 'node:url';
import { TABLE, type Table } from '@katafract/agent/plan/table';
import { Bed, FAMILIES, type Family, type Foreign, POOL, WEB } from '../isolation/bed.ts';
import type { Host } from '../lab/host.ts';
import type { Report } from './report.ts';
import { median, pairedRatio } from './stats.ts';

const CONNECTIONS = fileURLToPath(new URL('work/connections.mjs', import.meta.url));
const GOALS = { throughput: 0.97, connections: 0.9 };
const PORTS = { iperf: 5201, connections: 8088 };

/** A tunnel as everybody sets one up first. */
const NOTHING: Table = { rules: [], policies: [], settings: [], forwarding: TABLE.forwarding };
const NAT: Foreign = {
  4: `*nat\n-A POSTROUTING -s ${POOL[4]} -o eth0 -j MASQUERADE\nCOMMIT\n`,
  6: `*nat\n-A POSTROUTING -s ${POOL[6]} -o eth0 -j MASQUERADE\nCOMMIT\n`,
};

interface Measured {
  /** Bits a second. */
  readonly up: number;
  readonly down: number;
  /** A second. */
  readonly connections: number;
}

async function throughput(from: Host, to: string, seconds: number, reverse: boolean): Promise<number> {
  const way = reverse ? ['--reverse'] : [];
  const options = ['--port', String(PORTS.iperf), '--time', String(seconds), '--omit', '1', '--json'];
  const answer = JSON.parse(await from.exec('iperf3', ['--client', to, ...options, ...way])) as {
    end: { sum_received: { bits_per_second: number } };
  };
  return answer.end.sum_received.bits_per_second;
}

async function round(bed: Bed, family: Family, seconds: number): Promise<Measured> {
  const { device } = bed.alice;
  const to = WEB[family];
  const up = await throughput(device, to, seconds, false);
  const down = await throughput(device, to, seconds, true);
  const words = [CONNECTIONS, 'open', to, String(PORTS.connections), String(seconds)];
  const opened = Number(await device.exec(process.execPath, words));
  return { up, down, connections: opened / seconds };
}

export async function measureEdge(report: Report, how: { rounds: number; seconds: number }): Promise<void> {
  const bed = await Bed.make();
  try {
    for (const family of FAMILIES) await measureFamily(bed, family, report, how);
  } finally {
    await bed.close();
  }
}

async function measureFamily(
  bed: Bed,
  family: Family,
  report: Report,
  { rounds, seconds }: { rounds: number; seconds: number },
): Promise<void> {
  const { inet } = bed;
  const iperf = inet.start(`iperf${family}`, 'iperf3', ['--server', '--bind', WEB[family], '--forceflush']);
  const words = [CONNECTIONS, 'serve', WEB[family], String(PORTS.connections)];
  const server = inet.start(`connections${family}`, process.execPath, words);
  try {
    await Promise.all([iperf.waitFor(/listening/), server.waitFor(/ready/)]);
    const bare: Measured[] = [];
    const whole: Measured[] = [];
    for (let done = 0; done < rounds; done++) {
      const turns = [
        async () => {
          await bed.enforce(NOTHING, { foreign: NAT });
          bare.push(await round(bed, family, seconds));
        },
        async () => {
          await bed.enforce(TABLE);
          whole.push(await round(bed, family, seconds));
        },
      ];
      // whoever is first has an advantage or the opposite: each is in half of the rounds
      for (const turn of done % 2 === 0 ? turns : turns.reverse()) await turn();
      report.step(`rules of IPv${family}: round ${done + 1} of ${rounds}`);
    }
    tell(report, family, bare, whole);
  } finally {
    await Promise.all([iperf.stop('SIGKILL'), server.stop('SIGKILL')]);
  }
}

function tell(report: Report, family: Family, bare: readonly Measured[], whole: readonly Measured[]): void {
  const names = ['up', 'down', 'connections'] as const;
  const titles = { up: 'to the internet', down: 'from the internet', connections: 'new connections' };
  const rows = names.map((name) => {
    const [without, within] = [bare, whole].map((all) => all.map((each) => each[name]));
    if (!without || !within) throw new Error('two of them');
    const ratio = pairedRatio(
      within.map((value) => [value]),
      without.map((value) => [value]),
    );
    const what = `${titles[name]}, IPv${family}, against a bare tunnel`;
    report.judge('m', what, ratio, 'more', name === 'connections' ? GOALS.connections : GOALS.throughput);
    const scale = name === 'connections' ? 1 : 1e6;
    return [titles[name], median(without) / scale, median(within) / scale, ratio];
  });
  report.table(
    `(m) a client of IPv${family} through the whole rule set: Mbit/s, connections/s`,
    ['', 'bare', 'all rules', 'ratio'],
    rows,
  );
  report.record(`m${family}`, { bare, whole });
}
