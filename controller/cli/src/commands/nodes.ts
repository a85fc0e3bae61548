/** Nodes: how they are, and what becomes of them. */
import { KatafractError } from '@katafract/shared/errors';
import { NodeId } from '@katafract/shared/units';
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { Answer } from '../api.ts';
import { Drain, JoinTokenMade, list, Machine, Node, Nothing } from '../bodies.ts';
import {
  type Act,
  asCount,
  asDuration,
  asMoment,
  type Context,
  momentFrom,
  part,
  WAIT,
  WAIT_HELP,
  type Wait,
  waitSeconds,
} from '../command.ts';
import { publishCommand } from '../key.ts';
import { ago, fields, table } from '../text.ts';
import { readMachine } from './machines.ts';

interface DrainOptions {
  readonly deadline?: string;
  readonly wait?: Wait;
  readonly pause?: true;
  readonly resume?: true;
  readonly cancel?: true;
  readonly mqtt?: true;
}
interface JoinOptions {
  readonly region: string;
  readonly endpoint?: string;
  readonly capacity?: number;
  readonly tunnels?: number;
  readonly expires?: number;
}

export function nodeCommands(program: Command, act: Act): void {
  program.command('nodes').description('list nodes with their health').action(act(listNodes));
  program
    .command('node')
    .description('show a node, and its last drain')
    .argument('<node>', 'its id', asNode)
    .action(act(showNode));
  for (const [name, state, what] of [
    ['cordon', 'cordoned', 'give a node no new peers; it keeps those it has'],
    ['uncordon', 'active', 'let a node have new peers again'],
  ] as const) {
    program
      .command(name)
      .description(what)
      .argument('<node>', 'its id', asNode)
      .action(act((context, node: NodeId) => setState(context, node, state)));
  }
  drainCommand(program, act);
  program
    .command('retire')
    .description('take an empty node out of the fleet for good')
    .argument('<node>', 'its id', asNode)
    .action(act(retire));
  program
    .command('replace')
    .description('put a new machine in the place of a node; the old one is drained and retired')
    .argument('<node>', 'its id', asNode)
    .option(WAIT, WAIT_HELP, asDuration)
    .action(act(replace));
  program
    .command('join-token')
    .description('make a one-time token for a machine to join as a node; it is shown here only')
    .argument('<node>', 'the id it will have', asNode)
    .requiredOption('--region <region>', 'where it stands')
    .option('--endpoint <host:port>', 'its public WireGuard endpoint (default: what the machine says)')
    .option('--capacity <peers>', 'peers it may carry', asCount)
    .option('--tunnels <n>', 'WireGuard interfaces, on as many ports (default: 1)', asCount)
    .option('--expires <time>', 'how long the token is good (30m, 24h)', asDuration)
    .action(act(joinToken));
}

function drainCommand(program: Command, act: Act): void {
  const step = (name: 'pause' | 'resume' | 'cancel', what: string) => {
    const others = ['pause', 'resume', 'cancel', 'deadline'].filter((other) => other !== name);
    return new Option(`--${name}`, what).conflicts(others);
  };
  program
    .command('drain')
    .description('empty a node, make before break; again with another deadline changes that')
    .argument('<node>', 'its id', asNode)
    .option('--deadline <time>', 'when it must be empty: 2026-01-31T22:00:00Z, or 30m, 2h from now', asMoment)
    .addOption(step('pause', 'halt the drain that is under way'))
    .addOption(step('resume', 'go on with a drain that was halted'))
    .addOption(step('cancel', 'call the drain off; what has moved stays where it is'))
    .option('--mqtt', 'say it over the message broker, signed with the operator key (`katafract key`)')
    .option(WAIT, WAIT_HELP, asDuration)
    .action(act(drain));
}

function asNode(text: string): NodeId {
  const node = NodeId.safeParse(text);
  if (node.success) return node.data;
  throw new InvalidArgumentError('a node id is 3 to 32 of a-z, 0-9 and hyphen');
}

async function readNodes(context: Context) {
  return (await context.api).call('GET', 'admin/nodes', { schema: list(Node) });
}

async function listNodes(context: Context): Promise<void> {
  const { body, raw } = await readNodes(context);
  const titles = ['NODE', 'REGION', 'STATE', 'WHY', '>PEERS', '>CAPACITY', '>BEHIND', 'VERSION', 'SEEN'];
  context.show(raw, () =>
    table(
      titles,
      body.items.map((node) => [
        node.id,
        node.region,
        node.state,
        node.condition?.state === 'ok' ? null : (node.condition?.reason ?? null),
        node.peers,
        node.capacity,
        node.generation - node.applied,
        node.agentVersion,
        ago(node.lastSeenAt, context.now),
      ]),
    ),
  );
}

/** @throws KatafractError `node_unknown` */
async function readNode(context: Context, id: NodeId): Promise<{ node: Node; raw: unknown }> {
  const { body, raw } = await readNodes(context);
  const at = body.items.findIndex((one) => one.id === id);
  const node = body.items[at];
  if (!node) throw new KatafractError('node_unknown', `no node ${id}`, { status: 404 });
  return { node, raw: (raw as { items: unknown[] }).items[at] };
}

/** The last drain of a node; null where there was none. */
async function readDrain(context: Context, id: NodeId): Promise<Answer<Drain | null>> {
  try {
    return await (await context.api).call('GET', `admin/nodes/${part(id)}/drain`, { schema: Drain });
  } catch (error) {
    if (error instanceof KatafractError && error.code === 'drain_unknown') return { body: null, raw: null };
    throw error;
  }
}

