/**
 * A fleet in simulated time for the rules of upkeep: the controller's own rules (health, releases, reboots) and the
 * agent's own plan decide everything; only machines, messages and the database between them are made up.
 */

import type { RequestName } from '@katafract/agent/helper/requests';
import { planUpkeep, reportUpkeep, type UpkeepFacts } from '@katafract/agent/upkeep/plan';
import { judge, recall, type Verdict } from '@katafract/controller/fleet/health';
import type { Effect, Telling } from '@katafract/controller/fleet/upkeep/effects-rules';
import { effectOf, rebootTelling } from '@katafract/controller/fleet/upkeep/effects-rules';
import { isWell, type NodeFacts, type RolloutPart } from '@katafract/controller/fleet/upkeep/facts';
import {
  type RegionFacts,
  type RegionGraph,
  regionGraph,
} from '@katafract/controller/fleet/upkeep/graph-rules';
import {
  type RebootFacts,
  type RebootStep,
  stepReboots,
} from '@katafract/controller/fleet/upkeep/reboot-rules';
import {
  type RolloutFacts,
  type RolloutStep,
  stepRollout,
} from '@katafract/controller/fleet/upkeep/rollout-rules';
import { planWaves } from '@katafract/controller/fleet/upkeep/waves-rules';
import { NodeId, RegionId } from '@katafract/shared/units';
import type { Upkeep, UpkeepReport } from '@katafract/shared/upkeep';
import { Random as Chance } from './random.ts';

export const SECOND = 1000;
export const MINUTE = 60 * SECOND;
const BEAT_MS = 10 * SECOND;
export const OLD = '1.0.0';

/** What becomes of a node that installs a release, or reboots. */
export type Fate = 'good' | 'restored' | 'sick' | 'gone';

type Random = () => number;
const NOTHING: UpkeepFacts['requests']['update'] = { pending: null, result: null };

const wish = (upkeep: Upkeep) => ({ upkeep, haven: null, sshFromMesh: false });

export class SimNode {
  readonly id: NodeId;
  readonly region: RegionId;
  version = OLD;
  /** What it was last told, and what it has heard of that. */
  told: Upkeep = {};
  #heard: Upkeep = {};
  silentUntil = 0;
  sick = false;
  rebootNeeded = false;
  #facts: Omit<UpkeepFacts, 'rebootNeeded'>;
  heardAt: number;
  #nextBeat: number;
  said: (UpkeepReport & { version: string }) | null = null;
  verdict: Verdict;
  maintenanceUntil: number | null = null;
  part: RolloutPart | null = null;
  leased = false;
  /** When it rebooted, and by which lease. */
  readonly reboots: { at: number; lease: string }[] = [];

  constructor(id: NodeId, region: RegionId, now: number, random: Random) {
    this.id = id;
    this.region = region;
    this.heardAt = now;
    this.#nextBeat = now + random() * BEAT_MS;
    this.verdict = recall({ state: 'ok', reason: 'well', since: now, flaps: 0 });
    const requests = { update: NOTHING, reboot: NOTHING, updates: NOTHING, haven: NOTHING, ssh: NOTHING };
    this.#facts = { requests, lease: null, boot: 'boot 0', alive: null };
  }

  get facts(): NodeFacts {
    const { id, region, part, leased, verdict, said } = this;
    return {
      id,
      region,
      lifecycle: 'active',
      health: verdict.state,
      load: 0.5,
      maintained: this.maintenanceUntil !== null,
      leased,
      runs: said?.version ?? OLD,
      said: said && {
        version: said.version,
        sound: !this.sick,
        updateFailed: said.agentUpdate === 'failed',
        rebootNeeded: said.rebootNeeded,
        lease: said.lease ?? null,
        skew: 0,
      },
      part,
    };
  }

  /** Somebody has been there. */
  revive(now: number): void {
    this.silentUntil = now;
    this.#nextBeat = now;
  }

