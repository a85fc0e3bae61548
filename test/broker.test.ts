/**
 * The broker lets a node do what it must and nothing else, and nobody else in: the same suite against the embedded
 * broker and against Mosquitto. The controller's side (admission, publishing, hearing) is the real fleet on a real
 * database; the nodes are bare MQTT clients, free to misbehave.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { connect as dial } from 'node:net';
import { createAudit } from '@katafract/controller/audit/audit';
import type { Bus } from '@katafract/controller/fleet/bus';
import { EmbeddedBroker } from '@katafract/controller/fleet/embedded-broker';
import { enroll, mintJoinToken } from '@katafract/controller/fleet/enrollment';
import { ExternalBroker } from '@katafract/controller/fleet/external-broker';
import { Fleet, identityOf } from '@katafract/controller/fleet/fleet';
import { putRegion } from '@katafract/controller/fleet/operations';
import { operatorKeyOf } from '@katafract/controller/operators/operators';
import { type Database, openDatabase } from '@katafract/controller/platform/db';
import { type Keyring, openKeyring } from '@katafract/controller/platform/keyring';
import { createLogger } from '@katafract/controller/platform/log';
import { createMetrics } from '@katafract/controller/platform/metrics';
import { addressPlan } from '@katafract/shared/addresses';
import { systemClock } from '@katafract/shared/clock';
import { mintNodeToken, publicJwk } from '@katafract/shared/node-token';
import { clientId, topic, UP_LEAVES } from '@katafract/shared/topics';
import { Cidr4, Cidr6, Endpoint, NodeId, PublicKey, RegionId } from '@katafract/shared/units';
import { type CryptoKey, exportJWK, generateKeyPair, SignJWT } from 'jose';
import { connectAsync, type MqttClient } from 'mqtt';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from './database.ts';
import { waitFor } from './lab/wait.ts';
import { type Mosquitto, startMosquitto } from './mosquitto.ts';

const A = NodeId.parse('fra-1');
const B = NodeId.parse('ams-1');
const REGION = RegionId.parse('fra');
const log = createLogger('silent');
const now = () => systemClock.now();

interface Setting {
  readonly bus: Bus;
  readonly url: () => string;
  readonly stop?: () => Promise<void>;
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
    return { bus, url: () => url, stop: () => daemon.stop() };
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

  beforeAll(async () => {
    db = await openDatabase(database.url, log);
    const masterKey = new Uint8Array(randomBytes(32));
    keyring = await openKeyring({ db, masterKey, now, onError: (error) => expect.fail(String(error)) });
    setting = await openSetting(kind, db);
    const plan = addressPlan(Cidr4.parse('10.64.0.0/10'), Cidr6.parse('fd4b:6174:6166::/64'));
    const metrics = createMetrics();
    fleet = new Fleet({ db, clock: systemClock, log, metrics, keyring, bus: setting.bus, plan });
    await fleet.start();
    await waitFor('the broker', () => setting.bus.ready());
    await putRegion(
      { db, audit: createAudit(db), fleet },
      { id: REGION, name: 'Frankfurt', country: 'DE', latitude: 50, longitude: 8 },
      'test',
    );
    for (const node of [A, B]) keys.set(node, await enrollNode(node));
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
      { region: REGION, node, endpoint, capacity: 10, expiresInSeconds: 60 },
      { operator: 'test', idempotencyKey: undefined },
    );
    const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
    const proof = await mintNodeToken(pair.privateKey, NodeId.parse('enrolling'), 'katafract-enroll', now());
    const identity = publicJwk(await exportJWK(pair.publicKey));
    await enroll(deps, { token, identity, proof, publicKey: PublicKey.parse(randomKey()) });
    return pair.privateKey;
  }

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
