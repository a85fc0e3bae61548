/**
 * Haven: the DNS filter of an exit, as it is wanted. Part of a node's config, so it is signed, ordered and acknowledged
 * like everything else; the node turns it into the configuration of the AdGuard Home that it runs.
 *
 * Filters are of the exit, not of a device or a tier: AdGuard knows a device again only by its address, and a list of
 * devices with their choices, on the disk of every exit, is what we will not have.
 */
import { z } from 'zod';
import { Ipv4, Ipv6 } from './units.ts';

const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}]/u;
const printable = (most: number) =>
  z
    .string()
    .min(1)
    .max(most)
    .refine((text) => !UNPRINTABLE.test(text) && text === text.trim(), 'must be printable text on one line');

/** A resolver that is spoken to in private: DNS over HTTPS, TLS or QUIC (RFC 8484, 7858, 9250). */
export const EncryptedResolver = z
  .string()
  .max(256)
  .regex(
    /^(?:https|h3|tls|quic):\/\/(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::\d{1,5})?(?:\/[\w./~-]*)?$/,
    'a resolver is https://, h3://, tls:// or quic:// and a host',
  );

export const Blocklist = z.object({
  name: printable(64),
  url: z
    .string()
    .max(512)
    .regex(/^https:\/\/[\w.-]+(?::\d{1,5})?\/[\w./~%?=&+@,;:-]*$/, 'a list is fetched by https://'),
});
export type Blocklist = z.infer<typeof Blocklist>;

export const Haven = z.object({
  /** Asked in turns; at least one, since the answer is nobody else's to give. */
  upstreams: z.array(EncryptedResolver).min(1).max(8),
  /** Where the names of the upstreams themselves are looked up, in the clear: once a start, and nothing else. */
  bootstrap: z
    .array(z.union([Ipv4, Ipv6]))
    .min(1)
    .max(8),
  blocklists: z.array(Blocklist).max(16),
  /** Own rules, in AdGuard's syntax. */
  rules: z.array(printable(200)).max(200),
  /** Queries a second that one client is answered. */
  queriesPerSecond: z.number().int().min(1).max(10_000),
  /**
   * How many queries and how many blocked, for an hour, in memory. AdGuard cannot count without also remembering which
   * names were asked most, by nobody in particular, so it is off unless wanted.
   */
  statistics: z.boolean(),
  /** A name that must resolve, or the filter is not well. */
  probe: z
    .string()
    .max(253)
    .regex(/^[a-z0-9](?:[a-z0-9.-]*[a-z0-9])$/, 'a host name'),
});
export type Haven = z.infer<typeof Haven>;
