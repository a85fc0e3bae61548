/**
 * The parts that a provision cannot do without, each alone and as it is used: one commit, one signature, one MQTT hop
 * to the exit and one back. Their sum, with one `wg set` (exit.ts), is what any controller would need at least that
 * commits before it tells, signs what it tells, and waits for the answer.
 */
import { createServer, type Socket } from 'node:net';
import { type Desired, signDesired } from '@katafract/shared/desired';
import { Aedes } from 'aedes';
import { generateKeyPair } from 'jose';
import { connect, type Sql } from '../../../controller/src/platform/db.ts';
import { DOWN, randomKey, UP } from './exit.ts';

interface Parts {
  readonly sql: Sql;
  readonly sign: () => Promise<string>;
  readonly hop: (payload: Buffer) => Promise<void>;
}

export const FLOOR_TABLE = 'bench_rows';

export function partsOperations() {
  let parts: Parts | undefined;
  const opened = (): Parts => {
    if (!parts) throw new Error('openParts comes first');
    return parts;
  };
  async function times(count: number, work: () => Promise<unknown>): Promise<number[]> {
    const taken: number[] = [];
    for (let done = 0; done < count; done++) {
      const started = performance.now();
      await work();
      taken.push(performance.now() - started);
    }
    return taken;
  }
  return {
    async openParts({
      database,
      host,
      port,
    }: {
      database: string;
      host: string;
      port: number;
    }): Promise<void> {
      const sql = connect(database, { max: 1, onnotice: () => undefined });
      await sql.unsafe(
        `create table if not exists ${FLOOR_TABLE} (id uuid primary key, public_key text not null)`,
      );
      parts = { sql, sign: await signer(), hop: await openBroker(host, port) };
    },

    /** ms of each of `count` commits of one small insert. */
    commits({ count }: { count: number }): Promise<number[]> {
      const { sql } = opened();
      return times(
        count,
        () => sql`
        insert into ${sql(FLOOR_TABLE)} (id, public_key) values (${crypto.randomUUID()}, ${randomKey()})`,
      );
    },

    /** ms of each of `count` signatures of a delta with one peer. */
    signatures: ({ count }: { count: number }): Promise<number[]> => times(count, opened().sign),

    /** ms of each of `count` hops there and back, QoS 1 both ways. */
    async hops({ count }: { count: number }): Promise<number[]> {
      const payload = Buffer.from(await opened().sign());
      return times(count, () => opened().hop(payload));
    },

    closeParts: async (): Promise<void> => opened().sql.end({ timeout: 1 }),
  };
}

/** Signs what a delta with one peer looks like. */
async function signer(): Promise<() => Promise<string>> {
  const { privateKey } = await generateKeyPair('EdDSA');
  const message = {
    v: 1,
    node: 'fra-wraith-01',
    lineage: 1,
    to: 123_457,
    digest: '0123456789abcdef0123456789abcdef',
    part: 1,
    parts: 1,
    set: [[randomKey(), '10.64.12.34', 'fd4b:6174:6166::c22']],
    kind: 'delta',
    from: 123_456,
    del: [],
  } as unknown as Desired;
  return () => signDesired(message, privateKey, 'abcdefgh');
}

/** A broker of the controller's kind. */
async function openBroker(host: string, port: number): Promise<(payload: Buffer) => Promise<void>> {
  const broker = await Aedes.createBroker();
  let arrived: () => void = () => undefined;
  await new Promise<void>((resolve) =>
    broker.subscribe(
      UP,
      (_, done) => {
        arrived();
        done();
      },
      resolve,
    ),
  );
  const server = createServer((socket: Socket) => {
    socket.setNoDelay(true);
    broker.handle(socket);
  });
  await new Promise<void>((resolve) => server.listen(port, host, resolve));
  return (payload) =>
    new Promise((resolve, reject) => {
      arrived = resolve;
      broker.publish(
        { cmd: 'publish', topic: DOWN, payload, qos: 0, retain: false, dup: false },
        (error) => error && reject(error),
      );
    });
}
