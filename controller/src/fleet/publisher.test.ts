/** Single steps of the publisher. That it always gets there, whatever goes wrong, is test/model's to prove. */
import type { Clock } from '@katafract/shared/clock';
import type { Digest, Generation, Lineage, NodeId } from '@katafract/shared/units';
import type { Heartbeat, Hello } from '@katafract/shared/uplink';
import { describe, expect, it } from 'vitest';
import type { Advance, Update } from './changes.ts';
import { NodePublisher, type PublisherEvent } from './publisher.ts';
import type { Head } from './rules.ts';

const NODE = 'node-a' as NodeId;
const digest = (letter: string) => letter.repeat(32) as Digest;
const at = (lineage: number, generation: number, letter: string) => ({
  lineage: lineage as Lineage,
  generation: generation as Generation,
  digest: digest(letter),
});
const head = (lineage: number, generation: number, letter: string): Head => ({
  ...at(lineage, generation, letter),
  swept: 0 as Generation,
});
const hello = (position: ReturnType<typeof at>, want: 'delta' | 'snapshot' = 'delta'): Hello => ({
  v: 1,
  boot: 'boot0001',
  version: '1.0.0',
  ...position,
  want,
});
const step = (to: number, letter: string, lineage = 1): Advance => ({
  node: NODE,
  lineage: lineage as Lineage,
  from: (to - 1) as Generation,
  to: to as Generation,
  digest: digest(letter),
  peerCount: 0,
  set: [],
  del: [],
});

/** A publisher over a database that is just its head; time stands still. */
function publisher(start: Head) {
  const database = { head: start };
  const sent: string[] = [];
  const events: PublisherEvent['kind'][] = [];
  const update = (kind: Update['kind'], from: number): Update => {
    const { generation: to, ...rest } = database.head;
    return { kind, node: NODE, ...rest, from: from as Generation, to, set: [], del: [] };
  };
  const clock: Clock = { now: () => 0, after: () => () => undefined };
  const it = new NodePublisher(
    NODE,
    { head: start, acked: { lineage: 0 as Lineage, generation: 0 as Generation } },
    {
      clock,
      log: {
        head: async () => database.head,
        delta: async (_, from) => update('delta', from),
        snapshot: async () => update('snapshot', 0),
        raiseLineage: async (_, above) => {
          database.head = { ...database.head, lineage: (above + 1) as Lineage };
          return database.head;
        },
      },
      send: async (_, [message]) => {
        sent.push(`${message?.kind} ${message?.lineage}/${message?.to}`);
        return 0;
      },
      onEvent: ({ kind }) => events.push(kind),
    },
  );
  return { publisher: it, database, sent, events };
}

/** Lets everything that was set off run its course. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

/** What a wait has come to so far. */
function outcome(wait: Promise<boolean>): { value: boolean | null } {
  const seen: { value: boolean | null } = { value: null };
  void wait.then((value) => {
    seen.value = value;
  });
  return seen;
}

describe('acknowledgement', () => {
  it('comes with `applied`, not with a hello: what a node holds need not be in its kernel yet', async () => {
    const { publisher: it } = publisher(head(1, 3, 'a'));
    const wait = outcome(it.waitFor(at(1, 3, 'a'), 1000));
    it.hello(hello(at(1, 3, 'a')));
    await settle();
    expect(wait.value).toBeNull();
    it.applied({ v: 1, ...at(1, 3, 'a') });
    await settle();
    expect(wait.value).toBe(true);
  });

  it('comes with a heartbeat of the right table, unless the firewall is not in place', async () => {
    const { publisher: it } = publisher(head(1, 3, 'a'));
    const beat = { ...at(1, 3, 'a'), rules: 'failed' } as Heartbeat;
    it.heartbeat(beat);
    expect(it.acked.generation).toBe(0);
    it.heartbeat({ ...beat, rules: 'ok' });
    expect(it.acked.generation).toBe(3);
  });

  it('counts only for a table that is ours', async () => {
    const { publisher: it } = publisher(head(1, 3, 'a'));
    it.advance(step(4, 'b'));
    it.applied({ v: 1, ...at(1, 3, 'f') });
    expect(it.acked.generation).toBe(0);
  });
});

describe('a database that has lost transactions under a running controller', () => {
  it('is found out when its head is read, and a new lineage begins', async () => {
    const { publisher: it, database, sent, events } = publisher(head(1, 5, 'a'));
    it.hello(hello(at(1, 5, 'a')));
    it.applied({ v: 1, ...at(1, 5, 'a') });
    const lost = outcome(it.waitFor(at(1, 6, 'b'), 1000));
    it.advance(step(6, 'b'));
    await settle();
    database.head = head(1, 4, 'c');
    it.wake(database.head);
    await settle();
    expect(events).toContain('lineage_raised');
    expect(it.head).toMatchObject({ lineage: 2, generation: 4 });
    expect(lost.value).toBe(false);
    expect(it.acked).toEqual({ lineage: 0, generation: 0 });
    expect(sent.at(-1)).toBe('snapshot 2/4');
  });

  it('is found out when what it has to send is older than what it had', async () => {
    const { publisher: it, database, sent } = publisher(head(1, 5, 'a'));
    database.head = head(1, 4, 'c');
    it.hello(hello(at(1, 4, 'c')));
    await settle();
    expect(sent).toEqual(['snapshot 2/4']);
  });

  it('is found out when it gives a number out again, and nobody is told that the new change is in force', async () => {
    const { publisher: it, database, events } = publisher(head(1, 5, 'a'));
    it.hello(hello(at(1, 5, 'a')));
    it.applied({ v: 1, ...at(1, 5, 'a') });
    database.head = head(1, 5, 'c');
    it.advance(step(5, 'c'));
    const wait = outcome(it.waitFor(at(1, 5, 'c'), 1000));
    await settle();
    expect(events).toContain('lineage_raised');
    expect(wait.value).toBe(false);
    expect(it.acked).toEqual({ lineage: 0, generation: 0 });
    it.applied({ v: 1, ...at(2, 5, 'c') });
    expect(it.holds(5 as Generation)).toBe(true);
  });

  it('is not suspected for good where commits are only announced in the other order', async () => {
    const { publisher: it, database, events } = publisher(head(1, 5, 'a'));
    database.head = head(1, 7, 'c');
    it.advance(step(7, 'c'));
    it.advance(step(6, 'b'));
    it.hello(hello(at(1, 5, 'a')));
    await settle();
    it.applied({ v: 1, ...at(1, 7, 'c') });
    expect(events).not.toContain('lineage_raised');
    expect(it.holds(7 as Generation)).toBe(true);
  });
});

it('answers a node that never received anything, also where there is nothing yet', async () => {
  const { publisher: it, sent } = publisher(head(1, 0, '0'));
  it.hello(hello(at(1, 0, '0'), 'snapshot'));
  await settle();
  expect(sent).toEqual(['snapshot 1/0']);
});
