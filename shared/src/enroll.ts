/** Enrollment of a node: a one-time join token against an identity and a pinned state key. */
import { z } from 'zod';
import { NodeConfig } from './desired.ts';
import { NodePublicJwk } from './node-token.ts';
import { Endpoint, Lineage, NodeId, PublicKey, RegionId } from './units.ts';

/**
 * `kfj1_<secret>_<pin>`: a 256-bit secret and the RFC 7638 thumbprint of the controller's state key, both base64url.
 * The pin travels with the token, so that a node which is sent to a false controller notices before it trusts it.
 */
export const JoinToken = z
  .string()
  .regex(/^kfj1_[A-Za-z0-9_-]{43}_[A-Za-z0-9_-]{43}$/, 'a join token starts with kfj1_')
  .brand<'JoinToken'>();
export type JoinToken = z.infer<typeof JoinToken>;

/** Splits a join token by position: base64url itself may hold underscores. */
export function splitJoinToken(token: JoinToken): { secret: string; pin: string } {
  return { secret: token.slice(5, 48), pin: token.slice(49) };
}

export const EnrollRequest = z.object({
  token: JoinToken,
  /** WireGuard key of the exit; the private half stays on the node. */
  publicKey: PublicKey,
  /** The node's identity key. */
  identity: NodePublicJwk,
  /** Node token with audience `katafract-enroll` and subject `enrolling`, proving possession of `identity`. */
  proof: z.string().max(2048),
  /** Public WireGuard endpoint, where the join token did not fix one. */
  endpoint: Endpoint.optional(),
});
export type EnrollRequest = z.infer<typeof EnrollRequest>;

/** The name under which a node proves possession of its key before it has one. */
export const ENROLLING = 'enrolling' as NodeId;

export const EnrollResponse = z.object({
  node: NodeId,
  region: RegionId,
  lineage: Lineage,
  endpoint: Endpoint,
  /** The controller's state key; its thumbprint must equal the token's pin. */
  stateKey: NodePublicJwk,
  broker: z.object({
    /** mqtt:// (mesh only) or mqtts:// */
    url: z.string().max(512),
    /** PEM of the CA to pin, where the broker speaks TLS with a private one. */
    ca: z.string().max(16_384).optional(),
    /** Set where a foreign broker takes the token only after the controller has been shown it (POST here first). */
    sessionUrl: z.string().max(512).optional(),
  }),
  config: NodeConfig,
});
export type EnrollResponse = z.infer<typeof EnrollResponse>;
