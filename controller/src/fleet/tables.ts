/**
 * Regions, nodes, join tokens, and the generation log. What a node should be (nodes, placements) and what it said of
 * itself (node_reports) are apart, so that a busy fleet's reports never wait for a provisioning transaction's locks.
 */
import type { Haven } from '@katafract/shared/haven';
import type { NodePublicJwk } from '@katafract/shared/node-token';
import type {
  Endpoint,
  Generation,
  Ipv4,
  Ipv6,
  Lineage,
  NodeId,
  PeerId,
  PublicKey,
  RegionId,
} from '@katafract/shared/units';
import type { Upkeep } from '@katafract/shared/upkeep';
import type { Heartbeat } from '@katafract/shared/uplink';
import { sql } from 'drizzle-orm';
import {
  bigint,
  boolean,
  check,
  doublePrecision,
  index,
  integer,
  jsonb,
  pgTable,
  primaryKey,
  text,
  uniqueIndex,
  uuid,
} from 'drizzle-orm/pg-core';
import { digest128, when } from '../platform/columns.ts';
import type { HealthReason, HealthState } from './health.ts';
import type { Growth } from './machines/provider.ts';

export const regions = pgTable('regions', {
  id: text().$type<RegionId>().primaryKey(),
  name: text().notNull(),
  /** ISO 3166-1 alpha-2. */
  country: text().notNull(),
  latitude: doublePrecision().notNull(),
  longitude: doublePrecision().notNull(),
  /** IANA name: when it is night there. By longitude where nobody said. */
  timeZone: text('time_zone'),
  /** Exits that must stay well while others of the region are updated or rebooted. A region of one leans on its neighbours. */
  minExits: integer('min_exits').notNull().default(0),
  /** How it grows by itself (machines/); null: an operator is told instead. */
  growth: jsonb().$type<Growth>(),
  /** How its exits filter DNS; null: they do not. Sent with their config. */
  haven: jsonb().$type<Haven>(),
  /** SSH of its exits is for the mesh alone. Sent with their config. */
  sshFromMesh: boolean('ssh_from_mesh').notNull().default(false),
  createdAt: when('created_at').notNull().defaultNow(),
});

/**
 * The life that operators and the system give a node; whether it is well is another matter (node_health). `joining`
 * until the first hello; `cordoned` keeps its peers and gets no new ones; `draining` loses them one by one, and is
 * `drained` without any; `retired` may not connect.
 */
export const NODE_STATES = ['joining', 'active', 'cordoned', 'draining', 'drained', 'retired'] as const;
export type NodeState = (typeof NODE_STATES)[number];

export const nodes = pgTable(
  'nodes',
  {
    id: text().$type<NodeId>().primaryKey(),
    regionId: text('region_id')
      .$type<RegionId>()
      .notNull()
      .references(() => regions.id),
    state: text().$type<NodeState>().notNull().default('joining'),
    endpoint: text().$type<Endpoint>().notNull(),
    publicKey: text('public_key').$type<PublicKey>().notNull().unique(),
    identity: jsonb().$type<NodePublicJwk>().notNull(),
    listenPort: integer('listen_port').notNull(),
    /** Tunnel interfaces, for as long as the node lives: where a client's packets go follows from it. */
    tunnels: integer().notNull().default(1),
    mtu: integer().notNull(),
    /** Peers it may carry. */
    capacity: integer().notNull(),
    /** What its line carries, in Mbit/s, where somebody said. */
    bandwidthMbit: integer('bandwidth_mbit'),
    /** Whose machine it is, so that a peer's exits are spread. */
    provider: text(),
    peerCount: integer('peer_count').notNull().default(0),
    lineage: bigint({ mode: 'number' })
      .$type<Lineage>()
      .notNull()
      .default(1 as Lineage),
    generation: bigint({ mode: 'number' })
      .$type<Generation>()
      .notNull()
      .default(0 as Generation),
    digest: digest128().notNull().default(sql`repeat('0', 128)::bit(128)`),
    /** Generation at which the node's config last changed. */
    configGeneration: bigint('config_generation', { mode: 'number' })
      .$type<Generation>()
      .notNull()
      .default(0 as Generation),
    /** Tombstones up to here are gone: who holds less needs a snapshot. */
    sweptGeneration: bigint('swept_generation', { mode: 'number' })
      .$type<Generation>()
      .notNull()
      .default(0 as Generation),
    /** What it is to do for itself besides serving: sent with its config. */
    upkeep: jsonb().$type<Upkeep>(),
    /** Until then it may be silent, since it was told to update or reboot; null while nothing of the kind is under way. */
    maintenanceUntil: when('maintenance_until'),
    /** An operator's consent to the next snapshot removing more than half of the table. */
    allowShrink: boolean('allow_shrink').notNull().default(false),
    createdAt: when('created_at').notNull().defaultNow(),
    retiredAt: when('retired_at'),
  },
  (table) => [
    index('nodes_region').on(table.regionId),
    check(
      'nodes_state',
      sql`${table.state} in ('joining', 'active', 'cordoned', 'draining', 'drained', 'retired')`,
    ),
  ],
);

