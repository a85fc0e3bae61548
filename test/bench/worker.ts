/**
 * The bench's own process inside one host of the lab, so that everything it measures runs where it would really run.
 * The bench asks for one operation at a time over Node's IPC channel (see place.ts); times are taken in here, so the
 * channel is in none of them.
 */
import { callerOperations } from './work/caller.ts';
import { exitOperations } from './work/exit.ts';
import { partsOperations } from './work/parts.ts';
import { sshOperations } from './work/ssh.ts';

export interface Question {
  readonly id: number;
  readonly operation: keyof Operations;
  readonly argument: unknown;
}
export type Answer = { readonly id: number } & ({ readonly result: unknown } | { readonly error: string });

const createOperations = () => ({
  ...callerOperations(),
  ...exitOperations(),
  ...partsOperations(),
  ...sshOperations(),
});
export type Operations = ReturnType<typeof createOperations>;

const operations = createOperations();
process.on('message', async ({ id, operation, argument }: Question) => {
  const run = operations[operation] as (argument: unknown) => Promise<unknown>;
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
