/**
 * (a) From POST to a peer that the kernel has: against the SSH push this replaces, and against the sum of the parts it
 * is made of. (b) The same with tables of other sizes already on the exit.
 *
 * Everything is measured in rounds, a little of each in turn, so that a busy moment of the machine falls on all alike.
 * Each peer is removed again before the next, so that the size of the table is what it says.
 */
import type { Exit } from '../lab/exit.ts';
import type { Fleet, Subscription, Worker } from './bed.ts';
import { Place, type SpawnerOperations } from './place.ts';
import type { Report } from './report.ts';
import { startSshd } from './sshd.ts';
import { median, pairedRatio, quantile, summarize } from './stats.ts';
import { randomKey } from './work/exit.ts';

const HOP_PORT = 18_830;
const POST = 'POST /v1/peers to acked';
const PARTS = ['commits', 'signatures', 'hops', 'wgSet'] as const;

type Samples = Record<string, number[][]>;

interface PeerBody {
  readonly id: string;
  readonly status: string;
  readonly addresses: { readonly ipv4: string; readonly ipv6: string };
}

/** An app that provisions on one exit. */
interface App {
  readonly fleet: Fleet;
  readonly exit: Exit;
  readonly owner: Subscription;
  readonly region: string;
}

interface Once {
  readonly made: number;
  readonly removed: number;
}

/**
 * Provisions one peer and removes it again.
 * @param look whether to look into the exit's kernel in between, which must have just that peer
 * @throws Error where the API acknowledged what the kernel does not have
 */
async function once({ fleet, exit, owner, region }: App, look: boolean): Promise<Once> {
  const device = await fleet.device;
  const publicKey = randomKey();
  const url = `${fleet.api}/v1/peers`;
  const made = await device.do('call', {
    url,
    method: 'POST',
    token: owner.sigil,
    body: { publicKey, region },
    idempotencyKey: crypto.randomUUID(),
  });
  const peer = JSON.parse(made.body) as PeerBody;
  if (made.status !== 201 || peer.status !== 'active') throw new Error(`POST: ${made.status} ${made.body}`);
  if (look) await inKernel(await fleet.place(exit), exit, publicKey, peer);
  const removed = await device.do('call', { url: `${url}/${peer.id}`, method: 'DELETE', token: owner.sigil });
  if (removed.status !== 200) throw new Error(`DELETE: ${removed.status} ${removed.body}`);
  return { made: made.ms, removed: removed.ms };
}

async function inKernel(place: Worker, exit: Exit, key: string, peer: PeerBody): Promise<void> {
  const table = await place.do('kernelTable', { name: exit.tunnel });
  const wanted = `${peer.addresses.ipv4}/32 ${peer.addresses.ipv6}/128`;
  if (table[key] !== wanted)
    throw new Error(`acknowledged, but ${exit.name} has ${table[key] ?? 'no such peer'}`);
}

const push = (samples: Samples, name: string, times: number[]) => {
  samples[name] = [...(samples[name] ?? []), times];
};

export interface ProvisionOptions {
  readonly rounds: number;
  /** POSTs, and each of the parts, in a round. */
  readonly each: number;
}

/** (a) on an exit with an empty table. */
export async function measureProvision(
  fleet: Fleet,
  report: Report,
  options: ProvisionOptions,
): Promise<void> {
  const exit = fleet.exit('exit-0');
  const ssh = await startSshd(exit);
  const artemis = await fleet.place(fleet.lab.artemis);
  const onExit = await fleet.place(exit);
  const pusher = await Place.spawner(fleet.lab.artemis);
  const spawner = await Place.spawner(exit);
  const host = '100.64.0.1';
  await spawner.do('makeBare', undefined);
  await artemis.do('openParts', { database: fleet.databaseUrl, host, port: HOP_PORT });
  await onExit.do('answerHops', { host, port: HOP_PORT });
  await pusher.do('openSsh', ssh.target);
  const alone = { fleet, exit, owner: await fleet.subscribe('free'), region: exit.region };
  const backed = { ...alone, owner: await fleet.subscribe('plus') };
  const samples: Samples = {};
  for (let round = -1; round < options.rounds; round++) {
    const taken = await oneRound({ alone, backed, artemis, spawner, pusher }, round < 0 ? 5 : options.each);
    if (round >= 0) for (const [name, times] of Object.entries(taken)) push(samples, name, times);
  }
  await pusher.do('closeSsh', undefined);
  await artemis.do('closeParts', undefined);
  await spawner.do('removeBare', undefined);
  await Promise.all([pusher.end(), spawner.end(), ssh.stop()]);
  reportProvision(report, samples);
}

interface Bench {
  readonly alone: App;
  readonly backed: App;
  readonly artemis: Worker;
  /** On the exit. */
  readonly spawner: Place<SpawnerOperations>;
  /** On the controller's host. */
  readonly pusher: Place<SpawnerOperations>;
}

