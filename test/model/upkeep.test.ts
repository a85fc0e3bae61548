/**
 * Releases and reboots over random fleets in simulated time, with random failures, slow nodes and operators who
 * interfere. Everything that decides is the shipped code; see upkeep-world.ts.
 */
import { isNight } from '@katafract/controller/fleet/upkeep/graph-rules';
import { APART_MS, WELL_WITHIN_MS } from '@katafract/controller/fleet/upkeep/reboot-rules';
import type { NodeId } from '@katafract/shared/units';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Fate, MINUTE, OLD, SECOND, type Shape, UpkeepWorld } from './upkeep-world.ts';

const RUNS = 20;
const LOOK_MS = 5 * SECOND;
/** Reboots take hours, and nothing about them is decided in seconds. */
const PAUSE_MS = 30 * SECOND;
const NEW = '2.0.0';
const HOUR = 60 * MINUTE;
/** For every node to have spoken. */
const BEGIN_MS = 15 * SECOND;

const shape: fc.Arbitrary<Shape> = fc.record({
  seed: fc.nat(),
  regions: fc.array(
    fc
      .record({
        exits: fc.integer({ min: 1, max: 4 }),
        spared: fc.integer({ min: 1, max: 4 }),
        latitude: fc.integer({ min: 35, max: 60 }),
        longitude: fc.integer({ min: -10, max: 40 }),
      })
      .map(({ exits, spared, ...place }) => ({ exits, minExits: Math.max(0, exits - spared), ...place })),
    { minLength: 1, maxLength: 6 },
  ),
});

const working = ({ part }: UpkeepWorld['nodes'][number]) => part?.state === 'updating';

/** What must hold after every look, whatever the release. */
function checkWork(world: UpkeepWorld, started: readonly NodeId[]): void {
  const busy = new Set(world.nodes.filter(working).map(({ region }) => region));
  for (const region of busy) {
    for (const near of world.graph.neighbours(region)) expect(busy.has(near)).toBe(false);
  }
  for (const id of started) {
    const { region } = world.node(id);
    expect(world.well(region)).toBeGreaterThanOrEqual(world.graph.regions.get(region)?.minExits ?? 0);
  }
}

/** Until the rollout has ended. @returns the nodes that were ever told the version */
function rollOut(world: UpkeepWorld, interfere: () => void): Set<NodeId> {
  const told = new Set<NodeId>();
  for (const end = world.now + 48 * HOUR; world.now < end && !world.rollout?.ended; ) {
    world.live(LOOK_MS);
    interfere();
    const steps = world.roll();
    const started = steps.flatMap((step) => (step.do === 'start' ? [step.node] : []));
    for (const id of started) told.add(id);
    checkWork(world, started);
  }
  expect(world.rollout?.ended).toBe(true);
  return told;
}

const wish = { soakMs: MINUTE, timeoutMs: 5 * MINUTE, maxFailures: 1 };

describe('a release', () => {
  it('that is good reaches every node, whoever fails beside it and whatever operators do meanwhile', () => {
    fc.assert(
      fc.property(shape, fc.nat(3), (fleet, trouble) => {
        const world = new UpkeepWorld(fleet);
        world.live(BEGIN_MS);
        world.begin(NEW, wish);
        rollOut(world, () => {
          const { rollout, random } = world;
          if (rollout?.state === 'paused' && random() < 0.05) world.resume();
          if (rollout?.state === 'running' && random() < 0.002 * trouble) world.pause();
          // a machine fails that the release has nothing to do with, and comes back
          const at = Math.floor(random() * world.nodes.length);
          const node = world.nodes[at];
          // a machine that dies in the very moment of its turn looks like a bad release, and counts as one
          const [wave, current] = [node?.part?.wave ?? 0, rollout?.wave ?? 0];
          const bystander = wave < current || wave > current + 1;
          if (node && bystander && random() < 0.003 * trouble)
            node.silentUntil = world.now + random() * 10 * MINUTE;
        });
        expect(world.rollout?.state).toBe('done');
        for (const node of world.nodes) {
          expect(['updated', 'skipped']).toContain(node.part?.state);
          expect(node.told.agentVersion).toBe(NEW);
        }
      }),
      { numRuns: RUNS, endOnFailure: true },
    );
  });

  it.each(['restored', 'sick', 'gone'] as const)(
    'that is bad (%s) never leaves the canary wave, and goes back by itself',
    (fate: Fate) => {
      fc.assert(
        fc.property(shape, (fleet) => {
          const world = new UpkeepWorld(fleet);
          world.fate = (version) => (version === NEW ? fate : 'good');
          world.live(BEGIN_MS);
          world.begin(NEW, wish);
          const told = rollOut(world, () => undefined);
          expect(world.rollout?.state).toBe('rolled_back');
          expect(world.rollout?.reason).toMatch(/^canary failed/);
          for (const id of told) expect(world.node(id).part?.wave).toBe(0);
          expect(told.size).toBeLessThanOrEqual(Math.max(1, Math.ceil(world.nodes.length / 100)));
          for (const node of world.nodes) {
            if (node.silentUntil !== Number.POSITIVE_INFINITY) expect(node.version).toBe(OLD);
            expect(node.told.agentVersion ?? OLD).toBe(OLD);
          }
        }),
        { numRuns: RUNS, endOnFailure: true },
      );
    },
  );

  it('that fails on some only: as many as are allowed, or everything goes back', () => {
    fc.assert(
      fc.property(
        shape,
        fc.integer({ min: 0, max: 3 }),
        fc.integer({ min: 5, max: 60 }),
        (fleet, allowed, percent) => {
          const world = new UpkeepWorld(fleet);
          world.fate = (version) => (version === NEW && world.random() * 100 < percent ? 'restored' : 'good');
          world.live(BEGIN_MS);
          world.begin(NEW, { ...wish, maxFailures: allowed });
          rollOut(world, () => undefined);
          const failed = world.nodes.filter(({ part }) => part?.state === 'failed');
          if (world.rollout?.state === 'done') {
            expect(failed.length).toBeLessThanOrEqual(allowed);
            for (const { version, part } of world.nodes) {
              expect(version).toBe(part?.state === 'failed' ? OLD : NEW);
            }
          } else {
            expect(world.rollout?.state).toBe('rolled_back');
            for (const { version } of world.nodes) expect(version).toBe(OLD);
          }
        },
      ),
      { numRuns: RUNS, endOnFailure: true },
    );
  });
});

