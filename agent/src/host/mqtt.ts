/**
 * The connection to the broker (MQTT 3.1.1). Each attempt shows a fresh token, so a reconnect never fails for an old
 * one; attempts are spaced by a jittered, doubling pause. Nothing is queued while there is no connection: what the
 * node has to say after it is said by its hello.
 */

import type { EnrollResponse } from '@katafract/shared/enroll';
import { KatafractError } from '@katafract/shared/errors';
import { mintNodeToken } from '@katafract/shared/node-token';
import { clientId, PROTOCOL, topic } from '@katafract/shared/topics';
import type { NodeId } from '@katafract/shared/units';
import type { Presence } from '@katafract/shared/uplink';
import type { CryptoKey } from 'jose';
import { connect, type IClientOptions, type MqttClient } from 'mqtt';
import type { Clock, Log, Uplink, UplinkMessage } from '../ports.ts';

export interface BrokerSettings {
  readonly node: NodeId;
  readonly broker: EnrollResponse['broker'];
  /** Signs the tokens. */
  readonly key: CryptoKey;
}

export interface BrokerPorts {
  readonly clock: Clock;
  readonly random: () => number;
  readonly log: Log;
  readonly fetch: typeof fetch;
}

export interface BrokerEvents {
  onConnected(): void;
  onDisconnected(): void;
  onDesired(jws: string): void;
}

export interface BrokerLink extends Uplink {
  /** Begins to connect, and goes on trying. */
  start(events: BrokerEvents): void;
  /** Says that the node is going, and disconnects. */
  stop(): Promise<void>;
}

const PAUSE_MS = { first: 200, last: 10_000 };
const KEEPALIVE_SECONDS = 15;
const CONNECT_MS = 10_000;
const GOODBYE_MS = 1000;

/**
 * A lost heartbeat is made good by the next one. `applied` can only be lost with the connection, and is said again
 * after each new one. Losing a hello costs time.
 */
const QOS: Record<UplinkMessage['leaf'], 0 | 1> = { hello: 1, applied: 0, heartbeat: 0 };

export function brokerLink(ports: BrokerPorts, settings: BrokerSettings): BrokerLink {
  return new ReconnectingLink(ports, settings);
}

class ReconnectingLink implements BrokerLink {
  readonly #ports: BrokerPorts;
  readonly #settings: BrokerSettings;
  #events: BrokerEvents | null = null;
  #client: MqttClient | null = null;
  #pause = PAUSE_MS.first;
  #stopped = false;
  #cancelRetry: () => void = () => undefined;

  constructor(ports: BrokerPorts, settings: BrokerSettings) {
    this.#ports = ports;
    this.#settings = settings;
  }

  start(events: BrokerEvents): void {
    this.#events = events;
    void this.#attempt();
  }

  send({ leaf, body }: UplinkMessage): void {
    if (!this.#client?.connected) return;
    this.#publish(this.#client, leaf, body, { qos: QOS[leaf] });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#cancelRetry();
    const client = this.#client;
    if (!client) return;
    await new Promise<void>((resolve) => {
      const cancel = this.#ports.clock.after(GOODBYE_MS, () => client.end(true, {}, () => resolve()));
      const done = () => client.end(false, {}, () => resolve());
      const offline: Presence = { v: PROTOCOL, online: false };
      if (client.connected) this.#publish(client, 'presence', offline, { qos: 1, retain: true }, done);
      else client.end(true, {}, () => resolve());
      client.once('close', cancel);
    });
  }

  #publish(
    client: MqttClient,
    leaf: UplinkMessage['leaf'] | 'presence',
    body: object,
    options: { qos: 0 | 1; retain?: boolean },
    done?: () => void,
  ): void {
    client.publish(topic(this.#settings.node, leaf), JSON.stringify(body), options, (error) => {
      if (error) this.#ports.log.warn({ leaf, err: error }, 'a message may not have reached the broker');
      done?.();
    });
  }

  async #attempt(): Promise<void> {
    try {
      const options = await this.#options();
      if (this.#stopped) return;
      this.#watch(connect(this.#settings.broker.url, options));
    } catch (error) {
      this.#ports.log.warn({ err: error }, 'no connection to the broker');
      this.#retry();
    }
  }

  async #options(): Promise<IClientOptions> {
    const { node, broker, key } = this.#settings;
    const token = await mintNodeToken(key, node, 'katafract-broker', this.#ports.clock.now());
    if (broker.sessionUrl) await this.#showToken(broker.sessionUrl, token);
    const offline: Presence = { v: PROTOCOL, online: false };
    return {
      protocolVersion: 4,
      clean: true,
      clientId: clientId(node),
      username: node,
      password: token,
      keepalive: KEEPALIVE_SECONDS,
      connectTimeout: CONNECT_MS,
      reconnectPeriod: 0, // every attempt is a new client with a new token
      resubscribe: false,
      queueQoSZero: false,
      writeCache: false, // 65,536 prepared packet numbers, 10 MB, for a few messages a second
      will: {
        topic: topic(node, 'presence'),
        payload: Buffer.from(JSON.stringify(offline)),
        qos: 1,
        retain: true,
      },
      ...(broker.ca ? { ca: broker.ca, rejectUnauthorized: true } : {}),
    };
  }

  async #showToken(url: string, token: string): Promise<void> {
    const response = await this.#ports.fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ node: this.#settings.node, token }),
      signal: AbortSignal.timeout(CONNECT_MS),
      redirect: 'error',
    });
    if (!response.ok)
      throw new KatafractError('session_refused', `the controller answered ${response.status}`);
  }

  #watch(client: MqttClient): void {
    this.#client = client;
    let up = false;
    client.on('connect', () => {
      up = true;
      // An answer of a few bytes must not wait for the acknowledgement of the previous segment (Nagle).
      if ('setNoDelay' in client.stream)
        (client.stream as unknown as { setNoDelay(on: boolean): void }).setNoDelay(true);
      void this.#greet(client);
    });
    client.on('message', (_topic, payload) => this.#events?.onDesired(payload.toString('utf8')));
    client.on('error', (error) => {
      // Followed by `close`, which tries again.
      this.#ports.log.warn({ err: error }, 'the connection to the broker failed');
    });
    client.on('close', () => {
      if (this.#client !== client) return;
      this.#client = null;
      client.end(true);
      if (up) this.#events?.onDisconnected();
      this.#retry();
    });
  }

  async #greet(client: MqttClient): Promise<void> {
    const { node } = this.#settings;
    const online: Presence = { v: PROTOCOL, online: true };
    try {
      this.#publish(client, 'presence', online, { qos: 1, retain: true });
      const granted = await client.subscribeAsync(topic(node, 'desired'), { qos: 1 });
      if (granted.some((grant) => grant.qos === 128)) {
        throw new KatafractError(
          'subscribe_refused',
          'the broker does not let the node read its desired state',
        );
      }
      this.#pause = PAUSE_MS.first;
      this.#ports.log.info({}, 'connected to the broker');
      this.#events?.onConnected();
    } catch (error) {
      this.#ports.log.warn({ err: error }, 'the broker did not take the subscription');
      client.end(true);
    }
  }

  #retry(): void {
    if (this.#stopped) return;
    const wait = this.#pause * (0.5 + this.#ports.random());
    this.#pause = Math.min(this.#pause * 2, PAUSE_MS.last);
    this.#cancelRetry = this.#ports.clock.after(wait, () => void this.#attempt());
  }
}