async function oneRound(
  { alone, backed, artemis, spawner, pusher }: Bench,
  count: number,
): Promise<Record<string, number[]>> {
  const taken: Record<string, number[]> = { post: [], remove: [], backed: [] };
  for (let turn = 0; turn < count; turn++) {
    const { made, removed } = await once(alone, true);
    taken.post?.push(made);
    taken.remove?.push(removed);
    taken.backed?.push((await once(backed, turn === 0)).made);
  }
  taken.commits = await artemis.do('commits', { count });
  taken.signatures = await artemis.do('signatures', { count });
  taken.hops = await artemis.do('hops', { count });
  taken.wgSet = await spawner.do('wgSet', { count });
  taken.sshCold = await pusher.do('sshCold', { count: 1 });
  taken.sshKept = await pusher.do('sshKept', { count: 3 });
  taken.sshShell = await pusher.do('sshShell', { count: 3 });
  return taken;
}

function reportProvision(report: Report, samples: Samples): void {
  const rounds = (name: string) => samples[name] ?? [];
  const all = (name: string) => rounds(name).flat();
  const sums = rounds('post').map((_, round) => [
    PARTS.reduce((sum, part) => sum + median(rounds(part)[round] ?? []), 0),
  ]);
  const names: [string, string][] = [
    ['post', POST],
    ['backed', `${POST}, with a standby on another exit`],
    ['remove', 'DELETE /v1/peers/{id} to acked'],
    ['commits', 'part: one Postgres commit'],
    ['signatures', 'part: one Ed25519 signature'],
    ['hops', 'part: one MQTT hop each way'],
    ['wgSet', 'part: one wg set spawned from Node'],
    ['sshCold', 'SSH push, cold session'],
    ['sshKept', 'SSH push, kept-open connection (ControlPersist)'],
    ['sshShell', 'SSH push, lines to one open shell'],
  ];
  report.table(
    '(a) one caller, one peer at a time, empty exit',
    ['ms', 'count', 'median', 'p99', 'min', 'max'],
    [
      ...names.map(([name, label]) => {
        const { count, median: middle, p99, min, max } = summarize(all(name));
        return [label, String(count), middle, p99, min, max];
      }),
      ['sum of the four parts', '', median(sums.flat()), '', '', ''],
    ],
  );
  const p99 = quantile(all('post'), 0.99);
  report.record('a', {
    ...Object.fromEntries(names.map(([name]) => [name, summarize(all(name))])),
    sumOfParts: median(sums.flat()),
    overShell: pairedRatio(rounds('post'), rounds('sshShell')),
    samples,
  });
  report.judge(
    'a',
    'times faster than a cold SSH push',
    pairedRatio(rounds('sshCold'), rounds('post')),
    'more',
    25,
  );
  report.judge('a', 'of the sum of its parts', pairedRatio(rounds('post'), sums), 'less', 2.5);
  report.judge('a', 'p99, of the median of kept-open SSH', p99 / median(all('sshKept')), 'less', 0.5);
}

/** (b) one exit for each size, in turn. */
export async function measureSizes(
  fleet: Fleet,
  report: Report,
  sizes: readonly { readonly exit: Exit; readonly peers: number }[],
  options: ProvisionOptions,
): Promise<void> {
  const apps = await Promise.all(
    sizes.map(async ({ exit, peers }) => {
      const owner = await fleet.subscribe('free');
      return { peers, app: { fleet, exit, owner, region: exit.region }, rounds: [] as number[][] };
    }),
  );
  for (let round = -1; round < options.rounds; round++) {
    const taken = apps.map((): number[] => []);
    for (let turn = 0; turn < options.each; turn++) {
      for (const [index, { app }] of apps.entries()) {
        taken[index]?.push((await once(app, round < 0 && turn === 0)).made);
      }
    }
    if (round >= 0) for (const [index, { rounds }] of apps.entries()) rounds.push(taken[index] ?? []);
  }
  const [empty] = apps;
  const largest = apps.at(-1);
  if (!empty || !largest) return;
  const rows = apps.map(({ peers, rounds }) => ({
    peers,
    ...summarize(rounds.flat()),
    overEmpty: pairedRatio(rounds, empty.rounds),
  }));
  report.table(
    `(b) ${POST}, by peers already on the exit`,
    ['peers', 'count', 'median ms', 'p99 ms', 'of that at 0'],
    rows.map((row) => [
      row.peers.toLocaleString('en'),
      String(row.count),
      row.median,
      row.p99,
      row.overEmpty,
    ]),
  );
  report.record('b', rows);
  const what = `at ${largest.peers.toLocaleString('en')} peers, of that at 0`;
  report.judge('b', what, rows.at(-1)?.overEmpty ?? Number.NaN, 'less', 1.3);
}
