/**
 * One agent per tunnel: a name in the kernel (an abstract socket, unix(7)) that goes with its holder, however it ends.
 * It belongs to the network namespace, as the interface does.
 */
import { createServer } from 'node:net';
import { KatafractError } from '@katafract/shared/errors';

/** @throws KatafractError `already_running` */
export function lockTunnel(interfaceName: string): Promise<() => Promise<void>> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.on('error', (cause: NodeJS.ErrnoException) => {
      const taken = cause.code === 'EADDRINUSE';
      const message = taken
        ? `another agent is running for ${interfaceName}`
        : 'the agent could not be locked';
      reject(new KatafractError(taken ? 'already_running' : 'lock_failed', message, { cause }));
    });
    server.unref();
    server.listen(`\0katafract-agent-${interfaceName}`, () => {
      resolve(() => new Promise<void>((done) => server.close(() => done())));
    });
  });
}