  /** Takes what it was told, acts, and speaks when it is time. */
  live(now: number, fate: (what: string) => Fate, random: Random): void {
    if (now < this.silentUntil) return;
    this.#heard = this.told;
    const seen = () => ({
      ...this.#facts,
      rebootNeeded: this.rebootNeeded,
      version: this.version,
      connected: true,
      now,
    });
    for (const action of planUpkeep(wish(this.#heard), seen())) {
      if (action.do === 'request') this.#set(action.name, { pending: action.request, result: null });
      else if (action.do === 'forget') this.#set(action.name, NOTHING);
      else if (action.do === 'remember') this.#facts = { ...this.#facts, lease: action };
      else this.#facts = { ...this.#facts, alive: action.version };
    }
    this.#help(now, fate, random);
    if (now < this.silentUntil || now < this.#nextBeat) return;
    this.#nextBeat = now + BEAT_MS * (0.9 + 0.2 * random());
    this.heardAt = now;
    this.said = { ...reportUpkeep(wish(this.#heard), seen()), version: this.version };
  }

  #set(name: RequestName, request: UpkeepFacts['requests']['update']): void {
    this.#facts = { ...this.#facts, requests: { ...this.#facts.requests, [name]: request } };
  }

  /** The helper takes what was asked up. */
  #help(now: number, fate: (what: string) => Fate, random: Random): void {
    const { update, reboot } = this.#facts.requests;
    const away = (ms: number) => {
      this.silentUntil = now + ms;
      this.#nextBeat = this.silentUntil;
    };
    if (update.pending) {
      const { version } = update.pending as { version: string };
      const what = fate(version);
      const done = what !== 'restored';
      this.#set('update', {
        pending: null,
        result: { request: update.pending, outcome: done ? 'done' : 'failed', at: now },
      });
      if (done) this.version = version;
      this.sick = what === 'sick';
      away(
        what === 'gone'
          ? Number.POSITIVE_INFINITY
          : (what === 'restored' ? 70 : 5) * SECOND + random() * 20 * SECOND,
      );
    } else if (reboot.pending) {
      const { lease } = reboot.pending as { lease: string };
      this.#set('reboot', { pending: null, result: { request: reboot.pending, outcome: 'done', at: now } });
      this.reboots.push({ at: now, lease });
      this.rebootNeeded = false;
      this.#facts = { ...this.#facts, boot: `boot ${this.reboots.length}` };
      away(fate(lease) === 'good' ? 20 * SECOND + random() * 150 * SECOND : Number.POSITIVE_INFINITY);
    }
  }
}

export interface Shape {
  /** Exits of each region, and how many of them must stay. */
  readonly regions: readonly { exits: number; minExits: number; latitude: number; longitude: number }[];
  readonly seed: number;
}

export class UpkeepWorld {
  readonly graph: RegionGraph;
  readonly nodes: SimNode[] = [];
  readonly random: Random;
  now = Date.UTC(2026, 0, 15, 23);
  rollout: (RolloutFacts & { timeoutSeconds: number; ended: boolean }) | null = null;
  reboots: RebootFacts[] = [];
  fate: (what: string, node: SimNode) => Fate = () => 'good';

  constructor({ regions, seed }: Shape) {
    this.random = new Chance(seed).next;
    const facts: RegionFacts[] = regions.map(({ latitude, longitude, minExits }, at) => ({
      id: RegionId.parse(`r${at}`),
      latitude,
      longitude,
      timeZone: null,
      minExits,
    }));
    this.graph = regionGraph(facts);
    for (const [at, { exits }] of regions.entries()) {
      for (let exit = 1; exit <= exits; exit++) {
        this.nodes.push(
          new SimNode(NodeId.parse(`r${at}-${exit}`), RegionId.parse(`r${at}`), this.now, this.random),
        );
      }
    }
  }

  #byId(): Map<NodeId, NodeFacts> {
    return new Map(this.nodes.map((node) => [node.id, node.facts]));
  }

  /** Time passes for everybody, and the fleet is judged. */
  live(ms: number): void {
    this.now += ms;
    const { now } = this;
    for (const node of this.nodes) {
      node.live(now, (what) => this.fate(what, node), this.random);
      if (node.maintenanceUntil !== null && node.maintenanceUntil <= now) node.maintenanceUntil = null;
      const seen = {
        expectedUntil: node.maintenanceUntil,
        heardAt: node.heardAt,
        left: false,
        beat: node.heardAt,
        applied: '',
        behind: false,
        mismatch: false,
        rules: node.sick ? ('failed' as const) : ('ok' as const),
        dns: 'off' as const,
      };
      node.verdict = judge(node.verdict, seen, { now, hearingSince: 0 });
    }
  }

  begin(version: string, wish: { soakMs: number; timeoutMs: number; maxFailures: number }): void {
    const waves = planWaves(
      this.graph,
      this.nodes.map(({ facts }) => facts),
    );
    for (const node of this.nodes) {
      const wave = waves.get(node.id);
      if (wave === undefined) throw new Error('a node without a wave');
      node.part = { wave, state: 'waiting', before: null, since: this.now, reason: null };
    }
    this.rollout = {
      ...wish,
      timeoutSeconds: wish.timeoutMs / 1000,
      version,
      state: 'running',
      wave: 0,
      waves: Math.max(...waves.values()) + 1,
      waveSince: this.now,
      unwell: 0,
      reason: null,
      ended: false,
    };
  }

  /** One look at the rollout. @returns the steps taken */
  roll(): RolloutStep[] {
    const { rollout, graph, now } = this;
    if (!rollout || rollout.ended) return [];
    const byId = this.#byId();
    const steps = stepRollout({ rollout, graph, nodes: [...byId.values()], now });
    for (const step of steps) {
      const effect = effectOf(rollout, step, byId, now);
      if (effect) this.#affect(effect);
      else if (step.do === 'wave') {
        Object.assign(rollout, { wave: step.wave, unwell: step.unwell, waveSince: now });
      } else if (step.do === 'pause') Object.assign(rollout, { state: 'paused', reason: step.reason });
      else if (step.do === 'roll_back')
        Object.assign(rollout, { state: 'rolling_back', reason: step.reason });
      else if (step.do === 'end') Object.assign(rollout, { state: step.state, ended: true });
    }
    return steps;
  }

  /** An operator halts it. */
  pause(): void {
    if (this.rollout) Object.assign(this.rollout, { state: 'paused' });
  }

  /** An operator has it go on. */
  resume(): void {
    const unwell = this.nodes.filter(({ verdict }) => verdict.state !== 'ok').length;
    if (this.rollout) Object.assign(this.rollout, { state: 'running', unwell, waveSince: this.now });
  }

  #affect({ part, telling }: Effect): void {
    const node = this.node(part.node);
    const wave = node.part?.wave ?? 0;
    node.part = { ...part, wave, since: this.now };
    this.#tell(telling);
  }

