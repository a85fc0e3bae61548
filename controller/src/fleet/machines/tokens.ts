/**
 * Join tokens of machines. The secret follows from the machine's id and a secret of the controller, so that a step that
 * is done again tells the provider the very same: nothing of it has to be kept, and one machine has one token.
 */
import { hkdfSync } from 'node:crypto';
import type { JoinToken } from '@katafract/shared/enroll';
import type { Audit } from '../../audit/audit.ts';
import type { Sql, Tx } from '../../platform/db.ts';
import type { Keyring } from '../../platform/keyring.ts';
import { derive, type Seed, uuidOf } from '../../platform/once.ts';
import { hashOf, joinTokenOf } from '../enrollment.ts';
import type { MachineRow } from './store.ts';

const HOUR = 3_600_000;

/** @param secret a lasting secret of the controller */
export function tokenSeed(secret: Uint8Array): Seed {
  return Buffer.from(hkdfSync('sha256', secret, '', 'katafract join tokens of machines', 32));
}

export interface TokenDeps {
  readonly audit: Audit;
  readonly keyring: Keyring;
  readonly seed: Seed;
}

/**
 * The token by which a machine joins, good for an hour from now, unless it was used.
 * @param round another one makes another token: for a person who asks again
 */
export async function mintFor(
  tx: Tx,
  { audit, keyring, seed }: TokenDeps,
  machine: MachineRow,
  now: number,
  round = '',
): Promise<JoinToken> {
  const name = `${machine.id} ${round}`;
  const secret = derive(seed, `secret ${name}`);
  const id = uuidOf(seed, `id ${name}`);
  const expiresAt = new Date(now + HOUR);
  const made = await tx.sql`
    insert into join_tokens (id, hash, region_id, node_id, endpoint, capacity, tunnels, created_by, created_at, expires_at)
    values (${id}, ${hashOf(secret.toString('base64url'))}, ${machine.region}, ${machine.node},
            ${endpointOf(machine.address)}, ${machine.growth.capacity}, ${machine.growth.tunnels ?? 1}, 'system',
            ${new Date(now)}, ${expiresAt})
    on conflict (id) do update set expires_at = excluded.expires_at where join_tokens.used_at is null
    returning xmax = 0 as fresh`;
  if (made[0]?.fresh === true) {
    const detail = { region: machine.region, machine: machine.id, expiresAt: expiresAt.toISOString() };
    await audit.record(tx, [
      { actor: 'system', action: 'join_token.created', subject: `node:${machine.node}`, detail },
    ]);
  }
  return joinTokenOf(secret, keyring.state().thumbprint);
}

/** Where the tunnel of a machine will answer. */
export const ENDPOINT_PORT = 51820;
const endpointOf = (address: string | null) => (address === null ? null : `${address}:${ENDPOINT_PORT}`);

/** From now on whoever joins as the machine's node is known to be there. */
export async function setEndpoint(sql: Sql, { node }: MachineRow, address: string): Promise<void> {
  await sql`
    update join_tokens set endpoint = ${endpointOf(address)}
    where node_id = ${node} and created_by = 'system' and used_at is null`;
}
