/**
 * Once per test run: a socket at which test files ask for databases. The Postgres behind it is started with the first
 * one asked for, so that a run without any costs nothing, and shared by all workers. A worker that dies has its
 * databases dropped. A database left at the end fails the run.
 */
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { TestProject } from 'vitest/node';
import type { TestPostgres } from './postgres.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** Path of the socket that hands out databases; see database.ts. */
    databases: string;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  let postgres: Promise<TestPostgres> | undefined;
  const start = () => {
    // imported only now as well: most runs of a single file need none of it
    postgres ??= import('./postgres.ts').then(({ startPostgres }) => startPostgres());
    return postgres;
  };
  const folder = await mkdtemp(join(tmpdir(), 'katafract-test-'));
  const path = join(folder, 'databases.sock');
  const served = new Set<Promise<void>>();
  const server = createServer((socket) => {
    const done = serve(socket, start).finally(() => served.delete(done));
    served.add(done);
  });
  server.listen(path);
  await once(server, 'listening');
  project.provide('databases', path);
  return async () => {
    await new Promise((resolve) => server.close(resolve));
    await Promise.all(served);
    await rm(folder, { recursive: true });
    const left = (await (await postgres)?.stop()) ?? [];
    if (left.length === 0) return;
    console.error(`databases were left behind: ${left.join(', ')}`);
    process.exitCode = 1; // an error thrown here would not fail the run
  };
}

/** One connection is one database: it is made for the connection, and dropped by the word `drop` or at its end. */
async function serve(socket: Socket, start: () => Promise<TestPostgres>): Promise<void> {
  const say = (answer: object) => socket.writable && socket.write(`${JSON.stringify(answer)}\n`);
  // a worker that was killed resets its connections
  socket.on('error', () => socket.destroy());
  const words = createInterface({ input: socket })[Symbol.asyncIterator]();
  try {
    const database = await (await start()).createDatabase();
    say({ url: database.url });
    await words.next();
    say({ leaks: await database.drop() });
  } catch (error) {
    say({ error: String(error) });
  }
  socket.end();
}
