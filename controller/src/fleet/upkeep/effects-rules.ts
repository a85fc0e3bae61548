/** What a step comes down to: how far a node is with a release, and what it is told. Pure. */
import type { NodeId } from '@katafract/shared/units';
import type { NodeFacts } from './facts.ts';
import { REBOOT_EXPECTED_MS, type RebootStep } from './reboot-rules.ts';
import type { RolloutStep } from './rollout-rules.ts';
import type { RolloutNodeState } from './tables.ts';

/** What a node is told; a property that is null is taken back, one that is absent stays. */
export interface Telling {
  readonly node: NodeId;
  readonly upkeep: {
    readonly agentVersion?: string | null;
    readonly updates?: { fromMinute: number; minutes: number };
    readonly reboot?: { lease: string; until: number } | null;
  };
  /** Until when it may be silent, in milliseconds since the epoch; null ends that. Absent: as it was. */
  readonly maintenanceUntil?: number | null;
}

export interface Effect {
  readonly part: {
    readonly node: NodeId;
    readonly state: RolloutNodeState;
    readonly before: string | null;
    readonly reason: string | null;
  };
  readonly telling: Telling;
}

/** While it installs and starts a version a node may be silent, but not for longer, in ms. */
const UPDATE_EXPECTED_MS = 120_000;

/** Of a step of the rollout itself there is none. */
export function effectOf(
  rollout: { readonly version: string; readonly timeoutSeconds: number },
  step: RolloutStep,
  nodes: ReadonlyMap<NodeId, NodeFacts>,
  now: number,
): Effect | null {
  if (!('node' in step) || step.do === 'join') return null;
  const { node } = step;
  const facts = nodes.get(node);
  const before = 'before' in step ? step.before : (facts?.part?.before ?? null);
  // what is down anyway is not excused for being so
  const expected = now + Math.min(UPDATE_EXPECTED_MS, rollout.timeoutSeconds * 1000);
  const maybeSilent = facts?.health === 'down' ? null : expected;
  const [forward, back] = [{ agentVersion: rollout.version }, { agentVersion: before }];
  const effect = (
    state: RolloutNodeState,
    upkeep: Telling['upkeep'],
    maintenanceUntil: number | null,
    reason: string | null = null,
  ): Effect => ({ part: { node, state, before, reason }, telling: { node, upkeep, maintenanceUntil } });
  switch (step.do) {
    case 'start':
      return effect('updating', forward, maybeSilent);
    case 'skip':
      return effect('skipped', forward, null);
    case 'updated':
      return effect('updated', {}, null);
    case 'failed':
      return effect('failed', back, step.reason === 'not_reverted' ? null : maybeSilent, step.reason);
    case 'revert':
      return step.wait ? effect('reverting', back, maybeSilent) : effect('reverted', back, null);
    case 'reverted':
      return effect('reverted', {}, null);
  }
}

/** What a node is told of a reboot; null where it is only wanted. */
export function rebootTelling(step: RebootStep, now: number): Telling | null {
  const { node } = step;
  if (step.do === 'want') return null;
  if (step.do !== 'lease') return { node, upkeep: { reboot: null }, maintenanceUntil: null };
  const reboot = { lease: step.id, until: step.until };
  return { node, upkeep: { reboot }, maintenanceUntil: now + REBOOT_EXPECTED_MS };
}
