/** A real Redis 7 (Debian's) for tests, on a free port of the loopback; nothing of it is kept on disk. */
import { join } from 'node:path';
import { Program } from './lab/process.ts';
import { claim } from './lab/registry.ts';
import { freePort } from './ports.ts';

export interface Redis {
  /** For REDIS_URL and ioredis. */
  readonly url: string;
  /** SIGKILL; what it held is gone. */
  kill(): Promise<void>;
  /** Starts it again after a kill, empty, on the same port. */
  start(): Promise<void>;
  stop(): Promise<void>;
}

export async function startRedis(): Promise<Redis> {
  const owned = await claim();
  const port = await freePort();
  const options = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'];
  const log = join(owned.folder, 'redis.log');
  let program: Program | undefined;
  const start = async () => {
    program = new Program('redis-server', [...options, '--dir', owned.folder], log, { cwd: owned.folder });
    await program.waitFor(/Ready to accept connections/);
  };
  await start().catch(async (error: unknown) => {
    await owned.release();
    throw error;
  });
  return {
    url: `redis://127.0.0.1:${port}`,
    start,
    kill: async () => {
      await program?.stop('SIGKILL');
    },
    stop: async () => {
      await program?.stop();
      await owned.release();
    },
  };
}
