/**
 * Whatever a request looks like, the answer is one that /openapi.json describes: a documented status with a body of
 * its schema, every error a problem document with a documented code, never a fault of ours. And what was refused has
 * changed nothing: a digest over every table is the same as before.
 *
 * KATAFRACT_FUZZ_RUNS asks for more requests than the 1500 of an ordinary run. That repeats one seed, so that what fails
 * there comes of what was changed; KATAFRACT_FUZZ_SEED=random looks for what nobody has found yet.
 */
import { PROBLEM_CODES } from '@katafract/controller/platform/problem-codes';
import { type DeviceKey, generateDeviceKey, type Jkt, makeProof } from '@katafract/shared/dpop';
import { mintNodeToken, publicJwk } from '@katafract/shared/node-token';
import { PROBLEM_TYPE, Problem } from '@katafract/shared/problem';
import { NodeId } from '@katafract/shared/units';
import fc from 'fast-check';
import { exportJWK, generateKeyPair } from 'jose';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { TestOperator } from '../operator.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import {
  type Document,
  type Fuzzed,
  type Operation,
  operationsOf,
  requests,
  type World,
} from './fuzz-requests.ts';
import { type Resolve, resolver, violations } from './json-schema.ts';
import { type RawAnswer, type RawRequest, send } from './raw-http.ts';
import { expectConsistent, tablesDigest } from './tables.ts';

const RUNS = Number(process.env.KATAFRACT_FUZZ_RUNS ?? 1500);
const { KATAFRACT_FUZZ_SEED: seed = '53670215' } = process.env;
const SEED = seed === 'random' ? Date.now() % 2 ** 31 : Number(seed);

const database = useDatabase();
let controller: TestController;
let exit: FakeExit;
/** Names and ids that exist, by kind; requests that succeed add to them. */
const there = {
  regions: ['fra', 'ams'],
  nodes: ['fra-1', 'idle-1'],
  machines: [] as string[],
  rollouts: [] as string[],
  reboots: [] as string[],
  peers: [] as string[],
  sigils: [] as string[],
  subscriptions: [] as string[],
  cursors: [] as string[],
  keys: [] as string[],
  entries: [] as string[],
  devices: [] as string[],
  operators: ['op-1', 'op-2'],
};
const bodies = new Map<string, unknown[]>();
let sigil = '';
let subscription = '';
/** A device of that subscription, and its Sigil. */
let deviceKey: DeviceKey;
let bound = '';
/**
 * Need not succeed here: stores are off, and a drain or a rollout can only be halted or resumed in a certain state. All
 * are proved in tests of their own.
 */
const OFF = /^POST \/v1\/(?:(?:webhooks|billing)\/|admin\/(?:nodes\/\{id\}\/drain|rollouts\/\{id\})\/)/;

beforeAll(async () => {
  // nothing changes a table but requests: no jobs, no moves that end by themselves
  controller = await startController(database.url, {
    env: {
      KATAFRACT_MOVE_GRACE_SECONDS: '86400',
      KATAFRACT_AGENT_DEB_URL: 'https://packages.test/agent.deb',
      KATAFRACT_AGENT_DEB_SHA256: '0'.repeat(64),
    },
  });
  await controller.ctx.jobs.stop();
  await controller.addRegion('fra');
  await controller.addRegion('ams');
  exit = await startExit(controller, { node: 'fra-1', region: 'fra', capacity: 1_000_000 });
  await waitFor('the exit', async () => (await stateOf('fra-1')) === 'active');
  const enrolling = ['idle-1', 'spare-1', 'spare-2'];
  bodies.set('/v1/nodes/enroll', await Promise.all(enrolling.map(enrollBody)));
  await controller.call('POST', '/v1/nodes/enroll', { body: bodies.get('/v1/nodes/enroll')?.[0] });
  const token = await mintNodeToken(exit.key, exit.node, 'katafract-broker', Date.now());
  bodies.set('/v1/nodes/session', [{ node: exit.node, token }]);
  await registerOperators();
  // keeps fra-1 from being retired as empty
  const { sigil: other } = await controller.mint('free');
  await controller.provision(other, newKey(), 'fra');
  ({ sigil, subscription } = await controller.mint('ops'));
  deviceKey = await generateDeviceKey();
  bound = (await issue(deviceKey.jkt)).sigil;
  const grant = { tier: 'ops', expiresAt: inDays(300), reason: 'support' };
  const { secret } = await controller.operate<{ secret: string }>('POST', '/v1/admin/grants', grant);
  bodies.set('/v1/sigils', [{ secret }]);
  // to be revoked, should none be minted before that is tried
  for (let count = 0; count < 4; count++) {
    const minted = await controller.mint('free');
    there.sigils.push(minted.id);
    there.subscriptions.push(minted.subscription);
  }
  for (let count = 0; count < 4; count++) {
    const { id } = await controller.operate<{ id: string }>('POST', '/v1/admin/machines', { region: 'ams' });
    there.machines.push(id);
  }
  await lookAround();
});
afterAll(async () => {
  await exit.leave();
  await controller.close();
});

