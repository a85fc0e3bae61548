/**
 * Postgres, the broker and the controller are killed with SIGKILL, one after the other, each in the middle of
 * provisioning under load. Tunnels pass every ping; callers get an answer they can act on (success, 503 with
 * Retry-After, or a broken connection) and nothing else; nothing that was acknowledged is lost; and when the parts are back, every
 * exit's kernel holds exactly what the API says.
 */
import { Peer, PeerList } from '@katafract/shared/api';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeKeys } from './lab/device.ts';
import type { Lab } from './lab/lab.ts';
import type { Ping } from './lab/ping.ts';
import { useLab } from './lab/vitest.ts';
import { waitFor } from './lab/wait.ts';
import { startPostgres, type TestDatabase, type TestPostgres } from './postgres.ts';

/** A server of its own: the run's shared one must not be killed. */
let postgres: TestPostgres;
let database: TestDatabase;
beforeAll(async () => {
  postgres = await startPostgres();
  database = await postgres.createDatabase();
});
afterAll(async () => {
  await database.drop();
  await postgres.stop();
});

const fleet = useLab(() => ({
  exits: [
    { name: 'fra-1', region: 'fra' },
    { name: 'hel-1', region: 'hel' },
  ],
  devices: 2,
  database: database.url,
  broker: 'mosquitto' as const,
  controllerEnv: { KATAFRACT_ACK_TIMEOUT_MS: '2000' },
}));

/** Callers that provision and remove, each insisting on an answer with the same Idempotency-Key, as an app does. */
class Load {
  /** Public keys of peers that were acknowledged and not removed since. */
  readonly alive = new Map<string, string>();
  acknowledged = 0;
  /** Answers and failures that told the caller to try again. */
  refused = 0;
  readonly unexpected: string[] = [];
  readonly #lab: Lab;
  readonly #sigil: string;
  #stopped = false;
  readonly #callers: Promise<void>[];

  constructor(lab: Lab, sigil: string, callers: number) {
    this.#lab = lab;
    this.#sigil = sigil;
    this.#callers = Array.from({ length: callers }, (_, index) => this.#call(index));
  }

  async #call(index: number): Promise<void> {
    for (let turn = index; !this.#stopped; turn++) {
      const { publicKey } = makeKeys();
      const region = turn % 2 === 0 ? 'fra' : 'hel';
      const body = await this.#insist('POST', '/v1/peers', 201, { publicKey, region });
      const peer = Peer.parse(body);
      this.alive.set(publicKey, peer.id);
      if (turn % 3 !== 0) continue;
      await this.#insist('DELETE', `/v1/peers/${peer.id}`, 200);
      this.alive.delete(publicKey);
    }
  }

  /** Asks until the answer is a success. A removal that is asked for again may find nothing there. */
  async #insist(method: string, path: string, success: number, body?: object): Promise<unknown> {
    const key = crypto.randomUUID();
    for (;;) {
      try {
        const answer = await this.#lab.controller.app(method, path, this.#sigil, body, key);
        if (answer.status === success || (method === 'DELETE' && answer.status === 404)) {
          this.acknowledged++;
          return answer.body;
        }
        const waits = Number(answer.headers.get('retry-after'));
        if (answer.status !== 503 || !(waits > 0)) {
          this.unexpected.push(`${method} ${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
        }
      } catch (error) {
        // the connection broke: whether it was done is for the repetition to find out
        if (!(error instanceof TypeError)) throw error;
      }
      this.refused++;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  /** Waits for more answers than there are now. */
  async progress(count: number): Promise<void> {
    const goal = this.acknowledged + count;
    const failed = Promise.all(this.#callers);
    await Promise.race([waitFor(`${count} more answers`, () => this.acknowledged >= goal), failed]);
  }

  async refusals(count: number): Promise<void> {
    const goal = this.refused + count;
    await waitFor(`${count} refusals`, () => this.refused >= goal);
  }

  /** Waits for answers of either kind. */
  async answers(count: number): Promise<void> {
    const goal = this.acknowledged + this.refused + count;
    await waitFor(`${count} answers`, () => this.acknowledged + this.refused >= goal);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#callers);
  }
}

async function allPeers(lab: Lab, sigil: string): Promise<Peer[]> {
  const peers: Peer[] = [];
  for (let cursor = ''; ; ) {
    const page = PeerList.parse(
      (await lab.controller.app('GET', `/v1/peers?limit=100${cursor}`, sigil)).body,
    );
    peers.push(...page.items);
    if (page.next === null) return peers;
    cursor = `&cursor=${page.next}`;
  }
}

/** Every exit's kernel holds the peers that the API places there, with their addresses, and no other. */
async function converged(lab: Lab, sigils: string[]): Promise<boolean> {
  const peers = (await Promise.all(sigils.map((sigil) => allPeers(lab, sigil)))).flat();
  for (const exit of lab.exits) {
    const wanted = peers
      .filter((peer) => peer.exits.some(({ node }) => node === exit.name))
      .map(({ publicKey, addresses }) => `${publicKey} ${addresses.ipv4}/32,${addresses.ipv6}/128`);
    const held = (await exit.peers()).map(({ publicKey, allowedIps }) => `${publicKey} ${allowedIps}`);
    if (wanted.sort().join('\n') !== held.sort().join('\n')) return false;
  }
  return peers.every((peer) => peer.exits.every(({ status }) => status === 'active'));
}

test('Postgres, broker and controller killed under load', async () => {
  const { lab } = fleet;
  const own = await lab.mintSigil('pro');
  const pings: Ping[] = [];
  for (const [index, device] of lab.devices.entries()) {
    await lab.connectDevice(device, own, index === 0 ? 'fra' : 'hel');
    pings.push(await device.startPing('10.64.0.1', 50));
  }
  const sigil = await lab.mintSigil('ops');
  const load = new Load(lab, sigil, 6);
  await load.progress(20);

  process.kill(postgres.pid(), 'SIGKILL');
  await load.refusals(1);
  await load.progress(20);

  // without the broker a peer can be recorded but not carried to its exit: the answer is `pending`, or a refusal
  await lab.broker.kill();
  await load.answers(10);
  lab.broker.start();
  await load.progress(20);

  await lab.controller.kill('SIGKILL');
  await load.refusals(3);
  await lab.controller.start();
  await load.progress(20);

  await load.stop();
  expect(load.unexpected).toEqual([]);
  const there = new Map((await allPeers(lab, sigil)).map((peer) => [peer.publicKey, peer.id]));
  expect([...there].sort()).toEqual([...load.alive].sort());
  await waitFor('every exit to hold what the API says', () => converged(lab, [own, sigil]));
  for (const ping of pings) {
    const report = await ping.stop();
    expect(report.lost).toEqual([]);
    expect(report.sent).toBeGreaterThan(100);
  }
});
