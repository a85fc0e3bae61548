/**
 * A machine becomes a node by a one-time join token and nothing else: once, in time, for the identity that used it,
 * at the controller that made the token. The machine's side is the agent's own `enroll`, or the bare request where
 * the point is to misbehave.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemExec } from '@katafract/agent/host/exec';
import { enroll } from '@katafract/agent/identity';
import { systemClock } from '@katafract/shared/clock';
import { type EnrollRequest, EnrollResponse, JoinToken, splitJoinToken } from '@katafract/shared/enroll';
import { mintNodeToken, publicJwk } from '@katafract/shared/node-token';
import { Endpoint, NodeId } from '@katafract/shared/units';
import { exportJWK, generateKeyPair } from 'jose';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { startController, type TestController } from './controller.ts';
import { newKey } from './fake-exit.ts';
import { tablesText } from './tables.ts';

const database = useDatabase();
let controller: TestController;
let skewMs = 0;
beforeAll(async () => {
  const clock = { now: () => Date.now() + skewMs, after: systemClock.after };
  controller = await startController(database.url, { clock });
  await controller.addRegion('fra');
});
afterAll(() => controller.close());

let count = 0;
async function joinToken(wish: object = {}) {
  const node = `fra-${++count}`;
  const body = { region: 'fra', node, endpoint: '192.0.2.1:51820', ...wish };
  const { token } = await controller.operate<{ token: string }>('POST', '/v1/admin/join-tokens', body);
  return { node, token: JoinToken.parse(token) };
}

/** What a machine sends, with keys of its own. */
async function machine(token: JoinToken): Promise<EnrollRequest> {
  const pair = await generateKeyPair('EdDSA', { crv: 'Ed25519', extractable: true });
  const name = NodeId.parse('enrolling');
  const proof = await mintNodeToken(pair.privateKey, name, 'katafract-enroll', Date.now() + skewMs);
  return { token, publicKey: newKey(), identity: publicJwk(await exportJWK(pair.publicKey)), proof };
}
const send = (body: EnrollRequest) => controller.call('POST', '/v1/nodes/enroll', { body });
const nodesOf = (node: string) => controller.ctx.db.sql`select 1 from nodes where id = ${node}`;

it('a node has as many tunnel interfaces as its token says, and a peer is told the port of its own', async () => {
  const { node, token } = await joinToken({ tunnels: 3 });
  const answer = await controller.call('POST', '/v1/nodes/enroll', { body: await machine(token) });
  expect(EnrollResponse.parse(answer.body).config).toMatchObject({ listenPort: 51820, tunnels: 3 });
  const nodes = await controller.operate<{ items: { id: string }[] }>('GET', '/v1/admin/nodes');
  expect(nodes.items.find(({ id }) => id === node)).toMatchObject({
    tunnels: 3,
    endpoint: '192.0.2.1:51820',
  });
  const one = await machine((await joinToken()).token);
  expect(EnrollResponse.parse((await send(one)).body).config.tunnels).toBeUndefined();
});

it('a node needs a port for each of its tunnel interfaces', async () => {
  const mint = (wish: object) =>
    controller.call('POST', '/v1/admin/join-tokens', {
      token: controller.operatorToken,
      body: { region: 'fra', node: `fra-${++count}`, ...wish },
    });
  expect(await mint({ tunnels: 0 })).toMatchObject({ status: 400 });
  expect(await mint({ tunnels: 9 })).toMatchObject({ status: 400 });
  expect(await mint({ tunnels: 2, endpoint: '192.0.2.1:65535' })).toMatchObject({
    status: 422,
    code: 'ports_out_of_range',
  });
  // where the machine itself says the endpoint
  const { token } = await joinToken({ tunnels: 8, endpoint: undefined });
  const late = { ...(await machine(token)), endpoint: Endpoint.parse('192.0.2.1:65530') };
  expect(await send(late)).toMatchObject({ status: 422, code: 'ports_out_of_range' });
  // the token is not used up by that
  const good = { ...late, endpoint: Endpoint.parse('192.0.2.1:65528') };
  expect(await send(good)).toMatchObject({ status: 201 });
  const change = (body: object) =>
    controller.call('PATCH', `/v1/admin/nodes/fra-${count}`, { token: controller.operatorToken, body });
  expect(await change({ listenPort: 65_529 })).toMatchObject({ status: 422, code: 'ports_out_of_range' });
  expect(await change({ endpoint: '192.0.2.1:65529' })).toMatchObject({ status: 422 });
  expect(await change({ listenPort: 60_000 })).toMatchObject({ status: 200 });
});

