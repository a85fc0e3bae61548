/**
 * A real Mosquitto (Debian's) with its dynamic-security plugin, in a folder that goes with it: on a free port of the
 * loopback for tests, and on any host of the lab.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { connect as dial } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Program } from './lab/process.ts';
import { claim } from './lab/registry.ts';
import { Hopeless, waitFor } from './lab/wait.ts';
import { freePort } from './ports.ts';

export interface Mosquitto {
  readonly url: string;
  readonly username: string;
  readonly password: string;
  /** SIGKILL; what it had persisted stays. */
  kill(): Promise<void>;
  start(): Promise<void>;
  stop(): Promise<void>;
}

/** A Mosquitto that is ready to be started. */
export interface PreparedMosquitto {
  readonly command: string;
  readonly args: readonly string[];
  readonly url: string;
  readonly username: string;
  readonly password: string;
  readonly passwordFile: string;
}

const PLUGIN = ['x86_64', 'aarch64']
  .map((machine) => `/usr/lib/${machine}-linux-gnu/mosquitto_dynamic_security.so`)
  .find(existsSync);

/** Writes its configuration and its one user, the controller, into `folder`. */
export async function prepareMosquitto(
  folder: string,
  address: string,
  port: number,
): Promise<PreparedMosquitto> {
  if (!PLUGIN) throw new Error('Mosquitto has no dynamic-security plugin here');
  await mkdir(folder, { recursive: true });
  const username = 'controller';
  const password = randomBytes(18).toString('base64url');
  const users = join(folder, 'dynamic-security.json');
  await promisify(execFile)('mosquitto_ctrl', ['dynsec', 'init', users, username, password]);
  const passwordFile = join(folder, 'password');
  await writeFile(passwordFile, password, { mode: 0o600 });
  const config = join(folder, 'mosquitto.conf');
  const lines = [
    `listener ${port} ${address}`,
    'allow_anonymous false',
    'user root',
    'set_tcp_nodelay true',
    `plugin ${PLUGIN}`,
    `plugin_opt_config_file ${users}`,
  ];
  await writeFile(config, `${lines.join('\n')}\n`);
  const url = `mqtt://${address}:${port}`;
  return { command: 'mosquitto', args: ['-c', config], url, username, password, passwordFile };
}

export async function startMosquitto(): Promise<Mosquitto> {
  const owned = await claim();
  try {
    const port = await freePort();
    const { command, args, url, username, password } = await prepareMosquitto(
      owned.folder,
      '127.0.0.1',
      port,
    );
    let program: Program;
    const start = async () => {
      program = new Program(command, args, join(owned.folder, 'log'), { cwd: owned.folder });
      await waitFor('Mosquitto', () => {
        if (!program.running) throw new Hopeless(`Mosquitto did not start: ${program.log.tail()}`);
        return listens(port);
      });
    };
    await start();
    return {
      url,
      username,
      password,
      kill: async () => {
        await program.stop('SIGKILL');
      },
      start,
      async stop() {
        await program.stop();
        await owned.release();
      },
    };
  } catch (error) {
    await owned.release();
    throw error;
  }
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = dial(port, '127.0.0.1');
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}
