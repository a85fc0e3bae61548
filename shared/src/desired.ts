/**
 * Desired state on the wire: a compact JWS (RFC 7515, EdDSA) by the controller's state key. Two kinds of message
 * carry a node from one generation to another, both in one or more signed parts:
 *
 *   delta     held generation `from` becomes `to`: rows to set, keys to remove
 *   snapshot  the whole table at `to`, whatever was held before
 *
 * `digest` is the set digest of the table at `to`. A receiver that computes another one holds a different history
 * under the same numbers and must ask for a snapshot, so a delta can never build on the wrong ground.
 */
import { CompactSign, type CryptoKey, compactVerify, decodeProtectedHeader } from 'jose';
import { z } from 'zod';
import { ADDRESS_PARTS } from './addresses.ts';
import { KatafractError } from './errors.ts';
import { Haven } from './haven.ts';
import { PROTOCOL } from './topics.ts';
import { Cidr4, Cidr6, Digest, Generation, Ipv4, Ipv6, Lineage, NodeId, PublicKey } from './units.ts';
import { Upkeep } from './upkeep.ts';

/** One peer as a tuple, because a snapshot carries tens of thousands of them. */
export const PeerTuple = z.tuple([PublicKey, Ipv4, Ipv6]);
export type PeerTuple = z.infer<typeof PeerTuple>;

/** What a node is told about itself; changes raise its generation like everything else. */
export const NodeConfig = z.object({
  /** UDP port WireGuard listens on; further tunnel interfaces listen on the ports after it. */
  listenPort: z.number().int().min(1).max(65535),
  /** Tunnel interfaces that clients are spread over (`tunnelOf`), for as long as the node lives; absent: one. */
  tunnels: z.number().int().min(1).max(ADDRESS_PARTS).optional(),
  /** Of the tunnel interface, in bytes. */
  mtu: z.number().int().min(1280).max(9000),
  /** The gateway's own address with the prefix of the pool, e.g. 10.64.0.1/10; the same on every node. */
  gateway4: Cidr4,
  gateway6: Cidr6,
  upkeep: Upkeep.optional(),
  /** Absent: this exit filters no DNS. */
  haven: Haven.optional(),
  /** Absent: logging in is whatever the machine allows. Present: by SSH from the mesh alone, on this port. */
  sshFromMesh: z.object({ port: z.number().int().min(1).max(65535) }).optional(),
});
export type NodeConfig = z.infer<typeof NodeConfig>;

/** Rows in one part; keeps a part near 250 kB, below any broker's limit. */
export const PART_ROWS = 2000;

const common = {
  v: z.literal(PROTOCOL),
  node: NodeId,
  lineage: Lineage,
  to: Generation,
  digest: Digest,
  part: z.number().int().min(1),
  parts: z.number().int().min(1).max(10_000),
  set: z.array(PeerTuple).max(PART_ROWS),
  config: NodeConfig.optional(),
};
export const Delta = z.object({
  ...common,
  kind: z.literal('delta'),
  from: Generation,
  del: z.array(PublicKey).max(PART_ROWS),
});
export const Snapshot = z.object({
  ...common,
  kind: z.literal('snapshot'),
  /** Signed consent to a snapshot that removes more than half of the table. */
  allowShrink: z.literal(true).optional(),
});
export const Desired = z
  .discriminatedUnion('kind', [Delta, Snapshot])
  .refine((message) => message.part <= message.parts, 'part exceeds parts')
  .refine((message) => message.kind === 'snapshot' || message.from < message.to, 'a delta must rise');
export type Delta = z.infer<typeof Delta>;
export type Snapshot = z.infer<typeof Snapshot>;
export type Desired = z.infer<typeof Desired>;

const TYP = 'kf-desired+jws';
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

/** Signs one message. `kid` names the state key, so that a pinned receiver can tell a rotated key from a forgery. */
export function signDesired(message: Desired, key: CryptoKey, kid: string): Promise<string> {
  return new CompactSign(encoder.encode(JSON.stringify(message)))
    .setProtectedHeader({ alg: 'EdDSA', typ: TYP, kid })
    .sign(key);
}

/** Why a message was refused; the names are stable and label the agent's counter. */
export type DesiredRefusal = 'signature' | 'version' | 'schema' | 'node';

/**
 * Opens a message for `node`.
 * @throws KatafractError `desired_refused` with `detail.reason` (see DesiredRefusal): a bad signature, type or
 * algorithm; another protocol version; a payload that is not of the schema; a message for another node.
 */
export async function verifyDesired(jws: string, key: CryptoKey, node: NodeId): Promise<Desired> {
  const refuse = (reason: DesiredRefusal, cause?: unknown) =>
    new KatafractError('desired_refused', `desired state refused: ${reason}`, { cause, detail: { reason } });
  let payload: Uint8Array;
  try {
    if (decodeProtectedHeader(jws).typ !== TYP) throw new Error('wrong typ');
    ({ payload } = await compactVerify(jws, key, { algorithms: ['EdDSA'] }));
  } catch (error) {
    throw refuse('signature', error);
  }
  let json: unknown;
  try {
    json = JSON.parse(decoder.decode(payload));
  } catch (error) {
    throw refuse('schema', error);
  }
  if ((json as { v?: unknown } | null)?.v !== PROTOCOL) throw refuse('version');
  const parsed = Desired.safeParse(json);
  if (!parsed.success) throw refuse('schema', parsed.error);
  if (parsed.data.node !== node) throw refuse('node');
  return parsed.data;
}
