/** (f) What the programs take of a machine: memory against bare Node, and the agent's work while nothing happens. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Exit } from '../lab/exit.ts';
import { exec } from '../lab/process.ts';
import type { Fleet } from './bed.ts';
import { residentMiB, ticks } from './processes.ts';
import type { Report } from './report.ts';

const sleep = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

interface Idle {
  readonly agent: number;
  readonly commands: number;
  readonly daemon: number;
}

/** Share of one core, in percent, that an exit's agent, the commands it runs and its WireGuard daemon take. */
async function idle(exit: Exit, seconds: number): Promise<Idle> {
  const hertz = Number(await exec('getconf', ['CLK_TCK']));
  const daemon = await exit.wireguardPid();
  const look = () => ({ agent: ticks(exit.agentPid), daemon: daemon === null ? null : ticks(daemon) });
  const before = look();
  await sleep(seconds);
  const after = look();
  const percent = (from: number, to: number) => (((to - from) / hertz) * 100) / seconds;
  return {
    agent: percent(before.agent.own, after.agent.own),
    commands: percent(before.agent.children, after.agent.children),
    daemon: percent(before.daemon?.own ?? 0, after.daemon?.own ?? 0),
  };
}

/** Resident memory of a Node that does nothing, in MiB. */
async function bareNode(seconds: number): Promise<number> {
  const node = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1e6)'], { stdio: 'ignore' });
  await sleep(seconds);
  const memory = residentMiB(node.pid ?? 0);
  node.kill();
  await once(node, 'exit');
  return memory;
}

export interface FootprintOptions {
  /** Seconds an agent has run when it is looked at. */
  readonly settle: number;
  /** Seconds over which its idle work is counted. */
  readonly watch: number;
}

export async function measureFootprint(
  fleet: Fleet,
  report: Report,
  sizes: readonly { readonly exit: Exit; readonly peers: number }[],
  options: FootprintOptions,
): Promise<void> {
  for (const { exit } of sizes) {
    await exit.stopAgent();
    exit.startAgent();
  }
  await fleet.lab.nodesOnline();
  const bare = await bareNode(5);
  await sleep(options.settle);
  const rows = await Promise.all(
    sizes.map(async ({ exit, peers }) => ({
      peers,
      memory: residentMiB(exit.agentPid),
      ...(await idle(exit, options.watch)),
    })),
  );
  const controller = residentMiB(fleet.lab.controller.program.pid);
  report.table(
    `(f) memory after ${options.settle} s, and idle work over ${options.watch} s`,
    ['', 'RSS MiB', 'of bare node', 'agent CPU %', 'its commands %', 'WireGuard daemon %'],
    [
      ['bare node', bare, 1, '', '', ''],
      ...rows.map((row) => [
        `agent, ${row.peers.toLocaleString('en')} peers`,
        row.memory,
        row.memory / bare,
        row.agent,
        row.commands,
        row.daemon,
      ]),
      ['controller', controller, controller / bare, '', '', ''],
    ],
  );
  report.record('f', { bareMiB: bare, controllerMiB: controller, agents: rows, ...options });
  const largest = rows.at(-1);
  if (!largest) return;
  const at = `agent with ${largest.peers.toLocaleString('en')} peers`;
  report.judge('f', `${at}: RSS, of bare node`, largest.memory / bare, 'less', 2);
  report.judge(
    'f',
    `${at}: idle CPU, its commands included`,
    largest.agent + largest.commands,
    'less',
    1,
    '%',
  );
}
