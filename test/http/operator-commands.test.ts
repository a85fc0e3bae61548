/**
 * Operators' commands over the broker: what a good one does, and what whoever sits on the way can do with it: nothing.
 * The embedded broker hands over what it is given, so publishing here stands for a broker that forges, keeps, repeats
 * and reorders. Who may publish at all: test/broker.test.ts.
 */
import { Commands } from '@katafract/controller/fleet/commands';
import { createMetrics } from '@katafract/controller/platform/metrics';
import { RegisteredKey } from '@katafract/shared/operator-command';
import { topic } from '@katafract/shared/topics';
import { NodeId } from '@katafract/shared/units';
import type { MqttClient } from 'mqtt';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { TestOperator, type Wish } from '../operator.ts';
import { startController, type TestController } from './controller.ts';
import { FakeExit } from './fake-exit.ts';

const FLEET = 'http://artemis.test';
const database = useDatabase();
let controller: TestController;
let eve: TestOperator;
/** Another one, whose connections the tests may lose: what counts is who signed. */
let rob: TestOperator;
let client: MqttClient;
let exit: FakeExit;
let node: NodeId;
let round = 0;

beforeAll(async () => {
  controller = await startController(database.url);
  await controller.ctx.jobs.stop(); // an exit without peers would be drained before anything can be said of it
  await controller.addRegion('fra');
  eve = await TestOperator.make('eve', FLEET);
  await register(eve);
  rob = await TestOperator.make('rob', FLEET);
  await register(rob);
  client = await eve.connect(controller.brokerUrl);
});
afterAll(async () => {
  await client.endAsync(true);
  await controller.close();
});
/** Each test has a node of its own. */
beforeEach(async () => {
  exit = await FakeExit.enroll(controller, { node: `fra-${++round}`, region: 'fra' });
  node = exit.node;
});

const register = (operator: TestOperator, headers: Record<string, string> = {}) =>
  controller.call('POST', '/v1/admin/operator-keys', {
    token: controller.operatorToken,
    body: { name: operator.name, publicJwk: operator.jwk },
    headers,
  });
const remove = (name: string) =>
  controller.call('DELETE', `/v1/admin/operator-keys/${name}`, { token: controller.operatorToken });

/** Resolves once it is decided: the receipt of the embedded broker says so. */
const publish = (jws: string, about = node, by = client) =>
  by.publishAsync(topic(about, 'drain'), jws, { qos: 1 });
const say = async (wish: Partial<Wish> & Pick<Wish, 'command'>) => publish(await eve.sign({ node, ...wish }));
const stateOf = async (about = node) => {
  const { body } = await controller.call<{ state?: string }>('GET', `/v1/admin/nodes/${about}/drain`, {
    token: controller.operatorToken,
  });
  return body.state ?? null;
};
const outcomes = (outcome: string) =>
  controller.metric('katafract_operator_commands_total', `outcome="${outcome}"`);
/** What `work` adds to the count of an outcome. */
async function adds(outcome: string, work: () => Promise<unknown>): Promise<number> {
  const before = await outcomes(outcome);
  await work();
  return (await outcomes(outcome)) - before;
}
const audited = async (action: string) => {
  const query = `subject=node:${node}&action=${action}`;
  const { items } = await controller.operate<{ items: { actor: string }[] }>(
    'GET',
    `/v1/admin/audit?${query}`,
  );
  return items.map(({ actor }) => actor);
};

