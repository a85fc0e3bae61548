/** The far side of place.ts: runs what it is asked for over Node's IPC channel, one operation at a time. */
import type { Answer, Question } from './messages.ts';

type Operations = Readonly<Record<string, (argument: never) => Promise<unknown>>>;

export function serve(operations: Operations): void {
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
}
