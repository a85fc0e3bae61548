/** A shutdown must not wait for a store. */
import { KatafractError } from '@katafract/shared/errors';

/** @throws KatafractError `shutting_down` (503) at once when `halted` is set, whatever becomes of the work */
export async function unlessHalted<T>(halted: AbortSignal, work: Promise<T> | T): Promise<T> {
  const { promise, reject } = withRejection();
  halted.addEventListener('abort', reject, { once: true });
  if (halted.aborted) reject();
  try {
    return await Promise.race([work, promise]);
  } finally {
    halted.removeEventListener('abort', reject);
  }
}

function withRejection(): { promise: Promise<never>; reject: () => void } {
  let reject: () => void = () => undefined;
  const promise = new Promise<never>((_, no) => {
    reject = () =>
      no(
        new KatafractError('shutting_down', 'the controller is shutting down', {
          status: 503,
          retryAfter: 2,
        }),
      );
  });
  return { promise, reject };
}
