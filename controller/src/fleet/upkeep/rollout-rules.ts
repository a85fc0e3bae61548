/**
 * How a release goes through the fleet, one look at a time. Pure: what the nodes say and where the rollout stands give
 * the steps to take now. Whoever takes them writes them all down at once, so a crash anywhere loses nothing.
 *
 *   waiting ──start──► updating ──says the version, is well──► updated ──the wave has soaked──► next wave … done
 *                          │                                      │
 *                          └── late, down, sick, not installed ───┴──► failed (told its own version again)
 *                                                                        │ a canary, or too many
 *   reverted ◄──says its own version, is well── reverting ◄── rolling back ◄┘
 */
import type { NodeId } from '@katafract/shared/units';
import { inWork, isUnwell, type NodeFacts, Regions } from './facts.ts';
import type { RegionGraph } from './graph-rules.ts';
import type { RolloutState } from './tables.ts';

export interface RolloutFacts {
  readonly state: RolloutState;
  readonly version: string;
  readonly wave: number;
  readonly waves: number;
  /** Milliseconds since the epoch. */
  readonly waveSince: number;
  readonly soakMs: number;
  readonly timeoutMs: number;
  readonly maxFailures: number;
  /** Nodes that were not well when the wave began. */
  readonly unwell: number;
  readonly reason: string | null;
}

/** Why a node failed; stable words. */
export type NodeFailure =
  /** Its helper could not install the version, or took it back since it did not speak. */
  | 'not_installed'
  /** It did not say in time that it runs the version. */
  | 'late'
  | 'down'
  /** It runs the version, and is not well. */
  | 'sick'
  /** It ran the version, and then another one again. */
  | 'other_version'
  /** It did not come back to its own version in time. */
  | 'not_reverted';

export type RolloutStep =
  | { readonly do: 'join'; readonly node: NodeId }
  | { readonly do: 'start' | 'skip'; readonly node: NodeId; readonly before: string | null }
  | { readonly do: 'updated'; readonly node: NodeId }
  | { readonly do: 'failed'; readonly node: NodeId; readonly reason: NodeFailure }
  /** `wait`: until it says that it runs its own version again. */
  | { readonly do: 'revert'; readonly node: NodeId; readonly wait: boolean }
  | { readonly do: 'reverted'; readonly node: NodeId }
  | { readonly do: 'wave'; readonly wave: number; readonly unwell: number }
  | { readonly do: 'pause' | 'roll_back'; readonly reason: string }
  | { readonly do: 'end'; readonly state: 'done' | 'rolled_back' };

export interface RolloutLook {
  readonly rollout: RolloutFacts;
  readonly graph: RegionGraph;
  /** Every node that is neither joining nor retired, and those that were retired with a part in the rollout. */
  readonly nodes: readonly NodeFacts[];
  readonly now: number;
}

type Part = NodeFacts & { readonly part: NonNullable<NodeFacts['part']> };
const hasPart = (node: NodeFacts): node is Part => node.part !== null;

/** What is to be done now; the same look gives the same steps. Empty where there is only to wait. */
export function stepRollout(look: RolloutLook): RolloutStep[] {
  const { rollout, nodes } = look;
  const parts = nodes.filter(hasPart);
  const judged = parts.flatMap((node) => judge(look, node));
  if (judged.length > 0) return judged;
  if (rollout.state === 'rolling_back') return goBack(look, parts);
  const verdict = tooBad(rollout, parts);
  if (verdict !== null) return [{ do: 'roll_back', reason: verdict }];
  return rollout.state === 'running' ? goOn(look, parts) : [];
}

/** What became of a node that something was done to. */
function judge({ rollout, now }: RolloutLook, node: Part): RolloutStep[] {
  const { id, part, said, health } = node;
  const fail = (reason: NodeFailure): RolloutStep[] => [{ do: 'failed', node: id, reason }];
  const late = now >= part.since + rollout.timeoutMs;
  const sound = said?.sound === true && health === 'ok';
  if (part.state === 'updating') {
    if (node.lifecycle === 'retired') return fail('down');
    const runs = said?.version === rollout.version;
    if (runs && sound) return [{ do: 'updated', node: id }];
    if (said?.updateFailed) return fail('not_installed');
    if (health === 'down') return fail('down');
    if (runs && health === 'suspect') return fail('sick');
    return late ? fail(runs ? 'sick' : 'late') : [];
  }
  if (part.state === 'updated' && part.wave === rollout.wave && rollout.state !== 'rolling_back') {
    if (said && said.version !== rollout.version) return fail('other_version');
    return health === 'ok' ? [] : fail(health === 'down' ? 'down' : 'sick');
  }
  if (part.state === 'reverting') {
    const back = said !== null && said.version === part.before;
    if (back && (sound || late)) return [{ do: 'reverted', node: id }];
    return late || node.lifecycle === 'retired' ? fail('not_reverted') : [];
  }
  return [];
}

