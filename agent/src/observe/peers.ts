/**
 * Reads the kernel's peer table against the held one and keeps only what differs, so that an idle pass over tens of
 * thousands of peers hashes nothing and keeps nothing.
 */
import type { PeerEntry } from '@katafract/shared/digest';
import type { Held } from '../desired/table.ts';
import type { IdleLook } from '../plan/idle.ts';
import type { PeerObservation } from '../plan/peers.ts';
import type { PeerTablePort } from '../ports.ts';

/**
 * @param held asked for with every row, since it may change while the dump streams; keys changed meanwhile are the
 * caller's to set aside
 * @param look at who is idle, which is told of every row
 */
export async function observePeers(
  table: PeerTablePort,
  held: () => Held | null,
  look: IdleLook,
): Promise<PeerObservation> {
  const different = new Map<string, string>();
  const seen = new Set<string>();
  const tunnels = await table.dump((publicKey, allowed, handshake, known) => {
    look.see(publicKey, handshake, known);
    const row = held()?.peers.get(publicKey);
    if (row) seen.add(row.publicKey);
    if (!row || !agrees(allowed, row)) different.set(publicKey, allowed);
  });
  return { tunnels, different, missing: unseen(held(), seen), recent: look.recent, idle: look.idle };
}

/** Whether the text is `allowedIps(row)`, without making that text: this is asked once a peer, every ten seconds. */
function agrees(allowed: string, { ipv4, ipv6 }: PeerEntry): boolean {
  const middle = ipv4.length;
  return (
    allowed.length === middle + ipv6.length + 8 &&
    allowed.startsWith(ipv4) &&
    allowed.startsWith('/32,', middle) &&
    allowed.startsWith(ipv6, middle + 4) &&
    allowed.endsWith('/128')
  );
}

function unseen(held: Held | null, seen: ReadonlySet<string>): string[] {
  const missing: string[] = [];
  for (const { publicKey } of held?.peers.values() ?? []) if (!seen.has(publicKey)) missing.push(publicKey);
  return missing;
}
