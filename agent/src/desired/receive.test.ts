import type { Desired } from '@katafract/shared/desired';
import { EMPTY_DIGEST, setDigest } from '@katafract/shared/digest';
import type { Lineage } from '@katafract/shared/units';
import { describe, expect, test } from 'vitest';
import { CONFIG, delta, held, peer, peers, snapshot, whole } from '../testing/messages.ts';
import { type Receiver, receive, type Staging, type Verdict } from './receive.ts';
import { type Held, PeerTable } from './table.ts';

const one = 1 as Lineage;
const at = (state: Held | null, staging: Staging | null = null): Receiver => ({
  held: state,
  enrolledLineage: one,
  staging,
});

/** Takes messages one after the other, staging in between; the last verdict. */
function takeAll(state: Held | null, messages: readonly Desired[]): Verdict {
  let staging: Staging | null = null;
  let verdict: Verdict | undefined;
  for (const message of messages) {
    verdict = receive(at(state, staging), message);
    if (verdict.kind === 'stage') staging = verdict.staging;
  }
  if (!verdict) throw new Error('no message');
  return verdict;
}

/** The table after an accepted change. */
function applied(state: Held | null, verdict: Verdict): string {
  if (verdict.kind !== 'accept') throw new Error(`not accepted: ${JSON.stringify(verdict)}`);
  const table = new PeerTable(verdict.change.kind === 'snapshot' ? [] : state?.peers.values());
  table.apply(verdict.change);
  expect(setDigest(table.values())).toBe(verdict.change.digest);
  return Array.from(table.values(), (row) => `${Number(atob(row.publicKey))}@${row.ipv4}`)
    .sort()
    .join(' ');
}

describe('a delta', () => {
  const state = held(3, 7, peers(1, 3));

  test('on what is held is accepted', () => {
    const verdict = receive(
      at(state),
      delta(3, 7, 8, { set: [peer(4)], del: [2], after: [peer(1), peer(3), peer(4)] }),
    );
    expect(applied(state, verdict)).toBe('1@10.64.0.1 3@10.64.0.3 4@10.64.0.4');
  });

  test.each([7, 6, 1])('to %i, which is held already, is ignored and answered again', (to) => {
    const verdict = receive(at(state), delta(3, to - 1, to, { set: [peer(9)], after: [peer(9)] }));
    expect(verdict).toEqual({ kind: 'ignore', acknowledge: true });
  });

  test.each([
    [8, 9],
    [6, 8],
  ])('from %i to %i is a gap', (from, to) => {
    expect(receive(at(state), delta(3, from, to, { after: peers(1, 3) }))).toEqual({ kind: 'gap' });
  });

  test('of a later lineage is a gap: its numbers are of another history', () => {
    expect(receive(at(state), delta(4, 7, 8, { after: peers(1, 3) }))).toEqual({ kind: 'gap' });
  });

  test('of an earlier lineage is stale', () => {
    const verdict = receive(at(state), delta(2, 7, 8, { after: peers(1, 3) }));
    expect(verdict).toEqual({ kind: 'refuse', reason: 'stale', resend: false });
  });

  test('is a gap while nothing was ever received', () => {
    expect(receive(at(null), delta(1, 0, 1, { set: [peer(1)], after: [peer(1)] }))).toEqual({ kind: 'gap' });
  });

  test('that does not come out at its digest is refused, and a snapshot asked for', () => {
    const verdict = receive(at(state), delta(3, 7, 8, { set: [peer(4)], after: peers(1, 5) }));
    expect(verdict).toEqual({ kind: 'refuse', reason: 'digest', resend: true });
  });

  test('removes before it sets: a key in both stays', () => {
    const verdict = receive(
      at(state),
      delta(3, 7, 8, { set: [peer(2, 9)], del: [2], after: [peer(1), peer(2, 9), peer(3)] }),
    );
    expect(applied(state, verdict)).toBe('1@10.64.0.1 2@10.64.0.9 3@10.64.0.3');
  });

  test('may remove a key that is not held', () => {
    const verdict = receive(at(state), delta(3, 7, 8, { del: [77], after: peers(1, 3) }));
    expect(applied(state, verdict)).toBe('1@10.64.0.1 2@10.64.0.2 3@10.64.0.3');
  });

  test('may move an address from a key that goes', () => {
    const verdict = receive(
      at(state),
      delta(3, 7, 8, { set: [peer(4, 2)], del: [2], after: [peer(1), peer(3), peer(4, 2)] }),
    );
    expect(applied(state, verdict)).toBe('1@10.64.0.1 3@10.64.0.3 4@10.64.0.2');
  });

  test('may swap the addresses of two keys', () => {
    const after = [peer(1, 2), peer(2, 1), peer(3)];
    const verdict = receive(at(state), delta(3, 7, 8, { set: [peer(1, 2), peer(2, 1)], after }));
    expect(applied(state, verdict)).toBe('1@10.64.0.2 2@10.64.0.1 3@10.64.0.3');
  });

  test('that leaves one address with two keys is refused', () => {
    const verdict = receive(
      at(state),
      delta(3, 7, 8, { set: [peer(4, 2)], after: [...peers(1, 3), peer(4, 2)] }),
    );
    expect(verdict).toEqual({ kind: 'refuse', reason: 'address', resend: false });
    const both = receive(
      at(state),
      delta(3, 7, 8, { set: [peer(4, 9), peer(5, 9)], after: [...peers(1, 3), peer(4, 9), peer(5, 9)] }),
    );
    expect(both).toEqual({ kind: 'refuse', reason: 'address', resend: false });
  });

  test('carries a new config', () => {
    const config = { ...CONFIG, mtu: 1400 };
    const verdict = receive(at(state), delta(3, 7, 8, { after: peers(1, 3), config }));
    expect(verdict).toMatchObject({ kind: 'accept', change: { config } });
  });

  test('in two parts waits for both, whatever their order', () => {
    const whole = delta(3, 7, 8, { set: [peer(4), peer(5)], del: [1], after: peers(2, 5) });
    const first: Desired = { ...whole, parts: 2, set: whole.set.slice(0, 1), del: [] };
    const second: Desired = { ...whole, parts: 2, part: 2, set: whole.set.slice(1) };
    expect(receive(at(state), second).kind).toBe('stage');
    expect(applied(state, takeAll(state, [second, first]))).toBe(
      '2@10.64.0.2 3@10.64.0.3 4@10.64.0.4 5@10.64.0.5',
    );
  });
});