/** Why the release cannot stay; null where it can. */
function tooBad({ maxFailures }: RolloutFacts, parts: readonly Part[]): string | null {
  const failed = parts.filter(({ part }) => part.state === 'failed');
  const canary = failed.find(({ part }) => part.wave === 0);
  const tell = ({ id, part }: Part) => `${id} (${part.reason})`;
  if (canary) return `canary failed: ${tell(canary)}`;
  if (failed.length <= maxFailures) return null;
  return `${failed.length} nodes failed: ${failed.slice(0, 5).map(tell).join(', ')}`;
}

function goOn(look: RolloutLook, parts: readonly Part[]): RolloutStep[] {
  const { rollout, graph, nodes, now } = look;
  const joining = nodes.filter(({ part, lifecycle }) => part === null && lifecycle !== 'retired');
  if (joining.length > 0) return joining.map(({ id }) => ({ do: 'join', node: id }));
  const regions = new Regions(graph, nodes);
  const wave = parts.filter(({ part }) => part.wave === rollout.wave);
  const steps: RolloutStep[] = [];
  for (const node of wave) {
    if (node.part.state !== 'waiting') continue;
    const before = node.runs;
    if (mayStart(regions, node)) {
      regions.take(node);
      steps.push({ do: 'start', node: node.id, before });
    } else if (
      isAway(node) &&
      (node.lifecycle === 'retired' || now >= rollout.waveSince + rollout.timeoutMs)
    ) {
      steps.push({ do: 'skip', node: node.id, before });
    }
  }
  if (steps.length > 0 || wave.some((node) => node.part.state === 'waiting' || inWork(node))) return steps;
  return gate(look, wave);
}

/** It cannot take part at the moment, and nobody knows for how long. */
const isAway = (node: NodeFacts) =>
  node.health !== 'ok' || node.lifecycle === 'draining' || node.lifecycle === 'retired' || node.runs === null;

function mayStart(regions: Regions, node: NodeFacts): boolean {
  if (isAway(node) || node.maintained || node.leased) return false;
  return regions.spares(node) && regions.roomy(node.region) && regions.neighboursRest(node.region);
}

/** The wave is through: it has to have been well for a while, and the fleet with it. */
function gate({ rollout, nodes, now }: RolloutLook, wave: readonly Part[]): RolloutStep[] {
  const last = wave.filter(({ part }) => part.state === 'updated').map(({ part }) => part.since);
  const soaked = Math.max(rollout.waveSince, ...last) + rollout.soakMs;
  if (now < soaked) return [];
  const unwell = nodes.filter(isUnwell).length;
  // those that failed by the release are counted as such
  const failed = wave.filter((node) => node.part.state === 'failed' && isUnwell(node)).length;
  if (unwell - failed > rollout.unwell) {
    const reason = `${unwell} nodes are not well, ${rollout.unwell} were not when wave ${rollout.wave} began`;
    return now >= soaked + rollout.timeoutMs ? [{ do: 'pause', reason }] : [];
  }
  const next = rollout.wave + 1;
  return next < rollout.waves ? [{ do: 'wave', wave: next, unwell }] : [{ do: 'end', state: 'done' }];
}

/** What serves goes back as carefully as it came; what does not, or was not finished, at once. */
function goBack({ graph, nodes }: RolloutLook, parts: readonly Part[]): RolloutStep[] {
  const regions = new Regions(graph, nodes);
  const steps: RolloutStep[] = [];
  let open = false;
  for (const node of parts) {
    const { state, reason } = node.part;
    open ||= state === 'reverting';
    const has = state === 'updated' || state === 'updating' || state === 'skipped';
    if (!has && !(state === 'failed' && reason !== 'not_reverted')) continue;
    open = true;
    const careful = state === 'updated' && node.health === 'ok';
    if (careful && !mayStart(regions, node) && !isAway(node)) continue;
    if (careful) regions.take(node);
    steps.push({ do: 'revert', node: node.id, wait: state !== 'skipped' });
  }
  if (steps.length > 0 || open) return steps;
  return [{ do: 'end', state: 'rolled_back' }];
}