const issue = (jkt: Jkt) => controller.ctx.sigils.issue({ subscriptionId: subscription, jkt }, 'system');

/** The same request with a fresh proof of the device, if it is of a kind that takes one. */
async function proven(way: string, request: RawRequest): Promise<RawRequest> {
  const { method, target, headers } = request;
  const own = (name: string) => headers.find(([one]) => one.toLowerCase() === name)?.[1];
  const token = /^DPoP (.*)$/.exec(own('authorization') ?? '')?.[1];
  if (token === undefined && (own('dpop') === undefined || way.includes('dpop'))) return request;
  const url = `http://artemis.test${target}`;
  if (!URL.canParse(url)) return request;
  const dpop = await makeProof(deviceKey, { method, url, now: Date.now(), token });
  return {
    ...request,
    headers: [...headers.filter(([name]) => name.toLowerCase() !== 'dpop'), ['DPoP', dpop]],
  };
}

async function stateOf(node: string): Promise<string | undefined> {
  const { items } = await controller.operate<{ items: { id: string; state: string }[] }>(
    'GET',
    '/v1/admin/nodes',
  );
  return items.find(({ id }) => id === node)?.state;
}

/** One that shows its token, and some to be revoked. */
async function registerOperators(): Promise<void> {
  for (const name of ['shown', ...there.operators]) {
    const operator = await TestOperator.make(name, 'http://artemis.test');
    const body = { name, publicJwk: operator.jwk };
    await controller.operate('POST', '/v1/admin/operator-keys', body);
    if (name === 'shown')
      bodies.set('/v1/operators/session', [{ operator: name, token: await operator.token() }]);
  }
}

async function enrollBody(node: string): Promise<unknown> {
  const wish = { region: 'ams', node, endpoint: '192.0.2.99:51820' };
  const { token } = await controller.operate<{ token: string }>('POST', '/v1/admin/join-tokens', wish);
  const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
  const name = NodeId.parse('enrolling');
  const proof = await mintNodeToken(pair.privateKey, name, 'katafract-enroll', Date.now());
  return { token, publicKey: newKey(), identity: publicJwk(await exportJWK(pair.publicKey)), proof };
}

const oneOf = (list: readonly unknown[]) => fc.nat().map((n) => list[n % list.length] ?? crypto.randomUUID());
const kindOf = ({ path }: Operation) =>
  /\/(peers|nodes|sigils|subscriptions|regions|machines|rollouts|reboots)\/\{id\}/.exec(path)?.[1];