describe('a signed command', () => {
  it('drains, halts, goes on and calls off, as the route does, in the operator’s name', async () => {
    await say({ command: 'drain', deadline: Date.now() + 3_600_000 });
    const view = await controller.operate<{ deadline: string; wantedBy: string }>(
      'GET',
      `/v1/admin/nodes/${node}/drain`,
    );
    expect(view).toMatchObject({ state: 'running', wantedBy: 'eve', overdue: false });
    expect(Date.parse(view.deadline)).toBeGreaterThan(Date.now());
    for (const [command, state] of [
      ['pause', 'paused'],
      ['resume', 'running'],
      ['cancel', 'cancelled'],
    ] as const) {
      await say({ command });
      expect(await stateOf()).toBe(state);
    }
    for (const action of ['started', 'paused', 'resumed', 'cancelled'])
      expect(await audited(`drain.${action}`)).toEqual(['operator:eve']);
  });

  it('works once, whoever repeats it, and however many do at once', async () => {
    const drain = await eve.sign({ node, command: 'drain' });
    const beside = await startController(database.url, { beside: controller });
    const elsewhere = await eve.connect(beside.brokerUrl);
    try {
      await Promise.all([publish(drain), publish(drain), publish(drain, node, elsewhere)]);
    } finally {
      await elsewhere.endAsync(true);
      await beside.close();
    }
    await say({ command: 'cancel' });
    expect(await adds('used', () => publish(drain))).toBe(1);
    expect(await stateOf()).toBe('cancelled');
    expect(await audited('drain.started')).toEqual(['operator:eve']);
  });

  it('does nothing after a later one that overtook it', async () => {
    const at = Date.now();
    const drain = await eve.sign({ node, command: 'drain', at: at - 20 });
    const cancel = await eve.sign({ node, command: 'cancel', at: at - 10 });
    expect(await adds('drain_unknown', () => publish(cancel))).toBe(1);
    expect(await adds('superseded', () => publish(drain))).toBe(1);
    expect(await stateOf()).toBeNull();
    // nor does the one that came to nothing come to something later
    await say({ command: 'drain' });
    expect(await adds('used', () => publish(cancel))).toBe(1);
    expect(await stateOf()).toBe('running');
  });

  it('comes again where the database went away in the middle, and then works once', async () => {
    const { sql } = controller.ctx.db;
    // an administrator's shutdown of the database, between the writing down and the commit
    await sql.unsafe(`
      create function away() returns trigger language plpgsql as $$
        begin raise exception using errcode = '57P01', message = 'away'; end $$;
      create trigger away after insert on drains for each row execute function away()`);
    const own = await rob.connect(controller.brokerUrl, { reconnectPeriod: 50 });
    let receipted = false;
    const command = eve.command({ node, command: 'drain' });
    const said = publish(await eve.sign(command), node, own).then(() => {
      receipted = true;
    });
    await waitFor('two tries', async () => (await outcomes('undecided')) >= 2);
    expect(receipted).toBe(false);
    expect(await stateOf()).toBeNull();
    expect(await sql`select 1 from operator_commands where id = ${command.id}`).toHaveLength(0);
    await sql.unsafe('drop trigger away on drains; drop function away');
    await said;
    expect(await stateOf()).toBe('running');
    expect(await audited('drain.started')).toEqual(['operator:eve']);
    await own.endAsync(true);
  });
});

describe('whoever sits on the way', () => {
  it('cannot turn a command to another node, fleet or time, nor change it', async () => {
    const other = (await FakeExit.enroll(controller, { node: `ams-${round}`, region: 'fra' })).node;
    const good = await eve.sign({ node, command: 'drain' });
    const [header = '', payload = '', signature = ''] = good.split('.');
    const claims = JSON.parse(Buffer.from(payload, 'base64url').toString());
    const changed = Buffer.from(JSON.stringify({ ...claims, node: other })).toString('base64url');
    const hour = 3_600_000;
    const tries: [string, string, NodeId?][] = [
      ['node', good, other],
      ['signature', `${header}.${changed}.${signature}`, other],
      ['signature', 'not a command at all'],
      ['signature', ''],
      ['audience', await eve.sign({ node, command: 'drain', audience: 'https://other.example' })],
      ['expired', await eve.sign({ node, command: 'drain', at: Date.now() - hour })],
      ['early', await eve.sign({ node, command: 'drain', at: Date.now() + hour })],
      [
        'node_unknown',
        await eve.sign({ node: NodeId.parse('nowhere'), command: 'drain' }),
        NodeId.parse('nowhere'),
      ],
    ];
    for (const [outcome, jws, about] of tries)
      expect(await adds(outcome, () => publish(jws, about)), `${outcome} ${jws}`).toBe(1);
    expect([await stateOf(), await stateOf(other)]).toEqual([null, null]);
    expect(controller.logs.join('\n')).not.toContain(signature);
  });

  it('cannot sign one with a node’s key, nor with a key of nobody', async () => {
    const stranger = await TestOperator.make('stranger', FLEET);
    const mine = await TestOperator.make('mine', FLEET);
    expect(
      await adds('unknown_key', async () => publish(await stranger.sign({ node, command: 'drain' }))),
    ).toBe(1);
    // a key that signs for a node, under the thumbprint of an operator, or its own
    const forged = await eve.sign({ node, command: 'drain' }, exit.key);
    expect(await adds('signature', () => publish(forged))).toBe(1);
    const own = await eve.sign({ node, command: 'drain' }, exit.key, mine.thumbprint);
    expect(await adds('unknown_key', () => publish(own))).toBe(1);
    expect(await stateOf()).toBeNull();
  });

  it('cannot have more than a few wait to be decided', async () => {
    const { db, audit, fleet, log, clock } = controller.ctx;
    const metrics = createMetrics();
    const at = { db, audit, fleet, log, now: () => clock.now(), registry: metrics.registry, audience: FLEET };
    const commands = new Commands(at);
    const jws = await Promise.all(Array.from({ length: 80 }, () => eve.sign({ node, command: 'drain' })));
    let all: Promise<unknown> = Promise.resolve();
    await db.transaction(async ({ sql }) => {
      await sql`select 1 from operator_keys where name = 'eve' for update`;
      all = Promise.all(jws.map((one) => commands.decide(node, Buffer.from(one), false)));
      const counted = await metrics.registry.getSingleMetricAsString('katafract_operator_commands_total');
      expect(counted).toContain('{outcome="too_many"} 16');
    });
    await all;
    await commands.settled();
    expect(await stateOf()).toBe('running');
  });

  it('cannot say more than a person would', async () => {
    const other = await rob.connect(controller.brokerUrl);
    const closed = new Promise<void>((resolve) => other.once('close', () => resolve()));
    for (let count = 0; count < 60; count++) other.publish(topic(node, 'drain'), 'x', { qos: 0 });
    await closed;
    expect(await controller.metric('katafract_broker_refused_total', 'too_many')).toBeGreaterThan(0);
  });

  it('gains nothing from a revoked key: not by a command signed before, nor by one decided at that moment', async () => {
    const mallory = await TestOperator.make('mallory', FLEET);
    await register(mallory);
    const kept = await mallory.sign({ node, command: 'drain' });
    const theirs = await mallory.connect(controller.brokerUrl);
    const closed = new Promise<void>((resolve) => theirs.once('close', () => resolve()));
    expect((await remove('mallory')).status).toBe(204);
    await closed;
    await expect(mallory.connect(controller.brokerUrl)).rejects.toThrow();
    expect(await adds('unknown_key', () => publish(kept))).toBe(1);
    expect(await stateOf()).toBeNull();
    // revoked between the check of the signature and the effect
    const trudy = await TestOperator.make('trudy', FLEET);
    await register(trudy);
    const { db } = controller.ctx;
    let said: Promise<unknown> = Promise.resolve();
    await db.transaction(async ({ sql }) => {
      await sql`update operator_keys set revoked_at = now() where name = 'trudy'`;
      const before = await outcomes('unknown_key');
      said = publish(await trudy.sign({ node, command: 'drain' })).then(async () =>
        expect(await outcomes('unknown_key')).toBe(before + 1),
      );
      await waitFor('it to wait for the key', async () => {
        const [row] = await db.sql<{ waiting: number }[]>`
          select count(*)::int as waiting from pg_locks where not granted`;
        return (row?.waiting ?? 0) > 0;
      });
    });
    await said;
    expect(await stateOf()).toBeNull();
  });
});

