/**
 * The vocabulary of the wire: every value that crosses a process boundary has a branded type here, so that a node
 * id can never be passed where a region is meant, and a string becomes a `PublicKey` only by being checked.
 */
import { z } from 'zod';

/** Curve25519 public key, 32 bytes in canonical base64 (44 characters), as `wg` prints it. */
export const PublicKey = z
  .string()
  .regex(/^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$/, 'a WireGuard public key is 32 bytes in base64')
  .brand<'PublicKey'>();
export type PublicKey = z.infer<typeof PublicKey>;

const octet = '(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)';
const v4 = `${octet}(?:\\.${octet}){3}`;
/** Dotted-quad IPv4 address without leading zeros. */
export const Ipv4 = z
  .string()
  .regex(new RegExp(`^${v4}$`), 'an IPv4 address')
  .brand<'Ipv4'>();
export type Ipv4 = z.infer<typeof Ipv4>;

/** IPv6 address in the canonical text form of RFC 5952, which is also what `wg` and `ip` print. */
export const Ipv6 = z
  .ipv6()
  .max(39)
  .regex(/^[0-9a-f:]+$/, 'an IPv6 address in lower case')
  .brand<'Ipv6'>();
export type Ipv6 = z.infer<typeof Ipv6>;

export const Cidr4 = z
  .string()
  .regex(new RegExp(`^${v4}/(?:3[0-2]|[12]?\\d)$`), 'an IPv4 prefix such as 10.64.0.0/10')
  .brand<'Cidr4'>();
export type Cidr4 = z.infer<typeof Cidr4>;

export const Cidr6 = z
  .string()
  .max(43)
  .regex(/^[0-9a-f:]+\/(?:12[0-8]|1[01]\d|[1-9]?\d)$/, 'an IPv6 prefix such as fd00::/64')
  .brand<'Cidr6'>();
export type Cidr6 = z.infer<typeof Cidr6>;

/** A node's name: a topic level, a JWT subject and a host label at once, hence the narrow alphabet. */
export const NodeId = z
  .string()
  .regex(/^[a-z][a-z0-9-]{1,30}[a-z0-9]$/, 'a node id is 3 to 32 of a-z, 0-9 and hyphen')
  .brand<'NodeId'>();
export type NodeId = z.infer<typeof NodeId>;

export const RegionId = z
  .string()
  .regex(/^[a-z][a-z0-9-]{1,15}$/, 'a region id is 2 to 16 of a-z, 0-9 and hyphen')
  .brand<'RegionId'>();
export type RegionId = z.infer<typeof RegionId>;

const counter = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
/** Version of one node's desired state within its lineage; 0 is "nothing yet". */
export const Generation = counter.brand<'Generation'>();
export type Generation = z.infer<typeof Generation>;
/** Which history a node's generations belong to; rises when a database may have lost some. */
export const Lineage = counter.brand<'Lineage'>();
export type Lineage = z.infer<typeof Lineage>;

/** The set digest, 16 bytes in lower-case hex; see digest.ts. */
export const Digest = z
  .string()
  .regex(/^[0-9a-f]{32}$/, 'a digest is 32 hex digits')
  .brand<'Digest'>();
export type Digest = z.infer<typeof Digest>;

/** A peer: a UUID of version 7, so that a page of peers comes in the order they were made. */
export const PeerId = z.uuid().brand<'PeerId'>();
export type PeerId = z.infer<typeof PeerId>;

/** `host:port`, the host being a name, an IPv4 address or a bracketed IPv6 address. */
export const Endpoint = z
  .string()
  .max(261)
  .regex(
    /^(?:\[[0-9a-f:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?):(?:[1-9]\d{0,4})$/,
    'an endpoint is host:port',
  )
  .refine((text) => Number(text.slice(text.lastIndexOf(':') + 1)) <= 65535, 'a port is at most 65535')
  .brand<'Endpoint'>();
export type Endpoint = z.infer<typeof Endpoint>;

/** Milliseconds since the Unix epoch. */
export const Timestamp = counter;
