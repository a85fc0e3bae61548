/**
 * The generation log in SQL against the model's: the same operations on a real Postgres and on plain data give the
 * same answers. And what plain data cannot show: many transactions at once on the same nodes.
 */
import { randomUUID } from 'node:crypto';
import type { Update } from '@katafract/controller/fleet/changes';
import {
  type ConfigOf,
  commitChanges,
  type RowChange,
  raiseLineage,
  readDelta,
  readHead,
  readSnapshot,
  sweepTombstones,
} from '@katafract/controller/fleet/log';
import { Reports } from '@katafract/controller/fleet/reports';
import { type Database, openDatabase } from '@katafract/controller/platform/db';
import { createLogger } from '@katafract/controller/platform/log';
import { systemClock } from '@katafract/shared/clock';
import type { NodeConfig, PeerTuple } from '@katafract/shared/desired';
import { EMPTY_DIGEST, setDigest } from '@katafract/shared/digest';
import type { Cidr4, Cidr6, Digest, Generation, Lineage, NodeId, PublicKey } from '@katafract/shared/units';
import fc from 'fast-check';
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { LogModel, type TableChange } from './log-model.ts';
import { tuple } from './peers.ts';

const NODES = ['node-a', 'node-b', 'node-c'] as NodeId[];
const CONFIG: NodeConfig = {
  listenPort: 51820,
  mtu: 1420,
  gateway4: '10.64.0.1/10' as Cidr4,
  gateway6: 'fd00::1/64' as Cidr6,
};
const configOf: ConfigOf = ({ listenPort, mtu }, { haven }) => ({
  ...CONFIG,
  listenPort,
  mtu,
  ...(haven === null ? {} : { haven }),
});

const place = useDatabase();
let db: Database;
let reports: Reports;

beforeAll(async () => {
  db = await openDatabase(place.url, createLogger('silent'), { max: 12 });
  reports = new Reports(db, systemClock, 'model', {
    written: () => undefined,
    failed: (error) => expect.fail(String(error)),
  });
  await db.sql`insert into regions (id, name, country, latitude, longitude) values ('fra', 'Frankfurt', 'DE', 50, 8)`;
});
afterAll(async () => {
  await reports.stop();
  await db.close();
});
beforeEach(emptyNodes);

async function emptyNodes(): Promise<void> {
  await db.sql`delete from placements`;
  await db.sql`delete from node_reports`;
  await db.sql`delete from nodes`;
  for (const id of NODES) {
    await db.sql`
      insert into nodes (id, region_id, endpoint, public_key, identity, listen_port, mtu, capacity)
      values (${id}, 'fra', 'a.example:1', ${id}, '{}', ${CONFIG.listenPort}, ${CONFIG.mtu}, 1000)`;
  }
}

function toRow(node: NodeId, [publicKey, ipv4, ipv6]: PeerTuple, removed: boolean): RowChange {
  return {
    node,
    publicKey,
    ipv4,
    ipv6,
    peer: removed ? null : (randomUUID() as never),
    role: 'primary',
    rank: 0,
  };
}

/** The changes as callers of the log write them; `rows` is where a removed row's addresses are looked up. */
function toRows(
  changes: readonly TableChange[],
  rows: (node: NodeId) => ReadonlyMap<PublicKey, PeerTuple>,
): RowChange[] {
  return changes.flatMap(({ node, set, del }) => [
    ...del.flatMap((key) => {
      const row = rows(node).get(key);
      return row ? [toRow(node, row, true)] : [];
    }),
    ...set.map((row) => toRow(node, row, false)),
  ]);
}

/** An update as a set: its rows come in no order. */
function plain(update: Update | null) {
  if (!update) return null;
  const { kind, node, lineage, from, to, digest, config, set, del } = update;
  const allowShrink = update.allowShrink ?? false;
  const rows = set.map(String).sort();
  return {
    kind,
    node,
    lineage,
    from,
    to,
    digest,
    config: config ?? null,
    allowShrink,
    rows,
    del: [...del].sort(),
  };
}

