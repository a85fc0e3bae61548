/**
 * In which order a release goes through the fleet. Pure. Wave 0 are the canaries: few, spread over regions, with little
 * to do. After them each wave takes regions of one colour, so that none of them are neighbours, and more of each region
 * from round to round; and no wave has more than four times the nodes that went before it.
 */
import type { NodeId, RegionId } from '@katafract/shared/units';
import { type NodeFacts, Regions } from './facts.ts';
import type { RegionGraph } from './graph-rules.ts';

const CANARIES = { share: 0.01, most: 5 } as const;
const GROWTH = 4;

/** Which wave each of the nodes is in; waves are numbered without gaps. */
export function planWaves(graph: RegionGraph, nodes: readonly NodeFacts[]): Map<NodeId, number> {
  const canaries = pickCanaries(graph, nodes);
  const waves: NodeFacts[][] = canaries.length === 0 ? [] : [canaries];
  let before = canaries.length;
  for (const group of groups(graph, nodes, new Set(canaries))) {
    let rest = group;
    while (rest.length > 0) {
      const wave = rest.slice(0, before * GROWTH);
      rest = rest.slice(wave.length);
      waves.push(wave);
      before += wave.length;
    }
  }
  return new Map(waves.flatMap((wave, number) => wave.map(({ id }) => [id, number] as const)));
}

/** One by one: well first, then where it is missed least, from as many regions as there are, the least loaded first. */
function pickCanaries(graph: RegionGraph, nodes: readonly NodeFacts[]): NodeFacts[] {
  const wanted = Math.min(CANARIES.most, Math.ceil(nodes.length * CANARIES.share));
  const regions = new Regions(graph, nodes);
  const chosenIn = new Map<RegionId, number>();
  const rated = nodes.map((node) => ({
    node,
    unfit: node.health === 'ok' && node.lifecycle === 'active' && regions.spares(node) ? 0 : 1,
    sole: regions.well(node.region) < 2 ? 1 : 0,
  }));
  const chosen: NodeFacts[] = [];
  while (chosen.length < wanted) {
    const cost = ({ node, unfit, sole }: (typeof rated)[number]) => [
      chosen.includes(node) ? 1 : 0,
      unfit,
      sole,
      chosenIn.get(node.region) ?? 0,
      node.load,
    ];
    const best = rated.reduce((one, other) => (before(cost(other), cost(one)) ? other : one));
    chosen.push(best.node);
    chosenIn.set(best.node.region, (chosenIn.get(best.node.region) ?? 0) + 1);
  }
  return chosen;
}

/** Compared place by place; of equals the first stays, and nodes come in the order of their ids. */
function before(one: readonly number[], other: readonly number[]): boolean {
  const at = one.findIndex((value, index) => value !== other[index]);
  return at >= 0 && (one[at] ?? 0) < (other[at] ?? 0);
}

/** Round by round and colour by colour, the regions' nodes, the least loaded first. */
function groups(graph: RegionGraph, nodes: readonly NodeFacts[], without: ReadonlySet<NodeFacts>) {
  const queues = new Map<RegionId, NodeFacts[]>();
  for (const node of [...nodes].sort((a, b) => a.load - b.load || (a.id < b.id ? -1 : 1))) {
    if (without.has(node)) continue;
    const queue = queues.get(node.region) ?? [];
    queue.push(node);
    queues.set(node.region, queue);
  }
  const found: NodeFacts[][] = [];
  for (let quota = 1; [...queues.values()].some(({ length }) => length > 0); quota *= 3) {
    for (let colour = 0; colour < graph.colours; colour++) {
      const regions = [...queues].filter(([region]) => graph.colour(region) === colour);
      const group = regions.flatMap(([, queue]) => queue.splice(0, quota));
      if (group.length > 0) found.push(group);
    }
  }
  return found;
}
