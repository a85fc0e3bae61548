/**
 * The fleet's only door: nodes, their generation logs and what they say of themselves.
 *
 *   peers ──commit(tx, changes)──► log.ts (SQL) ──advances──► announce() ──► NodePublisher ──► bus ──► node
 *                                                                 ▲                                      │
 *   waitFor(node, generation) ◄── acked ◄── applied / heartbeat ──┴──────────────────── bus ◄────────────┘
 *
 * Other controllers hear of a commit by NOTIFY in the same transaction; whoever has the node's session publishes.
 */
import { randomUUID } from 'node:crypto';
import type { AddressPlan } from '@katafract/shared/addresses';
import { addressesAt, GATEWAY_INDEX } from '@katafract/shared/addresses';
import type { Clock } from '@katafract/shared/clock';
import { type NodeConfig, signDesired } from '@katafract/shared/desired';
import type { EnrollResponse } from '@katafract/shared/enroll';
import { KatafractError } from '@katafract/shared/errors';
import { type NodePublicJwk, verifyNodeToken } from '@katafract/shared/node-token';
import { topic, type UpLeaf } from '@katafract/shared/topics';
import { Cidr4, Cidr6, type Generation, type Lineage, NodeId } from '@katafract/shared/units';
import { Applied, Heartbeat, Hello, Presence } from '@katafract/shared/uplink';
import { importJWK } from 'jose';
import type { Audit } from '../audit/audit.ts';
import type { AfterCommit, Database, Tx } from '../platform/db.ts';
import type { Keyring } from '../platform/keyring.ts';
import type { Logger } from '../platform/log.ts';
import type { Metrics } from '../platform/metrics.ts';
import { type Bus, type BusHandlers, brokerUnavailable } from './bus.ts';
import { type Advance, question } from './changes.ts';
import * as log from './log.ts';
import { createFleetMetrics, type FleetMetrics } from './metrics.ts';
import { NodePublisher, type PublisherEvent, type PublisherPorts } from './publisher.ts';
import { REPORTS_CHANNEL, type ReportNotice, type ReportRow, Reports } from './reports.ts';
import { Roster } from './roster.ts';

export interface FleetDeps {
  readonly db: Database;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly keyring: Keyring;
  readonly bus: Bus;
  readonly plan: AddressPlan;
}

export type { Bus } from './bus.ts';
export { Commands } from './commands.ts';
export { EmbeddedBroker } from './embedded-broker.ts';
export { ExternalBroker } from './external-broker.ts';
export type { RowChange } from './log.ts';
export type { Choice } from './placement.ts';
export type { RosterNode } from './roster.ts';

/** What enrolling a node takes; see enrollment.ts. */
export interface EnrollmentDeps {
  readonly db: Database;
  readonly keyring: Keyring;
  readonly audit: Audit;
  readonly fleet: Fleet;
  /** What nodes are told of the broker. */
  readonly broker: EnrollResponse['broker'];
  readonly now: () => number;
  /** What the secrets of repeated requests follow from; see platform/once.ts. */
  readonly seedSecret: Uint8Array;
}

const COMMITS_CHANNEL = 'kf_commits';
const ROSTER_CHANNEL = 'kf_roster';
/** Nodes in one notice, which is at most 8000 bytes long. */
const NAMED = 200;
/** A key id on the wire is the head of the thumbprint: it tells keys apart, the pin is what is trusted. */
const KID_LENGTH = 8;

/** Of every exit: RFC 4253. */
const SSH_PORT = 22;