  #tell({ node: id, upkeep, maintenanceUntil }: Telling): void {
    const node = this.node(id);
    const told = Object.entries({ ...node.told, ...upkeep }).filter(([, value]) => value !== null);
    const next = Object.fromEntries(told) as Upkeep;
    // what it said before it knows of this counts no more
    if (JSON.stringify(next) !== JSON.stringify(node.told)) node.said = null;
    node.told = next;
    if (maintenanceUntil !== undefined) node.maintenanceUntil = maintenanceUntil;
  }

  want(node: NodeId, anyTime: boolean): void {
    const id = crypto.randomUUID();
    const { now } = this;
    this.reboots.push({
      id,
      node,
      anyTime,
      state: 'wanted',
      wantedAt: now,
      leasedAt: null,
      until: null,
      endedAt: null,
      cleared: false,
    });
  }

  /** One look at the reboots. @returns the steps taken */
  reboot(): RebootStep[] {
    const { graph, now, reboots } = this;
    const steps = stepReboots({ graph, nodes: [...this.#byId().values()], reboots, now });
    for (const step of steps) {
      const telling = rebootTelling(step, now);
      if (telling) this.#tell(telling);
      if (step.do === 'want') {
        this.want(step.node, false);
        continue;
      }
      const change: Partial<RebootFacts> =
        step.do === 'lease'
          ? { state: 'leased', leasedAt: now, until: step.until }
          : step.do === 'done'
            ? { state: 'done', endedAt: now }
            : { state: 'failed', endedAt: now, cleared: step.reason === 'unused' };
      this.reboots = this.reboots.map((one) => (one.id === step.id ? { ...one, ...change } : one));
      this.node(step.node).leased = step.do === 'lease';
    }
    return steps;
  }

  node(id: NodeId): SimNode {
    const node = this.nodes.find((one) => one.id === id);
    if (!node) throw new Error(`no node ${id}`);
    return node;
  }

  /** Exits of a region that serve and that nothing is done to. */
  well(region: RegionId): number {
    return this.nodes.filter((node) => node.region === region && isWell(node.facts)).length;
  }
}