const world: World = {
  token: (scheme) => (scheme === 'Operator' ? controller.operatorToken : sigil),
  authorization: ({ path }) =>
    path === '/v1/sigils/refresh' || path.startsWith('/v1/sigil/devices/') ? `DPoP ${bound}` : undefined,
  body: ({ path }) => {
    const list = bodies.get(path);
    return list && oneOf(list);
  },
  known(operation, name) {
    const kind = kindOf(operation);
    if (name === 'id' && operation.path.includes('/devices/{jkt}')) return fc.constant(subscription);
    if (name === 'jkt') return oneOf(there.devices);
    if (name === 'id' && kind) return oneOf(there[kind as 'peers']);
    if (name === 'name' && operation.path.includes('/operator-keys/')) return oneOf(there.operators);
    if (name === 'region') return oneOf(there.regions);
    if (name === 'subscription') return oneOf(there.subscriptions);
    if (name === 'cursor') return oneOf(there.cursors);
    if (name === 'entry') return oneOf(there.entries);
    // what no pattern tells apart from other text, and the one provider that is always on
    if (name === 'name' && operation.path.startsWith('/v1/admin/regions'))
      return fc.constantFrom('Frankfurt', 'Ads');
    if (name === 'rules') return fc.constant(['||ads.example^']);
    if (name === 'timeZone') return fc.constantFrom('Europe/Berlin', 'Asia/Singapore');
    if (name === 'provider') return fc.constant('manual');
    if (name === 'subject') return oneOf(there.peers).map((id) => `peer:${id}`);
    if (name === 'expiresAt' || name === 'redeemBefore')
      return fc.integer({ min: 1, max: 300 }).map((days) => inDays(days));
    if (name === 'publicKey') return fc.nat(9).map((n) => (n < 2 && there.keys[n]) || newKey());
    return undefined;
  },
};
const inDays = (days: number) => new Date(Date.now() + days * 86_400_000).toISOString();

const refill = (list: string[], values: readonly string[]) => void list.splice(0, list.length, ...values);

/** What a success changed in the world. */
async function learn({ operation, request }: Fuzzed, { body }: RawAnswer): Promise<void> {
  const { method, path } = operation;
  const made = body.startsWith('{') ? JSON.parse(body) : {};
  const keep = (list: string[], value: string) => {
    if (list.push(value) > 12) list.shift();
  };
  if (method === 'POST' && path === '/v1/admin/sigils') {
    keep(there.sigils, made.id);
    keep(there.subscriptions, made.subscription);
  }
  if (method === 'POST' && path === '/v1/admin/machines') keep(there.machines, made.id);
  if (typeof made.next === 'string') keep(there.cursors, made.next);
  // a cordoned exit would end the provisioning of everything after it
  if (method === 'PATCH' && request.target.includes('fra-1'))
    await controller.operate('PATCH', '/v1/admin/nodes/fra-1', { state: 'active', capacity: 1_000_000 });
  if (method !== 'GET') await lookAround();
}

/** Reads which peers there are and what was done to them, with never too few to ask about. */
async function lookAround(): Promise<void> {
  const { sql } = controller.ctx.db;
  for (let count = there.peers.length; count < 4; count++) await controller.provision(sigil, newKey(), 'fra');
  const [peers, entries, rollouts, reboots, devices] = await Promise.all([
    sql<{ id: string; key: string }[]>`
      select id, public_key as key from peers where subscription_id = ${subscription} order by id desc limit 8`,
    sql<{ id: string }[]>`
      select id::text from audit_log where action in ('peer.provisioned', 'peer.moved')
      order by audit_log.id desc limit 8`,
    sql<{ id: string }[]>`select id::text from rollouts`,
    sql<{ id: string }[]>`select id::text from reboots`,
    controller.ctx.sigils.bindings(subscription, null),
  ]);
  const others = devices.map(({ jkt }) => jkt).filter((jkt) => jkt !== deviceKey.jkt);
  for (let count = others.length; count < 4; count++) {
    const { jkt } = await generateDeviceKey();
    await issue(jkt);
    others.push(jkt);
  }
  refill(there.devices, others);
  refill(
    there.peers,
    peers.map(({ id }) => id),
  );
  refill(
    there.keys,
    peers.map(({ key }) => key),
  );
  refill(
    there.rollouts,
    rollouts.map(({ id }) => id),
  );
  refill(
    there.reboots,
    reboots.map(({ id }) => id),
  );
  refill(
    there.entries,
    entries.map(({ id }) => id),
  );
}

/** Statuses that a request of this kind may meet before it reaches the operation. */
function undocumented(way: string): readonly number[] {
  if (way.startsWith('method') || way.startsWith('target'))
    return [200, 201, 202, 204, 304, 400, 401, 404, 405, 409, 413, 415, 422, 431];
  if (way.startsWith('header')) return [304, 400, 417, 431];
  if (way === 'oversize') return [413];
  // an empty path parameter makes another path
  return way.startsWith('odd') || way.startsWith('type') ? [400, 404, 405, 431] : [];
}

