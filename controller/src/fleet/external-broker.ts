/**
 * A broker of somebody else's by URL: Mosquitto with its dynamic-security plugin, which Debian ships. The plugin knows
 * names, passwords and ACLs but no JWT, so the controller is what checks a node's token (`admit`) and then gives the
 * broker that token as the node's password, bound to the node's client id and to an ACL of its topics, until the token
 * expires; operators likewise. Default deny for everybody else. A broker that checks tokens itself (EMQX) needs none of
 * this: start the controller with KATAFRACT_MQTT_ADMISSION=none and give the broker the ACLs of shared/src/topics.ts.
 *
 * What an operator publishes to such a broker is receipted by the broker, not by us. Published with `retain`, the last
 * command for each node waits there for a controller that is away or dies over it; each still works only once.
 *
 * @see mosquitto 2.0, plugins/dynamic-security/README.md: commands go to $CONTROL/dynamic-security/v1
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { Socket } from 'node:net';
import { type Clock, sleep, systemClock } from '@katafract/shared/clock';
import { KatafractError } from '@katafract/shared/errors';
import { IDENTITY_TOKEN_SECONDS } from '@katafract/shared/identity-token';
import {
  COMMAND_LIFE_MS,
  OperatorName,
  operatorClientId,
  operatorUsername,
} from '@katafract/shared/operator-command';
import {
  clientId,
  OPERATOR_LEAVES,
  PROTOCOL,
  parseOperatorTopic,
  parseUpTopic,
  topic,
  UP_LEAVES,
  upFilter,
} from '@katafract/shared/topics';
import { NodeId } from '@katafract/shared/units';
import { connect, type MqttClient } from 'mqtt';
import { z } from 'zod';
import { type Bus, type BusHandlers, brokerUnavailable, type Qos, UP_MESSAGE_BYTES } from './bus.ts';

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
const EXISTS = /already exists/i;
const CONTROLLER_ROLE = 'kf-controller';
/** Every operator has the same: the signature inside a command says whose it is. */
const OPERATOR_ROLE = 'kf-operators';
/** A command that could not be decided, the database being away, is tried again; so many at once. */
const AGAIN_MS = 2000;
const AGAIN_AT_MOST = 64;
const everyDesired = `kf/${PROTOCOL}/+/desired`;

type Command = { command: string } & Record<string, unknown>;
const Answer = z.object({
  error: z.string().optional(),
  correlationData: z.string().optional(),
  data: z.object({ clients: z.array(z.string()).optional() }).optional(),
});
type Answer = z.infer<typeof Answer>;
const Answers = z.object({ responses: z.array(Answer) });

export class ExternalBroker implements Bus {
  readonly #options: ExternalBrokerOptions;
  readonly #clock: Clock;
  readonly #waiting = new Map<string, (answer: Answer) => void>();
  /** By name at the broker: what ends the waiting for its token's end. */
  readonly #admitted = new Map<string, () => void>();
  readonly #undecided = new Set<() => void>();
  #client: MqttClient | null = null;
  #handlers: BusHandlers | null = null;
  /** Whether this connection's greeting is through: before it the broker drops, in silence, whatever we say. */
  #greeted = false;

  constructor(options: ExternalBrokerOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  /** Returns at once: a broker that is away at the start is waited for like one that goes away later. */
  async start(handlers: BusHandlers): Promise<void> {
    this.#handlers = handlers;
    const { url, username, password, ca } = this.#options;
    const client = connect(url, {
      clientId: `kf-controller-${randomUUID()}`,
      clean: true,
      reconnectPeriod: 500,
      connectTimeout: 5000,
      resubscribe: false,
      ...(username === undefined ? {} : { username }),
      ...(password === undefined ? {} : { password }),
      ...(ca === undefined ? {} : { ca }),
    });
    this.#client = client;
    client.on('message', (name, payload, packet) => {
      if (name.startsWith(`${CONTROL}/`)) this.#answer(payload);
      else this.#deliver(handlers, name, payload, packet.retain);
    });
    client.on('connect', () => {
      this.#greet(client).then(
        () => {
          this.#greeted = true;
          handlers.onConnection(true);
        },
        () => {
          handlers.onRefused('greeting_failed', null);
          client.stream.destroy();
        },
      );
    });
    client.on('close', () => {
      this.#greeted = false;
      handlers.onConnection(false);
    });
    client.on('error', () => handlers.onRefused('connection_error', null));
  }

