/** The controller's tables, looked at directly: a digest of all of them, their whole text, and what must hold in them. */

import { bitsToDigest } from '@katafract/controller/platform/columns';
import { addressesAt } from '@katafract/shared/addresses';
import { setDigest } from '@katafract/shared/digest';
import type { Ipv4, Ipv6, PublicKey } from '@katafract/shared/units';
import { expect } from 'vitest';
import type { TestController } from './controller.ts';

type Sql = TestController['ctx']['db']['sql'];

async function tableNames(sql: Sql): Promise<string[]> {
  const rows = await sql<{ name: string }[]>`
    select tablename as name from pg_tables where schemaname = 'public' order by 1`;
  return rows.map((row) => row.name);
}

/**
 * One hash over every row of every table. Without `node_reports`: what nodes say of themselves arrives at any time,
 * and no request writes it.
 */
export async function tablesDigest(sql: Sql): Promise<() => Promise<string>> {
  const names = (await tableNames(sql)).filter((name) => name !== 'node_reports');
  const one = (name: string) =>
    `select '${name}' as name, coalesce(string_agg(t::text, E'\\n' order by t::text), '') as rows from ${name} t`;
  const query = `select md5(string_agg(name || rows, '' order by name)) as digest from (${names.map(one).join(' union all ')}) x`;
  return async () => {
    const [row] = await sql.unsafe<{ digest: string }[]>(query);
    return row?.digest ?? '';
  };
}

/** Every row of every table as text. */
export async function tablesText(sql: Sql): Promise<string> {
  const texts = await Promise.all(
    (await tableNames(sql)).map(async (name) => {
      const rows = await sql.unsafe<{ row: string }[]>(`select t::text as row from ${name} t`);
      return rows.map(({ row }) => `${name} ${row}`).join('\n');
    }),
  );
  return texts.join('\n');
}

interface Placed {
  node: string;
  publicKey: PublicKey;
  ipv4: Ipv4;
  ipv6: Ipv6;
  role: string;
  peer: string;
  peerKey: string | null;
  index: number | null;
  ahead: boolean;
}

/** What must hold between the tables after whatever happened: every stored sum equals its recount. */
export async function expectConsistent({ ctx }: TestController): Promise<void> {
  const { sql } = ctx.db;
  const placed = await sql<Placed[]>`
    select x.node_id as node, x.public_key as "publicKey", x.ipv4, x.ipv6, x.role, x.peer_id as peer,
           p.public_key as "peerKey", p.address_index as index, x.generation > n.generation as ahead
    from placements x join nodes n on n.id = x.node_id left join peers p on p.id = x.peer_id where not x.removed`;
  const nodes = await sql<{ id: string; digest: string; count: number }[]>`
    select id, digest::text, peer_count as count from nodes`;
  for (const node of nodes) {
    const rows = placed.filter((row) => row.node === node.id);
    expect.soft(bitsToDigest(node.digest), `digest of ${node.id}`).toBe(setDigest(rows));
    expect.soft(node.count, `peer_count of ${node.id}`).toBe(rows.length);
  }
  for (const row of placed) {
    const at = `${row.publicKey} on ${row.node}`;
    expect.soft(row.peerKey, `the peer of ${at}`).toBe(row.publicKey);
    expect
      .soft({ ipv4: row.ipv4, ipv6: row.ipv6 }, at)
      .toEqual(addressesAt(ctx.config.plan, row.index ?? -1));
    expect.soft(row.ahead, `generation of ${at}`).toBe(false);
  }
  const odd = await sql`
    select p.id from peers p
    where (select count(*) from placements x where x.peer_id = p.id and x.role = 'primary') <> 1
       or exists (select 1 from resting_addresses r where r.address_index = p.address_index)
       or not exists (
         select 1 from address_pool a, lateral (select (1 << (32 - a.prefix4)) / 8 as size) part
         where p.address_index < a.sequential_until
            or (p.address_index % part.size - p.address_index / part.size + part.size) % part.size * 8
                 + p.address_index / part.size < a.drawn)`;
  expect
    .soft(odd, 'peers without one primary, or with an address that rests or was never given out')
    .toEqual([]);
  const sums = await sql`
    select s.id, s.peer_count, count(p.id)::int as peers from subscriptions s
    left join peers p on p.subscription_id = s.id group by s.id having s.peer_count <> count(p.id)`;
  expect.soft(sums, 'subscriptions whose peer_count is wrong').toEqual([]);
}
