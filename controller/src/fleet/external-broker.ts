/**
 * A broker of somebody else's by URL: Mosquitto with its dynamic-security plugin, which Debian ships. The plugin knows
 * names, passwords and ACLs but no JWT, so the controller is what checks a node's token (`admit`) and then gives the
 * broker that token as the node's password, bound to the node's client id and to an ACL of its four topics, until the
 * token expires. Default deny for everybody else. A broker that checks tokens itself (EMQX) needs none of this: start
 * the controller with KATAFRACT_MQTT_ADMISSION=none and give the broker the ACLs of shared/src/topics.ts.
 *
 * @see mosquitto 2.0, plugins/dynamic-security/README.md: commands go to $CONTROL/dynamic-security/v1
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { type Clock, sleep, systemClock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { clientId, parseUpTopic, topic, UP_LEAVES, upFilter } from '@katafract/shared/topics';
import type { NodeId } from '@katafract/shared/units';
import { connectAsync, type MqttClient } from 'mqtt';
import { type Bus, type BusHandlers, UP_MESSAGE_BYTES } from './bus.ts';

export interface ExternalBrokerOptions {
  readonly url: string;
  readonly username?: string;
  readonly password?: string;
  /** PEM of the CA to trust, where it is a private one. */
  readonly ca?: string;
  /** `dynsec`: nodes are let in through the dynamic-security plugin; `none`: the broker sees to that itself. */
  readonly admission: 'dynsec' | 'none';
  readonly clock?: Clock;
}

const CONTROL = '$CONTROL/dynamic-security/v1';
const ANSWER_MS = 5000;

type Command = { command: string } & Record<string, unknown>;
interface Answer {
  command: string;
  error?: string;
  correlationData?: string;
}

export class ExternalBroker implements Bus {
  readonly #options: ExternalBrokerOptions;
  readonly #clock: Clock;
  readonly #waiting = new Map<string, (answer: Answer) => void>();
  readonly #admitted = new Map<NodeId, () => void>();
  #client: MqttClient | null = null;

  constructor(options: ExternalBrokerOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  /** @throws KatafractError `broker_unavailable` where the broker does not answer at the start */
  async start(handlers: BusHandlers): Promise<void> {
    const { url, username, password, ca } = this.#options;
    const client = await connectAsync(url, {
      clientId: `kf-controller-${randomUUID()}`,
      clean: true,
      reconnectPeriod: 500,
      connectTimeout: 5000,
      resubscribe: true,
      ...(username === undefined ? {} : { username }),
      ...(password === undefined ? {} : { password }),
      ...(ca === undefined ? {} : { ca }),
    }).catch((cause: unknown) => {
      throw brokerUnavailable(cause);
    });
    this.#client = client;
    client.on('message', (name, payload) => {
      if (name.startsWith(`${CONTROL}/`)) this.#answer(payload);
      else this.#deliver(handlers, name, payload);
    });
    client.on('connect', () => handlers.onConnection(true));
    client.on('close', () => handlers.onConnection(false));
    client.on('error', () => handlers.onRefused('connection_error', null));
    await client.subscribeAsync([...UP_LEAVES.map(upFilter), `${CONTROL}/response`], { qos: 1 });
    if (this.#options.admission === 'dynsec') await this.#denyByDefault();
    handlers.onConnection(true);
  }

  #deliver(handlers: BusHandlers, name: string, payload: Buffer): void {
    const from = parseUpTopic(name);
    if (!from) return;
    if (payload.length > UP_MESSAGE_BYTES) handlers.onRefused('too_large', from.node);
    else handlers.onMessage(from.node, from.leaf, payload);
  }

  #answer(payload: Buffer): void {
    const { responses = [] } = JSON.parse(payload.toString('utf8')) as { responses?: Answer[] };
    for (const answer of responses) this.#waiting.get(answer.correlationData ?? '')?.(answer);
  }

  /** Runs one command of the plugin. @throws KatafractError `broker_command_failed` unless `tolerate` matches */
  async #command(command: Command, tolerate?: RegExp): Promise<void> {
    const correlationData = randomUUID();
    const answered = new Promise<Answer>((resolve) => this.#waiting.set(correlationData, resolve));
    try {
      await this.publish(CONTROL, JSON.stringify({ commands: [{ ...command, correlationData }] }));
      const answer = await Promise.race([answered, sleep(this.#clock, ANSWER_MS)]);
      if (!answer) throw brokerUnavailable(new Error('no answer to a command'));
      const { error } = answer;
      if (error !== undefined && !tolerate?.test(error)) {
        throw new KatafractError('broker_command_failed', `${command.command}: ${error}`, { status: 503 });
      }
    } finally {
      this.#waiting.delete(correlationData);
    }
  }

  /** Nobody may do anything but what a role of theirs allows. */
  #denyByDefault(): Promise<void> {
    const types = ['publishClientSend', 'publishClientReceive', 'subscribe', 'unsubscribe'];
    return this.#command({
      command: 'setDefaultACLAccess',
      acls: types.map((acltype) => ({ acltype, allow: acltype === 'unsubscribe' })),
    });
  }

  async admit(node: NodeId, token: string, expiresAt: number): Promise<void> {
    if (this.#options.admission === 'none') return;
    const role = clientId(node);
    const acls = [
      ...UP_LEAVES.map((leaf) => ({ acltype: 'publishClientSend', topic: topic(node, leaf), allow: true })),
      ...['subscribeLiteral', 'publishClientReceive'].map((acltype) => ({
        acltype,
        topic: topic(node, 'desired'),
        allow: true,
      })),
    ];
    await this.#command({ command: 'createRole', rolename: role, acls }, /already exists/i);
    await this.#command(
      {
        command: 'createClient',
        username: node,
        clientid: role,
        password: throwaway(),
        roles: [{ rolename: role }],
      },
      /already exists/i,
    );
    await this.#command({ command: 'setClientPassword', username: node, password: token });
    await this.#command({ command: 'enableClient', username: node });
    this.#admitted.get(node)?.();
    this.#admitted.set(
      node,
      this.#clock.after(expiresAt - this.#clock.now(), () => void this.#expire(node)),
    );
  }

  /** An expired token opens nothing any more; a session that it opened goes on. */
  async #expire(node: NodeId): Promise<void> {
    this.#admitted.delete(node);
    await this.#command({ command: 'setClientPassword', username: node, password: throwaway() });
  }

  publish(name: string, payload: string): Promise<void> {
    const client = this.#client;
    // Not queued while there is no broker: what is due then is decided anew when it is back.
    if (!client?.connected) return Promise.reject(brokerUnavailable());
    return client.publishAsync(name, payload, { qos: 1 }).then(() => undefined);
  }

  ready(): boolean {
    return this.#client?.connected === true;
  }

  async evict(node: NodeId): Promise<void> {
    if (this.#options.admission === 'dynsec') {
      await this.#command({ command: 'disableClient', username: node }, /not found/i);
    }
  }

  async stop(): Promise<void> {
    for (const cancel of this.#admitted.values()) cancel();
    this.#admitted.clear();
    const client = this.#client;
    this.#client = null;
    client?.removeAllListeners('close');
    await client?.endAsync();
  }
}

const throwaway = () => randomBytes(32).toString('base64url');

function brokerUnavailable(cause?: unknown): KatafractError {
  return new KatafractError('broker_unavailable', 'the message broker cannot be reached', {
    status: 503,
    retryAfter: 2,
    cause,
  });
}
