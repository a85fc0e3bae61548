/** What the bench does on an exit beside measuring: a look into the kernel, and answers to the bench's own broker. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { connect } from 'mqtt';

export const DOWN = 'bench/down';
export const UP = 'bench/up';
/** About as long as an `applied`. */
const UP_BYTES = 110;

/** A public key as good as any: X25519 takes every 32 bytes. */
export const randomKey = (): string => randomBytes(32).toString('base64');

export function exitOperations() {
  return {
    /** AllowedIPs by key, as `wg show` prints them. */
    kernelTable({ name }: { name: string }): Promise<Record<string, string>> {
      return new Promise((resolve, reject) => {
        const args = ['show', name, 'allowed-ips'];
        execFile('wg', args, { maxBuffer: 64 << 20 }, (error, text) => {
          if (error) return reject(error);
          resolve(
            Object.fromEntries(
              text
                .split('\n')
                .filter(Boolean)
                .map((line) => line.split('\t')),
            ),
          );
        });
      });
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
      client.on('message', () => client.publish(UP, answer, { qos: 0 }));
      await client.subscribeAsync(DOWN, { qos: 1 });
    },
  };
}
