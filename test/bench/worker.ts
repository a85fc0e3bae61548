/**
 * The bench's own process inside one host of the lab, so that everything it measures runs where it would really run.
 * The bench asks for one operation at a time over Node's IPC channel (see place.ts); times are taken in here, so the
 * channel is in none of them.
 */
import { serve } from './serve.ts';
import { callerOperations } from './work/caller.ts';
import { exitOperations } from './work/exit.ts';
import { partsOperations } from './work/parts.ts';

const createOperations = () => ({
  ...callerOperations(),
  ...exitOperations(),
  ...partsOperations(),
});
export type WorkerOperations = ReturnType<typeof createOperations>;

serve(createOperations());