  /** What every connection begins with. */
  async #greet(client: MqttClient): Promise<void> {
    const stream: unknown = client.stream;
    if (stream instanceof Socket) stream.setNoDelay(true);
    const control = this.#options.admission === 'dynsec' ? [`${CONTROL}/response`] : [];
    await client.subscribeAsync([...control, ...[...UP_LEAVES, ...OPERATOR_LEAVES].map(upFilter)], {
      qos: 1,
    });
    if (control.length === 0) return;
    await this.#denyByDefault();
    await this.#allowMyself();
    await this.#adopt();
  }

  #deliver(handlers: BusHandlers, name: string, payload: Buffer, retained: boolean): void {
    const from = parseUpTopic(name);
    const about = from ?? parseOperatorTopic(name);
    if (!about || payload.length === 0) return;
    if (payload.length > UP_MESSAGE_BYTES) handlers.onRefused('too_large', about.node);
    else if (from) handlers.onMessage(from.node, from.leaf, payload);
    else this.#take(handlers, about.node, payload, retained, this.#clock.now() + COMMAND_LIFE_MS);
  }

  /** Hands a command over, and again until it is decided or too old anyway: nobody else would bring it back. */
  #take(handlers: BusHandlers, node: NodeId, payload: Buffer, kept: boolean, until: number): void {
    handlers.onCommand(node, payload, kept).catch(() => {
      if (this.#clock.now() > until || this.#undecided.size >= AGAIN_AT_MOST || this.#client === null) {
        handlers.onRefused('undecided', node);
        return;
      }
      const cancel = this.#clock.after(AGAIN_MS, () => {
        this.#undecided.delete(cancel);
        this.#take(handlers, node, payload, kept, until);
      });
      this.#undecided.add(cancel);
    });
  }

  #answer(payload: Buffer): void {
    const parsed = Answers.safeParse(parseJson(payload));
    if (!parsed.success) this.#handlers?.onRefused('malformed', null);
    for (const answer of parsed.data?.responses ?? [])
      this.#waiting.get(answer.correlationData ?? '')?.(answer);
  }

  /**
   * Runs one command of the plugin; twice at most, since an answer goes astray with a connection. Each may be repeated.
   * @throws KatafractError `broker_command_failed` unless `tolerate` matches; `broker_unavailable` (503)
   */
  async #command(command: Command, tolerate?: RegExp): Promise<Answer> {
    const answer = (await this.#ask(command)) ?? (await this.#ask(command));
    if (!answer) throw brokerUnavailable(new Error('no answer to a command'));
    const { error } = answer;
    if (error !== undefined && !tolerate?.test(error)) {
      throw new KatafractError('broker_command_failed', `${command.command}: ${error}`, { status: 503 });
    }
    return answer;
  }

  async #ask(command: Command): Promise<Answer | undefined> {
    const correlationData = randomUUID();
    const answered = new Promise<Answer>((resolve) => this.#waiting.set(correlationData, resolve));
    try {
      await this.#publish(CONTROL, JSON.stringify({ commands: [{ ...command, correlationData }] }), 1);
      return (await Promise.race([answered, sleep(this.#clock, ANSWER_MS)])) ?? undefined;
    } finally {
      this.#waiting.delete(correlationData);
    }
  }

  /** Nobody may do anything but what a role of theirs allows. */
  async #denyByDefault(): Promise<void> {
    const types = ['publishClientSend', 'publishClientReceive', 'subscribe', 'unsubscribe'];
    await this.#command({
      command: 'setDefaultACLAccess',
      acls: types.map((acltype) => ({ acltype, allow: acltype === 'unsubscribe' })),
    });
  }

  /** The plugin's own administrator may control it and hear everything, but say nothing. */
  async #allowMyself(): Promise<void> {
    const { username } = this.#options;
    if (username === undefined) return;
    const acls = [{ acltype: 'publishClientSend', topic: everyDesired, allow: true }];
    await this.#command({ command: 'createRole', rolename: CONTROLLER_ROLE, acls }, EXISTS);
    const grant = { command: 'addClientRole', username, rolename: CONTROLLER_ROLE };
    await this.#command(grant, /already in|already exists|internal error/i);
  }

  admit(node: NodeId, token: string, expiresAt: number): Promise<void> {
    const id = clientId(node);
    const acls = [
      ...UP_LEAVES.map((leaf) => ({ acltype: 'publishClientSend', topic: topic(node, leaf), allow: true })),
      ...['subscribeLiteral', 'publishClientReceive'].map((acltype) => ({
        acltype,
        topic: topic(node, 'desired'),
        allow: true,
      })),
    ];
    return this.#letIn({ username: node, id, role: id, acls }, token, expiresAt);
  }

  admitOperator(name: OperatorName, token: string, expiresAt: number): Promise<void> {
    const acls = OPERATOR_LEAVES.map((leaf) => ({
      acltype: 'publishClientSend',
      topic: upFilter(leaf),
      allow: true,
    }));
    const [username, id] = [operatorUsername(name), operatorClientId(name)];
    return this.#letIn({ username, id, role: OPERATOR_ROLE, acls }, token, expiresAt);
  }

  async #letIn(
    { username, id, role, acls }: { username: string; id: string; role: string; acls: object[] },
    token: string,
    expiresAt: number,
  ): Promise<void> {
    if (this.#options.admission === 'none') return;
    await this.#command({ command: 'createRole', rolename: role, acls }, EXISTS);
    const roles = [{ rolename: role }];
    const client = { command: 'createClient', username, clientid: id, password: throwaway(), roles };
    await this.#command(client, EXISTS);
    await this.#command({ command: 'setClientPassword', username, password: token });
    await this.#command({ command: 'enableClient', username });
    this.#expireAfter(username, expiresAt - this.#clock.now());
  }

  /** Ends the session as well (the plugin knows no other way); whoever it is comes back with a fresh token. */
  #expireAfter(username: string, ms: number): void {
    const expire = () => {
      this.#admitted.delete(username);
      this.#command({ command: 'setClientPassword', username, password: throwaway() }).catch(() =>
        this.#handlers?.onRefused('expiry_failed', NodeId.safeParse(username).data ?? null),
      );
    };
    this.#admitted.get(username)?.();
    this.#admitted.set(username, this.#clock.after(ms, expire));
  }

  /** Tokens that a controller before this one handed over: none of them may outlive the longest life of a token. */
  async #adopt(): Promise<void> {
    const { data } = await this.#command({ command: 'listClients' });
    for (const name of data?.clients ?? []) {
      const ours = NodeId.safeParse(name).success || isOperator(name);
      if (ours && name !== this.#options.username && !this.#admitted.has(name))
        this.#expireAfter(name, IDENTITY_TOKEN_SECONDS * 1000);
    }
  }

  /** Not queued while there is no broker, or before it lets us speak: what is due is decided anew when it does. */
  publish(name: string, payload: string, qos: Qos): Promise<void> {
    return this.ready() ? this.#publish(name, payload, qos) : Promise.reject(brokerUnavailable());
  }

  #publish(name: string, payload: string, qos: Qos): Promise<void> {
    const client = this.#client;
    if (!client?.connected) return Promise.reject(brokerUnavailable());
    return client.publishAsync(name, payload, { qos }).then(() => undefined);
  }

  ready(): boolean {
    return this.#greeted && this.#client?.connected === true;
  }

  evict(node: NodeId): Promise<void> {
    return this.#throwOff(node);
  }

  evictOperator(name: OperatorName): Promise<void> {
    return this.#throwOff(operatorUsername(name));
  }

  async #throwOff(username: string): Promise<void> {
    if (this.#options.admission === 'dynsec') {
      await this.#command({ command: 'disableClient', username }, /not found/i);
    }
  }

  async stop(): Promise<void> {
    for (const cancel of this.#admitted.values()) cancel();
    this.#admitted.clear();
    for (const cancel of this.#undecided) cancel();
    const client = this.#client;
    this.#client = null;
    client?.removeAllListeners('close');
    await client?.endAsync();
  }
}

function parseJson(payload: Buffer): unknown {
  try {
    return JSON.parse(payload.toString('utf8'));
  } catch {
    return null;
  }
}

const throwaway = () => randomBytes(32).toString('base64url');

/** Whether a name at the broker is an operator's. */
function isOperator(name: string): boolean {
  const operator = OperatorName.safeParse(name.replace(/^operator:/, ''));
  return operator.success && operatorUsername(operator.data) === name;
}
