/**
 * (m) What the rules of an exit cost its clients: throughput in both directions and new connections a second through a
 * tunnel with the whole table, against the same tunnel with nothing but address translation.
 *
 * Throughput is of one iperf3 stream that goes on while the tables take turns under it, second by second, since whatever
 * else the machine does changes more from minute to minute than the rules cost.
 *
 * What a rule costs depends on how often it is asked. An old wireguard-go hands the kernel each packet by itself; a newer
 * one, and the WireGuard of a kernel, hand it those of a stream together. Where the machine's is an old one, both are
 * measured: an exit whose kernel has WireGuard is of the second kind, and the first is the worst case.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { TABLE, type Table } from '@katafract/agent/plan/table';
import { Bed, FAMILIES, type Family, WEB } from '../isolation/bed.ts';
import { describeWireguard } from './machine.ts';
import type { Report } from './report.ts';
import { median, pairedRatioWithin } from './stats.ts';

const CONNECTIONS = fileURLToPath(new URL('work/connections.mjs', import.meta.url));
/** Where the set-up puts the newer wireguard-go, if there is need for one. */
const NEWER = fileURLToPath(
  new URL('../../node_modules/.cache/wireguard-go/usr/bin/wireguard-go', import.meta.url),
);
const GOALS = { throughput: 0.97, connections: 0.9 };
const PORTS = { iperf: 5201, connections: 8088 };

/**
 * All of the table but one setting that costs nothing: without rules, a packet that is out of the window goes to the exit
 * itself, which resets the stream, so the window is left unchecked while tables take turns.
 */
const WHOLE: Table = { ...TABLE, settings: TABLE.settings.filter(({ id }) => id !== 'window-check') };
/** A tunnel as everybody sets one up first. */
const BARE: Table = {
  rules: [
    {
      id: 'translate',
      place: 'nat POSTROUTING',
      rules: ({ subnet, uplink }) => [`-s ${subnet.pool} -o ${uplink} -j MASQUERADE`],
      attack: 'none: this is the service',
      why: 'there is no way back to an address of the tunnel',
    },
  ],
  policies: [],
  settings: [],
  forwarding: TABLE.forwarding,
};

/** What is counted, with bare and whole table in turns; both of a turn at one time, but for seconds. */
interface Turn {
  readonly bare: number;
  readonly whole: number;
}
const KINDS = ['up', 'down', 'connections'] as const;
type Kind = (typeof KINDS)[number];
const TITLES: Readonly<Record<Kind, string>> = {
  up: 'to the internet',
  down: 'from the internet',
  connections: 'new connections',
};
/** Until a table that was changed is taken as settled, in ms. */
const SETTLE_MS = 300;
const WINDOW_MS = 1000;

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Puts a table in force; connections that are open stay so. */
const enforce = {
  bare: async (bed: Bed) => {
    await bed.enforce(BARE, { keep: true });
    // chains with nothing in them cost as well, and nobody has them who has no rules
    const gone = ['ip', 'ip6'].flatMap((of) => ['raw', 'mangle', 'filter'].map((name) => `${of} ${name}`));
    await bed.exit.exec('nft', [gone.map((table) => `delete table ${table}`).join('; ')]);
  },
  whole: (bed: Bed) => bed.enforce(WHOLE, { keep: true }),
} as const;

/** Both tables after each other; whoever is first has an advantage or the opposite, so each is in half of the turns. */
async function takeTurns(
  bed: Bed,
  turns: number,
  measure: () => Promise<number>,
  told: (done: number) => void,
): Promise<Turn[]> {
  const all: Turn[] = [];
  for (let done = 0; done < turns; done++) {
    const turn = { bare: 0, whole: 0 };
    const order = done % 2 === 0 ? (['bare', 'whole'] as const) : (['whole', 'bare'] as const);
    for (const table of order) {
      await enforce[table](bed);
      await pause(SETTLE_MS);
      turn[table] = await measure();
    }
    all.push(turn);
    told(done + 1);
  }
  return all;
}

