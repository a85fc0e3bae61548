/** What the bench does on an exit: bare `wg` on an interface of its own, and answers to the bench's own broker. */
import { type ExecFileOptions, execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { connect } from 'mqtt';

/** An interface beside the agent's, of the same kind: what is done to it disturbs no table that the agent keeps. */
export const BARE = 'kfbench0';
/** Outside of the pool, so that no peer of the fleet has it. */
const ALLOWED = '10.255.255.1/32,fd00:bead::1/128';

export const DOWN = 'bench/down';
export const UP = 'bench/up';
/** About as long as an `applied`. */
export const UP_BYTES = 110;

/** A public key as good as any: X25519 takes every 32 bytes. */
export const randomKey = (): string => randomBytes(32).toString('base64');

function spawned(program: string, args: readonly string[], options: ExecFileOptions = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(program, args, { maxBuffer: 64 << 20, encoding: 'utf8', ...options }, (error, stdout) =>
      error ? reject(error) : resolve(String(stdout)),
    );
  });
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

async function makeBare(): Promise<void> {
  // with a log level set, the daemon would keep our pipes open
  await spawned('ip', ['link', 'add', BARE, 'type', 'wireguard']).catch(() =>
    spawned('wireguard-go', [BARE], { env: { ...process.env, LOG_LEVEL: '' } }),
  );
  await spawned('ip', ['link', 'set', BARE, 'up']);
}

const remove = () => spawned('ip', ['link', 'del', BARE]);

export function exitOperations() {
  return {
    makeBare,
    removeBare: remove,

    /** ms of each of `count` times `wg set` adding one peer to an empty table, spawned from Node. */
    async wgSet({ count }: { count: number }): Promise<number[]> {
      const times: number[] = [];
      for (let done = 0; done < count; done++) {
        const key = randomKey();
        times.push(await timed(() => spawned('wg', ['set', BARE, 'peer', key, 'allowed-ips', ALLOWED])));
        await spawned('wg', ['set', BARE, 'peer', key, 'remove']);
      }
      return times;
    },

    /** ms of one `wg setconf` of a whole file on an interface made for it. */
    async wgSetconf({ file }: { file: string }): Promise<number> {
      await makeBare();
      const ms = await timed(() => spawned('wg', ['setconf', BARE, file]));
      await remove();
      return ms;
    },

    /** AllowedIPs by key, as `wg show` prints them. */
    async kernelTable({ name }: { name: string }): Promise<Record<string, string>> {
      const text = await spawned('wg', ['show', name, 'allowed-ips']);
      return Object.fromEntries(
        text
          .split('\n')
          .filter(Boolean)
          .map((line) => line.split('\t')),
      );
    },

    /** Answers every message from the bench's broker, as an agent answers desired state, but does nothing for it. */
    async answerHops({ host, port }: { host: string; port: number }): Promise<void> {
      const client = connect({ host, port, protocol: 'mqtt', protocolVersion: 4, clientId: 'bench' });
      await new Promise<void>((resolve, reject) =>
        client.once('connect', () => resolve()).once('error', reject),
      );
      if ('setNoDelay' in client.stream)
        (client.stream as unknown as { setNoDelay(on: boolean): void }).setNoDelay(true);
      const answer = Buffer.alloc(UP_BYTES, 'a');
      client.on('message', () => client.publish(UP, answer, { qos: 1 }));
      await client.subscribeAsync(DOWN, { qos: 1 });
    },
  };
}
