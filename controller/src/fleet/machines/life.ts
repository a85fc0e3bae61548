/**
 * The life of a machine, one step at a time:
 *
 *   wanted ──► creating ──► booting ──► serving ──► leaving ──► removing ──► gone
 *                 │            │           │                        ▲    └──► failed
 *                 │ refused    │ never     └── its node retired ────┤
 *                 └────────────┴── joined ──────────────────────────┘
 *
 * A step is an effect that may be had again (all of Provider, a drain, a retirement), then one transaction from the state
 * that was read to the next. So it does not matter where a controller dies: whoever goes on does the same again, and
 * the second time it has no effect.
 */
import { KatafractError } from '@katafract/shared/errors';
import type { Logger } from '../../platform/log.ts';
import { type DrainDeps, startDrain } from '../drains.ts';
import { type RetireDeps, retireNode } from '../operations.ts';
import type { Provider, ProviderName } from './provider.ts';
import type { MachineRow } from './store.ts';
import * as store from './store.ts';
import { mintFor, setEndpoint, type TokenDeps } from './tokens.ts';

export interface LifeDeps extends RetireDeps, DrainDeps, TokenDeps {
  readonly fleet: RetireDeps['fleet'];
  readonly log: Logger;
  readonly providers: ReadonlyMap<ProviderName, Provider>;
  /** What a machine is told, with its join token: a secret. */
  readonly userData: (machine: MachineRow, token: Awaited<ReturnType<typeof mintFor>>) => string;
  /** A machine that is no exit by then is given back, in ms. */
  readonly bootMs: number;
  readonly onFailure: (code: string) => void;
}

/** How soon what is waited for is looked at again, in ms. */
const SOON_MS = 1_000;
/** Pauses after failures: doubled from the first to the longest. */
const FIRST_PAUSE_MS = 2_000;
const LONGEST_PAUSE_MS = 5 * 60_000;
/** For so long a provider that does not answer is asked again. */
const CREATE_MS = 60 * 60_000;
/** Steps that follow at once; more than there are states would be a circle. */
const MOST_STEPS = 10;

/** Codes that end a machine before it served: it then counts as failed. */
const FATAL = ['machine_refused', 'machine_not_made', 'machine_never_joined', 'machine_vanished'] as const;
type Fatal = (typeof FATAL)[number];
const isFatal = (code: string | null): code is Fatal => FATAL.includes(code as Fatal);

/** What a step comes to: the next one at once, or nothing to do until then (a time, or a reason to look again). */
type Outcome = 'next' | { readonly afterMs: number } | 'parked';

/** Takes one machine as far as it gets. Never rejects: what fails is noted and tried again. */
export async function advance(deps: LifeDeps, id: string): Promise<void> {
  for (let steps = 0; steps < MOST_STEPS; steps++) {
    const machine = await store.readMachine(deps.db.sql, id);
    if (!machine || machine.endedAt !== null) return;
    try {
      const outcome = await stepOf(deps, machine);
      if (outcome === 'next') continue;
      const until = outcome === 'parked' ? store.PARKED : new Date(deps.now() + outcome.afterMs);
      return await store.postpone(deps.db.sql, machine, until);
    } catch (error) {
      return failed(deps, machine, error);
    }
  }
}

function stepOf(deps: LifeDeps, machine: MachineRow): Promise<Outcome> {
  switch (machine.state) {
    case 'wanted':
      return changed(deps, machine, { to: 'creating' });
    case 'creating':
      return create(deps, machine);
    case 'booting':
      return boot(deps, machine);
    case 'serving':
      return serve(deps, machine);
    case 'leaving':
      return leave(deps, machine);
    case 'removing':
      return remove(deps, machine);
    case 'gone':
    case 'failed':
      return Promise.resolve('parked');
  }
}

async function changed({ db, audit, now }: LifeDeps, machine: MachineRow, step: store.Move): Promise<'next'> {
  await db.transaction((tx) => store.move(tx, audit, machine, step, now()));
  return 'next';
}

async function failed(deps: LifeDeps, machine: MachineRow, error: unknown): Promise<void> {
  const code = error instanceof KatafractError ? error.code : 'internal';
  deps.onFailure(code);
  const known = error instanceof KatafractError ? error.retryAfter : undefined;
  const pause = Math.min(FIRST_PAUSE_MS * 2 ** Math.min(machine.tries, 20), LONGEST_PAUSE_MS);
  const until = new Date(deps.now() + Math.max(pause, (known ?? 0) * 1000));
  const line = { node: machine.node, code, attempt: machine.tries + 1, reason: machine.state, err: error };
  deps.log.warn(line, 'a step of a machine failed; it will be tried again');
  await store.noteFailure(deps.db.sql, machine, isFatal(machine.problem) ? machine.problem : code, until);
}

function providerOf({ providers }: LifeDeps, { provider }: MachineRow): Provider {
  const found = providers.get(provider);
  if (found) return found;
  throw new KatafractError('provider_off', `the provider ${provider} is not configured`, { status: 422 });
}

/** Ends a machine that never served, after whatever there is of it has been removed. */
function giveUp(deps: LifeDeps, machine: MachineRow, problem: Fatal): Promise<'next'> {
  const line = { node: machine.node, region: machine.region, code: problem };
  deps.log.error(line, 'a machine came to nothing and is given back');
  deps.onFailure(problem);
  return changed(deps, machine, { to: 'removing', problem });
}