async function showNode(context: Context, id: NodeId): Promise<void> {
  const { node, raw } = await readNode(context, id);
  const drained = await readDrain(context, id);
  const { now } = context;
  context.show({ node: raw, drain: drained.raw }, () =>
    fields([
      ['node', node.id],
      ['region', node.region],
      ['state', node.state],
      ['lifecycle', node.lifecycle],
      [
        'health',
        node.condition &&
          `${node.condition.state}: ${node.condition.reason}, since ${ago(node.condition.since, now)}`,
      ],
      ['provider', node.provider],
      ['endpoint', node.endpoint],
      ['peers', `${node.peers} of ${node.capacity}`],
      ['connected', node.connected ? 'yes' : 'no'],
      ['generation', `${node.generation}, applied ${node.applied}`],
      ['version', node.agentVersion],
      ['last seen', ago(node.lastSeenAt, now)],
      ['drain', drained.body && drainLine(drained.body)],
    ]),
  );
}

async function setState(context: Context, id: NodeId, state: 'active' | 'cordoned'): Promise<void> {
  const asked = { schema: Node, body: { state } };
  const { body, raw } = await (await context.api).call('PATCH', `admin/nodes/${part(id)}`, asked);
  context.show(raw, () => `${body.id} is ${body.lifecycle}`);
}

function drainLine(now: Drain | null): string {
  if (now === null) return 'no drain';
  const parts = [
    `${now.moved} of ${now.total} peers moved`,
    ...(now.waiting > 0 ? [`${now.waiting} waiting`] : []),
    ...(now.leaving > 0 ? [`${now.leaving} still answered`] : []),
    ...(now.stranded > 0 ? [`${now.stranded} without a place`] : []),
    ...(now.overdue ? ['overdue'] : []),
  ];
  return `${now.state}: ${parts.join(', ')}`;
}

const isOver = ({ state }: Drain) => state === 'cancelled' || state === 'done';

async function drain(context: Context, id: NodeId, options: DrainOptions): Promise<void> {
  const step = options.pause ? 'pause' : options.resume ? 'resume' : options.cancel ? 'cancel' : null;
  const seconds = waitSeconds(options.wait);
  const deadline = options.deadline === undefined ? undefined : momentFrom(options.deadline, context.now);
  let before: Drain | null = null;
  let first: Answer<Drain | null>;
  if (options.mqtt) {
    if (seconds !== undefined) before = (await readDrain(context, id)).body;
    const until = deadline === undefined ? {} : { deadline: Date.parse(deadline) };
    const said = await publishCommand(context.io, { node: id, command: step ?? 'drain', ...until });
    first = { body: null, raw: said };
    if (seconds === undefined)
      return context.show(said, () => `the broker has it: ${said.command} ${said.node} (command ${said.id})`);
  } else {
    const path = `admin/nodes/${part(id)}/drain${step === null ? '' : `/${step}`}`;
    const body = step === null && deadline !== undefined ? { body: { deadline } } : {};
    first = await (await context.api).call('POST', path, { schema: Drain, ...body });
  }
  const wanted = step === 'pause' ? 'paused' : step === 'cancel' ? 'cancelled' : 'done';
  const text = (now: Drain | null) => `${id}: ${drainLine(now)}`;
  await context.showAfter(first, seconds, {
    read: () => readDrain(context, id),
    text,
    line: text,
    outcome(now) {
      // said over the broker, it may not be heeded yet, and what is read be the drain before
      const stale = before !== null && isOver(before) && now?.startedAt === before.startedAt;
      if (now === null || stale) return 'open';
      return now.state === wanted ? 'reached' : isOver(now) ? 'failed' : 'open';
    },
  });
}

async function retire(context: Context, id: NodeId): Promise<void> {
  await (await context.api).call('POST', `admin/nodes/${part(id)}/retire`, { schema: Nothing });
  context.show({ node: id, retired: true }, () => `${id} is retired`);
}

async function replace(context: Context, id: NodeId, { wait }: { wait?: Wait }): Promise<void> {
  const api = await context.api;
  const first = await api.call('POST', `admin/nodes/${part(id)}/replace`, { schema: Machine, makes: true });
  const line = ({ node, state, problem }: Machine) =>
    `${node} takes the place of ${id}: ${state}${problem === null ? '' : ` (${problem})`}`;
  let retired = false;
  await context.showAfter(first, waitSeconds(wait), {
    async read() {
      retired = (await readNode(context, id)).node.lifecycle === 'retired';
      return readMachine(context, first.body.id);
    },
    text: (now) => `${line(now)}; ${id} is ${retired ? 'retired' : 'there still'} (machine ${now.id})`,
    line: (now) => `${line(now)}; ${id} is ${retired ? 'retired' : 'there still'}`,
    outcome: ({ state }) =>
      state === 'serving' && retired ? 'reached' : state === 'failed' || state === 'gone' ? 'failed' : 'open',
  });
}

async function joinToken(context: Context, node: NodeId, options: JoinOptions): Promise<void> {
  const { region, endpoint, capacity, tunnels, expires } = options;
  const body = {
    node,
    region,
    ...(endpoint === undefined ? {} : { endpoint }),
    ...(capacity === undefined ? {} : { capacity }),
    ...(tunnels === undefined ? {} : { tunnels }),
    ...(expires === undefined ? {} : { expiresInSeconds: expires }),
  };
  const asked = { schema: JoinTokenMade, body, makes: true };
  const made = await (await context.api).call('POST', 'admin/join-tokens', asked);
  context.show(made.raw, () => made.body.token);
  if (!context.json) context.io.err(`good once, ends ${ago(made.body.expiresAt, context.now)}`);
}
