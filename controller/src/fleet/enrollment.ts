/**
 * How a machine becomes a node: an operator makes a one-time join token for a named place in the fleet; the machine
 * brings it together with its public keys and a proof that it holds the private one of its identity. The token is
 * stored as a hash, expires, and works once; only the identity that used it may repeat the call, since its answer may
 * have been lost on the way.
 */
import { createHash } from 'node:crypto';
import { portOf } from '@katafract/shared/addresses';
import type { EnrollRequest, EnrollResponse, JoinToken } from '@katafract/shared/enroll';
import { ENROLLING, JoinToken as JoinTokenSchema, splitJoinToken } from '@katafract/shared/enroll';
import { KatafractError } from '@katafract/shared/errors';
import { verifyNodeToken } from '@katafract/shared/node-token';
import type { Endpoint, NodeId, RegionId } from '@katafract/shared/units';
import { calculateJwkThumbprint, importJWK } from 'jose';
import { type Sql, uniqueViolation } from '../platform/db.ts';
import { type Asked, derive, keyExpired, onceOnly, uuidOf } from '../platform/once.ts';
import type { EnrollmentDeps } from './fleet.ts';
import { upkeepOfNew } from './upkeep/store.ts';

export interface JoinTokenRequest {
  readonly region: RegionId;
  readonly node: NodeId;
  readonly endpoint?: Endpoint | undefined;
  readonly capacity: number;
  readonly tunnels: number;
  readonly expiresInSeconds: number;
}

interface TokenRow {
  id: string;
  region: RegionId;
  node: NodeId;
  endpoint: Endpoint | null;
  capacity: number;
  tunnels: number;
  usedBy: string | null;
}

/** Room for the outer IPv6 and WireGuard headers (80 bytes) in an Ethernet frame; wg-quick uses the same. */
const DEFAULT_MTU = 1420;

/** What is kept of a join token. */
export const hashOf = (secret: string) => createHash('sha256').update(secret).digest('hex');

/** @param pin thumbprint of the state key that the node is to trust */
export const joinTokenOf = (secret: Uint8Array, pin: string): JoinToken =>
  JoinTokenSchema.parse(`kfj1_${Buffer.from(secret).toString('base64url')}_${pin}`);

/**
 * Makes a join token. The token itself is in the answer and nowhere else; repeated with its Idempotency-Key the request
 * gives the same one.
 * @throws KatafractError `region_unknown`, `ports_out_of_range` (422), `node_exists` (409), and of `onceOnly`
 */
export async function mintJoinToken(
  deps: EnrollmentDeps,
  request: JoinTokenRequest,
  asked: Asked,
): Promise<{ id: string; token: JoinToken; expiresAt: Date }> {
  const { db, keyring, audit, fleet } = deps;
  const once = onceOnly(deps.seedSecret, 'join tokens', request, asked);
  const secret = derive(once.seed, 'join token');
  const id = uuidOf(once.seed, 'id of join token');
  const now = deps.now();
  const expiresAt = await db.transaction(async (tx) => {
    const before = await once.seen(tx);
    if (before !== null) return expiryOf(tx.sql, before);
    fleet.roster.region(request.region);
    if (request.endpoint) checkPorts(portOf(request.endpoint), request.tunnels);
    if (fleet.roster.has(request.node)) throw nodeExists(request.node);
    const expiresAt = new Date(now + request.expiresInSeconds * 1000);
    await tx.sql`
      insert into join_tokens (id, hash, region_id, node_id, endpoint, capacity, tunnels, created_by, expires_at)
      values (${id}, ${hashOf(secret.toString('base64url'))}, ${request.region}, ${request.node}, ${request.endpoint ?? null},
              ${request.capacity}, ${request.tunnels}, ${asked.operator}, ${expiresAt})`;
    const detail = { region: request.region, expiresAt: expiresAt.toISOString() };
    await audit.record(tx, [
      {
        actor: `operator:${asked.operator}`,
        action: 'join_token.created',
        subject: `node:${request.node}`,
        detail,
      },
    ]);
    await once.remember(tx, id, new Date(now));
    return expiresAt;
  });
  return { id, token: joinTokenOf(secret, keyring.state().thumbprint), expiresAt };
}

async function expiryOf(sql: Sql, id: string): Promise<Date> {
  const [row] = await sql<{ at: string }[]>`select expires_at as at from join_tokens where id = ${id}`;
  if (!row) throw keyExpired();
  return new Date(row.at);
}

/**
 * Takes a machine into the fleet.
 * @throws KatafractError `join_token_invalid` (401) unknown, expired or used by another; `enroll_proof_invalid` (401);
 * `endpoint_required`, `ports_out_of_range` (422); `node_exists`, `wireguard_key_in_use` (409)
 */
