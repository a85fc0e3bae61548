/**
 * The bench's own process inside one host of the lab, so that everything it measures runs where it would really run.
 * The bench asks for one operation at a time over Node's IPC channel (see place.ts); times are taken in here, so the
 * channel is in none of them.
 */

import type { Answer, Question } from './messages.ts';
import { callerOperations } from './work/caller.ts';
import { exitOperations } from './work/exit.ts';
import { partsOperations } from './work/parts.ts';

const createOperations = () => ({
  ...callerOperations(),
  ...exitOperations(),
  ...partsOperations(),
});
export type WorkerOperations = ReturnType<typeof createOperations>;

const operations = createOperations();
process.on('message', async ({ id, operation, argument }: Question) => {
  const run = operations[operation as keyof WorkerOperations] as (argument: unknown) => Promise<unknown>;
  const answer = await run(argument).then(
    (result): Answer => ({ id, result }),
    (error: unknown): Answer => ({
      id,
      error: error instanceof Error ? (error.stack ?? error.message) : String(error),
    }),
  );
  process.send?.(answer);
});
process.on('disconnect', () => process.exit(0));
process.send?.('ready');
