/**
 * A node that is let in and then says anything at all: each message that is no message of the protocol is refused and
 * counted, floods and oversize end its connection, and neither the tables nor another node notice.
 */
import { randomBytes } from 'node:crypto';
import { mintNodeToken } from '@katafract/shared/node-token';
import { clientId, topic, type UpLeaf } from '@katafract/shared/topics';
import { connectAsync, type MqttClient } from 'mqtt';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { FakeExit, newKey, startExit } from './fake-exit.ts';
import { tablesDigest } from './tables.ts';

const database = useDatabase();
let controller: TestController;
/** Well-behaved; the other one is what each test makes of it. */
let good: FakeExit;
let bad: FakeExit;
let digest: () => Promise<string>;
const clients: MqttClient[] = [];

beforeAll(async () => {
  controller = await startController(database.url);
  await controller.ctx.jobs.stop();
  await controller.addRegion('fra');
  good = await startExit(controller, { node: 'fra-1', region: 'fra' });
  bad = await FakeExit.enroll(controller, { node: 'bad-1', region: 'fra' });
  await bad.connect(controller.brokerUrl);
  const { fleet } = controller.ctx;
  await waitFor('both nodes', () =>
    fleet.roster.regions().every(({ nodes }) => nodes.every(({ state }) => state === 'active')),
  );
  await bad.leave();
  // so that whether the good one is served does not depend on the bad one's word
  await controller.operate('PATCH', '/v1/admin/nodes/bad-1', { state: 'cordoned' });
  digest = await tablesDigest(controller.ctx.db.sql);
});
afterAll(async () => {
  for (const client of clients) await client.endAsync(true);
  await good.leave();
  await controller.close();
});

const refused = (reason: string) => controller.metric('katafract_broker_refused_total', `reason="${reason}"`);

/** A bare client with the bad node's own credentials. */
async function enter(): Promise<MqttClient> {
  const password = await mintNodeToken(bad.key, bad.node, 'katafract-broker', Date.now());
  const options = { clientId: clientId(bad.node), username: bad.node, password, reconnectPeriod: 0 };
  const client = await connectAsync(controller.brokerUrl, options);
  client.on('error', () => undefined); // being thrown off is one of the right outcomes
  clients.push(client);
  return client;
}
/** The other node is served as ever. */
async function expectServed(): Promise<void> {
  const { sigil } = await controller.mint('free');
  const answer = await controller.provision(sigil, newKey(), 'fra');
  expect(answer).toMatchObject({ status: 201, body: { status: 'active' } });
  expect(answer.body.exits.map(({ node }) => String(node))).toEqual(['fra-1']);
  expect(good.faults).toEqual([]);
}

const hello = () => bad.hello();
const { MAX_SAFE_INTEGER: MAX } = Number;
/** By what is wrong with them. */
const malformed: Record<string, () => [UpLeaf, string | Buffer]> = {
  noise: () => ['hello', randomBytes(500)],
  nothing: () => ['hello', ''],
  'half a JSON': () => ['applied', '{"v":1,"lineage":'],
  'invalid UTF-8': () => ['heartbeat', Buffer.from([0x7b, 0xff, 0xfe, 0x7d])],
  null: () => ['presence', 'null'],
  'an array': () => ['hello', '[]'],
  'deep nesting': () => ['hello', '['.repeat(4000)],
  'a huge generation': () => ['hello', JSON.stringify({ ...hello(), generation: 1e300 })],
  'one beyond the safe': () => [
    'applied',
    `{"v":1,"lineage":1,"generation":${MAX + 1},"digest":"${bad.digest}"}`,
  ],
  'a negative lineage': () => ['hello', JSON.stringify({ ...hello(), lineage: -1 })],
  'a lineage no history has': () => ['hello', JSON.stringify({ ...hello(), lineage: MAX })],
  'a number as text': () => ['hello', JSON.stringify({ ...hello(), generation: '0' })],
  'another version': () => ['hello', JSON.stringify({ ...hello(), v: 2 })],
  'a digest of another length': () => [
    'applied',
    JSON.stringify({ v: 1, lineage: 1, generation: 0, digest: '0' }),
  ],
  'a heartbeat with text for cpu': () => ['heartbeat', JSON.stringify({ ...bad.heartbeat(), cpu: 'all' })],
  'a counter with an odd name': () => [
    'heartbeat',
    JSON.stringify({ ...bad.heartbeat(), refused: { 'a b': 1 } }),
  ],
  'no position at all': () => ['heartbeat', JSON.stringify({ v: 1, node: 'fra-1' })],
};

it.each(Object.keys(malformed))('refuses and counts %s', async (what) => {
  const [leaf, payload] = malformed[what]?.() ?? expect.fail();
  const [before, counted] = [await digest(), await refused('malformed')];
  const client = await enter();
  await client.publishAsync(topic(bad.node, leaf), payload, { qos: 1 });
  await waitFor('the refusal', async () => (await refused('malformed')) === counted + 1);
  expect(await digest()).toBe(before);
  await client.endAsync();
});

it('refuses a message beyond the limit and one in another name, and ends the connection', async () => {
  const before = await digest();
  const tries: [string, string, string][] = [
    ['too_large', topic(bad.node, 'heartbeat'), 'x'.repeat(100_000)],
    [
      'publish',
      topic(good.node, 'applied'),
      JSON.stringify({ v: 1, lineage: 1, generation: 9, digest: bad.digest }),
    ],
  ];
  for (const [reason, name, payload] of tries) {
    const counted = await refused(reason);
    const client = await enter();
    const closed = new Promise((resolve) => client.once('close', () => resolve(undefined)));
    client.publish(name, payload);
    await closed;
    expect(await refused(reason)).toBe(counted + 1);
  }
  expect(await digest()).toBe(before);
  await expectServed();
});

it('ends the connection of a node that floods, while the others are served', async () => {
  const before = await digest();
  const client = await enter();
  const closed = new Promise((resolve) => client.once('close', () => resolve(undefined)));
  // so many that also a broker which is slow to read them gets more than it allows in that time
  for (let sent = 0; sent < 20_000; sent++) client.publish(topic(bad.node, 'heartbeat'), '{}');
  await closed;
  expect(await refused('too_many')).toBeGreaterThan(0);
  expect(await digest()).toBe(before);
  await expectServed();
});

it('writes nothing of what a malformed message says into the log', async () => {
  const counted = await refused('malformed');
  const client = await enter();
  for (const text of ['Jane Canary', '{"v":1,"boot":"Jane Canary"}', '{"v":1,"online":"Jane Canary"}']) {
    await client.publishAsync(topic(bad.node, 'presence'), text, { qos: 1 });
  }
  await waitFor('the refusals', async () => (await refused('malformed')) === counted + 3);
  expect(controller.logs.join('\n')).toContain('a malformed message of a node was refused');
  expect(controller.logs.join('\n')).not.toContain('Jane');
});

it('lets a node that lies about its own history harm its own history alone', async () => {
  const before = await controller.ctx.db.sql`select lineage from nodes where id = ${good.node}`;
  const client = await enter();
  await client.publishAsync(topic(bad.node, 'hello'), JSON.stringify({ ...hello(), generation: 1_000_000 }), {
    qos: 1,
  });
  await waitFor('a new lineage', async () => {
    const [row] = await controller.ctx.db.sql<{ lineage: number }[]>`
      select lineage::float8 from nodes where id = ${bad.node}`;
    return row?.lineage === 2;
  });
  expect(await controller.ctx.db.sql`select lineage from nodes where id = ${good.node}`).toEqual(before);
  await client.endAsync(true);
  await expectServed();
});
