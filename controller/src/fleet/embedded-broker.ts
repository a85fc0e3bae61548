/**
 * The broker inside the controller: aedes, MQTT 3.1.1 over TCP or TLS. Default deny: a connection must bring a valid
 * token and the client id that belongs to its name; a node may publish its own up-topics, read its own `desired`, and
 * nothing else; an operator may publish commands and read nothing. A denied publish or subscribe ends the connection.
 *
 * An operator's command is handed over before it is acknowledged (QoS 1): the receipt says that it was decided.
 */
import { createServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { type Clock, systemClock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { type NodePublicJwk, verifyNodeToken } from '@katafract/shared/node-token';
import { OperatorName, operatorClientId, verifyOperatorToken } from '@katafract/shared/operator-command';
import { clientId, parseOperatorTopic, parseUpTopic, topic, UP_LEAVES } from '@katafract/shared/topics';
import { NodeId } from '@katafract/shared/units';
import { Aedes, type AuthenticateError, type Client, type PublishPacket } from 'aedes';
import { type CryptoKey, importJWK } from 'jose';
import {
  type Bus,
  type BusHandlers,
  brokerUnavailable,
  type IdentityOf,
  type OperatorKeyOf,
  type Qos,
  UP_MESSAGE_BYTES,
} from './bus.ts';

export interface EmbeddedBrokerOptions {
  readonly host: string;
  /** 0 takes a free one; see `port`. */
  readonly port: number;
  readonly tls?: { readonly cert: string; readonly key: string };
  readonly identityOf: IdentityOf;
  readonly operatorKeyOf: OperatorKeyOf;
  readonly clock?: Clock;
}

/** Bytes a connection may send before it is authenticated: a CONNECT with a token is under 2 kB. */
const STRANGER_BYTES = 4096;
/** Messages a node may send at once, and how many more a second: far above what a busy node needs. */
const NODE_RATE = { burst: 1000, perSecond: 500 };
/** A person, or a script that empties a rack. */
const OPERATOR_RATE = { burst: 50, perSecond: 5 };

/** Whoever has shown a good token: a node, or an operator. */
interface Guest {
  readonly node: NodeId | null;
  readonly operator: OperatorName | null;
  readonly rate: typeof NODE_RATE;
  tokens: number;
  at: number;
}

const badCredentials = () =>
  Object.assign(new Error('not authorized'), { returnCode: 4 }) as AuthenticateError;

export class EmbeddedBroker implements Bus {
  readonly #options: EmbeddedBrokerOptions;
  readonly #guests = new Map<Client, Guest>();
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
        const guest = client && this.#guests.get(client);
        const { reason, command } = this.#judge(guest ?? null, packet);
        if (reason !== null) handlers.onRefused(reason, guest?.node ?? null);
        if (reason !== null) done(new Error(`refused: ${reason}`));
        else if (command === null) done(null);
        else handlers.onCommand(command, Buffer.from(packet.payload), false).then(() => done(null), done);
      },
      authorizeSubscribe: (client, subscription, done) => {
        const node = this.#guests.get(client)?.node ?? null;
        const own = node !== null && subscription.topic === topic(node, 'desired');
        if (!own) handlers.onRefused('subscribe', node);
        done(own ? null : new Error('refused: subscribe'), own ? subscription : null);
      },
    });
    broker.on('clientDisconnect', (client) => this.#guests.delete(client));
    broker.on('clientError', (client) =>
      handlers.onRefused('client_error', this.#guests.get(client)?.node ?? null),
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
    const now = (this.#options.clock ?? systemClock).now();
    const token = password?.toString() ?? '';
    const [, named] = /^operator:(.*)$/s.exec(username ?? '') ?? [];
    const guest =
      named === undefined
        ? await this.#node(client, NodeId.parse(username), token, now)
        : await this.#operator(client, OperatorName.parse(named), token, now);
    this.#strangers.get(client)?.();
    this.#guests.set(client, { ...guest, tokens: guest.rate.burst, at: now });
  }

  async #node(client: Client, node: NodeId, token: string, now: number) {
    if (client.id !== clientId(node)) throw badCredentials();
    const key = await keyFrom(await this.#options.identityOf(node));
    await verifyNodeToken(token, key, { node, audience: 'katafract-broker', now });
    return { node, operator: null, rate: NODE_RATE };
  }

  async #operator(client: Client, operator: OperatorName, token: string, now: number) {
    if (client.id !== operatorClientId(operator)) throw badCredentials();
    const key = await keyFrom(await this.#options.operatorKeyOf(operator));
    await verifyOperatorToken(token, key, { name: operator, now });
    return { node: null, operator, rate: OPERATOR_RATE };
  }

  /** Whether a message may pass, and, where it is a command, for which node. */
  #judge(guest: Guest | null, packet: PublishPacket): { reason: string | null; command: NodeId | null } {
    if (!guest) return { reason: 'publish', command: null };
    const { topic: name, payload } = packet;
    const command = guest.operator === null ? null : (parseOperatorTopic(name)?.node ?? null);
    const own = guest.operator === null ? parseUpTopic(name)?.node === guest.node : command !== null;
    // what is decided here and now is kept for nobody
    if (command !== null) packet.retain = false;
    return { reason: own ? this.#excess(guest, payload.length) : 'publish', command };
  }

  /** Why a message of somebody authenticated may not pass; null where it may. */
  #excess(guest: Guest, bytes: number): string | null {
    if (bytes > UP_MESSAGE_BYTES) return 'too_large';
    const { burst, perSecond } = guest.rate;
    const now = (this.#options.clock ?? systemClock).now();
    guest.tokens = Math.min(burst, guest.tokens + ((now - guest.at) / 1000) * perSecond);
    guest.at = now;
    if (guest.tokens < 1) return 'too_many';
    guest.tokens -= 1;
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

  evict(node: NodeId): Promise<void> {
    return this.#close((guest) => guest.node === node);
  }

  evictOperator(name: OperatorName): Promise<void> {
    return this.#close((guest) => guest.operator === name);
  }

  async #close(meant: (guest: Guest) => boolean): Promise<void> {
    for (const [client, guest] of this.#guests) {
      if (meant(guest)) await new Promise<void>((resolve) => client.close(() => resolve()));
    }
  }

  async admit(): Promise<void> {
    // The embedded broker verifies the token itself.
  }

  async admitOperator(): Promise<void> {
    // Likewise.
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

async function keyFrom(jwk: NodePublicJwk | null): Promise<CryptoKey> {
  const key = jwk === null ? null : await importJWK(jwk, 'EdDSA');
  if (key === null || key instanceof Uint8Array) throw badCredentials();
  return key;
}