/** What each node last said: written in batches, without waiting for the disk, since the node will say it again. */
export const nodeReports = pgTable('node_reports', {
  nodeId: text('node_id')
    .$type<NodeId>()
    .primaryKey()
    .references(() => nodes.id),
  appliedLineage: bigint('applied_lineage', { mode: 'number' })
    .$type<Lineage>()
    .notNull()
    .default(0 as Lineage),
  appliedGeneration: bigint('applied_generation', { mode: 'number' })
    .$type<Generation>()
    .notNull()
    .default(0 as Generation),
  agentVersion: text('agent_version'),
  lastSeenAt: when('last_seen_at'),
  /** When its last will came; null again once it was heard. */
  leftAt: when('left_at'),
  /** The last heartbeat: aggregates only. */
  health: jsonb().$type<Heartbeat>(),
});

/** How each node was last judged to be (health.ts). A row appears with the first judgement. */
export const nodeHealth = pgTable(
  'node_health',
  {
    nodeId: text('node_id')
      .$type<NodeId>()
      .primaryKey()
      .references(() => nodes.id),
    state: text().$type<HealthState>().notNull(),
    reason: text().$type<HealthReason>().notNull(),
    since: when('since').notNull(),
    flaps: integer().notNull(),
  },
  (table) => [check('node_health_state', sql`${table.state} in ('ok', 'suspect', 'down')`)],
);

export const DRAIN_STATES = ['running', 'paused', 'cancelled', 'done'] as const;
export type DrainState = (typeof DRAIN_STATES)[number];

/** Each time a node was to be emptied. What is left to do is in `placements` alone, so it can go on after any crash. */
export const drains = pgTable(
  'drains',
  {
    id: uuid().primaryKey(),
    nodeId: text('node_id')
      .$type<NodeId>()
      .notNull()
      .references(() => nodes.id),
    state: text().$type<DrainState>().notNull(),
    wantedBy: text('wanted_by').notNull(),
    /** The node's state before, which it gets back where the drain is cancelled. */
    before: text().$type<NodeState>().notNull(),
    /** When the node should be empty: exits that were left let go by then. */
    deadline: when('deadline'),
    /** Peers it had, and those that were given other exits. */
    total: integer().notNull(),
    moved: integer().notNull().default(0),
    /** Peers that no other exit could take at the last look. */
    stranded: integer().notNull().default(0),
    startedAt: when('started_at').notNull(),
    endedAt: when('ended_at'),
  },
  (table) => [
    uniqueIndex('drains_open').on(table.nodeId).where(sql`${table.state} in ('running', 'paused')`),
    index('drains_node').on(table.nodeId, table.startedAt),
    check('drains_state', sql`${table.state} in ('running', 'paused', 'cancelled', 'done')`),
  ],
);

/** `leaving`: replaced by a move, kept until `release_at` so that the device can switch before it breaks. */
export const PLACEMENT_ROLES = ['primary', 'standby', 'leaving'] as const;
export type PlacementRole = (typeof PLACEMENT_ROLES)[number];

/**
 * One row per key on a node: at once the node's desired table and its generation log, since each row carries the
 * generation that last touched it. A removal stays as a tombstone until its node has passed it.
 */
export const placements = pgTable(
  'placements',
  {
    /** Of `nodes`, which are never deleted. No foreign key: rows are only written under that node's lock, see log.ts. */
    nodeId: text('node_id').$type<NodeId>().notNull(),
    publicKey: text('public_key').$type<PublicKey>().notNull(),
    /** Null in a tombstone. */
    peerId: uuid('peer_id').$type<PeerId>(),
    ipv4: text().$type<Ipv4>().notNull(),
    ipv6: text().$type<Ipv6>().notNull(),
    role: text().$type<PlacementRole>().notNull(),
    /** Order in which a device tries its exits: 0 is the primary. */
    rank: integer().notNull(),
    generation: bigint({ mode: 'number' }).$type<Generation>().notNull(),
    removed: boolean().notNull().default(false),
    releaseAt: when('release_at'),
  },
  (table) => [
    primaryKey({ columns: [table.nodeId, table.publicKey] }),
    index('placements_log').on(table.nodeId, table.generation),
    index('placements_peer').on(table.peerId),
    index('placements_release').on(table.releaseAt).where(sql`${table.releaseAt} is not null`),
    check('placements_tombstone', sql`${table.removed} = (${table.peerId} is null)`),
    check('placements_role', sql`${table.role} in ('primary', 'standby', 'leaving')`),
  ],
);

export const joinTokens = pgTable('join_tokens', {
  id: uuid().primaryKey(),
  /** SHA-256 of the secret, hex; the token itself is shown once and kept nowhere. */
  hash: text().notNull().unique(),
  regionId: text('region_id')
    .$type<RegionId>()
    .notNull()
    .references(() => regions.id),
  /** Name the node will have. */
  nodeId: text('node_id').$type<NodeId>().notNull(),
  endpoint: text().$type<Endpoint>(),
  capacity: integer().notNull(),
  /** Tunnel interfaces that the node will have. */
  tunnels: integer().notNull().default(1),
  createdBy: text('created_by').notNull(),
  createdAt: when('created_at').notNull().defaultNow(),
  expiresAt: when('expires_at').notNull(),
  usedAt: when('used_at'),
  /** RFC 7638 thumbprint of the identity that used it: the same identity may repeat a lost answer. */
  usedBy: text('used_by'),
});
