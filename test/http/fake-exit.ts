/**
 * A stand-in for an exit: it enrolls and speaks the real protocol over real MQTT - signature, generations, digest,
 * acknowledgement, heartbeat - but its "kernel" is a map. What a real kernel and the real agent do is proved elsewhere
 * (agent/, test/lab.test.ts); here an exit must be cheap to have and easy to make slow.
 */
import { randomBytes } from 'node:crypto';
import { type Desired, verifyDesired } from '@katafract/shared/desired';
import { EMPTY_DIGEST, entryDigest, type PeerEntry, xorDigest } from '@katafract/shared/digest';
import { EnrollResponse } from '@katafract/shared/enroll';
import { mintNodeToken, publicJwk } from '@katafract/shared/node-token';
import { clientId, topic, type UpLeaf } from '@katafract/shared/topics';
import { type Digest, type Generation, type Lineage, NodeId, type PublicKey } from '@katafract/shared/units';
import type { Heartbeat, Hello } from '@katafract/shared/uplink';
import { type CryptoKey, exportJWK, generateKeyPair, importJWK } from 'jose';
import { connectAsync, type MqttClient } from 'mqtt';
import type { Api } from './controller.ts';

/** A public key that no private key is known to, which is all the control plane ever sees of one. */
export const newKey = () => randomBytes(32).toString('base64') as PublicKey;

const BEAT_MS = 5000;
let made = 0;

export interface ExitOptions {
  readonly node: string;
  readonly region: string;
  readonly capacity?: number;
  readonly tunnels?: number;
}

export class FakeExit {
  readonly node: NodeId;
  readonly key: CryptoKey;
  readonly #stateKey: CryptoKey;
  /** What its kernel would hold, and the position in the log that this is. */
  readonly table = new Map<PublicKey, PeerEntry>();
  lineage: Lineage;
  generation = 0 as Generation;
  digest: Digest = EMPTY_DIGEST;
  /** Every message as it came, for whoever looks for what must not be in them. */
  readonly heard: string[] = [];
  /** What an honest controller's messages never cause. */
  readonly faults: string[] = [];
  #received = false;
  #staged: Desired[] = [];
  #work: Promise<void> = Promise.resolve();
  #gate: Promise<void> = Promise.resolve();
  #open: () => void = () => undefined;
  #client: MqttClient | null = null;
  #beats: NodeJS.Timeout | undefined;

  constructor(key: CryptoKey, stateKey: CryptoKey, enrolled: EnrollResponse) {
    this.node = enrolled.node;
    this.lineage = enrolled.lineage;
    this.key = key;
    this.#stateKey = stateKey;
  }

  /** Enrolls a new node over HTTP. */
  static async enroll(
    api: Api,
    { node, region, capacity = 10_000, tunnels = 1 }: ExitOptions,
  ): Promise<FakeExit> {
    const endpoint = `192.0.2.${++made % 250}:51820`;
    const join = { node, region, capacity, tunnels, endpoint };
    const { token } = await api.operate<{ token: string }>('POST', '/v1/admin/join-tokens', join);
    return FakeExit.join(api, token);
  }

  /** Enrolls with a join token that somebody has. */
  static async join(api: Api, token: string, endpoint?: string): Promise<FakeExit> {
    const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
    const identity = publicJwk(await exportJWK(pair.publicKey));
    const enrolling = NodeId.parse('enrolling');
    const proof = await mintNodeToken(pair.privateKey, enrolling, 'katafract-enroll', Date.now());
    const body = {
      token,
      publicKey: newKey(),
      identity,
      proof,
      ...(endpoint === undefined ? {} : { endpoint }),
    };
    const answer = await api.call('POST', '/v1/nodes/enroll', { body });
    if (answer.status !== 201) throw new Error(`not enrolled: ${answer.text}`);
    const enrolled = EnrollResponse.parse(answer.body);
    return new FakeExit(pair.privateKey, await keyOf(enrolled.stateKey), enrolled);
  }