export async function enroll(deps: EnrollmentDeps, request: EnrollRequest): Promise<EnrollResponse> {
  const key = await importJWK(request.identity, 'EdDSA');
  if (key instanceof Uint8Array) throw new TypeError('an OKP key is never symmetric');
  await verifyNodeToken(request.proof, key, {
    node: ENROLLING,
    audience: 'katafract-enroll',
    now: deps.now(),
  }).catch((cause: unknown) => {
    throw new KatafractError('enroll_proof_invalid', 'the proof of possession is not valid', {
      status: 401,
      cause,
    });
  });
  const thumbprint = await calculateJwkThumbprint(request.identity);
  try {
    const node = await deps.db.transaction(async (tx) => {
      const token = await takeToken(tx.sql, request.token, thumbprint, new Date(deps.now()));
      if (token.usedBy === null) await insertNode(tx.sql, request, token, deps.now());
      const subject = `node:${token.node}`;
      if (token.usedBy === null) {
        await deps.audit.record(tx, [
          {
            actor: subject,
            action: 'node.enrolled',
            subject,
            detail: { token: token.id, region: token.region },
          },
        ]);
      }
      return token.node;
    });
    await deps.fleet.changed([node]);
    return await answer(deps, node);
  } catch (error) {
    const constraint = uniqueViolation(error);
    if (constraint === 'nodes_pkey') throw nodeExists(request.token);
    if (constraint !== null) {
      throw new KatafractError('wireguard_key_in_use', 'another node has this WireGuard key', {
        status: 409,
      });
    }
    throw error;
  }
}

/** Uses the token up under its row's lock. */
async function takeToken(sql: Sql, token: JoinToken, thumbprint: string, now: Date): Promise<TokenRow> {
  const [row] = await sql<TokenRow[]>`
    select id, region_id as region, node_id as node, endpoint, capacity, tunnels, used_by as "usedBy" from join_tokens
    where hash = ${hashOf(splitJoinToken(token).secret)} and expires_at > ${now} for update`;
  if (!row || (row.usedBy !== null && row.usedBy !== thumbprint)) {
    throw new KatafractError('join_token_invalid', 'the join token is unknown, expired or used', {
      status: 401,
    });
  }
  if (row.usedBy === null) {
    await sql`update join_tokens set used_at = ${now}, used_by = ${thumbprint} where id = ${row.id}`;
  }
  return row;
}

async function insertNode(sql: Sql, request: EnrollRequest, token: TokenRow, now: number): Promise<void> {
  const endpoint = token.endpoint ?? request.endpoint;
  if (!endpoint) {
    throw new KatafractError(
      'endpoint_required',
      'neither the join token nor the machine names an endpoint',
      {
        status: 422,
      },
    );
  }
  const port = portOf(endpoint);
  checkPorts(port, token.tunnels);
  const upkeep = await upkeepOfNew(sql, token.region, now);
  await sql`
    insert into nodes (id, region_id, endpoint, public_key, identity, listen_port, tunnels, mtu, capacity, upkeep)
    values (${token.node}, ${token.region}, ${endpoint}, ${request.publicKey}, ${sql.json(request.identity)},
            ${port}, ${token.tunnels}, ${DEFAULT_MTU}, ${token.capacity}, ${sql.json(upkeep)})`;
}

async function answer(deps: EnrollmentDeps, node: NodeId): Promise<EnrollResponse> {
  const [row] = await deps.db.sql<
    {
      region: RegionId;
      endpoint: Endpoint;
      lineage: EnrollResponse['lineage'];
      listenPort: number;
      tunnels: number;
      mtu: number;
    }[]
  >`select region_id as region, endpoint, lineage::float8, listen_port as "listenPort", tunnels, mtu from nodes where id = ${node}`;
  if (!row) throw new KatafractError('join_token_invalid', 'the node is gone', { status: 401 });
  return {
    node,
    region: row.region,
    lineage: row.lineage,
    endpoint: row.endpoint,
    stateKey: deps.keyring.state().publicJwk,
    broker: deps.broker,
    config: deps.fleet.configOf({ ...row, upkeep: null }, { haven: null, sshFromMesh: false }),
  };
}

/**
 * Each tunnel interface answers on a port of its own, one after the other.
 * @throws KatafractError `ports_out_of_range` (422)
 */
export function checkPorts(first: number, tunnels: number): void {
  if (first + tunnels - 1 <= 65_535) return;
  throw new KatafractError('ports_out_of_range', `there are no ${tunnels} ports from ${first} on`, {
    status: 422,
  });
}

function nodeExists(node: string): KatafractError {
  const name = node.startsWith('kfj1_') ? 'of that name' : node;
  return new KatafractError('node_exists', `a node ${name} is already enrolled`, { status: 409 });
}