async function create(deps: LifeDeps, machine: MachineRow): Promise<Outcome> {
  const { db, now } = deps;
  const provider = providerOf(deps, machine);
  if (provider.automatic && now() - Date.parse(machine.since) > CREATE_MS) {
    return giveUp(deps, machine, 'machine_not_made');
  }
  const { region, node } = machine;
  const { location, size } = machine.growth;
  const userData = provider.automatic
    ? deps.userData(machine, await db.transaction((tx) => mintFor(tx, deps, machine, now())))
    : '';
  const made = await provider
    .create({ machine: machine.id, node, region, location, size, userData })
    .catch((error: unknown) => {
      if (error instanceof KatafractError && error.code === 'provider_refused') return error;
      throw error;
    });
  if (made instanceof KatafractError) {
    deps.log.warn({ node, region, code: made.code, err: made }, 'the provider refused to make a machine');
    return giveUp(deps, machine, 'machine_refused');
  }
  // known to the provider, but not yet where: asking again finds it
  if (provider.automatic && made.address === null) return { afterMs: SOON_MS };
  await db.transaction(async (tx) => {
    const { ref, address } = made;
    const step = { to: 'booting', action: 'machine.created', ref, problem: null } as const;
    const known = address === null ? step : { ...step, address };
    const detail = { provider: machine.provider, ref };
    const moved = await store.move(tx, deps.audit, machine, { ...known, detail }, now());
    if (moved && address !== null) await setEndpoint(tx.sql, machine, address);
  });
  return 'next';
}

async function boot(deps: LifeDeps, machine: MachineRow): Promise<Outcome> {
  const { db, audit, now } = deps;
  const node = await store.readNode(db.sql, machine.node);
  if (node?.state === 'retired') return changed(deps, machine, { to: 'removing', problem: null });
  if (node === null || node.state === 'joining') {
    const automatic = machine.provider !== 'manual';
    const late = now() - Date.parse(machine.since) > deps.bootMs;
    return automatic && late ? giveUp(deps, machine, 'machine_never_joined') : { afterMs: SOON_MS };
  }
  await db.transaction(async (tx) => {
    const step = { to: 'serving', action: 'machine.serving', problem: null } as const;
    if (await store.move(tx, audit, machine, step, now())) await store.describeNode(tx.sql, machine);
  });
  deps.log.info({ node: machine.node, region: machine.region }, 'a machine serves');
  await deps.fleet.changed();
  return 'next';
}

/** Parked for as long as nothing is to be done; `wakeRetired` and those who give machines back look after it. */
async function serve(deps: LifeDeps, machine: MachineRow): Promise<Outcome> {
  const node = await store.readNode(deps.db.sql, machine.node);
  if (node === null || node.state === 'retired')
    return changed(deps, machine, { to: 'removing', problem: null });
  return machine.replaces === null ? 'parked' : succeed(deps, machine, machine.replaces);
}

/** Empties the node whose place this machine takes, and retires it. A machine of ours behind that one then goes too. */
async function succeed(
  deps: LifeDeps,
  machine: MachineRow,
  old: NonNullable<MachineRow['replaces']>,
): Promise<Outcome> {
  const { db, now } = deps;
  const before = await store.readNode(db.sql, old);
  if (before === null || before.state === 'retired') {
    await store.wakeRetired(db.sql, now());
    return 'parked';
  }
  if (await drainCalledOff(deps, old, machine.since)) return 'parked';
  return emptied(deps, old, before.state);
}

/** Drains a node, then retires it; to be called until it is retired. */
async function emptied(deps: LifeDeps, node: MachineRow['node'], state: string): Promise<Outcome> {
  if (state === 'draining') return { afterMs: SOON_MS };
  if (state === 'drained') {
    try {
      await retireNode(deps, node, null);
      return 'next';
    } catch (error) {
      // a peer has come since
      if (!(error instanceof KatafractError) || error.code !== 'node_has_peers') throw error;
    }
  }
  await startDrain(deps, node, undefined, null);
  return { afterMs: SOON_MS };
}

/** An operator has cancelled the drain that this system began: then that was a decision. */
async function drainCalledOff({ db }: LifeDeps, node: MachineRow['node'], since: string): Promise<boolean> {
  const [last] = await db.sql<{ state: string }[]>`
    select state from drains where node_id = ${node} and started_at >= ${new Date(since)}
    order by started_at desc limit 1`;
  return last?.state === 'cancelled';
}

async function leave(deps: LifeDeps, machine: MachineRow): Promise<Outcome> {
  const node = await store.readNode(deps.db.sql, machine.node);
  if (node === null || node.state === 'retired') return changed(deps, machine, { to: 'removing' });
  if (await drainCalledOff(deps, machine.node, machine.since)) {
    return changed(deps, machine, { to: 'serving', action: 'machine.kept' });
  }
  return emptied(deps, machine.node, node.state);
}

async function remove(deps: LifeDeps, machine: MachineRow): Promise<Outcome> {
  const { db, audit, now } = deps;
  const node = await store.readNode(db.sql, machine.node);
  // it has come up after all, and somebody may be using it
  if (node && node.state !== 'joining' && node.state !== 'retired') {
    return changed(deps, machine, { to: 'leaving', problem: null });
  }
  await store.endTokens(db.sql, machine.node, now());
  if (node?.state === 'joining') await retireNode(deps, machine.node, null);
  await providerOf(deps, machine).remove(machine.id);
  const fatal = isFatal(machine.problem);
  const step: store.Move = fatal
    ? { to: 'failed', action: 'machine.failed', detail: { problem: machine.problem } }
    : { to: 'gone', action: 'machine.gone', problem: null };
  await db.transaction((tx) => store.move(tx, audit, machine, step, now()));
  deps.log.info({ node: machine.node, region: machine.region, reason: step.to }, 'a machine is gone');
  return 'next';
}
