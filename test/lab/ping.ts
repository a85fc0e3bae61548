/**
 * A ping that runs beside a test and accounts for every packet: the proof that a tunnel carried on while something
 * else was killed.
 */
import { spawn } from 'node:child_process';
import { waitFor } from './wait.ts';

export interface PingReport {
  readonly sent: number;
  readonly received: number;
  /** Sequence numbers that were never answered. */
  readonly lost: readonly number[];
}
export interface Ping {
  /** Answers so far. */
  received(): number;
  /**
   * Ends the ping once a packet sent after this call is answered (then no earlier one is still on its way), or after
   * `deadlineMs`, when every packet without an answer counts as lost.
   */
  stop(deadlineMs?: number): Promise<PingReport>;
}

/** @returns after the first answer; rejects where none comes within `deadlineMs`. */
export async function startPing(
  enter: readonly string[],
  address: string,
  intervalMs: number,
  deadlineMs = 20_000,
): Promise<Ping> {
  const seconds = String(intervalMs / 1000);
  const [command = '', ...args] = [...enter, 'ping', '-n', '-O', '-i', seconds, '-W', '10', address];
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  });
  const answered = new Set<number>();
  let highest = 0;
  let rest = '';
  let output = '';
  const read = (line: string) => {
    const sequence = Number(/icmp_seq=(\d+)/.exec(line)?.[1] ?? 0);
    highest = Math.max(highest, sequence);
    if (/bytes from .*icmp_seq=/.test(line)) answered.add(sequence);
    else output += `${line}\n`;
  };
  child.stdout.on('data', (chunk: Buffer) => {
    const lines = (rest + chunk.toString()).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) read(line);
  });
  child.stderr.on('data', (chunk: Buffer) => {
    output += chunk;
  });
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const end = () => {
    child.kill('SIGINT');
    return closed;
  };
  const first = () => answered.size > 0;
  await waitFor(`a first answer from ${address}`, first, { deadlineMs, everyMs: 20 }).catch(
    async (error: unknown) => {
      await end();
      throw new Error(`no answer from ${address}: ${output.slice(0, 500)}`, { cause: error });
    },
  );
  return {
    received: () => answered.size,
    async stop(stopDeadlineMs = 5000) {
      const from = highest;
      // the second packet after now was certainly sent after now
      const later = () => [...answered].some((sequence) => sequence > from + 1);
      const alive = await waitFor('a last answer', later, { deadlineMs: stopDeadlineMs, everyMs: 20 }).catch(
        () => false,
      );
      await end();
      const total = Number(/(\d+) packets transmitted/.exec(output)?.[1] ?? highest);
      const sent = alive ? Math.max(...answered) : total;
      const lost = Array.from({ length: sent }, (_, index) => index + 1).filter(
        (sequence) => !answered.has(sequence),
      );
      return { sent, received: answered.size, lost };
    },
  };
}
