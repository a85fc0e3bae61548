/** A client that tries, without a pause, to reach whatever it must not reach; and whether anything of it arrived. */
import type { Host } from '../lab/host.ts';

const PORT = 4242;
/**
 * Between two rounds over all targets, in ms. Sent as fast as they go, tens of thousands a second, they fill the socket
 * of a WireGuard in user space, and everybody's packets are lost there.
 */
const PAUSE_MS = 4;

export interface ScanTarget {
  readonly address: string;
  /** Where packets for it would turn up. */
  readonly at: Host;
  /** A socket counts, not the host: of an exit's own addresses, where the packets arrive and go no further. */
  readonly socket?: true;
}

interface Aimed {
  readonly address: string;
  readonly count: () => Promise<number>;
}

export class Scan {
  readonly #from: Host;
  readonly #targets: readonly Aimed[];
  #sent = 0;
  #stopped = false;
  readonly #running: Promise<void>;

  private constructor(from: Host, targets: readonly Aimed[]) {
    this.#from = from;
    this.#targets = targets;
    this.#running = this.#run();
  }

  static async start(from: Host, targets: readonly ScanTarget[]): Promise<Scan> {
    return new Scan(from, await Promise.all(targets.map(aim)));
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      for (const { address } of this.#targets) {
        await this.#from.udp(address, PORT);
        this.#sent++;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }

  /** @returns datagrams that were sent, and those that arrived, by address; one that none reached is not there */
  async stop(): Promise<{ sent: number; arrived: Record<string, number> }> {
    this.#stopped = true;
    await this.#running;
    const arrived: Record<string, number> = {};
    for (const { address, count } of this.#targets) {
      const packets = await count();
      if (packets !== 0) arrived[address] = packets;
    }
    return { sent: this.#sent, arrived };
  }
}

async function aim({ address, at, socket }: ScanTarget): Promise<Aimed> {
  if (socket) {
    const listener = await at.listen({ transport: 'udp', port: PORT, address });
    return { address, count: async () => (await listener.received()).count };
  }
  const match = ['-p', 'udp', '--dport', String(PORT), '-d', address];
  return { address, count: await at.countPackets(match, address.includes(':') ? 6 : 4) };
}
