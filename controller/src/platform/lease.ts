/**
 * The right to run what only one controller may run: a Postgres advisory lock, held on a connection of its own for as
 * long as that lives. A controller that dies loses it at once, one that hangs loses it with its connection.
 */
import type { Database, Sql } from './db.ts';

export interface Lease {
  /** Whether this controller has it now: asks the database over the very connection that holds it. */
  held(): Promise<boolean>;
  release(): Promise<void>;
}

/** @param key of the advisory lock */
export function createLease(db: Database, key: number): Lease {
  let session: Sql | null = null;
  return {
    async held() {
      session ??= db.session();
      // The lock belongs to a server process: after a reconnect it is another one, and must take the lock anew.
      const [row] = await session<{ mine: boolean }[]>`
        select exists (
          select 1 from pg_locks
          where locktype = 'advisory' and pid = pg_backend_pid() and objid = ${key}::oid and granted
        ) or pg_try_advisory_lock(${key}) as mine`;
      return row?.mine === true;
    },
    async release() {
      const held = session;
      session = null;
      if (held) await held.end({ timeout: 1 });
    },
  };
}
