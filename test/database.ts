/**
 * A migrated database of its own for a test file, cloned from the template of the run's Postgres and dropped after
 * the file. A connection that the file leaves open fails it.
 */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, inject } from 'vitest';

interface Answer {
  readonly url?: string;
  readonly leaks?: readonly string[];
  readonly error?: string;
}

/**
 * Call at the top of a test file (or of a describe block). Hooks run in the order they are written, and after-hooks in
 * reverse: close what you open in an afterAll of your own, written after this call.
 */
export function useDatabase(): { readonly url: string } {
  let url = '';
  let connection: { socket: Socket; next: () => Promise<Answer> };
  beforeAll(async () => {
    connection = await dial(inject('databases'));
    url = (await connection.next()).url ?? '';
  });
  afterAll(async () => {
    connection.socket.write('drop\n');
    const { leaks = [] } = await connection.next();
    connection.socket.destroy();
    if (leaks.length > 0) throw new Error(`connections were left open:\n${leaks.join('\n')}`);
  });
  return {
    get url() {
      if (url === '') throw new Error('the database is there from the first beforeAll on');
      return url;
    },
  };
}

async function dial(path: string) {
  const socket = connect(path);
  await once(socket, 'connect');
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  const next = async (): Promise<Answer> => {
    const { value, done } = await lines.next();
    const answer: Answer = done === true ? { error: 'the fixture ended' } : JSON.parse(value);
    if (answer.error !== undefined) throw new Error(answer.error);
    return answer;
  };
  return { socket, next };
}
