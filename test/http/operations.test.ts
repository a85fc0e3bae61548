/** Revocation, rollback, rotation, move, exhaustion: what an operation promises, seen at the exits and in the tables. */
import type { Peer } from '@katafract/shared/api';
import { verifySigil } from '@katafract/shared/sigil';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { type FakeExit, newKey, startExit } from './fake-exit.ts';
import { expectConsistent, tablesText } from './tables.ts';

const database = useDatabase();
let controller: TestController;
let fra: FakeExit;
let ams: FakeExit;

beforeAll(async () => {
  // a pool of 4 addresses besides network, gateway and broadcast would be too tight for the rest: 13 it is
  controller = await startController(database.url, {
    env: {
      KATAFRACT_TUNNEL_IPV4: '10.64.0.0/28',
      KATAFRACT_ADDRESS_REST_SECONDS: '3600',
      KATAFRACT_MOVE_GRACE_SECONDS: '0',
      KATAFRACT_ACK_TIMEOUT_MS: '1500',
    },
  });
  await controller.addRegion('fra', 50, 8);
  await controller.addRegion('ams', 52, 5);
  fra = await startExit(controller, { node: 'fra-1', region: 'fra' });
  ams = await startExit(controller, { node: 'ams-1', region: 'ams' });
  await waitFor('both exits', () =>
    controller.ctx.fleet.roster.regions().every(({ available }) => available),
  );
});
afterAll(async () => {
  await fra.leave();
  await ams.leave();
  await controller.close();
});

const get = (sigil: string, id: string) => controller.call<Peer>('GET', `/v1/peers/${id}`, { token: sigil });
const holds = (exit: FakeExit, key: string) => [...exit.table.keys()].some((held) => held === key);
async function lastAudit(action: string, peer: string): Promise<number> {
  const path = `/v1/admin/audit?action=${action}&subject=peer:${peer}`;
  const { items } = await controller.operate<{ items: { id: number }[] }>('GET', path);
  return items[0]?.id ?? Number.NaN;
}
const rollback = (entry: number) =>
  controller.call<{ undone: string }>('POST', `/v1/admin/audit/${entry}/rollback`, {
    token: controller.operatorToken,
  });

describe('a Sigil', () => {
  it('verifies offline by the JWKS, is nowhere in the database, and when revoked ends at the next request', async () => {
    const { id, sigil, subscription } = await controller.mint('plus');
    const { body: jwks } = await controller.call<{ keys: [] }>('GET', '/.well-known/jwks.json');
    const claims = await verifySigil(sigil, jwks, { issuer: 'http://artemis.test', now: Date.now() });
    expect(claims).toMatchObject({ sub: subscription, jti: id, tier: 'plus' });
    const key = newKey();
    const { body: peer } = await controller.provision(sigil, key, 'fra');
    expect(holds(fra, key)).toBe(true);
    const [, , signature = 'none'] = sigil.split('.');
    const text = await tablesText(controller.ctx.db.sql);
    expect(text).not.toContain(signature);
    expect(text).not.toContain(controller.operatorToken);
    await controller.operate('POST', `/v1/admin/sigils/${id}/revoke`);
    expect(await get(sigil, peer.id)).toMatchObject({ status: 401, code: 'sigil_revoked' });
    expect(await controller.provision(sigil, newKey(), 'fra')).toMatchObject({ code: 'sigil_revoked' });
    await waitFor('the peer to be gone', () => !holds(fra, key) && !holds(ams, key));
    await expectConsistent(controller);
  });
});

