/** (d) Bytes on the wire for one change: all that the agent's TCP connection carries for it, either way. */

import type { Exit } from '../lab/exit.ts';
import type { Fleet, Subscription } from './bed.ts';
import type { Report } from './report.ts';
import { median } from './stats.ts';
import { randomKey } from './work/exit.ts';

const BROKER = '100.64.0.1:1883';

interface Carried {
  readonly sent: number;
  readonly received: number;
}

/** Payload of the agent's connection to the broker so far, as the kernel has counted it. */
async function carried(exit: Exit): Promise<Carried> {
  const text = await exit.exec('ss', ['-tinHO', 'state', 'established', 'dst', BROKER]);
  const count = (name: string) => Number(text.match(new RegExp(`\\b${name}:(\\d+)`))?.[1] ?? Number.NaN);
  return { sent: count('bytes_sent'), received: count('bytes_received') };
}

/** Reads until nothing more comes: the broker's receipt follows the acknowledgement that the API waits for. */
async function settled(exit: Exit): Promise<Carried> {
  for (let before = await carried(exit); ; ) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    const now = await carried(exit);
    if (now.sent === before.sent && now.received === before.received) return now;
    before = now;
  }
}

/** Bytes of each of `count` provisions. A heartbeat that falls between two looks is in few of them: take the median. */
async function provisions(fleet: Fleet, exit: Exit, owner: Subscription, count: number): Promise<Carried[]> {
  const device = await fleet.device;
  const url = `${fleet.api}/v1/peers`;
  const taken: Carried[] = [];
  for (let turn = 0; turn < count; turn++) {
    const before = await settled(exit);
    const body = { publicKey: randomKey(), region: exit.region };
    const made = await device.do('call', { url, method: 'POST', token: owner.sigil, body });
    const after = await settled(exit);
    taken.push({ sent: after.sent - before.sent, received: after.received - before.received });
    const { id } = JSON.parse(made.body) as { id: string };
    await device.do('call', { url: `${url}/${id}`, method: 'DELETE', token: owner.sigil });
  }
  return taken;
}

export async function measureBytes(
  fleet: Fleet,
  report: Report,
  sizes: readonly { readonly exit: Exit; readonly peers: number }[],
  count: number,
): Promise<void> {
  const rows = [];
  for (const { exit, peers } of sizes) {
    const taken = await provisions(fleet, exit, await fleet.subscribe('free'), count);
    const down = median(taken.map(({ received }) => received));
    const up = median(taken.map(({ sent }) => sent));
    rows.push({ peers, down, up, total: down + up });
  }
  report.table(
    '(d) bytes of one change on the agent’s connection (MQTT and its receipts, without TCP/IP headers)',
    ['peers', 'down', 'up', 'together'],
    rows.map(({ peers, ...row }) => [peers, row.down, row.up, row.total].map((n) => n.toLocaleString('en'))),
  );
  report.record('d', rows);
  const totals = rows.map(({ total }) => total);
  report.judge('d', 'bytes of a change, at most', Math.max(...totals), 'less', 700, 'bytes');
  // generations grow by a digit now and then, which is a byte or two of base64
  report.judge(
    'd',
    'bytes: largest table against smallest',
    (totals.at(-1) ?? Number.NaN) / (totals[0] ?? 1),
    'less',
    1.02,
  );
}
