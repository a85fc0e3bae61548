/**
 * The broker lets a node do what it must and nothing else, and nobody else in: the same suite against the embedded
 * broker and against Mosquitto. The controller's side (admission, publishing, hearing) is the real fleet on a real
 * database; the nodes and operators are bare MQTT clients, free to misbehave.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { connect as dial } from 'node:net';
import { createAudit } from '@katafract/controller/audit/audit';
import type { Bus } from '@katafract/controller/fleet/bus';
import { Commands } from '@katafract/controller/fleet/commands';
import { EmbeddedBroker } from '@katafract/controller/fleet/embedded-broker';
import { enroll, mintJoinToken } from '@katafract/controller/fleet/enrollment';
import { ExternalBroker } from '@katafract/controller/fleet/external-broker';
import { Fleet, identityOf } from '@katafract/controller/fleet/fleet';
import { admitOperator, registerKey, revokeKey } from '@katafract/controller/operators/keys';
import { operatorKeyOf } from '@katafract/controller/operators/operators';
import { type Database, openDatabase } from '@katafract/controller/platform/db';
import { type Keyring, openKeyring } from '@katafract/controller/platform/keyring';
import { createLogger } from '@katafract/controller/platform/log';
import { createMetrics } from '@katafract/controller/platform/metrics';
import { addressPlan } from '@katafract/shared/addresses';
import { systemClock } from '@katafract/shared/clock';
import { mintNodeToken, publicJwk } from '@katafract/shared/node-token';
import { OperatorName, operatorClientId } from '@katafract/shared/operator-command';
import { clientId, topic, UP_LEAVES } from '@katafract/shared/topics';
import { Cidr4, Cidr6, Endpoint, NodeId, PublicKey, RegionId } from '@katafract/shared/units';
import { type CryptoKey, exportJWK, generateKeyPair, SignJWT } from 'jose';
import { connectAsync, type MqttClient } from 'mqtt';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { useDatabase } from './database.ts';
import { waitFor } from './lab/wait.ts';
import { type Mosquitto, startMosquitto } from './mosquitto.ts';
import { TestOperator } from './operator.ts';

const A = NodeId.parse('fra-1');
const B = NodeId.parse('ams-1');
const REGION = RegionId.parse('fra');
const FLEET = 'https://artemis.example';
const log = createLogger('silent');
const now = () => systemClock.now();

interface Setting {
  readonly bus: Bus;
  readonly url: () => string;
  readonly stop?: () => Promise<void>;
  readonly credentials?: { url: string; username: string; password: string };
}

const settings: Record<string, (db: Database) => Promise<Setting>> = {
  embedded: async (db) => {
    const bus = new EmbeddedBroker({
      host: '127.0.0.1',
      port: 0,
      identityOf: (node) => identityOf(db, node),
      operatorKeyOf: (name) => operatorKeyOf(db, name),
    });
    return { bus, url: () => `mqtt://127.0.0.1:${bus.port}` };
  },
  mosquitto: async () => {
    const daemon: Mosquitto = await startMosquitto();
    const { url, username, password } = daemon;
    const bus = new ExternalBroker({ url, username, password, admission: 'dynsec' });
    return { bus, url: () => url, stop: () => daemon.stop(), credentials: { url, username, password } };
  },
};

function openSetting(kind: string, db: Database): Promise<Setting> {
  const open = settings[kind];
  if (!open) throw new Error(`no such broker: ${kind}`);
  return open(db);
}

/** The next event of a client; its own typed `once` is no EventEmitter's. */
const next = (client: MqttClient, event: 'message' | 'close') =>
  new Promise<unknown[]>((resolve) => client.once(event, (...values: unknown[]) => resolve(values)));