describe('an operation', () => {
  it('rotates a key under the same addresses, and back', async () => {
    const { sigil } = await controller.mint('plus');
    const [before, after] = [newKey(), newKey()];
    const { body: peer } = await controller.provision(sigil, before, 'fra');
    const rotated = await controller.call<Peer>('PUT', `/v1/peers/${peer.id}/key`, {
      token: sigil,
      body: { publicKey: after },
    });
    expect(rotated.body).toMatchObject({ publicKey: after, addresses: peer.addresses, status: 'active' });
    expect([holds(fra, before), holds(fra, after)]).toEqual([false, true]);
    const entry = await lastAudit('peer.key_rotated', peer.id);
    expect((await rollback(entry)).body.undone).toBe('peer.key_rotated');
    expect([holds(fra, before), holds(fra, after)]).toEqual([true, false]);
    expect(await rollback(entry)).toMatchObject({ status: 409, code: 'already_rolled_back' });
    await controller.call('DELETE', `/v1/peers/${peer.id}`, { token: sigil });
  });

  it('moves make-before-break: the old exit answers until the new one has it', async () => {
    const { sigil } = await controller.mint('free');
    const key = newKey();
    const { body: peer } = await controller.provision(sigil, key, 'fra');
    expect([holds(fra, key), holds(ams, key)]).toEqual([true, false]);
    ams.pause();
    const moved = await controller.call<Peer>('POST', `/v1/peers/${peer.id}/move`, {
      token: sigil,
      body: { region: 'ams' },
    });
    expect(moved.body).toMatchObject({ region: 'ams', status: 'pending', addresses: peer.addresses });
    expect(await controller.ctx.peers.releaseLeft()).toBe(0);
    expect(holds(fra, key)).toBe(true);
    ams.resume();
    await waitFor('the new exit', async () => (await get(sigil, peer.id)).body.status === 'active');
    expect(holds(fra, key)).toBe(true);
    await controller.ctx.peers.releaseLeft();
    await waitFor('the old exit to let go', () => !holds(fra, key));
    expect(holds(ams, key)).toBe(true);
    await expectConsistent(controller);
    expect((await rollback(await lastAudit('peer.moved', peer.id))).body.undone).toBe('peer.moved');
    expect((await get(sigil, peer.id)).body.region).toBe('fra');
    await controller.call('DELETE', `/v1/peers/${peer.id}`, { token: sigil });
  });

  it('undoes a bad provision, and a removal: the same key, the same addresses', async () => {
    const { sigil } = await controller.mint('plus');
    const { body: bad } = await controller.provision(sigil, newKey(), 'fra');
    expect((await rollback(await lastAudit('peer.provisioned', bad.id))).body.undone).toBe(
      'peer.provisioned',
    );
    expect((await get(sigil, bad.id)).status).toBe(404);
    expect(holds(fra, bad.publicKey)).toBe(false);
    expect((await rollback(await lastAudit('peer.removed', bad.id))).body.undone).toBe('peer.removed');
    const { body: back } = await get(sigil, bad.id);
    expect(back).toMatchObject({ publicKey: bad.publicKey, addresses: bad.addresses, status: 'active' });
    expect(holds(fra, bad.publicKey)).toBe(true);
    await controller.call('DELETE', `/v1/peers/${bad.id}`, { token: sigil });
    await expectConsistent(controller);
  });

  it('is pending while the exit does not answer, and active once it has', async () => {
    const { sigil } = await controller.mint('free');
    fra.pause();
    const { status, body } = await controller.provision(sigil, newKey(), 'fra');
    expect([status, body.status]).toEqual([201, 'pending']);
    fra.resume();
    await waitFor('the answer', async () => (await get(sigil, body.id)).body.status === 'active');
    await controller.call('DELETE', `/v1/peers/${body.id}`, { token: sigil });
  });
});

it('an exhausted pool is a clear 503, and addresses that rest are not given out', async () => {
  const { sigil } = await controller.mint('ops');
  const answers = [];
  do answers.push(await controller.provision(sigil, newKey(), 'fra'));
  while (answers.at(-1)?.status === 201 && answers.length < 20);
  const refused = answers.pop();
  expect(refused).toMatchObject({ status: 503, code: 'addresses_exhausted' });
  expect(Number(refused?.headers.get('retry-after'))).toBeGreaterThan(0);
  const given = answers.map(({ body }) => body.addresses.ipv4);
  expect(new Set(given).size).toBe(given.length);
  const [{ body: freed } = { body: undefined }] = answers;
  await controller.call('DELETE', `/v1/peers/${freed?.id}`, { token: sigil });
  expect((await controller.provision(sigil, newKey(), 'fra')).code).toBe('addresses_exhausted');
  await controller.ctx.db.sql`update resting_addresses set released_at = released_at - interval '2 hours'`;
  expect((await controller.provision(sigil, newKey(), 'fra')).status).toBe(201);
  await expectConsistent(controller);
});