describe('reboots', () => {
  const tick = (world: UpkeepWorld) => {
    world.live(PAUSE_MS);
    return world.reboot().flatMap((step) => (step.do === 'lease' ? [step] : []));
  };

  function checkLease(world: UpkeepWorld, id: string): void {
    const lease = world.reboots.find((one) => one.id === id);
    if (!lease) throw new Error('no such lease');
    const { region } = world.node(lease.node);
    const facts = world.graph.regions.get(region);
    expect(world.well(region)).toBeGreaterThanOrEqual(facts?.minExits ?? 0);
    if (facts && !lease.anyTime) expect(isNight(facts, world.now)).toBe(true);
    const near = new Set([region, ...world.graph.neighbours(region)]);
    for (const other of world.reboots) {
      if (other.id === id || other.leasedAt === null || !near.has(world.node(other.node).region)) continue;
      expect(other.endedAt).not.toBeNull();
      expect(world.now - (other.endedAt ?? 0)).toBeGreaterThanOrEqual(APART_MS);
    }
  }

  it('go one of a region at a time, never beside a neighbour, at night, each lease once, until all are done', () => {
    fc.assert(
      fc.property(shape, fc.integer({ min: 1, max: 3 }), (fleet, share) => {
        const world = new UpkeepWorld(fleet);
        world.live(BEGIN_MS);
        for (const node of world.nodes) {
          if (world.random() * 3 < share) node.rebootNeeded = true;
          else if (world.random() < 0.2) world.want(node.id, true);
        }
        const wanting = world.nodes.filter(({ rebootNeeded }) => rebootNeeded);
        for (const end = world.now + 30 * HOUR; world.now < end; ) {
          for (const { id } of tick(world)) checkLease(world, id);
          const open = world.reboots.some(({ endedAt }) => endedAt === null);
          if (!open && wanting.every(({ rebootNeeded }) => !rebootNeeded)) break;
        }
        expect(world.reboots.filter(({ state }) => state !== 'done')).toEqual([]);
        const minutes = new Map<string, number>();
        for (const { reboots, region } of world.nodes) {
          expect(new Set(reboots.map(({ lease }) => lease)).size).toBe(reboots.length);
          for (const { at } of reboots) {
            const minute = Math.floor(at / MINUTE);
            for (const near of world.graph.neighbours(region))
              expect(minutes.get(`${near} ${minute}`)).toBeUndefined();
            minutes.set(`${region} ${minute}`, at);
          }
        }
      }),
      { numRuns: RUNS, endOnFailure: true },
    );
  });

  it('one that does not come back keeps all others from going until it was seen to', () => {
    fc.assert(
      fc.property(shape, (fleet) => {
        const world = new UpkeepWorld(fleet);
        let lost: NodeId | null = null;
        world.fate = (_, node) => {
          lost ??= node.id;
          return node.id === lost ? 'gone' : 'good';
        };
        world.live(BEGIN_MS);
        for (const { id } of world.nodes) world.want(id, true);
        for (const end = world.now + HOUR; world.now < end; )
          for (const { id } of tick(world)) checkLease(world, id);
        const failed = world.reboots.filter(({ state }) => state === 'failed');
        expect(failed.map(({ node }) => node)).toEqual([lost]);
        const [{ leasedAt, endedAt } = { leasedAt: 0, endedAt: 0 }] = failed;
        expect((endedAt ?? 0) - (leasedAt ?? 0)).toBeLessThanOrEqual(WELL_WITHIN_MS + PAUSE_MS);
        for (const other of world.reboots) {
          if (other.leasedAt !== null && other.endedAt !== null && other.state === 'done') {
            expect(other.leasedAt).toBeLessThanOrEqual(endedAt ?? 0);
          }
        }
        const before = world.reboots.filter(({ state }) => state === 'done').length;
        for (let looks = 0; looks < 20; looks++) expect(tick(world)).toEqual([]);
        world.reboots = world.reboots.map((one) => ({ ...one, cleared: one.state === 'failed' }));
        if (lost) world.node(lost).revive(world.now);
        const open = () => world.reboots.some(({ state }) => state === 'wanted' || state === 'leased');
        for (const end = world.now + 12 * HOUR; world.now < end && open(); ) tick(world);
        const waiting = world.reboots.filter(({ state }) => state === 'wanted');
        expect(waiting).toEqual([]);
        expect(world.reboots.filter(({ state }) => state === 'done').length).toBeGreaterThanOrEqual(before);
      }),
      { numRuns: RUNS / 2, endOnFailure: true },
    );
  });
});