it('a token makes exactly one node of fifty machines that bring it at once, and the log says so once', async () => {
  const { node, token } = await joinToken();
  const machines = await Promise.all(Array.from({ length: 50 }, () => machine(token)));
  const answers = await Promise.all(machines.map(send));
  const made = answers.filter(({ status }) => status === 201);
  expect(made).toHaveLength(1);
  expect(answers.filter(({ code }) => code === 'join_token_invalid')).toHaveLength(49);
  expect(await nodesOf(node)).toHaveLength(1);
  const path = `/v1/admin/audit?subject=node:${node}`;
  const { items } = await controller.operate<{ items: { action: string }[] }>('GET', path);
  expect(items.map(({ action }) => action)).toEqual(['node.enrolled', 'join_token.created']);
});

it('a machine whose answer was lost asks again and gets the same one, also many times at once', async () => {
  const { token } = await joinToken();
  const request = await machine(token);
  const answers = await Promise.all(Array.from({ length: 10 }, () => send(request)));
  expect(new Set(answers.map(({ status, text }) => `${status} ${text}`)).size).toBe(1);
  expect(EnrollResponse.safeParse(answers[0]?.body).success).toBe(true);
  expect((await send(await machine(token))).code, 'another machine gets nothing').toBe('join_token_invalid');
});

it('a token that has expired, or was never made, makes nothing', async () => {
  const { node, token } = await joinToken({ expiresInSeconds: 60 });
  skewMs += 61_000;
  expect(await send(await machine(token))).toMatchObject({ status: 401, code: 'join_token_invalid' });
  const { pin } = splitJoinToken(token);
  const unknown = JoinToken.parse(`kfj1_${'A'.repeat(43)}_${pin}`);
  expect(await send(await machine(unknown))).toMatchObject({ status: 401, code: 'join_token_invalid' });
  expect(await nodesOf(node)).toHaveLength(0);
});

it('a machine that cannot prove it holds the key gets nothing, and the token stays good', async () => {
  const { node, token } = await joinToken();
  const [good, other] = [await machine(token), await machine(token)];
  for (const proof of [other.proof, 'x.y.z', '']) {
    expect(await send({ ...good, proof })).toMatchObject({ status: 401, code: 'enroll_proof_invalid' });
  }
  expect(await nodesOf(node)).toHaveLength(0);
  expect((await send(good)).status).toBe(201);
});

it('a token lies in the tables as a hash alone, and in no log', async () => {
  const { token } = await joinToken();
  await send(await machine(token));
  const { secret } = splitJoinToken(token);
  expect(await tablesText(controller.ctx.db.sql)).not.toContain(secret);
  expect(controller.logs.join('\n')).not.toContain(secret);
});

it("the agent's enroll keeps nothing of a controller that the token does not pin", async () => {
  const directory = await mkdtemp(join(tmpdir(), 'katafract-enroll-'));
  try {
    const { node, token } = await joinToken();
    const { secret, pin } = splitJoinToken(token);
    const ports = { exec: systemExec, fetch, now: () => Date.now() + skewMs };
    const at = { controller: new URL(controller.url), directory };
    const elsewhere = JoinToken.parse(`kfj1_${secret}_${pin.slice(1)}A`);
    await expect(enroll(ports, { ...at, token: elsewhere })).rejects.toMatchObject({
      code: 'controller_not_pinned',
    });
    await expect(readFile(join(directory, 'node.json'))).rejects.toThrow('ENOENT');
    expect((await enroll(ports, { ...at, token })).node, 'with its own pin the same machine gets in').toBe(
      node,
    );
  } finally {
    await rm(directory, { recursive: true });
  }
});

it('a join token asked for again with its Idempotency-Key is the same one, also when all ask at once', async () => {
  const ask = (node: string, headers: Record<string, string>) =>
    controller.call<{ id: string; token: string; expiresAt: string }>('POST', '/v1/admin/join-tokens', {
      token: controller.operatorToken,
      body: { region: 'fra', node, endpoint: '192.0.2.1:51820' },
      headers,
    });
  const key = { 'idempotency-key': 'join-once' };
  const answers = await Promise.all(Array.from({ length: 20 }, () => ask('fra-again', key)));
  expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 201));
  expect(new Set(answers.map(({ text }) => text)).size).toBe(1);
  expect(await ask('fra-other', key)).toMatchObject({ status: 422, code: 'idempotency_key_reused' });
  const other = await ask('fra-again', {});
  expect(other.body.token).not.toBe(answers[0]?.body.token);
  const { token } = answers[0]?.body ?? { token: '' };
  expect((await send(await machine(JoinToken.parse(token)))).status).toBe(201);
  // its answer may have been lost for long: the node is there by now
  expect((await ask('fra-again', key)).text).toBe(answers[0]?.text);
});