describe('operators’ keys', () => {
  it('are registered once, listed, revoked, and make place for others', async () => {
    const first = await TestOperator.make('ada', FLEET);
    const second = await TestOperator.make('ada', FLEET);
    const key = { 'idempotency-key': crypto.randomUUID() };
    const answers = await Promise.all([register(first, key), register(first, key)]);
    for (const { status, body } of answers) {
      expect(status).toBe(201);
      expect(RegisteredKey.parse(body)).toEqual(answers[0]?.body);
    }
    expect(answers[0]?.body).toMatchObject({
      thumbprint: first.thumbprint,
      audience: FLEET,
      broker: { url: expect.stringMatching(/^mqtt:/) },
    });
    expect((await register(first)).status).toBe(201); // the same, so nothing is new
    expect((await register(second)).code).toBe('operator_key_exists');
    expect((await register(second, key)).code).toBe('idempotency_key_reused');
    const borrowed = new TestOperator({ ...first, name: (await TestOperator.make('bob', '')).name });
    expect((await register(borrowed)).code).toBe('operator_key_in_use');
    expect((await remove('ada')).status).toBe(204);
    expect((await remove('ada')).status).toBe(204);
    expect((await remove('nobody')).code).toBe('operator_unknown');
    expect((await register(first, key)).code).toBe('idempotency_expired');
    expect((await register(second)).status).toBe(201);
    const { items } = await controller.operate<{ items: { name: string }[] }>(
      'GET',
      '/v1/admin/operator-keys',
    );
    const [ada] = items.filter(({ name }) => name === 'ada');
    expect(ada).toMatchObject({ thumbprint: second.thumbprint, revokedAt: null, createdBy: 'bootstrap' });
    const log = await controller.operate<{ items: { action: string }[] }>(
      'GET',
      '/v1/admin/audit?subject=operator:ada',
    );
    expect(log.items.map(({ action }) => action)).toEqual([
      'operator_key.registered',
      'operator_key.revoked',
      'operator_key.registered',
    ]);
  });

  it('are only ever public, and of operators', async () => {
    const ask = (body: object, token = controller.operatorToken) =>
      controller.call('POST', '/v1/admin/operator-keys', { token, body });
    const { jwk } = await TestOperator.make('carol', '');
    expect((await ask({ name: 'bootstrap', publicJwk: jwk })).code).toBe('bad_request');
    expect((await ask({ name: 'carol', publicJwk: { ...jwk, kty: 'RSA' } })).code).toBe('bad_request');
    expect((await ask({ name: 'carol', publicJwk: jwk }, 'not the operator token of this place')).code).toBe(
      'unauthorized',
    );
    const { sigil } = await controller.mint('ops');
    expect((await ask({ name: 'carol', publicJwk: jwk }, sigil)).code).toBe('unauthorized');
  });
});