/** Bits a second that the tunnel of a client carries, while a stream goes through it. */
async function throughput(
  bed: Bed,
  family: Family,
  way: 'up' | 'down',
  turns: number,
  told: (done: number) => void,
): Promise<Turn[]> {
  const { device, interface: tunnel } = bed.alice;
  const counter = `/sys/class/net/${tunnel}/statistics/${way === 'up' ? 'rx' : 'tx'}_bytes`;
  const look = async () => ({ bytes: Number(await bed.exit.exec('cat', [counter])), at: performance.now() });
  const options = ['--port', String(PORTS.iperf), '--time', '3600', ...(way === 'up' ? [] : ['--reverse'])];
  await bed.enforce(WHOLE);
  const stream = device.start(`iperf-${way}${family}`, 'iperf3', [
    '--client',
    WEB[family],
    '--forceflush',
    ...options,
  ]);
  try {
    await stream.waitFor(/bits\/sec/);
    return await takeTurns(
      bed,
      turns,
      async () => {
        const before = await look();
        await pause(WINDOW_MS);
        const after = await look();
        if (!stream.running) throw new Error(`iperf3 ended: ${stream.log.tail()}`);
        if (after.bytes === before.bytes) throw new Error('nothing came through the tunnel');
        return ((after.bytes - before.bytes) * 8000) / (after.at - before.at);
      },
      told,
    );
  } finally {
    await stream.stop('SIGTERM');
  }
}

/** Connections a second that are opened through it. */
function connections(bed: Bed, family: Family, turns: number, told: (done: number) => void): Promise<Turn[]> {
  const words = [CONNECTIONS, 'open', WEB[family], String(PORTS.connections), String(WINDOW_MS / 1000)];
  return takeTurns(
    bed,
    turns,
    async () => {
      // entries of the turn before would still be there
      await bed.forget();
      return (Number(await bed.alice.device.exec(process.execPath, words)) * 1000) / WINDOW_MS;
    },
    told,
  );
}

export async function measureEdge(report: Report, how: { turns: number }): Promise<void> {
  for (const program of existsSync(NEWER) ? [undefined, NEWER] : [undefined]) {
    const by = await describeWireguard(program);
    const bed = await Bed.make(program);
    try {
      for (const family of FAMILIES) await measureFamily(bed, by, family, report, how.turns);
    } finally {
      await bed.close();
    }
  }
}

async function measureFamily(
  bed: Bed,
  by: string,
  family: Family,
  report: Report,
  turns: number,
): Promise<void> {
  const { inet } = bed;
  const told = (kind: Kind) => (done: number) =>
    report.step(`rules of IPv${family}, ${by}, ${TITLES[kind]}: turn ${done} of ${turns}`);
  const iperf = inet.start(`iperf${family}`, 'iperf3', ['--server', '--bind', WEB[family], '--forceflush']);
  const words = [CONNECTIONS, 'serve', WEB[family], String(PORTS.connections)];
  const server = inet.start(`connections${family}`, process.execPath, words);
  try {
    await Promise.all([iperf.waitFor(/listening/), server.waitFor(/ready/)]);
    const up = await throughput(bed, family, 'up', turns, told('up'));
    const down = await throughput(bed, family, 'down', turns, told('down'));
    tell(report, by, family, {
      up,
      down,
      connections: await connections(bed, family, turns, told('connections')),
    });
  } finally {
    await Promise.all([iperf.stop('SIGKILL'), server.stop('SIGKILL')]);
  }
}

function tell(
  report: Report,
  by: string,
  family: Family,
  all: Readonly<Record<Kind, readonly Turn[]>>,
): void {
  const rows = KINDS.map((kind) => {
    const of = (table: keyof Turn) => all[kind].map((turn) => turn[table]);
    const { ratio, from, to } = pairedRatioWithin(
      of('whole').map((value) => [value]),
      of('bare').map((value) => [value]),
    );
    const what = `${TITLES[kind]}, IPv${family}, ${by}, against a bare tunnel`;
    report.judge('m', what, ratio, 'more', kind === 'connections' ? GOALS.connections : GOALS.throughput);
    const scale = kind === 'connections' ? 1 : 1e6;
    return [TITLES[kind], median(of('bare')) / scale, median(of('whole')) / scale, ratio, from, to];
  });
  report.table(
    `(m) a client of IPv${family} through the whole rule set, ${by}: Mbit/s, connections/s`,
    ['', 'bare', 'all rules', 'ratio', 'from', 'to (95 %)'],
    rows,
  );
  report.record(`m${family}, ${by}`, all);
}
