/**
 * Regions, nodes and peers by the million, straight into the tables: each peer where the real placement puts it, each
 * node's digest what its rows make it.
 */
import { randomBytes } from 'node:crypto';
import type { Writable } from 'node:stream';
import { Placement } from '@katafract/controller/fleet/placement';
import type { Candidate } from '@katafract/controller/fleet/rules';
import type { Sql } from '@katafract/controller/platform/db';
import { uuidv7 } from '@katafract/controller/platform/ids';
import { type AddressPlan, addressesAt } from '@katafract/shared/addresses';
import { EMPTY_DIGEST, entryDigest, type PeerEntry } from '@katafract/shared/digest';
import type { Digest, Generation, Lineage, NodeId, PublicKey, RegionId } from '@katafract/shared/units';
import type { Random } from '../model/random.ts';
import { SimulatedNode } from './node.ts';

export interface Size {
  readonly regions: number;
  readonly nodes: number;
  readonly peers: number;
}

const PEERS_A_SUBSCRIPTION = 10;
const STANDBYS = 2;
/** Of its nodes' room a full fleet uses so much. */
const FILL = 0.65;
const PROVIDERS = ['alpha', 'beta', 'gamma'];
/** Nodes that keep every row, so that their digest is worked out. */
const WITH_TABLE = 40;
const CHUNK = 5000;

type Row = { -readonly [Field in keyof Candidate]: Candidate[Field] } & { digest: bigint };

function layOut(size: Size, random: Random, now: number) {
  const regions = Array.from({ length: size.regions }, (_, at) => ({
    id: `r${String(at + 1).padStart(3, '0')}` as RegionId,
    latitude: random.next() * 115 - 50,
    longitude: random.next() * 360 - 180,
  }));
  const capacity = Math.ceil((size.peers * (STANDBYS + 1)) / size.nodes / FILL);
  const nodes = Array.from({ length: size.nodes }, (_, at): Row => {
    const region =
      regions[at < regions.length * 2 ? at % regions.length : random.integer(0, regions.length - 1)];
    if (!region) throw new Error('there are regions');
    const { id, latitude, longitude } = region;
    return {
      ...{
        id: `node-${String(at + 1).padStart(5, '0')}` as NodeId,
        region: id,
        place: { latitude, longitude },
      },
      ...{ state: 'active', health: 'ok', provider: PROVIDERS[random.integer(0, 2)] ?? null },
      ...{ capacity, peerCount: 0, cpu: 0, bandwidth: 0, lastSeen: now, digest: 0n },
    };
  });
  return { regions, nodes };
}

async function write(target: Writable, text: string): Promise<void> {
  if (!target.write(text)) await new Promise<void>((resolve) => target.once('drain', () => resolve()));
}

async function finish(target: Writable): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    target.once('error', reject);
    target.end(() => resolve());
  });
}

/** Takes indexes and constraints off a table, and puts them back: a million rows into a bare table are much quicker. */
async function bare(sql: Sql, table: string): Promise<() => Promise<void>> {
  const constraints = await sql<{ name: string; definition: string }[]>`
    select conname as name, pg_get_constraintdef(oid) as definition from pg_constraint
    where conrelid = ${table}::regclass and contype in ('p', 'u', 'f') order by contype`;
  for (const { name } of constraints) await sql.unsafe(`alter table ${table} drop constraint ${name}`);
  const indexes = await sql<{ name: string; definition: string }[]>`
    select indexname as name, indexdef as definition from pg_indexes where tablename = ${table}`;
  for (const { name } of indexes) await sql.unsafe(`drop index ${name}`);
  return async () => {
    for (const { name, definition } of constraints) {
      await sql.unsafe(`alter table ${table} add constraint ${name} ${definition}`);
    }
    for (const { definition } of indexes) await sql.unsafe(definition);
    await sql.unsafe(`analyze ${table}`);
  };
}

/** Makes everybody. @returns the nodes as they know themselves */
export async function populate(
  sql: Sql,
  plan: AddressPlan,
  size: Size,
  { random, now }: { random: Random; now: number },
): Promise<SimulatedNode[]> {
  const { regions, nodes } = layOut(size, random, now);
  await sql`
    insert into regions (id, name, country, latitude, longitude)
    select id, id, 'DE', latitude, longitude
    from jsonb_to_recordset(${sql.json(regions as never)}) as r(id text, latitude float8, longitude float8)`;
  const restore = [await bare(sql, 'placements'), await bare(sql, 'peers')];
  const tables = new Map(nodes.slice(0, WITH_TABLE).map(({ id }) => [id, new Map<PublicKey, PeerEntry>()]));
  await settle(sql, plan, nodes, size.peers, { random, now, tables });
  for (const step of restore) await step();
  await insertNodes(sql, nodes, now);
  return nodes.map(({ id, region, digest }) => {
    const holds = { lineage: 1 as Lineage, generation: 1 as Generation, digest: hex(digest) };
    return new SimulatedNode(id, region, holds, tables.get(id) ?? null);
  });
}

