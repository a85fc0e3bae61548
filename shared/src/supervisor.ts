/**
 * What a service says to systemd: that it is ready, that it is alive, that it stops (sd_notify(3)). Node has no datagram
 * sockets of the unix family, so it is said by systemd-notify(1), which the units allow (NotifyAccess=all).
 */
import type { Clock } from './clock.ts';

export interface Supervisor {
  /** What the unit waits for (Type=notify). */
  ready(): Promise<void>;
  stopping(): Promise<void>;
  /**
   * Says again and again that the service is alive, as long as `healthy` says so: three times in each period of the
   * unit's watchdog, which ends a service that stopped saying it. @returns what ends it
   */
  watch(healthy: () => boolean): () => void;
}

/** One that nobody listens to: not started by systemd, or by a unit of another type. */
const NOBODY: Supervisor = {
  ready: async () => undefined,
  stopping: async () => undefined,
  watch: () => () => undefined,
};

/**
 * @param env the process's own environment; NOTIFY_SOCKET and WATCHDOG_USEC are systemd's
 * @param run starts a command and resolves when it is done
 * @param onError what could not be said: the service goes on
 */
export function supervisor(
  env: Readonly<Record<string, string | undefined>>,
  clock: Clock,
  run: (program: string, args: readonly string[]) => Promise<unknown>,
  onError: (error: unknown) => void,
): Supervisor {
  const socket = env.NOTIFY_SOCKET;
  if (!socket) return NOBODY;
  const say = async (...words: string[]) => {
    try {
      await run('env', [`NOTIFY_SOCKET=${socket}`, 'systemd-notify', ...words]);
    } catch (error) {
      onError(error);
    }
  };
  const period = Number(env.WATCHDOG_USEC ?? 0) / 1000 / 3;
  return {
    ready: () => say('READY=1'),
    stopping: () => say('STOPPING=1'),
    watch(healthy) {
      if (period <= 0) return () => undefined;
      let cancel: () => void = () => undefined;
      const again = () => {
        if (healthy()) void say('WATCHDOG=1');
        cancel = clock.after(period, again);
      };
      again();
      return () => cancel();
    },
  };
}