describe.each(Object.keys(settings))('%s broker', (kind) => {
  const database = useDatabase();
  const keys = new Map<NodeId, CryptoKey>();
  const clients: MqttClient[] = [];
  let db: Database;
  let keyring: Keyring;
  let fleet: Fleet;
  let setting: Setting;
  let eve: TestOperator;

  beforeAll(async () => {
    db = await openDatabase(database.url, log);
    const masterKey = new Uint8Array(randomBytes(32));
    keyring = await openKeyring({ db, masterKey, now, onError: (error) => expect.fail(String(error)) });
    setting = await openSetting(kind, db);
    const plan = addressPlan(Cidr4.parse('10.64.0.0/10'), Cidr6.parse('fd4b:6174:6166::/64'));
    const metrics = createMetrics();
    fleet = new Fleet({ db, clock: systemClock, log, metrics, keyring, bus: setting.bus, plan });
    const at = { db, audit: createAudit(db), fleet, now, log, registry: metrics.registry, audience: FLEET };
    const commands = new Commands(at);
    fleet.obey((node, payload, kept) => commands.decide(node, payload, kept));
    await fleet.start();
    await waitFor('the broker', () => setting.bus.ready());
    await db.sql`
      insert into regions (id, name, country, latitude, longitude) values (${REGION}, 'Frankfurt', 'DE', 50, 8)`;
    await fleet.changed();
    for (const node of [A, B]) keys.set(node, await enrollNode(node));
    eve = await TestOperator.make('eve', FLEET);
    await registerKey(operatorDeps(), { name: eve.name, publicJwk: eve.jwk }, BY);
  });

  // a foreign broker may drop the controller's own connection too, which then comes back by itself
  beforeEach(async () => {
    await waitFor('the broker', () => setting.bus.ready());
  });

  afterAll(async () => {
    for (const client of clients) await client.endAsync(true);
    await fleet.stop();
    await setting.stop?.();
    await keyring.close();
    await db.close();
  });

  async function enrollNode(node: NodeId): Promise<CryptoKey> {
    const broker = { url: setting.url() };
    const deps = { db, keyring, audit: createAudit(db), fleet, broker, now, seedSecret: randomBytes(32) };
    const endpoint = Endpoint.parse('192.0.2.1:51820');
    const { token } = await mintJoinToken(
      deps,
      { region: REGION, node, endpoint, capacity: 10, tunnels: 1, expiresInSeconds: 60 },
      { operator: 'test', idempotencyKey: undefined },
    );
    const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
    const proof = await mintNodeToken(pair.privateKey, NodeId.parse('enrolling'), 'katafract-enroll', now());
    const identity = publicJwk(await exportJWK(pair.publicKey));
    await enroll(deps, { token, identity, proof, publicKey: PublicKey.parse(randomKey()) });
    return pair.privateKey;
  }

  const BY = { operator: 'test', idempotencyKey: undefined };
  const operatorDeps = () => ({
    db,
    audit: createAudit(db),
    now,
    seedSecret: randomBytes(32),
    told: { audience: FLEET, broker: { url: setting.url() } },
    bus: setting.bus,
    survived: (error: unknown) => expect.fail(String(error)),
  });
  /** Shows the operator's token to the controller where the broker needs that, then connects with it. */
  async function operate(operator: TestOperator, options: { clientId?: string } = {}): Promise<MqttClient> {
    const password = await operator.token();
    await admitOperator(operatorDeps(), operator.name, password);
    const client = await operator.connect(setting.url(), { password, ...options });
    clients.push(client);
    return client;
  }
  const drainOf = async (node: NodeId) => {
    const [row] = await db.sql<{ state: string; by: string }[]>`
      select state, wanted_by as by from drains where node_id = ${node} order by started_at desc limit 1`;
    return row ?? null;
  };

  const randomKey = () => randomBytes(32).toString('base64');
  const keyOf = (node: NodeId) => keys.get(node) ?? expect.fail(`no key of ${node}`);
  const goodToken = (node: NodeId) => mintNodeToken(keyOf(node), node, 'katafract-broker', now());

  /** Shows the token to the controller where the broker needs that, then connects with it. */
  async function enter(node: NodeId, token: string, id = clientId(node)): Promise<MqttClient> {
    await fleet.admit(node, token);
    return connectRaw(node, token, id);
  }
  async function connectRaw(node: NodeId, token: string, id = clientId(node)): Promise<MqttClient> {
    const options = {
      clientId: id,
      username: node,
      password: token,
      reconnectPeriod: 0,
      connectTimeout: 3000,
    };
    const client = await connectAsync(setting.url(), options);
    client.on('error', () => undefined); // a client thrown off for misbehaving is what several tests are about
    clients.push(client);
    return client;
  }
  /** Topics on which anything arrived, for `work` and as long as a message of the controller's own takes. */
  async function heard(client: MqttClient, work: () => Promise<unknown>): Promise<string[]> {
    const topics: string[] = [];
    client.on('message', (name) => topics.push(name));
    await work();
    return topics;
  }

  it('carries a node’s hello up and its desired state down', async () => {
    const client = await enter(A, await goodToken(A));
    await client.subscribeAsync(topic(A, 'desired'), { qos: 1 });
    const down = next(client, 'message');
    await setting.bus.publish(topic(A, 'desired'), 'state', 1);
    expect(String((await down)[1])).toBe('state');
    const hello = {
      v: 1,
      boot: 'bootboot',
      version: '0.1.0',
      lineage: 1,
      generation: 0,
      digest: '0'.repeat(32),
      want: 'delta',
    };
    await client.publishAsync(topic(A, 'hello'), JSON.stringify(hello), { qos: 1 });
    await waitFor('the hello', () => fleet.progress(A).connected);
    await client.endAsync();
  });

  it.each([topic(B, 'desired'), 'kf/1/+/desired', 'kf/1/#', '#', topic(A, 'hello'), '$SYS/#', '$CONTROL/#'])(
    'gives a node nothing of %s',
    async (filter) => {
      const client = await enter(A, await goodToken(A));
      const topics = await heard(client, async () => {
        await client.subscribeAsync(filter, { qos: 1 }).catch(() => undefined); // refused, or thrown off
        await setting.bus.publish(topic(B, 'desired'), 'for another', 1);
        const witness = await enter(B, await goodToken(B));
        await witness.subscribeAsync(topic(B, 'desired'), { qos: 1 });
        const arrived = next(witness, 'message');
        await setting.bus.publish(topic(B, 'desired'), 'for another', 1);
        await arrived;
        await witness.endAsync();
      });
      expect(topics).toEqual([]);
      await client.endAsync(true);
    },
  );

  it('lets a node write nothing in another’s name, nor desired state, nor control the broker', async () => {
    const forbidden = [
      ...UP_LEAVES.map((leaf) => topic(B, leaf)),
      topic(B, 'desired'),
      topic(A, 'desired'),
      '$CONTROL/dynamic-security/v1',
      'x',
    ];
    const witness = await enter(B, await goodToken(B));
    await witness.subscribeAsync(topic(B, 'desired'), { qos: 1 });
    const before = fleet.progress(B);
    const topics = await heard(witness, async () => {
      for (const name of forbidden) {
        const client = await enter(A, await goodToken(A));
        await client.publishAsync(name, JSON.stringify({ v: 1, online: true, lineage: 1, generation: 9 }), {
          qos: 0,
        });
        await client.endAsync(true);
      }
      const arrived = next(witness, 'message');
      await setting.bus.publish(topic(B, 'desired'), 'the last word', 1);
      await arrived;
    });
    expect(topics).toEqual([topic(B, 'desired')]);
    expect({ ...fleet.progress(B), connected: before.connected }).toEqual(before);
    await witness.endAsync();
  });

  it('holds a node to its own client id, so that none can throw another off', async () => {
    const victim = await enter(B, await goodToken(B));
    await expect(enter(A, await goodToken(A), clientId(B))).rejects.toThrow();
    await expect(enter(A, await goodToken(A), 'anything')).rejects.toThrow();
    expect(victim.connected).toBe(true);
    await victim.endAsync();
  });

  const claims = (change: {
    iss?: string;
    sub?: string;
    aud?: string;
    iat?: number;
    exp?: number;
    nbf?: number;
    typ?: string;
  }) => {
    const at = Math.floor(now() / 1000);
    const {
      iss = A,
      sub = A,
      aud = 'katafract-broker',
      iat = at,
      nbf = at,
      exp = at + 60,
      typ = 'kf-node+jwt',
    } = change;
    return new SignJWT({ iss, sub, aud, iat, nbf, exp, jti: 'j' }).setProtectedHeader({ alg: 'EdDSA', typ });
  };
  const b64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const body = () => ({
    iss: A,
    sub: A,
    aud: 'katafract-broker',
    iat: now() / 1000 - 1,
    nbf: 0,
    exp: now() / 1000 + 60,
    jti: 'j',
  });
  const at = () => Math.floor(now() / 1000);
  const bad: Record<string, () => Promise<string>> = {
    'an expired token': () => claims({ iat: at() - 600, nbf: at() - 600, exp: at() - 300 }).sign(keyOf(A)),
    'a token of the future': () =>
      claims({ iat: at() + 600, nbf: at() + 600, exp: at() + 660 }).sign(keyOf(A)),
    'a token with too long a life': () => claims({ exp: at() + 86_400 }).sign(keyOf(A)),
    'a foreign audience': () => claims({ aud: 'katafract-session' }).sign(keyOf(A)),
    'an enrollment proof': () => mintNodeToken(keyOf(A), A, 'katafract-enroll', now()),
    'another node’s key': () => claims({}).sign(keyOf(B)),
    'another node’s token': () => goodToken(B),
    'another type': () => claims({ typ: 'JWT' }).sign(keyOf(A)),
    'alg none': async () => `${b64({ alg: 'none', typ: 'kf-node+jwt' })}.${b64(body())}.`,
    'HMAC with the public key as secret': async () => {
      const [row] = await db.sql<{ identity: { x: string } }[]>`select identity from nodes where id = ${A}`;
      const signed = `${b64({ alg: 'HS256', typ: 'kf-node+jwt' })}.${b64(body())}`;
      return `${signed}.${createHmac('sha256', Buffer.from(row?.identity.x ?? '', 'base64url'))
        .update(signed)
        .digest('base64url')}`;
    },
    'no token at all': async () => '',
    rubbish: async () => 'a.b.c',
  };
  it.each(Object.keys(bad))('refuses %s', async (name) => {
    const token = await (bad[name] ?? expect.fail)();
    await expect(fleet.admit(A, token)).rejects.toThrow(
      expect.objectContaining({ code: 'node_token_invalid' }),
    );
    await expect(connectRaw(A, token)).rejects.toThrow();
  });

  it('refuses an unknown node, and one that is retired, at once', async () => {
    const stranger = NodeId.parse('nyc-9');
    const { privateKey } = await generateKeyPair('EdDSA', { crv: 'Ed25519' });
    await expect(
      enter(stranger, await mintNodeToken(privateKey, stranger, 'katafract-broker', now())),
    ).rejects.toThrow();
    const client = await enter(B, await goodToken(B));
    const closed = next(client, 'close');
    await db.sql`update nodes set state = 'retired' where id = ${B}`;
    await setting.bus.evict(B);
    await closed;
    const token = await goodToken(B);
    await expect(fleet.admit(B, token)).rejects.toThrow();
    await expect(connectRaw(B, token)).rejects.toThrow();
    await db.sql`update nodes set state = 'active' where id = ${B}`;
  });

  it('carries an operator’s signed commands to the controller', async () => {
    const client = await operate(eve);
    // kept by the broker, as by the command line: the controller may be without a connection for a moment
    const kept = { qos: 1, retain: true } as const;
    const say = async (command: 'drain' | 'cancel') =>
      client.publishAsync(topic(A, 'drain'), await eve.sign({ node: A, command }), kept);
    await say('drain');
    // a node without peers: what ends the drain is its cancelling, or a job, of which none runs here
    await waitFor('the drain', async () => (await drainOf(A))?.state === 'running');
    expect(await drainOf(A)).toEqual({ state: 'running', by: 'eve' });
    await say('cancel');
    await waitFor('its end', async () => (await drainOf(A))?.state === 'cancelled');
    await client.publishAsync(topic(A, 'drain'), '', kept);
    await client.endAsync();
  });

  it.each([
    topic(A, 'drain'),
    'kf/1/+/drain',
    topic(A, 'hello'),
    topic(A, 'desired'),
    'kf/1/#',
    '#',
    '$CONTROL/#',
  ])('gives an operator nothing of %s', async (filter) => {
    const client = await operate(eve);
    const topics = await heard(client, async () => {
      await client.subscribeAsync(filter, { qos: 1 }).catch(() => undefined); // refused, or thrown off
      const node = await enter(A, await goodToken(A));
      await node.subscribeAsync(topic(A, 'desired'), { qos: 1 });
      const arrived = next(node, 'message');
      await setting.bus.publish(topic(A, 'desired'), 'for a node', 1);
      await arrived;
      await node.endAsync();
    });
    expect(topics).toEqual([]);
    await client.endAsync(true);
  });

  it('lets an operator write nothing but commands', async () => {
    const node = await enter(A, await goodToken(A));
    await node.subscribeAsync(topic(A, 'desired'), { qos: 1 });
    const before = fleet.progress(A);
    const forbidden = [...UP_LEAVES.map((leaf) => topic(A, leaf)), topic(A, 'desired'), 'kf/1/A!/drain', 'x'];
    const topics = await heard(node, async () => {
      for (const name of [...forbidden, '$CONTROL/dynamic-security/v1']) {
        const client = await operate(eve);
        await client.publishAsync(name, JSON.stringify({ v: 1, online: true, lineage: 1, generation: 9 }));
        await client.endAsync(true);
      }
      const arrived = next(node, 'message');
      await setting.bus.publish(topic(A, 'desired'), 'the last word', 1);
      await arrived;
    });
    expect(topics).toEqual([topic(A, 'desired')]);
    expect({ ...fleet.progress(A), connected: before.connected }).toEqual(before);
    await node.endAsync();
  });

  it('lets a node neither say nor hear a command, though it had a good one', async () => {
    const command = await eve.sign({ node: B, command: 'drain' });
    const listener = await enter(A, await goodToken(A));
    const topics = await heard(listener, async () => {
      await listener.subscribeAsync(topic(A, 'drain'), { qos: 1 }).catch(() => undefined); // refused, or thrown off
      for (const name of [topic(B, 'drain'), topic(A, 'drain')]) {
        const node = await enter(B, await goodToken(B));
        await node.publishAsync(name, command, { qos: 0 });
        await node.endAsync(true);
      }
      const client = await operate(eve);
      await client.publishAsync(topic(A, 'drain'), await eve.sign({ node: A, command: 'drain' }), { qos: 1 });
      await waitFor('another drain', async () => (await drainOf(A))?.state === 'running');
      expect(await drainOf(B)).toBeNull();
      // it was good all the same
      await client.publishAsync(topic(B, 'drain'), command, { qos: 1 });
      await waitFor('the drain', async () => (await drainOf(B))?.state === 'running');
      for (const node of [A, B])
        await client.publishAsync(topic(node, 'drain'), await eve.sign({ node, command: 'cancel' }), {
          qos: 1,
        });
      await waitFor('the end of it', async () => (await drainOf(B))?.state === 'cancelled');
      await waitFor('the end of it', async () => (await drainOf(A))?.state === 'cancelled');
      await client.endAsync();
    });
    expect(topics).toEqual([]);
    await listener.endAsync(true);
  });

  it('holds operators and nodes apart, and each to its own client id', async () => {
    const twin = await TestOperator.make(A, FLEET);
    const namedLikeANode = new TestOperator({ ...eve, name: twin.name });
    const refused = async (connecting: Promise<MqttClient>) => expect(connecting).rejects.toThrow();
    await refused(operate(eve, { clientId: clientId(A) }));
    await refused(operate(eve, { clientId: operatorClientId(OperatorName.parse('adam')) }));
    // no such operator, with eve's key; eve's name, with another's; a node's token; an operator's as a node's
    await refused(operate(namedLikeANode));
    await refused(namedLikeANode.connect(setting.url()));
    await refused(operate(new TestOperator({ ...twin, name: eve.name })));
    await refused(eve.connect(setting.url(), { password: await goodToken(A) }));
    await expect(admitOperator(operatorDeps(), eve.name, await goodToken(A))).rejects.toThrow(
      expect.objectContaining({ code: 'operator_proof_invalid' }),
    );
    await expect(fleet.admit(A, await eve.token())).rejects.toThrow(
      expect.objectContaining({ code: 'node_token_invalid' }),
    );
    await refused(connectRaw(A, await eve.token()));
  });

  it('throws an operator off whose key is revoked, at once, and keeps out whoever has it', async () => {
    const mallory = await TestOperator.make('mallory', FLEET);
    await registerKey(operatorDeps(), { name: mallory.name, publicJwk: mallory.jwk }, BY);
    const client = await operate(mallory);
    const closed = next(client, 'close');
    await revokeKey(operatorDeps(), mallory.name, 'test');
    await closed;
    await expect(operate(mallory)).rejects.toThrow();
    await expect(mallory.connect(setting.url())).rejects.toThrow();
    // its successor's key is as good as any
    const heir = await TestOperator.make('mallory', FLEET);
    await registerKey(operatorDeps(), { name: heir.name, publicJwk: heir.jwk }, BY);
    const again = await operate(heir);
    expect(again.connected).toBe(true);
    await again.endAsync();
  });

  it.runIf(kind === 'mosquitto')(
    'brings back what was published while nobody was there to decide',
    async () => {
      const { url, username, password } = setting.credentials ?? expect.fail('Mosquitto has some');
      const client = await operate(eve);
      const command = await eve.sign({ node: B, command: 'pause' });
      await client.publishAsync(topic(B, 'drain'), command, { qos: 1, retain: true });
      await client.endAsync();
      const heardAs: [string, string, boolean][] = [];
      const late = new ExternalBroker({ url, username, password, admission: 'dynsec' });
      let undecided = 2;
      const decided = new Promise<void>((resolve) => {
        const ignore = () => undefined;
        const onCommand = async (node: NodeId, payload: Buffer, kept: boolean) => {
          heardAs.push([node, payload.toString(), kept]);
          if (undecided-- > 0) throw new Error('the database is away');
          resolve();
        };
        void late.start({ onCommand, onMessage: ignore, onRefused: ignore, onConnection: ignore });
      });
      await decided;
      expect(heardAs).toEqual(Array.from({ length: 3 }, () => [B, command, true]));
      await late.stop();
    },
  );

  it('survives bytes that are no MQTT, and a header that announces far too much', async () => {
    const port = Number(new URL(setting.url()).port);
    for (const bytes of [
      randomBytes(64),
      Buffer.from([0x10, 0xff, 0xff, 0xff, 0x7f, ...randomBytes(9000)]),
    ]) {
      const socket = dial(port, '127.0.0.1');
      socket.on('error', () => undefined); // reset is one of the right answers
      const closed = new Promise((resolve) => socket.once('close', resolve));
      socket.write(bytes);
      if (kind === 'mosquitto') socket.end(); // it waits for the rest for as long as its keepalive lasts
      await closed;
    }
    const client = await enter(A, await goodToken(A));
    expect(client.connected).toBe(true);
    await client.endAsync();
  });
});