const hex = (digest: bigint) => digest.toString(16).padStart(EMPTY_DIGEST.length, '0') as Digest;

/** Places the devices of each subscription, which come together and go to the same exits, and counts them there. */
async function settle(
  sql: Sql,
  plan: AddressPlan,
  nodes: readonly Row[],
  count: number,
  at: { random: Random; now: number; tables: ReadonlyMap<NodeId, Map<PublicKey, PeerEntry>> },
): Promise<void> {
  const { random, now, tables } = at;
  const placement = new Placement(nodes);
  const byId = new Map(nodes.map((node) => [node.id, node]));
  // one statement is open on each: three connections at once
  const peers =
    await sql`copy peers (id, subscription_id, public_key, address_index, region_id) from stdin`.writable();
  const rows =
    await sql`copy placements (node_id, public_key, peer_id, ipv4, ipv6, role, rank, generation) from stdin`.writable();
  const owners = await sql`copy subscriptions (id, tier, expires_at, peer_count) from stdin`.writable();
  const expires = new Date(now + 300 * 86_400_000).toISOString();
  let owner = '';
  let region = '' as RegionId;
  let exits: readonly NodeId[] = [];
  for (let from = 0; from < count; from += CHUNK) {
    const texts = { peers: '', rows: '', owners: '' };
    const keys = randomBytes(CHUNK * 32);
    for (let peer = from; peer < Math.min(count, from + CHUNK); peer++) {
      if (peer % PEERS_A_SUBSCRIPTION === 0) {
        owner = uuidv7(now);
        region = nodes[random.integer(0, nodes.length - 1)]?.region ?? region;
        exits = placement.place({ region, standbys: STANDBYS, now }).map(({ node }) => node);
        texts.owners += `${owner}\tpro\t${expires}\t${Math.min(PEERS_A_SUBSCRIPTION, count - peer)}\n`;
      }
      const start = (peer - from) * 32;
      const publicKey = keys.subarray(start, start + 32).toString('base64') as PublicKey;
      const index = plan.first + peer;
      const entry: PeerEntry = { publicKey, ...addressesAt(plan, index) };
      const fold = BigInt(`0x${entryDigest(entry)}`);
      const id = uuidv7(now);
      texts.peers += `${id}\t${owner}\t${publicKey}\t${index}\t${region}\n`;
      for (const [rank, exit] of exits.entries()) {
        const node = byId.get(exit);
        if (!node) throw new Error('placement names nodes that there are');
        node.peerCount += 1;
        node.digest ^= fold;
        tables.get(exit)?.set(publicKey, entry);
        const role = rank === 0 ? 'primary' : 'standby';
        texts.rows += `${exit}\t${publicKey}\t${id}\t${entry.ipv4}\t${entry.ipv6}\t${role}\t${rank}\t1\n`;
      }
    }
    await write(owners, texts.owners);
    await write(peers, texts.peers);
    await write(rows, texts.rows);
  }
  await Promise.all([finish(owners), finish(peers), finish(rows)]);
  await sql`
    insert into address_pool (id, drawn, sequential_until, prefix4) values (1, 0, ${plan.first + count}, ${plan.prefix4})
    on conflict (id) do update set sequential_until = excluded.sequential_until`;
}

async function insertNodes(sql: Sql, nodes: readonly Row[], now: number): Promise<void> {
  const seen = new Date(now - 5000).toISOString();
  const list = nodes.map(({ id, region, provider, capacity, peerCount, digest }) => ({
    ...{ id, region, provider, capacity, peerCount, key: randomBytes(32).toString('base64') },
    digest: digest.toString(2).padStart(128, '0'),
  }));
  await sql`
    with given as (
      select * from jsonb_to_recordset(${sql.json(list as never)}) as r(
        id text, region text, provider text, capacity int, "peerCount" int, key text, digest text)
    ), made as (
      insert into nodes (id, region_id, state, endpoint, public_key, identity, listen_port, mtu, capacity, provider,
                         peer_count, generation, digest)
      select id, region, 'active', '192.0.2.1:51820', key, '{"kty":"OKP"}', 51820, 1420, capacity, provider,
             "peerCount", 1, digest::bit(128)
      from given returning id
    )
    insert into node_reports (node_id, applied_lineage, applied_generation, agent_version, last_seen_at)
    select id, 1, 1, '0.1.0', ${seen} from made`;
  await sql`analyze`;
}