/** What is wrong with an answer; empty where nothing is. */
function faults({ operation, way, request }: Fuzzed, answer: RawAnswer, resolve: Resolve): string[] {
  const { status, headers, body } = answer;
  const type = headers.get('content-type')?.split(';')[0] ?? '';
  if (status >= 500 && status !== 503) return [`a fault of ours: ${status}`];
  if (!operation.responses.has(status) && !undocumented(way).includes(status))
    return [`undocumented: ${status}`];
  if (status >= 400) {
    if (request.method === 'HEAD') return [];
    if (type !== PROBLEM_TYPE) return [`an error that is no problem document but '${type}'`];
    const problem = Problem.parse(JSON.parse(body));
    if (problem.status !== status) return ['status and problem disagree'];
    if (!(problem.code in PROBLEM_CODES)) return [`undocumented code: ${problem.code}`];
  }
  const documented = operation.responses.get(status);
  if (way.startsWith('method') || way.startsWith('target') || documented === undefined) return [];
  if (documented === null) return body === '' ? [] : ['a body where there should be none'];
  const schema = documented[type];
  if (!schema) return [`undocumented type: '${type}'`];
  return violations(schema, type.endsWith('json') ? JSON.parse(body) : body, resolve);
}

it(`answers ${RUNS} requests of every kind as documented, seed ${SEED}`, { timeout: 400_000 }, async () => {
  const document = (await controller.call<Document>('GET', '/openapi.json')).body;
  const operations = operationsOf(document);
  const resolve = resolver(document);
  const digest = await tablesDigest(controller.ctx.db.sql);
  const outcomes = new Map<string, Set<number>>(
    operations.map(({ method, path }) => [`${method} ${path}`, new Set()]),
  );
  let before = await digest();
  const check = async (fuzzed: Fuzzed) => {
    const { operation, way, request } = fuzzed;
    const answer = await send(controller.url, await proven(way, request));
    const found = faults(fuzzed, answer, resolve);
    // an exit that drains would end the provisioning of everything after it
    if (answer.status < 300 && request.method === 'POST' && /\/drain$/.test(request.target))
      await controller.operate('POST', `${new URL(request.target, controller.url).pathname}/cancel`);
    if (answer.status < 400 && found.length === 0 && !/^(?:method|target)/.test(way))
      await learn(fuzzed, answer);
    const after = await digest();
    if (answer.status >= 400 && answer.status < 500 && after !== before)
      found.push('a refused request changed a table');
    before = after;
    outcomes.get(`${operation.method} ${operation.path}`)?.add(answer.status);
    if (found.length > 0) {
      const shown = `${request.method} ${request.target.slice(0, 200)} (${way}): ${answer.status}`;
      throw new Error(`${shown}\n${found.join('\n')}\n${answer.body.slice(0, 500)}`);
    }
  };
  const run = async (some: readonly Operation[], numRuns: number) => {
    const property = fc.asyncProperty(requests(some, resolve, world), check);
    const result = await fc.check(property, { numRuns, seed: SEED, endOnFailure: true });
    // fast-check's own report would print the whole document with the request
    if (result.failed) throw new Error(`request ${result.numRuns}`, { cause: result.errorInstance });
  };
  await run(operations, RUNS);
  // chance may have left one out
  const succeeded = ({ method, path }: Operation) =>
    [...(outcomes.get(`${method} ${path}`) ?? [])].some((status) => status < 300);
  for (const operation of operations) {
    const { method, path } = operation;
    if (!succeeded(operation) && !OFF.test(`${method} ${path}`)) await run([operation], 60);
  }
  for (const [operation, statuses] of outcomes) {
    const all = [...statuses];
    expect
      .soft(OFF.test(operation) || all.some((status) => status < 300), `${operation} never succeeded: ${all}`)
      .toBe(true);
    expect
      .soft(
        all.some((status) => status >= 400),
        `${operation} was never refused: ${all}`,
      )
      .toBe(true);
  }
  expect(await controller.call('GET', '/healthz')).toMatchObject({ status: 200 });
  expect(exit.faults).toEqual([]);
  await expectConsistent(controller);
});
