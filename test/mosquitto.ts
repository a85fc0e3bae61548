/** A real Mosquitto (Debian's) with its dynamic-security plugin, on a free port of the loopback, in a folder that goes with it. */
import { execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, connect as dial } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { waitFor } from './lab/wait.ts';

export interface Mosquitto {
  readonly url: string;
  readonly username: string;
  readonly password: string;
  /** SIGKILL; what it had persisted stays. */
  kill(): Promise<void>;
  start(): Promise<void>;
  stop(): Promise<void>;
}

const PLUGIN = ['x86_64', 'aarch64']
  .map((machine) => `/usr/lib/${machine}-linux-gnu/mosquitto_dynamic_security.so`)
  .find(existsSync);

/** A port that was free a moment ago. */
export async function freePort(host = '127.0.0.1'): Promise<number> {
  const server = createServer().listen(0, host);
  await once(server, 'listening');
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (typeof address !== 'object' || !address) throw new Error('no port');
  return address.port;
}

export async function startMosquitto(): Promise<Mosquitto> {
  if (!PLUGIN) throw new Error('Mosquitto has no dynamic-security plugin here');
  const folder = await mkdtemp(join(tmpdir(), 'katafract-mosquitto-'));
  const username = 'controller';
  const password = randomBytes(18).toString('base64url');
  const port = await freePort();
  const users = join(folder, 'dynamic-security.json');
  await promisify(execFile)('mosquitto_ctrl', ['dynsec', 'init', users, username, password]);
  const config = join(folder, 'mosquitto.conf');
  const lines = [
    `listener ${port} 127.0.0.1`,
    'allow_anonymous false',
    'user root',
    'set_tcp_nodelay true',
    `plugin ${PLUGIN}`,
    `plugin_opt_config_file ${users}`,
  ];
  await writeFile(config, `${lines.join('\n')}\n`);
  let child: ReturnType<typeof spawn> | null = null;
  const log = join(folder, 'log');
  const start = async () => {
    child = spawn('/usr/sbin/mosquitto', ['-c', config], { stdio: ['ignore', 'ignore', 'pipe'] });
    child.stderr?.on('data', (chunk) => void writeFile(log, chunk, { flag: 'a' }));
    await waitFor('Mosquitto', () => listens(port), { deadlineMs: 10_000 }).catch(async (cause: unknown) => {
      throw new Error(`Mosquitto did not start: ${await readFile(log, 'utf8').catch(() => '')}`, { cause });
    });
  };
  const end = async (signal: NodeJS.Signals) => {
    const running = child;
    child = null;
    if (!running || running.exitCode !== null) return;
    const exited = once(running, 'exit');
    running.kill(signal);
    await exited;
  };
  await start();
  return {
    url: `mqtt://127.0.0.1:${port}`,
    username,
    password,
    kill: () => end('SIGKILL'),
    start,
    async stop() {
      await end('SIGTERM');
      await rm(folder, { recursive: true });
    },
  };
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = dial(port, '127.0.0.1');
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}