  /** Connects, and goes on reconnecting until `leave`. Resolves when it has said hello. */
  async connect(brokerUrl: string): Promise<void> {
    const client = await connectAsync(brokerUrl, {
      clientId: clientId(this.node),
      username: this.node,
      password: await mintNodeToken(this.key, this.node, 'katafract-broker', Date.now()),
      clean: true,
      reconnectPeriod: 200,
    });
    this.#client = client;
    client.on('error', () => undefined); // a controller that is down is what some tests are about
    client.on('message', (_topic, payload) => this.#onMessage(payload.toString()));
    const greet = async () => {
      (client.stream as unknown as { setNoDelay(on: boolean): void }).setNoDelay(true);
      await client.subscribeAsync(topic(this.node, 'desired'), { qos: 1 });
      this.#hello();
    };
    client.on('connect', () => void greet().catch(() => undefined)); // lost again; the next connect greets
    await greet();
    this.#beats = setInterval(() => this.beat(), BEAT_MS);
    this.#beats.unref();
  }

  async leave(): Promise<void> {
    clearInterval(this.#beats);
    this.resume();
    const client = this.#client;
    this.#client = null;
    await client?.endAsync(true);
  }

  /** From now on it takes nothing and answers nothing, but lives. */
  pause(): void {
    this.#gate = new Promise((resolve) => {
      this.#open = resolve;
    });
  }

  /** Takes and answers what has piled up. */
  resume(): void {
    this.#open();
  }

  /** From now on it sends no heartbeats, but answers. */
  hush(): void {
    clearInterval(this.#beats);
  }

  /** Resolves when everything that has arrived is taken. */
  idle(): Promise<void> {
    return this.#work;
  }

  say(leaf: UpLeaf, body: object | string | Buffer): void {
    const payload = typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body);
    this.#client?.publish(topic(this.node, leaf), payload, { qos: 1 });
  }

  hello(): Hello {
    const { lineage, generation, digest } = this;
    const want = this.#received ? 'delta' : 'snapshot';
    return { v: 1, boot: 'stand-in', version: '0.1.0', lineage, generation, digest, want };
  }

  heartbeat(): Heartbeat {
    const { want: _, ...position } = this.hello();
    const none = { rxBytes: 0, txBytes: 0, cpu: 0, memoryUsed: 0, memoryTotal: 1, load: 0, uptimeSeconds: 1 };
    const fine = { rules: 'ok', dns: 'off', repairs: 0, refused: {} } as const;
    return { ...position, at: Date.now(), peers: this.table.size, peersRecent: 0, ...none, ...fine };
  }

  beat(): void {
    this.say('heartbeat', this.heartbeat());
  }

  #hello(want?: 'snapshot'): void {
    this.say('hello', { ...this.hello(), ...(want ? { want } : {}) });
  }

  #onMessage(jws: string): void {
    this.heard.push(jws);
    this.#work = this.#work
      .then(() => this.#gate)
      .then(() => verifyDesired(jws, this.#stateKey, this.node))
      .then((message) => this.#take(message))
      .catch((error: unknown) => {
        this.faults.push(String(error));
      });
  }

  #take(message: Desired): void {
    const { lineage, to } = message;
    if (lineage < this.lineage || (lineage === this.lineage && to <= this.generation && this.#received)) {
      this.#acknowledge();
      return;
    }
    if (message.kind === 'delta' && (lineage !== this.lineage || message.from !== this.generation)) {
      this.#hello();
      return;
    }
    if (message.part === 1) this.#staged = [];
    this.#staged.push(message);
    if (this.#staged.length < message.parts) return;
    if (message.kind === 'snapshot') this.#clear();
    for (const part of this.#staged) this.#apply(part);
    this.lineage = lineage;
    this.generation = to;
    this.#received = true;
    if (this.digest !== message.digest) this.faults.push(`digest of ${message.kind} to ${to}`);
    this.#acknowledge();
  }

  #clear(): void {
    this.table.clear();
    this.digest = EMPTY_DIGEST;
  }

  #apply(part: Desired): void {
    for (const key of part.kind === 'delta' ? part.del : []) this.#remove(key);
    for (const [publicKey, ipv4, ipv6] of part.set) {
      this.#remove(publicKey);
      const entry = { publicKey, ipv4, ipv6 };
      this.table.set(publicKey, entry);
      this.digest = xorDigest(this.digest, entryDigest(entry));
    }
  }

  #remove(key: PublicKey): void {
    const entry = this.table.get(key);
    if (entry) this.digest = xorDigest(this.digest, entryDigest(entry));
    this.table.delete(key);
  }

  #acknowledge(): void {
    const { lineage, generation, digest } = this;
    this.say('applied', { v: 1, lineage, generation, digest });
  }
}

async function keyOf(jwk: EnrollResponse['stateKey']): Promise<CryptoKey> {
  const key = await importJWK(jwk, 'EdDSA');
  if (key instanceof Uint8Array) throw new TypeError('an OKP key is never symmetric');
  return key;
}

/** Enrolls and connects one exit. */
export async function startExit(api: Api & { brokerUrl: string }, options: ExitOptions): Promise<FakeExit> {
  const exit = await FakeExit.enroll(api, options);
  await exit.connect(api.brokerUrl);
  return exit;
}