describe('a snapshot', () => {
  const state = held(3, 7, peers(1, 3));

  test('is accepted while nothing was ever received, empty or not', () => {
    expect(receive(at(null), whole(1, 0, []))).toMatchObject({
      kind: 'accept',
      change: { generation: 0, digest: EMPTY_DIGEST, set: [] },
    });
    expect(applied(null, takeAll(null, snapshot(1, 5, [peer(1)])))).toBe('1@10.64.0.1');
  });

  test('of a lineage before the one of enrollment is stale even then', () => {
    const receiver = { held: null, enrolledLineage: 2 as Lineage, staging: null };
    expect(receive(receiver, whole(1, 5, [peer(1)]))).toMatchObject({ reason: 'stale' });
  });

  test('is staged until every part is there, doubled and reordered', () => {
    const [a, b, c] = snapshot(3, 9, peers(1, 9), { parts: 3 }) as [Desired, Desired, Desired];
    expect(takeAll(state, [c, a, a, c]).kind).toBe('stage');
    expect(applied(state, takeAll(state, [c, a, a, c, b])).split(' ')).toHaveLength(9);
  });

  test('that is newer replaces what was staged, and older parts do not replace it', () => {
    const old = snapshot(3, 9, peers(1, 9), { parts: 2 });
    const [first, second] = snapshot(3, 10, peers(1, 4), { parts: 2 }) as [Desired, Desired];
    const [oldFirst, oldSecond] = old as [Desired, Desired];
    expect(applied(state, takeAll(state, [oldFirst, first, oldSecond, second])).split(' ')).toHaveLength(4);
  });

  test('never lowers the generation or the lineage', () => {
    for (const message of [...snapshot(3, 6, peers(1, 9)), ...snapshot(2, 99, peers(1, 9))]) {
      expect(receive(at(state), message)).toEqual({ kind: 'refuse', reason: 'stale', resend: false });
    }
  });

  test('of a later lineage may lower the generation', () => {
    expect(applied(state, takeAll(state, snapshot(4, 2, [peer(8)])))).toBe('8@10.64.0.8');
  });

  test('of exactly what is held calls for a full reconcile', () => {
    expect(takeAll(state, snapshot(3, 7, peers(1, 3), { config: CONFIG }))).toEqual({ kind: 'same' });
  });

  test('of the same numbers with other content is a conflict', () => {
    const other = whole(3, 7, peers(1, 4));
    expect(receive(at(state), other)).toEqual({ kind: 'refuse', reason: 'conflict', resend: true });
    const config = { ...CONFIG, mtu: 1300 };
    expect(takeAll(state, snapshot(3, 7, peers(1, 3), { config }))).toMatchObject({ reason: 'conflict' });
    const kept = { ...CONFIG, upkeep: { agentVersion: '2.0.0' } };
    expect(takeAll(state, snapshot(3, 7, peers(1, 3), { config: kept }))).toMatchObject({
      reason: 'conflict',
    });
  });

  test('whose rows are not those it was signed for is refused', () => {
    const verdict = takeAll(state, snapshot(3, 8, peers(1, 4), { digest: setDigest(peers(1, 5)) }));
    expect(verdict).toEqual({ kind: 'refuse', reason: 'digest', resend: true });
  });

  test('with one address twice is refused', () => {
    const verdict = takeAll(state, snapshot(3, 8, [peer(1), peer(2, 1)]));
    expect(verdict).toMatchObject({ reason: 'address' });
  });
});

describe('a snapshot that shrinks the table', () => {
  const large = held(1, 5, peers(1, 100));

  test('to half is accepted, below it refused, and with the signed consent accepted', () => {
    expect(takeAll(large, snapshot(1, 6, peers(1, 50))).kind).toBe('accept');
    expect(takeAll(large, snapshot(1, 6, peers(1, 49)))).toEqual({
      kind: 'refuse',
      reason: 'shrink',
      resend: false,
    });
    expect(takeAll(large, snapshot(1, 6, [], { allowShrink: true })).kind).toBe('accept');
  });

  test('by replacing everything is refused although its size is the same', () => {
    expect(takeAll(large, snapshot(2, 1, peers(101, 200)))).toMatchObject({ reason: 'shrink' });
  });

  test('needs the consent in every part', () => {
    const parts = snapshot(1, 6, peers(1, 10), { parts: 2, allowShrink: true });
    const [first, second] = parts as [Desired, Desired];
    const { allowShrink: _, ...without } = second as Desired & { allowShrink?: true };
    expect(takeAll(large, [first, without as Desired])).toMatchObject({ reason: 'shrink' });
  });

  test('may empty a table of fewer than 100 rows', () => {
    expect(takeAll(held(1, 5, peers(1, 99)), snapshot(1, 6, [])).kind).toBe('accept');
  });
});
