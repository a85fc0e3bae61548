/**
 * The bodies of the app-facing API, read by the controller's routes (which turn them into OpenAPI) and by the SDK, so
 * that the two cannot drift apart.
 */
import { z } from 'zod';
import { ClaimHash, ClaimSecret } from './claim.ts';
import { Jkt } from './dpop.ts';
import { Tier } from './sigil.ts';
import { Endpoint, Ipv4, Ipv6, NodeId, PeerId, PublicKey, RegionId } from './units.ts';

/** `active`: the exit's kernel has the peer; `pending`: it was told and has not answered yet. */
export const PlacementStatus = z.enum(['active', 'pending']);

export const Exit = z.object({
  node: NodeId,
  region: RegionId,
  endpoint: Endpoint,
  publicKey: PublicKey,
  /** `leaving`: replaced by a move, still answering for a short while. */
  role: z.enum(['primary', 'standby', 'leaving']),
  status: PlacementStatus,
});
export type Exit = z.infer<typeof Exit>;

export const Peer = z.object({
  id: PeerId,
  publicKey: PublicKey,
  region: RegionId,
  addresses: z.object({ ipv4: Ipv4, ipv6: Ipv6 }),
  /** Resolvers inside the tunnel: the gateway's addresses. */
  dns: z.array(z.union([Ipv4, Ipv6])),
  /** In the order a device should try them; the first is the primary. */
  exits: z.array(Exit),
  /** wg-quick file for the primary, its PrivateKey left blank. */
  config: z.string(),
  /** That of the primary. */
  status: PlacementStatus,
  createdAt: z.iso.datetime(),
  provisionedAt: z.iso.datetime(),
});
export type Peer = z.infer<typeof Peer>;

export const ProvisionRequest = z.strictObject({ publicKey: PublicKey, region: RegionId });
export type ProvisionRequest = z.infer<typeof ProvisionRequest>;
export const RotateRequest = z.strictObject({ publicKey: PublicKey });
export const MoveRequest = z.strictObject({ region: RegionId });

export const RemovedPeer = z.object({
  id: PeerId,
  /** `removed`: no reachable exit holds it any more; `pending`: some exit has not answered yet. */
  status: z.enum(['removed', 'pending']),
});
export type RemovedPeer = z.infer<typeof RemovedPeer>;

export const PeerList = z.object({ items: z.array(Peer), next: z.string().nullable() });

export const Region = z.object({
  id: RegionId,
  name: z.string(),
  country: z.string(),
  latitude: z.number(),
  longitude: z.number(),
  /** At least one exit takes new peers. */
  available: z.boolean(),
  exits: z.array(
    z.object({
      node: NodeId,
      /** Of its first tunnel interface; where it has several, a peer says which is its own. */
      endpoint: Endpoint,
      publicKey: PublicKey,
      /** It is being emptied: whoever goes through it had better leave by itself. Absent: no. */
      draining: z.boolean().optional(),
    }),
  ),
});
export type Region = z.infer<typeof Region>;
export const RegionList = z.object({ items: z.array(Region) });

export const BoundDevice = z.object({
  /** RFC 7638 thumbprint of the device's key. */
  jkt: Jkt,
  boundAt: z.iso.datetime(),
  /** The one that asks. */
  current: z.boolean(),
});
export type BoundDevice = z.infer<typeof BoundDevice>;

export const SigilInfo = z.object({
  subscription: z.uuid(),
  tier: Tier,
  expiresAt: z.iso.datetime(),
  /** Peers there are, of those the tier allows. */
  devices: z.object({ used: z.number().int(), limit: z.number().int() }),
  /** Devices that hold a Sigil of the subscription, the newest hundred. */
  bindings: z.array(BoundDevice),
});
export type SigilInfo = z.infer<typeof SigilInfo>;

/** A Sigil bound to the device that proved itself; it is shown in this answer only. */
export const IssuedSigil = z.object({
  sigil: z.string(),
  subscription: z.uuid(),
  tier: Tier,
  /** Of this Sigil; ask for the next one a little earlier. */
  expiresAt: z.iso.datetime(),
  /** Devices bound now, of those the tier allows. */
  devices: z.object({ bound: z.number().int(), limit: z.number().int() }),
});
export type IssuedSigil = z.infer<typeof IssuedSigil>;

/** `reissued`: the asking device's new Sigil, which no longer names the other; null where it has none any more. */
export const UnboundDevice = z.object({ jkt: Jkt, reissued: IssuedSigil.nullable() });
export type UnboundDevice = z.infer<typeof UnboundDevice>;

/** At most one of what follows the secret: proof of a purchase that the app holds, or a code to redeem. */
export const ClaimSigilRequest = z.strictObject({
  secret: ClaimSecret,
  /** The App Store's signed transaction (JWS). */
  apple: z.string().min(1).max(16_384).optional(),
  /** Play's purchase token. */
  google: z.string().min(1).max(4096).optional(),
  voucher: z.string().min(1).max(64).optional(),
});
export type ClaimSigilRequest = z.infer<typeof ClaimSigilRequest>;

/** Nothing is known of the secret: not paid for yet, or never used. Ask again after Retry-After. */
export const PendingClaim = z.object({ status: z.literal('pending') });
export type PendingClaim = z.infer<typeof PendingClaim>;

export const CheckoutRequest = z.strictObject({ tier: Tier, claim: ClaimHash });
export type CheckoutRequest = z.infer<typeof CheckoutRequest>;
/** Where the payer goes. */
export const CheckoutSession = z.object({ url: z.url() });
export type CheckoutSession = z.infer<typeof CheckoutSession>;
