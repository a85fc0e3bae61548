/**
 * The model can fail: one part is broken at a time, in the way somebody might break it, and some seed must notice.
 * Receiver, plan and publisher are broken by replacing the module with one that differs in that one rule; ports by
 * handing the agent or the publisher one that lies.
 */
import type { AgentPorts } from '@katafract/agent/agent';
import type { PublisherPorts } from '@katafract/controller/fleet/publisher';
import type { Desired } from '@katafract/shared/desired';
import { EMPTY_DIGEST } from '@katafract/shared/digest';
import type { Digest, Generation } from '@katafract/shared/units';
import type { Hello } from '@katafract/shared/uplink';
import { decodeJwt } from 'jose';
import { afterEach, expect, it, vi } from 'vitest';
import { scripts } from './script.ts';
import { violationOf } from './seeds.ts';
import type { Tampering } from './world.ts';

/** Which rule is out of force. */
const broken = vi.hoisted(() => ({ rule: '' }));

vi.mock('@katafract/shared/desired', async (original) => {
  const real = await original<typeof import('@katafract/shared/desired')>();
  const verifyDesired: typeof real.verifyDesired = async (jws, key, node) => {
    const read = () => real.Desired.parse(decodeJwt(jws));
    if (broken.rule === 'signature') return read();
    if (broken.rule === 'node') {
      const { node: named } = decodeJwt<Desired>(jws);
      return real.verifyDesired(jws, key, named);
    }
    return real.verifyDesired(jws, key, node);
  };
  return { ...real, verifyDesired };
});

vi.mock('@katafract/agent/desired/receive', async (original) => {
  const real = await original<typeof import('@katafract/agent/desired/receive')>();
  const { digestAfter, fromTuple, NO_ROWS } = await import('@katafract/agent/desired/table');
  const receive: typeof real.receive = (receiver, message) => {
    const { held } = receiver;
    if (broken.rule === 'stale' && message.kind === 'snapshot') {
      return real.receive({ ...receiver, held: null, enrolledLineage: message.lineage }, message);
    }
    if (broken.rule === 'digest' && message.parts === 1) {
      const remove = message.kind === 'delta' ? message.del : [];
      const change = { kind: message.kind, remove, set: message.set.map(fromTuple) };
      const digest = digestAfter(change, held?.peers ?? NO_ROWS, held?.digest ?? EMPTY_DIGEST);
      return real.receive(receiver, { ...message, digest });
    }
    return real.receive(receiver, message);
  };
  return { ...real, receive };
});

vi.mock('@katafract/agent/plan/peers', async (original) => {
  const real = await original<typeof import('@katafract/agent/plan/peers')>();
  const planTable: typeof real.planTable = (held, seen, known, doubtful) => {
    if (broken.rule !== 'rogue peers') return real.planTable(held, seen, known, doubtful);
    const ours = new Map([...seen.different].filter(([key]) => held?.peers.get(key)));
    return real.planTable(held, { ...seen, different: ours }, known, doubtful);
  };
  return { ...real, planTable };
});

vi.mock('@katafract/controller/fleet/history', async (original) => {
  const real = await original<typeof import('@katafract/controller/fleet/history')>();
  class History extends real.History {
    override learn(...known: [Generation, Digest]): boolean {
      return super.learn(...known) || broken.rule === 'history';
    }
    override has(...known: [Generation, Digest]): boolean {
      return super.has(...known) || broken.rule === 'history';
    }
  }
  return { ...real, History };
});

vi.mock('@katafract/controller/fleet/publisher', async (original) => {
  const real = await original<typeof import('@katafract/controller/fleet/publisher')>();
  class NodePublisher extends real.NodePublisher {
    override hello(hello: Hello): void {
      if (broken.rule === 'hello acknowledges') super.applied(hello);
      super.hello(hello);
    }
  }
  return { ...real, NodePublisher };
});

afterEach(() => {
  broken.rule = '';
});

/** Seeds that a broken rule may slip through. */
const MOST = 3000;

async function noticed(tampering: Tampering = {}): Promise<string | null> {
  for (let seed = 0; seed < MOST; seed++) {
    const violation = await violationOf(scripts, seed, tampering);
    if (violation !== null) return violation;
  }
  return null;
}

it.each([
  ['signature', /never was/],
  ['node', /never was/],
  ['stale', /fell from|never was/],
  ['digest', /never was|holds \d+ peers|another table/],
  ['rogue peers', /the kernel has another table/],
  ['history', /was acknowledged before the kernel and the disk had it|heartbeats/],
  ['hello acknowledges', /was acknowledged before the kernel and the disk had it/],
])('a rule out of force: %s', async (rule, expected) => {
  broken.rule = rule;
  expect(await noticed()).toMatch(expected);
});

const agent = (change: (ports: AgentPorts) => Partial<AgentPorts>): Tampering => ({
  agent: (ports) => ({ ...ports, ...change(ports) }),
});
const controller = (change: (ports: PublisherPorts) => Partial<PublisherPorts>): Tampering => ({
  controller: (ports) => ({ ...ports, ...change(ports) }),
});

it.each<[string, Tampering, RegExp]>([
  [
    'a disk that answers before it has written',
    agent(({ disk }) => ({
      disk: {
        load: () => disk.load(),
        append: async (text) => void disk.append(text).catch(() => undefined),
        writeSnapshot: async (text) => void disk.writeSnapshot(text).catch(() => undefined),
        replaceJournal: (text) => disk.replaceJournal(text),
      },
    })),
    /the disk has/,
  ],
  [
    'a kernel that says it took what it did not',
    agent(({ peers }) => ({
      peers: {
        dump: (visit) => peers.dump(visit),
        set: ({ remove, set }) => peers.set({ remove, set: set.slice(1) }),
      },
    })),
    /acknowledged/,
  ],
  [
    'an agent whose timers never fire',
    agent(({ clock }) => ({
      clock: { now: () => clock.now(), elapsed: () => clock.elapsed(), after: () => () => undefined },
    })),
    /heartbeats/,
  ],
  [
    'a publisher that sends nothing twice',
    controller(({ clock }) => ({ clock: { now: () => clock.now(), after: () => () => undefined } })),
    /heartbeats/,
  ],
  [
    'a database whose lineage never rises',
    controller(({ log }) => ({
      log: {
        head: (node) => log.head(node),
        delta: (node, from) => log.delta(node, from),
        snapshot: (node) => log.snapshot(node),
        raiseLineage: async (node) => {
          const head = await log.head(node);
          if (!head) throw new Error('no such node');
          return head;
        },
      },
    })),
    /heartbeats/,
  ],
  [
    'a publisher that repeats itself for ever',
    controller(({ clock, send }) => ({
      send: async (node, messages) => {
        clock.after(9000, () => void send(node, messages).catch(() => undefined));
        return send(node, messages);
      },
    })),
    /a further pass wrote/,
  ],
])('%s', async (_, tampering, expected) => {
  expect(await noticed(tampering)).toMatch(expected);
});
