/** Releases of the agent on their way through the fleet, and reboots. */
import { KatafractError } from '@katafract/shared/errors';
import type { Command } from 'commander';
import { list, Reboot, Reboots, Rollout } from '../bodies.ts';
import {
  type Act,
  asCount,
  asDuration,
  type Context,
  part,
  WAIT,
  WAIT_HELP,
  type Wait,
  waitSeconds,
} from '../command.ts';
import { ago, fields, table } from '../text.ts';

interface StartOptions {
  readonly soak?: number;
  readonly timeout?: number;
  readonly maxFailures?: number;
  readonly wait?: Wait;
}

const STEPS = {
  pause: 'halt a rollout: no further nodes are told',
  resume: 'go on with a rollout that was halted',
  cancel: 'end a rollout where it is: nodes keep what they have',
  rollback: 'have every node of a rollout go back',
} as const;

export function upkeepCommands(program: Command, act: Act): void {
  const rollout = program.command('rollout').description("the agent's releases, in waves");
  rollout
    .command('start')
    .description('roll a version out: canaries first, then region by region')
    .argument('<version>', 'such as 1.2.3')
    .option('--soak <time>', 'how long each wave must be well before the next (default: 5m)', asDuration)
    .option('--timeout <time>', 'how long a node may take (default: 10m)', asDuration)
    .option('--max-failures <count>', 'nodes that may fail after the canaries', asCount)
    .option(WAIT, WAIT_HELP, asDuration)
    .action(act(startRollout));
  rollout
    .command('status')
    .description('how far a rollout is (default: the newest)')
    .argument('[rollout]', 'its id')
    .option('--nodes', 'node by node')
    .action(act(rolloutStatus));
  for (const step of ['pause', 'resume', 'cancel', 'rollback'] as const) {
    rollout
      .command(step)
      .description(STEPS[step])
      .argument('[rollout]', 'its id (default: the newest)')
      .option(WAIT, WAIT_HELP, asDuration)
      .action(act((context, id: string | undefined, options) => stepRollout(context, step, id, options)));
  }
  program
    .command('reboot')
    .description('have a node reboot when its turn comes')
    .argument('<node>')
    .option('--any-time', 'not only at night there')
    .option(WAIT, WAIT_HELP, asDuration)
    .action(act(reboot));
  const reboots = program.command('reboots').description('list reboots').action(act(listReboots));
  for (const [name, method, what] of [
    ['cancel', 'DELETE', 'call a reboot off that is not under way yet'],
    ['clear', 'POST', 'say that a failed reboot was seen to, so that others may go'],
  ] as const) {
    reboots
      .command(name)
      .description(what)
      .argument('<reboot>', 'its id')
      .action(
        act(async (context: Context, id: string) => {
          const path = `admin/reboots/${part(id)}${name === 'clear' ? '/clear' : ''}`;
          const { body, raw } = await (await context.api).call(method, path, { schema: Reboot });
          context.show(raw, () => rebootLine(body));
        }),
      );
  }
}

const counted = ({ counts }: Rollout) =>
  Object.entries(counts)
    .map(([state, count]) => `${count} ${state}`)
    .join(', ');
const rolloutLine = (now: Rollout) =>
  `${now.version}: ${now.state}, wave ${now.wave + 1} of ${now.waves}: ${counted(now)}; ${now.standing}`;

async function readRollout(context: Context, id: string) {
  return (await context.api).call('GET', `admin/rollouts/${part(id)}`, { schema: Rollout });
}

/** @throws KatafractError `rollout_unknown`: there never was one */
async function newest(context: Context): Promise<string> {
  const { body } = await (await context.api).call('GET', 'admin/rollouts', { schema: list(Rollout) });
  const [last] = body.items;
  if (!last) throw new KatafractError('rollout_unknown', 'there never was a rollout', { status: 404 });
  return last.id;
}

const ENDS = ['done', 'rolled_back', 'cancelled'];