export class Fleet {
  readonly roster: Roster;
  readonly metrics: FleetMetrics;
  readonly #deps: FleetDeps;
  readonly #instance = randomUUID();
  readonly #reports: Reports;
  readonly #publishers = new Map<NodeId, NodePublisher>();
  readonly #unlisten: (() => Promise<void>)[] = [];
  #obey: BusHandlers['onCommand'] = async () => {
    this.metrics.refused.inc({ reason: 'command' });
  };
  /** Null: too much was missed to tell. */
  #reported: Set<NodeId> | null = null;

  constructor(deps: FleetDeps) {
    this.#deps = deps;
    this.roster = new Roster(deps.db, deps.clock);
    this.metrics = createFleetMetrics(deps.metrics.registry, () => this.#publishers.values());
    this.#reports = new Reports(deps.db, deps.clock, this.#instance, {
      written: (nodes) => {
        this.metrics.reportRows.observe(nodes.length);
        this.#note(nodes);
      },
      failed: (err) => {
        this.#deps.metrics.survived.inc({ where: 'reports' });
        deps.log.warn({ err }, 'reports of nodes were not written; the next ones will be');
      },
    });
  }

  /** Who decides operators' commands; before `start`. Without anybody they are refused. */
  obey(decide: BusHandlers['onCommand']): void {
    this.#obey = decide;
  }

  async start(): Promise<void> {
    const { db, bus } = this.#deps;
    this.#unlisten.push(
      await db.listen(COMMITS_CHANNEL, (text) => this.#background(this.#onNotice(text), 'commit notice')),
      await db.listen(REPORTS_CHANNEL, (text) => this.#onReports(text)),
      // Also after every reconnect, when notices may have been missed.
      await db.listen(
        ROSTER_CHANNEL,
        (text) => this.#background(this.#onNotice(text), 'roster notice'),
        () => {
          this.#reported = null;
          this.#background(this.refresh(), 'listen');
        },
      ),
    );
    await this.refresh();
    await bus.start({
      onMessage: (node, leaf, payload) => this.#onMessage(node, leaf, payload),
      onCommand: (node, payload, kept) => this.#obey(node, payload, kept),
      onRefused: (reason, node) => {
        this.metrics.refused.inc({ reason });
        this.#deps.log.warn(
          { reason, ...(node ? { node } : {}) },
          'the broker refused a message or a connection',
        );
      },
      onConnection: (up) => {
        this.#deps.log.info({ reason: up ? 'up' : 'down' }, 'message broker');
        if (!up) for (const publisher of this.#publishers.values()) publisher.gone();
      },
    });
  }

  /** Reads nodes (all, or these) and the heads of their logs anew, and starts or wakes their publishers. */
  async refresh(only?: readonly NodeId[]): Promise<void> {
    const { sql } = this.#deps.db;
    const [heads] = await Promise.all([log.readHeads(sql, only), this.roster.refresh(only)]);
    const strangers = [...heads.keys()].filter((node) => !this.#publishers.has(node));
    const acked = await log.readApplied(sql, strangers);
    for (const [node, head] of heads) {
      const known = this.#publishers.get(node);
      if (known) known.wake(head);
      else this.#publishers.set(node, this.#publisher(node, head, acked.get(node)));
    }
  }

  /** Like refresh, on every controller: for whatever changes a node's row, or a region's (then all are read). */
  async changed(only?: readonly NodeId[]): Promise<void> {
    await this.#deps.db.sql`select pg_notify(${ROSTER_CHANNEL}, ${this.#notice(only)})`;
    await this.refresh(only);
  }

  /** Who says it, and which nodes it is about: none where there are too many to name. */
  #notice(nodes: readonly NodeId[] = []): string {
    return [this.#instance, ...(nodes.length > NAMED ? [] : nodes)].join(' ');
  }

  async #onNotice(text: string): Promise<void> {
    const [instance, ...nodes] = text.split(' ');
    if (instance === this.#instance) return;
    await this.refresh(nodes.length === 0 ? undefined : nodes.map((id) => NodeId.parse(id)));
  }

  /**
   * Commits changes of nodes' tables in the caller's transaction. Run what it returns once that has committed.
   * @see log.commitChanges for what a caller must keep to
   */
  async commit(
    tx: Tx,
    changes: readonly log.RowChange[],
  ): Promise<{ advances: Advance[]; announce: AfterCommit }> {
    if (changes.length === 0) return { advances: [], announce: () => undefined };
    const nodes = [...new Set(changes.map((change) => change.node))];
    const notice = this.#notice(nodes);
    const [advances] = await Promise.all([
      log.commitChanges(tx, changes),
      tx.sql`select pg_notify(${COMMITS_CHANNEL}, ${notice})`,
    ]);
    return { advances, announce: () => this.#announce(advances) };
  }

  #announce(advances: readonly Advance[]): void {
    for (const step of advances) {
      this.roster.load(step.node, step.peerCount);
      this.#publishers.get(step.node)?.advance(step);
    }
  }

  /** @throws KatafractError `broker_unavailable` (503) while nothing can be said to any node */
  assertReachable(): void {
    if (!this.#deps.bus.ready()) throw brokerUnavailable();
  }

  /** Resolves true once the node's kernel has the change, false after `ms`. Never rejects. */
  waitFor(at: Pick<Advance, 'node' | 'lineage' | 'to'>, ms: number): Promise<boolean> {
    const publisher = this.#publishers.get(at.node);
    if (!publisher) return Promise.resolve(false);
    return publisher.waitFor({ lineage: at.lineage, generation: at.to }, ms);
  }

  /** Whether the node's kernel is known to hold that generation. */
  holds(node: NodeId, generation: Generation): boolean {
    return this.#publishers.get(node)?.holds(generation) ?? false;
  }

  /** How far a node is: its newest generation, what its kernel is known to have, and whether it is connected. */
  progress(node: NodeId): { generation: number; applied: number; lineage: number; connected: boolean } {
    const publisher = this.#publishers.get(node);
    if (!publisher) return { generation: 0, applied: 0, lineage: 0, connected: false };
    const { head, acked, connected } = publisher;
    return { generation: head.generation, applied: acked.generation, lineage: head.lineage, connected };
  }

  /** Nodes of which the database has something new since this was last called; null where it may be any. */
  takeReported(): readonly NodeId[] | null {
    const taken = this.#reported;
    this.#reported = new Set();
    return taken && [...taken];
  }

  #note(nodes: readonly NodeId[]): void {
    for (const node of nodes) this.#reported?.add(node);
  }

  /** Whether nodes can be heard at the moment. */
  get hears(): boolean {
    return this.#deps.bus.ready();
  }

  /** Asks a node for a sign of life. It may be lost, as may the answer. */
  async ask(node: NodeId): Promise<void> {
    const publisher = this.#publishers.get(node);
    if (publisher && this.hears) await this.#send(node, [question(node, publisher)]);
  }

  /** The gateway and resolver inside every tunnel. */
  get gateway() {
    return addressesAt(this.#deps.plan, GATEWAY_INDEX);
  }

  /** What a node with this row is configured to. */
  configOf: log.ConfigOf = ({ listenPort, tunnels, mtu, upkeep }, { haven, sshFromMesh }): NodeConfig => {
    const { prefix4, prefix6 } = this.#deps.plan;
    return {
      listenPort,
      ...(tunnels === 1 ? {} : { tunnels }),
      mtu,
      gateway4: Cidr4.parse(`${this.gateway.ipv4}/${prefix4}`),
      gateway6: Cidr6.parse(`${this.gateway.ipv6}/${prefix6}`),
      ...(upkeep === null ? {} : { upkeep }),
      ...(haven === null ? {} : { haven }),
      ...(sshFromMesh ? { sshFromMesh: { port: SSH_PORT } } : {}),
    };
  };

  /**
   * Lets a node in at a foreign broker: checks its token here and hands the broker the result.
   * @throws KatafractError `node_token_invalid` (401)
   */
  async admit(node: NodeId, token: string): Promise<void> {
    const { db, clock, bus } = this.#deps;
    const identity = await identityOf(db, node);
    const key = identity ? await importJWK(identity, 'EdDSA') : null;
    if (!key || key instanceof Uint8Array) {
      throw new KatafractError('node_token_invalid', 'the node token is not valid', { status: 401 });
    }
    const { expiresAt } = await verifyNodeToken(token, key, {
      node,
      audience: 'katafract-broker',
      now: clock.now(),
    });
    await bus.admit(node, token, expiresAt);
  }

  async stop(): Promise<void> {
    for (const stop of this.#unlisten.splice(0)) await stop();
    for (const publisher of this.#publishers.values()) publisher.close();
    await this.#deps.bus.stop();
    await this.#reports.stop();
  }

  /** Sweeps tombstones that their nodes have passed. */
  sweep(): Promise<number> {
    return log.sweepTombstones(this.#deps.db.sql);
  }

  #publisher(node: NodeId, head: NodePublisher['head'], acked?: ReportRow): NodePublisher {
    const { db, clock } = this.#deps;
    const ports: PublisherPorts = {
      clock,
      log: {
        head: (id) => log.readHead(db.sql, id),
        delta: (id, from) => log.readDelta(db.sql, id, from, this.configOf),
        snapshot: (id) => log.readSnapshot(db.sql, id, this.configOf),
        raiseLineage: (id, above) => log.raiseLineage(db.sql, id, above),
      },
      send: (id, messages) => this.#send(id, messages),
      onEvent: (event) => this.#onEvent(event),
    };
    const start = {
      lineage: acked?.lineage ?? (0 as Lineage),
      generation: acked?.generation ?? (0 as Generation),
    };
    return new NodePublisher(node, { head, acked: start }, ports);
  }

  async #send(node: NodeId, messages: Parameters<PublisherPorts['send']>[1]): Promise<number> {
    const { privateKey, thumbprint } = this.#deps.keyring.state();
    let bytes = 0;
    // The node's `applied` says more than a broker's receipt, and what it does not answer is sent again. Only a table in
    // parts is worth receipts: a lost part costs all of them.
    const qos = messages.length > 1 ? 1 : 0;
    for (const message of messages) {
      const jws = await signDesired(message, privateKey, thumbprint.slice(0, KID_LENGTH));
      bytes += jws.length;
      await this.#deps.bus.publish(topic(node, 'desired'), jws, qos);
    }
    return bytes;
  }

  #onEvent(event: PublisherEvent): void {
    const { node } = event;
    if (event.kind === 'applied') {
      const { lineage, generation } = event;
      this.#reports.add(node, { appliedLineage: lineage, appliedGeneration: generation });
    } else if (event.kind === 'failed') {
      this.metrics.publishFailures.inc();
      this.#deps.log.warn({ node, err: event.error }, 'desired state was not sent; it will be tried again');
    } else if (event.kind === 'sent') {
      this.metrics.messages.inc({ kind: event.update });
      this.metrics.bytes.inc({ kind: event.update }, event.bytes);
      if (event.attempt > 0) this.metrics.retransmissions.inc();
    } else if (event.kind === 'mismatch') {
      this.metrics.mismatches.inc();
      this.#deps.log.warn({ node }, 'the kernel holds another table than it should: sending the whole one');
    } else {
      this.metrics.lineageRaised.inc();
      this.#deps.log.error(
        { node, lineage: event.lineage },
        'this database lost history: a new lineage begins',
      );
    }
  }

  #onMessage(node: NodeId, leaf: UpLeaf, payload: Buffer): void {
    const publisher = this.#publishers.get(node);
    if (!publisher) {
      // Enrolled at another controller a moment ago.
      this.#background(this.refresh([node]), 'unknown node');
      return;
    }
    try {
      const json: unknown = JSON.parse(payload.toString('utf8'));
      this.#dispatch(publisher, leaf, json);
      this.metrics.heard.inc({ leaf });
    } catch (error) {
      this.metrics.refused.inc({ reason: 'malformed' });
      // not the error itself: the parser's quotes the message, and nobody knows what is in that
      const code = error instanceof SyntaxError ? 'json' : 'schema';
      this.#deps.log.warn({ node, reason: leaf, code }, 'a malformed message of a node was refused');
    }
  }

  #dispatch(publisher: NodePublisher, leaf: UpLeaf, json: unknown): void {
    const { node } = publisher;
    if (leaf === 'presence') {
      if (Presence.parse(json).online) return;
      this.#reports.left(node);
      publisher.gone();
      return;
    }
    if (leaf === 'hello') {
      const hello = plausible(publisher, Hello.parse(json));
      this.roster.touch(node);
      this.#reports.add(node, { agentVersion: hello.version });
      if (this.roster.has(node) && this.roster.node(node).state === 'joining') {
        this.#background(this.#activate(node), 'activation');
      }
      publisher.hello(hello);
    } else if (leaf === 'applied') {
      const applied = plausible(publisher, Applied.parse(json));
      this.roster.touch(node);
      this.#reports.add(node, {});
      publisher.applied(applied);
    } else {
      const beat = plausible(publisher, Heartbeat.parse(json));
      this.roster.touch(node);
      this.roster.observe(node, beat);
      this.#reports.add(node, { health: beat, agentVersion: beat.version });
      publisher.heartbeat(beat);
    }
  }

  async #activate(node: NodeId): Promise<void> {
    await this.#deps.db.sql`update nodes set state = 'active' where id = ${node} and state = 'joining'`;
    await this.changed([node]);
  }

  #onReports(text: string): void {
    const notice = JSON.parse(text) as ReportNotice;
    if (notice.instance === this.#instance) return;
    this.#note([...notice.seen, ...notice.left]);
    for (const node of notice.seen) this.roster.touch(node);
    for (const { node, lineage, generation } of notice.applied) {
      this.#publishers.get(node)?.learn({ lineage, generation });
    }
  }

  /** Work that nobody waits for: its failure is counted and logged, and the next event or timer makes it good. */
  #background(work: Promise<void>, where: string): void {
    work.catch((err) => {
      this.#deps.metrics.survived.inc({ where: 'fleet' });
      this.#deps.log.warn({ err, reason: where }, 'fleet: a background step failed');
    });
  }
}

/** A lineage rises by one for each restored database; no restore lies this many behind. */
const LINEAGE_LEAP = 1_000_000;

/**
 * Lets a report through whose lineage could be true. The answer to one from the future is a lineage above it, so a
 * node that claims the highest number there is would leave no room above, for ever.
 */
function plausible<Said extends { lineage: Lineage }>({ head }: NodePublisher, said: Said): Said {
  if (said.lineage <= head.lineage + LINEAGE_LEAP) return said;
  throw new KatafractError('lineage_implausible', 'no history of this fleet goes that far');
}

/** The key a node enrolled with; null for one that is unknown or retired. */
export async function identityOf(db: Database, node: NodeId): Promise<NodePublicJwk | null> {
  const [row] = await db.sql<{ identity: NodePublicJwk }[]>`
    select identity from nodes where id = ${node} and state <> 'retired'`;
  return row?.identity ?? null;
}
