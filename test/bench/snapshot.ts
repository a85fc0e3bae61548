/**
 * (e) A cold node takes a whole table: from its hello to the moment the controller knows that the kernel has it, against
 * one `wg setconf` of the same table on an interface of the same kind.
 */
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Exit } from '../lab/exit.ts';
import { waitFor } from '../lab/wait.ts';
import type { Fleet } from './bed.ts';
import { Place } from './place.ts';
import type { Report } from './report.ts';
import { median, pairedRatio } from './stats.ts';

/** How often the controller is asked how far the node is: the resolution of the figure, in ms. */
const LOOK_MS = 20;

/** The table that the kernel has, as `wg setconf` reads it. */
async function writeConfig(fleet: Fleet, exit: Exit, file: string): Promise<number> {
  const place = await fleet.place(exit);
  const rows = Object.entries(await place.do('kernelTable', { name: exit.tunnel }));
  const peers = rows.map(
    ([key, allowed]) => `[Peer]\nPublicKey = ${key}\nAllowedIPs = ${allowed.replace(' ', ', ')}\n`,
  );
  writeFileSync(file, peers.join('\n'));
  return rows.length;
}

/** Makes a node forget all it held and all its kernel had, as a machine that was installed anew. */
async function forget(exit: Exit): Promise<void> {
  await exit.stopAgent();
  await exit.exec('ip', ['link', 'del', exit.tunnel]);
  for (const name of ['held.snapshot', 'held.journal']) rmSync(join(exit.stateDir, name), { force: true });
}

/** ms from hello to applied, by the clock that both processes share. */
async function coldStart(fleet: Fleet, exit: Exit): Promise<number> {
  await forget(exit);
  // a generation that the node has never had, so that it cannot be taken for one it acknowledged before
  await fleet.commitPeers(exit, 1);
  const agent = exit.startAgent();
  const [line] = await agent.waitFor(/^.*"msg":"connected to the broker".*$/m);
  const hello = new Date((JSON.parse(line) as { time: number | string }).time).getTime();
  const applied = async () => {
    const node = (await fleet.nodes()).get(exit.name);
    return node?.connected && node.applied === node.generation ? Date.now() : null;
  };
  const end = await waitFor('the snapshot to be applied', applied, { deadlineMs: 120_000, everyMs: LOOK_MS });
  return end - hello;
}

export async function measureSnapshot(
  fleet: Fleet,
  report: Report,
  exit: Exit,
  rounds: number,
): Promise<void> {
  const file = join(fleet.lab.folder, 'table.conf');
  const snapshots: number[] = [];
  const setconfs: number[] = [];
  let peers = 0;
  const spawner = await Place.spawner(exit);
  for (let round = 0; round < rounds; round++) {
    peers = await writeConfig(fleet, exit, file);
    setconfs.push(await spawner.do('wgSetconf', { file }));
    snapshots.push(await coldStart(fleet, exit));
    await fleet.converged(exit, peers + 1);
  }
  await spawner.end();
  const table = `${peers.toLocaleString('en')} peers`;
  report.table(
    `(e) ${table} to a cold node`,
    ['ms', 'count', 'median', 'min', 'max'],
    [['from hello to applied', snapshots] as const, ['wg setconf of the same table', setconfs] as const].map(
      ([name, times]) => [name, String(rounds), median(times), Math.min(...times), Math.max(...times)],
    ),
  );
  report.record('e', { peers, snapshots, setconfs });
  const ratio = pairedRatio(
    snapshots.map((ms) => [ms]),
    setconfs.map((ms) => [ms]),
  );
  report.judge('e', `snapshot of ${table}, of wg setconf`, ratio, 'less', 2);
}