function untilState(context: Context, id: string, wanted: string) {
  const line = (now: Rollout) => rolloutLine(now);
  return {
    read: () => readRollout(context, id),
    line,
    text: (now: Rollout) => `${line(now)} (rollout ${now.id})`,
    outcome: ({ state }: Rollout) =>
      state === wanted
        ? ('reached' as const)
        : ENDS.includes(state)
          ? ('failed' as const)
          : ('open' as const),
  };
}

async function startRollout(context: Context, version: string, options: StartOptions): Promise<void> {
  const { soak, timeout, maxFailures, wait } = options;
  const body = { version, soakSeconds: soak, timeoutSeconds: timeout, maxFailures };
  const asked = { schema: Rollout, body, makes: true };
  const first = await (await context.api).call('POST', 'admin/rollouts', asked);
  await context.showAfter(first, waitSeconds(wait), untilState(context, first.body.id, 'done'));
}

async function rolloutStatus(
  context: Context,
  id: string | undefined,
  { nodes = false }: { nodes?: boolean },
): Promise<void> {
  const { body, raw } = await readRollout(context, id ?? (await newest(context)));
  const head = fields([
    ['rollout', body.id],
    ['version', body.version],
    ['state', body.state],
    ['standing', body.standing],
    ['wave', `${body.wave + 1} of ${body.waves}`],
    ['nodes', counted(body)],
    ['started', ago(body.startedAt, context.now)],
    ['reason', body.reason],
  ]);
  const rows = (body.nodes ?? []).map(({ node, wave, state, reason }) => [node, wave + 1, state, reason]);
  context.show(raw, () => (nodes ? `${head}\n\n${table(['NODE', '>WAVE', 'STATE', 'WHY'], rows)}` : head));
}

async function stepRollout(
  context: Context,
  step: keyof typeof STEPS,
  given: string | undefined,
  { wait }: { wait?: Wait },
): Promise<void> {
  const id = given ?? (await newest(context));
  const path = `admin/rollouts/${part(id)}/${step}`;
  const first = await (await context.api).call('POST', path, { schema: Rollout });
  const wanted = { pause: 'paused', resume: 'done', cancel: 'cancelled', rollback: 'rolled_back' }[step];
  await context.showAfter(first, waitSeconds(wait), untilState(context, id, wanted));
}

const rebootLine = ({ node, state, id, waitsFor, reason }: Reboot) =>
  `reboot of ${node}: ${state}${(waitsFor ?? reason) ? `, ${waitsFor ?? reason}` : ''} (${id})`;

async function readReboots(context: Context) {
  return (await context.api).call('GET', 'admin/reboots', { schema: Reboots });
}

async function reboot(
  context: Context,
  node: string,
  { anyTime = false, wait }: { anyTime?: boolean; wait?: Wait },
): Promise<void> {
  const asked = { schema: Reboot, body: { anyTime }, makes: true };
  const first = await (await context.api).call('POST', `admin/nodes/${part(node)}/reboot`, asked);
  await context.showAfter(first, waitSeconds(wait), {
    async read() {
      const { body, raw } = await readReboots(context);
      const at = body.items.findIndex(({ id }) => id === first.body.id);
      const found = body.items[at];
      if (!found)
        throw new KatafractError('reboot_unknown', 'the reboot is no longer listed', { status: 404 });
      return { body: found, raw: (raw as { items: unknown[] }).items[at] };
    },
    text: rebootLine,
    line: rebootLine,
    outcome: ({ state }) =>
      state === 'done' ? 'reached' : state === 'failed' || state === 'cancelled' ? 'failed' : 'open',
  });
}

async function listReboots(context: Context): Promise<void> {
  const { body, raw } = await readReboots(context);
  context.show(raw, () => {
    const rows = body.items.map((one) => [
      one.id,
      one.node,
      one.state,
      one.wantedBy,
      ago(one.wantedAt, context.now),
      ago(one.endedAt, context.now),
      one.waitsFor ?? one.reason,
    ]);
    const listed = table(['REBOOT', 'NODE', 'STATE', 'WANTED BY', 'WANTED', 'ENDED', 'WHY'], rows);
    return body.stopped === null ? listed : `nothing is rebooted: ${body.stopped}\n${listed}`;
  });
}