const node = fc.constantFrom(...NODES);
const key = fc.integer({ min: 0, max: 15 });
/** Keys that change on a node: what is there goes, what is not comes. */
const toggles = fc.array(fc.record({ node, key, address: key }), { minLength: 1, maxLength: 8 });
type Step =
  | { do: 'commit'; toggles: { node: NodeId; key: number; address: number }[] }
  | { do: 'configure'; node: NodeId; mtu: number; listenPort: number }
  | { do: 'raise'; node: NodeId; above: number }
  /** The node was heard to have applied what is `behind` its head. */
  | { do: 'report'; node: NodeId; behind: number; lineageBehind: number }
  | { do: 'allow'; node: NodeId }
  | { do: 'sweep' };
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ do: fc.constant('commit' as const), toggles }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('configure' as const),
      node,
      mtu: fc.integer({ min: 1280, max: 1500 }),
      listenPort: fc.integer({ min: 1, max: 65535 }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('raise' as const), node, above: fc.integer({ min: 0, max: 4 }) }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('report' as const),
      node,
      behind: fc.integer({ min: 0, max: 3 }),
      lineageBehind: fc.constantFrom(0, 0, 0, 1),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('allow' as const), node }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('sweep' as const) }) },
);

function toChanges(
  model: LogModel,
  list: readonly { node: NodeId; key: number; address: number }[],
): TableChange[] {
  return NODES.flatMap((id) => {
    const { rows } = model.state(id);
    const mine = new Map(list.filter((one) => one.node === id).map((one) => [one.key, one]));
    const tuples = [...mine.values()].map((one) => tuple(one.key, one.address));
    const set = tuples.filter(([publicKey]) => !rows.has(publicKey));
    const del = tuples.map(([publicKey]) => publicKey).filter((publicKey) => rows.has(publicKey));
    return set.length + del.length > 0 ? [{ node: id, set, del }] : [];
  });
}

/** Does one step on both sides; they must give the same answer. */
async function both(model: LogModel, one: Step): Promise<void> {
  if (one.do === 'commit') {
    const changes = toChanges(model, one.toggles);
    const rows = toRows(changes, (id) => model.state(id).rows);
    const real = await db.transaction((tx) => commitChanges(tx, rows));
    const steps = model.commit(changes);
    const sorted = (list: typeof steps) =>
      list
        .map(({ set, del, ...rest }) => ({ ...rest, set: set.map(String).sort(), del: [...del].sort() }))
        .sort((a, b) => (a.node < b.node ? -1 : 1));
    expect(sorted(real)).toEqual(sorted(steps));
  } else if (one.do === 'configure') {
    await db.sql`
      update nodes set mtu = ${one.mtu}, listen_port = ${one.listenPort},
        generation = generation + 1, config_generation = generation + 1 where id = ${one.node}`;
    model.configure(one.node, { mtu: one.mtu, listenPort: one.listenPort });
  } else if (one.do === 'raise') {
    const above = one.above as Lineage;
    expect(await raiseLineage(db.sql, one.node, above)).toEqual(model.raiseLineage(one.node, above));
  } else if (one.do === 'report') {
    const { lineage, generation } = model.head(one.node);
    const applied = {
      lineage: Math.max(1, lineage - one.lineageBehind) as Lineage,
      generation: Math.max(0, generation - one.behind) as Generation,
    };
    reports.add(one.node, { appliedLineage: applied.lineage, appliedGeneration: applied.generation });
    await reports.stop(); // writes what has gathered, at once
    model.report(one.node, applied);
  } else if (one.do === 'allow') {
    await db.sql`update nodes set allow_shrink = true where id = ${one.node}`;
    model.allowShrink(one.node);
  } else {
    expect(await sweepTombstones(db.sql)).toBe(model.sweep());
  }
}

async function compare(model: LogModel): Promise<void> {
  for (const id of NODES) {
    const head = model.head(id);
    expect(await readHead(db.sql, id)).toEqual(head);
    expect(plain(await readSnapshot(db.sql, id, configOf))).toEqual(plain(model.snapshot(id)));
    for (let from = 0; from <= head.generation; from += Math.max(1, Math.floor(head.generation / 3))) {
      const after = from as Generation;
      const real = await readDelta(db.sql, id, after, configOf);
      expect(plain(real)).toEqual(plain(model.delta(id, after)));
    }
  }
}

it('gives the same answers in SQL as in plain data', async () => {
  const steps = fc.array(step, { minLength: 1, maxLength: 14, size: 'max' });
  await fc.assert(
    fc
      .asyncProperty(steps, async (list) => {
        const model = new LogModel();
        for (const id of NODES) model.add(id, 1 as Lineage, CONFIG);
        for (const one of list) await both(model, one);
        await compare(model);
      })
      .beforeEach(emptyNodes),
    { numRuns: 200 },
  );
});

