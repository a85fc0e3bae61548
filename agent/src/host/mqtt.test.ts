import type { AddressInfo } from 'node:net';
import { createServer, type Server, type Socket } from 'node:net';
import { systemClock } from '@katafract/shared/clock';
import { verifyNodeToken } from '@katafract/shared/node-token';
import { topic } from '@katafract/shared/topics';
import type { Hello } from '@katafract/shared/uplink';
import { Aedes } from 'aedes';
import { type CryptoKey, generateKeyPair } from 'jose';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { NODE } from '../testing/messages.ts';
import { type BrokerLink, brokerLink } from './mqtt.ts';

const HELLO: Hello = {
  v: 1,
  boot: 'abcdefgh',
  version: '1.0.0',
  lineage: 1 as Hello['lineage'],
  generation: 0 as Hello['generation'],
  digest: '0'.repeat(32) as Hello['digest'],
  want: 'snapshot',
};

/** A list that can be waited on. */
class Inbox<T> {
  readonly items: T[] = [];
  #waiting: (() => void)[] = [];

  push(item: T): void {
    this.items.push(item);
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async until(enough: (items: readonly T[]) => boolean): Promise<readonly T[]> {
    while (!enough(this.items)) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.items;
  }
}

describe('the link to the broker', () => {
  let broker: Aedes;
  let server: Server;
  const sockets = new Set<Socket>();
  const passwords = new Inbox<string>();
  const heard = new Inbox<string>();
  const events = new Inbox<string>();
  const posts = new Inbox<unknown>();
  let keys: Awaited<ReturnType<typeof generateKeyPair>>;
  let link: BrokerLink;
  let letIn = true;

  beforeEach(async () => {
    for (const inbox of [passwords, heard, events, posts]) inbox.items.length = 0;
    letIn = true;
    keys = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
    broker = await Aedes.createBroker({
      authenticate: (_client, _user, password, done) => {
        passwords.push(String(password));
        done(null, letIn);
      },
    });
    broker.on('publish', (packet, client) => {
      if (client) heard.push(`${packet.topic} ${packet.payload.toString()}`);
    });
    server = createServer((socket) => {
      sockets.add(socket);
      broker.handle(socket);
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  });
  afterEach(async () => {
    await link.stop();
    for (const socket of sockets) socket.destroy();
    await new Promise<void>((resolve) => broker.close(resolve));
    await new Promise((resolve) => server.close(resolve));
  });

  function start(sessionUrl?: string): void {
    const { port } = server.address() as AddressInfo;
    const send = (async (url: URL | string, init: RequestInit) => {
      posts.push({ url: String(url), body: JSON.parse(String(init.body)) });
      return new Response(null, { status: 204 });
    }) as typeof fetch;
    const log = { info: () => undefined, warn: () => undefined, error: () => undefined };
    link = brokerLink(
      { clock: systemClock, random: () => 0, log, fetch: send },
      {
        node: NODE,
        broker: { url: `mqtt://127.0.0.1:${port}`, ...(sessionUrl ? { sessionUrl } : {}) },
        key: keys.privateKey as CryptoKey,
      },
    );
    link.start({
      onConnected: () => {
        events.push('connected');
        link.send({ leaf: 'hello', body: HELLO });
      },
      onDisconnected: () => events.push('disconnected'),
      onDesired: (jws) => events.push(jws),
    });
  }
  const publish = (payload: string) =>
    broker.publish(
      { cmd: 'publish', topic: topic(NODE, 'desired'), payload, qos: 1, retain: false, dup: false },
      () => undefined,
    );

  test('is online, subscribed and heard once it says so', async () => {
    start();
    const said = await heard.until((items) => items.length >= 2);
    expect(said[0]).toBe(`${topic(NODE, 'presence')} {"v":1,"online":true}`);
    expect(said[1]).toContain(topic(NODE, 'hello'));
    publish('a message');
    expect(await events.until((items) => items.length >= 2)).toEqual(['connected', 'a message']);
  });

  test('shows a fresh token of its own with every attempt, refused or cut off', async () => {
    letIn = false;
    start();
    await passwords.until((items) => items.length >= 2);
    letIn = true;
    await events.until((items) => items.includes('connected'));
    for (const socket of sockets) socket.destroy();
    await events.until((items) => items.filter((item) => item === 'connected').length === 2);
    expect(events.items.filter((item) => !item.startsWith('a '))).toEqual([
      'connected',
      'disconnected',
      'connected',
    ]);
    expect(new Set(passwords.items).size).toBe(passwords.items.length);
    for (const token of passwords.items) {
      await verifyNodeToken(token, keys.publicKey as CryptoKey, {
        node: NODE,
        audience: 'katafract-broker',
        now: Date.now(),
      });
    }
  });

  test('its will says that it is gone when it is cut off', async () => {
    start();
    await events.until((items) => items.includes('connected'));
    for (const socket of sockets) socket.destroy();
    await heard.until((items) => items.includes(`${topic(NODE, 'presence')} {"v":1,"online":false}`));
  });

  test('says goodbye when it is stopped, and does not come back', async () => {
    start();
    await events.until((items) => items.includes('connected'));
    await link.stop();
    expect(heard.items.at(-1)).toBe(`${topic(NODE, 'presence')} {"v":1,"online":false}`);
    expect(broker.connectedClients).toBe(0);
  });

  test('shows the very token to the controller first, where a foreign broker needs that', async () => {
    start('https://controller.example/v1/nodes/session');
    await events.until((items) => items.includes('connected'));
    expect(posts.items).toEqual([
      {
        url: 'https://controller.example/v1/nodes/session',
        body: { node: NODE, token: passwords.items[0] },
      },
    ]);
  });
});
