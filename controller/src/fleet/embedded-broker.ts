/**
 * The broker inside the controller: aedes, MQTT 3.1.1 over TCP or TLS. Default deny: a connection must bring a valid
 * node token and the client id that belongs to the node; a node may publish its own up-topics, read its own `desired`,
 * and nothing else. A denied publish or subscribe ends the connection.
 */
import { createServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { type Clock, systemClock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { verifyNodeToken } from '@katafract/shared/node-token';
import { clientId, parseUpTopic, topic, UP_LEAVES } from '@katafract/shared/topics';
import { NodeId } from '@katafract/shared/units';
import { Aedes, type AuthenticateError, type Client } from 'aedes';
import { importJWK } from 'jose';
import {
  type Bus,
  type BusHandlers,
  brokerUnavailable,
  type IdentityOf,
  type Qos,
  UP_MESSAGE_BYTES,
} from './bus.ts';

export interface EmbeddedBrokerOptions {
  readonly host: string;
  /** 0 takes a free one; see `port`. */
  readonly port: number;
  readonly tls?: { readonly cert: string; readonly key: string };
  readonly identityOf: IdentityOf;
  readonly clock?: Clock;
}

/** Bytes a connection may send before it is authenticated: a CONNECT with a token is under 2 kB. */
const STRANGER_BYTES = 4096;
/** Messages a node may send at once, and how many more a second: far above what a busy node needs. */
const BURST = 1000;
const PER_SECOND = 500;

const badCredentials = () =>
  Object.assign(new Error('not authorized'), { returnCode: 4 }) as AuthenticateError;

export class EmbeddedBroker implements Bus {
  readonly #options: EmbeddedBrokerOptions;
  readonly #nodes = new Map<Client, { node: NodeId; tokens: number; at: number }>();
  readonly #sockets = new Set<Socket>();
  readonly #strangers = new Map<Client, () => void>();
  #broker: Aedes | null = null;
  #server: Server | null = null;

  constructor(options: EmbeddedBrokerOptions) {
    this.#options = options;
  }

  /** The port it listens on. */
  get port(): number {
    const address = this.#server?.address();
    return typeof address === 'object' && address ? address.port : this.#options.port;
  }

  async start(handlers: BusHandlers): Promise<void> {
    const broker = await Aedes.createBroker({
      connectTimeout: 5000,
      maxClientsIdLength: 64,
      queueLimit: 64,
      maxTopicLevels: 8,
      authenticate: (client, username, password, done) => {
        this.#authenticate(client, username, password).then(
          () => done(null, true),
          () => {
            handlers.onRefused('connect', null);
            done(badCredentials(), false);
          },
        );
      },
      authorizePublish: (client, packet, done) => {
        const node = client && this.#nodes.get(client)?.node;
        const target = parseUpTopic(packet.topic);
        const reason =
          !node || target?.node !== node ? 'publish' : this.#excess(client, packet.payload.length);
        if (reason) handlers.onRefused(reason, node ?? null);
        done(reason ? new Error(`refused: ${reason}`) : null);
      },
      authorizeSubscribe: (client, subscription, done) => {
        const node = this.#nodes.get(client)?.node;
        const own = node !== undefined && subscription.topic === topic(node, 'desired');
        if (!own) handlers.onRefused('subscribe', node ?? null);
        done(own ? null : new Error('refused: subscribe'), own ? subscription : null);
      },
    });
    broker.on('clientDisconnect', (client) => this.#nodes.delete(client));
    broker.on('clientError', (client) =>
      handlers.onRefused('client_error', this.#nodes.get(client)?.node ?? null),
    );
    broker.on('connectionError', () => handlers.onRefused('connection_error', null));
    for (const leaf of UP_LEAVES) {
      await new Promise<void>((resolve) =>
        broker.subscribe(
          `kf/1/+/${leaf}`,
          (packet, done) => {
            const from = parseUpTopic(packet.topic);
            if (from) handlers.onMessage(from.node, from.leaf, Buffer.from(packet.payload));
            done();
          },
          resolve,
        ),
      );
    }
    this.#broker = broker;
    await this.#listen(broker, handlers);
    handlers.onConnection(true);
  }

  async #listen(broker: Aedes, handlers: BusHandlers): Promise<void> {
    const accept = (socket: Socket) => {
      this.#sockets.add(socket);
      socket.setNoDelay(true);
      socket.on('close', () => this.#sockets.delete(socket));
      const client = broker.handle(socket);
      this.#limitStranger(socket, client, handlers);
    };
    const { tls, host, port } = this.#options;
    const server = tls ? createTlsServer({ ...tls, minVersion: 'TLSv1.3' }, accept) : createServer(accept);
    await new Promise<void>((resolve, reject) => {
      server.once('error', (cause) =>
        reject(new KatafractError('broker_listen_failed', 'the MQTT broker cannot listen', { cause })),
      );
      server.listen(port, host, resolve);
    });
    this.#server = server;
  }

  /** Whoever has not proved anything may not make us buffer anything: MQTT lets a header announce 256 MB. */
  #limitStranger(socket: Socket, client: Client, handlers: BusHandlers): void {
    let bytes = 0;
    const count = (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes <= STRANGER_BYTES) return;
      handlers.onRefused('stranger_bytes', null);
      socket.destroy();
    };
    socket.on('data', count);
    this.#strangers.set(client, () => socket.off('data', count));
    socket.on('close', () => this.#strangers.delete(client));
  }

  async #authenticate(client: Client, username?: string, password?: Buffer): Promise<void> {
    const node = NodeId.parse(username);
    if (client.id !== clientId(node)) throw badCredentials();
    const identity = await this.#options.identityOf(node);
    if (!identity || !password) throw badCredentials();
    const key = await importJWK(identity, 'EdDSA');
    if (key instanceof Uint8Array) throw badCredentials();
    const now = (this.#options.clock ?? systemClock).now();
    await verifyNodeToken(password.toString(), key, { node, audience: 'katafract-broker', now });
    this.#strangers.get(client)?.();
    this.#nodes.set(client, { node, tokens: BURST, at: now });
  }

  /** Why a message of an authenticated node may not pass; null where it may. */
  #excess(client: Client, bytes: number): string | null {
    if (bytes > UP_MESSAGE_BYTES) return 'too_large';
    const bucket = this.#nodes.get(client);
    if (!bucket) return 'publish';
    const now = (this.#options.clock ?? systemClock).now();
    bucket.tokens = Math.min(BURST, bucket.tokens + ((now - bucket.at) / 1000) * PER_SECOND);
    bucket.at = now;
    if (bucket.tokens < 1) return 'too_many';
    bucket.tokens -= 1;
    return null;
  }

  publish(name: string, payload: string, qos: Qos): Promise<void> {
    const broker = this.#broker;
    if (!broker || broker.closed) return Promise.reject(brokerUnavailable());
    return new Promise((resolve, reject) => {
      broker.publish(
        { cmd: 'publish', topic: name, payload: Buffer.from(payload), qos, retain: false, dup: false },
        (error) => (error ? reject(error) : resolve()),
      );
    });
  }

  ready(): boolean {
    return this.#broker !== null && !this.#broker.closed && this.#server?.listening === true;
  }

  async evict(node: NodeId): Promise<void> {
    for (const [client, bucket] of this.#nodes) {
      if (bucket.node === node) await new Promise<void>((resolve) => client.close(() => resolve()));
    }
  }

  async admit(): Promise<void> {
    // The embedded broker verifies the token itself.
  }

  async stop(): Promise<void> {
    const server = this.#server;
    const broker = this.#broker;
    this.#server = null;
    this.#broker = null;
    if (server) {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      if (broker) await new Promise<void>((resolve) => broker.close(() => resolve()));
      for (const socket of this.#sockets) socket.destroy();
      await closed;
    }
  }
}