it('knows no node that is not there', async () => {
  const unknown = 'node-x' as NodeId;
  expect(await readHead(db.sql, unknown)).toBeNull();
  expect(await readDelta(db.sql, unknown, 0 as Generation, configOf)).toBeNull();
  await expect(readSnapshot(db.sql, unknown, configOf)).rejects.toMatchObject({ code: 'node_unknown' });
  await expect(raiseLineage(db.sql, unknown, 1 as Lineage)).rejects.toMatchObject({ code: 'node_unknown' });
});

/** Somebody who only ever reads deltas, as a publisher does after a restart. */
class Follower {
  readonly node: NodeId;
  readonly rows = new Map<PublicKey, PeerTuple>();
  at = 0 as Generation;
  digest: Digest = EMPTY_DIGEST;

  constructor(id: NodeId) {
    this.node = id;
  }

  /** Had a generation become visible before a lower one, this would miss the lower one's rows. */
  async follow(): Promise<void> {
    const update = await readDelta(db.sql, this.node, this.at, configOf);
    if (!update) throw new Error('what it has not read yet was swept');
    for (const publicKey of update.del) this.rows.delete(publicKey);
    for (const row of update.set) this.rows.set(row[0], row);
    this.at = update.to;
    this.digest = setDigest(
      Array.from(this.rows.values(), ([publicKey, ipv4, ipv6]) => ({ publicKey, ipv4, ipv6 })),
    );
    expect(this.digest).toBe(update.digest);
  }
}

const WRITERS = 8;
const TRANSACTIONS = 40;

/** One of many writers; it changes keys of its own on nodes that it shares with the others. */
async function write(writer: number): Promise<{ node: NodeId; to: Generation }[]> {
  const mine = new Map(NODES.map((id) => [id, new Map<PublicKey, PeerTuple>()]));
  const made: { node: NodeId; to: Generation }[] = [];
  for (let turn = 0; turn < TRANSACTIONS; turn++) {
    // in every order, so that locks taken as given would deadlock
    const some = [...NODES, ...NODES].slice((writer + turn) % 3, ((writer + turn) % 3) + 2 + (turn % 2));
    const changes = (turn % 2 ? some : some.reverse()).map((id): TableChange => {
      const rows = mine.get(id) ?? new Map();
      const number = writer * 100 + (turn % 10);
      const row = tuple(number, number);
      return rows.has(row[0]) ? { node: id, set: [], del: [row[0]] } : { node: id, set: [row], del: [] };
    });
    const rows = toRows(changes, (id) => mine.get(id) ?? new Map());
    for (const one of await db.transaction((tx) => commitChanges(tx, rows))) {
      made.push({ node: one.node, to: one.to });
      for (const publicKey of one.del) mine.get(one.node)?.delete(publicKey);
      for (const row of one.set) mine.get(one.node)?.set(row[0], row);
    }
  }
  return made;
}

it('orders many transactions on the same nodes beside sweeps and reports: generations rise in commit order', async () => {
  const followers = NODES.map((id) => new Follower(id));
  let writing = true;
  const following = followers.map(async (follower) => {
    while (writing) {
      await follower.follow();
      reports.add(follower.node, { appliedLineage: 1 as Lineage, appliedGeneration: follower.at });
    }
  });
  let swept = 0;
  const sweeping = async () => {
    while (writing) {
      await reports.flush();
      swept += await sweepTombstones(db.sql);
    }
  };
  const reading = Promise.all([...following, sweeping()]);
  const written = Promise.all(Array.from({ length: WRITERS }, (_, writer) => write(writer)));
  const made = await written.finally(() => {
    writing = false;
  });
  await reading;
  expect(swept).toBeGreaterThan(0);
  for (const follower of followers) {
    await follower.follow();
    const given = made.flat().filter((one) => one.node === follower.node);
    const numbers = given.map((one) => one.to).sort((a, b) => a - b);
    expect(numbers).toEqual(numbers.map((_, index) => index + 1));
    const [row] = await db.sql<{ rows: number; count: number }[]>`
      select (select count(*)::int from placements where node_id = n.id and not removed) as rows, peer_count as count
      from nodes n where id = ${follower.node}`;
    expect(row).toEqual({ rows: follower.rows.size, count: follower.rows.size });
  }
});
