import { randomUUID } from 'node:crypto';
import { KatafractError } from '@katafract/shared/errors';
import { NodeId, RegionId } from '@katafract/shared/units';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { type Cloud, type Fault, hetznerCloud, ROOT_PASSWORD } from '../../../../test/clouds/hetzner.ts';
import { hetznerProvider } from './hetzner.ts';
import type { MachineOrder, Provider } from './provider.ts';

const USER_DATA = '#cloud-config\n{"token":"kfj1_secret-of-a-machine"}';
const TIMEOUT_MS = 3_600_000;
const order = (node = 'fra-7'): MachineOrder => ({
  machine: randomUUID(),
  node: NodeId.parse(node),
  region: RegionId.parse('fra'),
  location: 'fsn1',
  size: 'cpx21',
  userData: USER_DATA,
});

/** Time in which every wait is over at once, and a try's limit passes when the test says so. */
function waitless() {
  let now = Date.now();
  const limits = new Set<() => void>();
  return {
    expire: () => {
      for (const limit of [...limits]) limit();
    },
    now: () => now,
    after(ms: number, task: () => void) {
      if (ms === TIMEOUT_MS) {
        limits.add(task);
        return () => limits.delete(task);
      }
      now += ms;
      setImmediate(task);
      return () => undefined;
    },
  };
}

const opened: Cloud[] = [];
afterEach(async () => {
  for (const cloud of opened.splice(0)) await cloud.close();
});

async function start(switches: Partial<Cloud['set']> = {}, tries = 1) {
  const cloud = await hetznerCloud();
  opened.push(cloud);
  Object.assign(cloud.set, switches);
  const clock = waitless();
  /** What goes wrong with which request. */
  const faults = (pick: (number: number) => Fault | null) => {
    const from = cloud.requests.length;
    cloud.set.fault = ({ number }) => {
      const fault = pick(number - from);
      if (fault === 'late') setImmediate(clock.expire);
      return fault;
    };
  };
  const provider = (change: { fleet?: string; token?: string } = {}) =>
    hetznerProvider(
      {
        apiBase: cloud.url,
        token: cloud.token,
        fleet: 'prod',
        image: 'debian-12',
        sshKeys: ['ops'],
        firewalls: [38],
        networks: [],
        ...change,
      },
      {
        clock,
        call: { timeoutMs: TIMEOUT_MS, tries, circuit: { threshold: 1000, openMs: 1, maxOpenMs: 1 } },
        random: () => 0.5,
      },
    );
  return { cloud, clock, faults, provider, hetzner: provider() };
}

async function failure(promise: Promise<unknown>): Promise<KatafractError> {
  const error = await promise.then(
    () => null,
    (reason: unknown) => reason,
  );
  if (!(error instanceof KatafractError)) throw new Error(`not a KatafractError: ${String(error)}`);
  return error;
}

/** As whoever calls does: again, for as long as it is told that trying again may help. */
async function again<T>(what: () => Promise<T>, times = 6): Promise<T> {
  for (let tried = 1; ; tried++) {
    try {
      return await what();
    } catch (error) {
      if (tried === times || !(error instanceof KatafractError) || error.code !== 'provider_unavailable')
        throw error;
    }
  }
}

const tolerate = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => expect(error).toMatchObject({ code: 'provider_unavailable' }),
  );

function expectExactlyOne(cloud: Cloud, { machine, node }: MachineOrder) {
  expect([...cloud.servers.values()]).toMatchObject([{ name: node, status: 'running' }]);
  const labels = {
    'managed-by': 'katafract',
    'katafract-fleet': 'prod',
    'katafract-machine': machine,
    'katafract-node': node,
  };
  const [server] = cloud.servers.values();
  expect(server?.labels).toEqual(labels);
  expect([...cloud.addresses.values()]).toMatchObject(
    [server?.ipv4, server?.ipv6].map((id) => ({ id, labels, assignee_id: server?.id })),
  );
}

function expectNothing({ servers, addresses }: Cloud) {
  expect([servers.size, addresses.size]).toEqual([0, 0]);
}

/** What else may be amiss while a call fails. */
const CREATING: readonly (readonly [string, Partial<Cloud['set']>])[] = [
  ['all is well', {}],
  ['the action that makes the server fails', { creationsFail: 1 }],
  [
    'its deletion fails too, and addresses outlive it',
    { creationsFail: 1, deletionsFail: 1, addressesStay: true, pageSize: 1 },
  ],
];
const REMOVING: typeof CREATING = [
  ['all is well', {}],
  ['the deletion fails, and addresses outlive it', { deletionsFail: 1, addressesStay: true, pageSize: 1 }],
];
const FAULTS: readonly Fault[] = ['500', '429', '500 done', 'cut', 'late'];

describe('machines of Hetzner', () => {
  test('one is made as ordered, found again, listed and taken away', async () => {
    const { cloud, hetzner } = await start();
    const wanted = order();
    const made = await hetzner.create(wanted);
    expectExactlyOne(cloud, wanted);
    const [server] = cloud.servers.values();
    expect(server?.asked).toMatchObject({
      location: 'fsn1',
      server_type: 'cpx21',
      image: 'debian-12',
      user_data: USER_DATA,
      ssh_keys: ['ops'],
      firewalls: [{ firewall: 38 }],
      public_net: { enable_ipv4: true, enable_ipv6: true },
    });
    expect(made).toEqual({
      machine: wanted.machine,
      ref: String(server?.id),
      address: `198.51.100.${Number(made.ref) % 250}`,
    });
    expect(await hetzner.create(wanted)).toEqual(made);
    expect(await hetzner.list()).toEqual([made]);
    await hetzner.remove(wanted.machine);
    expectNothing(cloud);
    await hetzner.remove(wanted.machine);
    expect(await hetzner.list()).toEqual([]);
  });

  describe.each(CREATING)('whichever call of making it fails, while %s', (_, switches) => {
    test.each(FAULTS)('by %s: the next tries make exactly one, or leave nothing', async (fault) => {
      for (let call = 1; ; call++) {
        const { cloud, faults, hetzner } = await start(switches);
        const wanted = order();
        faults((number) => (number === call ? fault : null));
        await tolerate(hetzner.create(wanted));
        const hit = cloud.requests.length >= call;
        faults(() => null);
        if (call % 2 === 0) {
          await again(() => hetzner.create(wanted));
          expectExactlyOne(cloud, wanted);
        }
        await again(() => hetzner.remove(wanted.machine));
        expectNothing(cloud);
        if (!hit) break;
      }
    });
  });

  describe.each(REMOVING)('whichever call of removing it fails, while %s', (_, switches) => {
    test.each(FAULTS)('by %s: the next removal leaves nothing', async (fault) => {
      for (let call = 1; ; call++) {
        const { cloud, faults, hetzner } = await start(switches);
        const wanted = order();
        await again(() => hetzner.create(wanted));
        const before = cloud.requests.length;
        faults((number) => (number === call ? fault : null));
        await tolerate(hetzner.remove(wanted.machine));
        const hit = cloud.requests.length - before >= call;
        faults(() => null);
        await again(() => hetzner.remove(wanted.machine));
        expectNothing(cloud);
        if (!hit) break;
      }
    });
  });

  test('however calls fail, in any order: one when it is wanted, none when it is not', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.option(fc.constantFrom(...FAULTS), { freq: 2 }), { maxLength: 60 }),
        fc.array(fc.constantFrom('create', 'remove'), { minLength: 1, maxLength: 6 }),
        fc.record({
          creationsFail: fc.nat(2),
          deletionsFail: fc.nat(2),
          addressesStay: fc.boolean(),
          actionLasts: fc.nat(12),
        }),
        fc.integer({ min: 1, max: 3 }),
        async (sequence, steps, switches, tries) => {
          const { cloud, faults, hetzner } = await start(switches, tries);
          const wanted = order();
          faults((number) => sequence[number - 1] ?? null);
          const run = (step: string) =>
            step === 'create' ? hetzner.create(wanted) : hetzner.remove(wanted.machine);
          for (const step of steps) await tolerate(run(step));
          faults(() => null);
          await again(() => hetzner.create(wanted), 10);
          expectExactlyOne(cloud, wanted);
          expect(await hetzner.list()).toMatchObject([{ machine: wanted.machine }]);
          await again(() => hetzner.remove(wanted.machine), 10);
          expectNothing(cloud);
          await opened.pop()?.close();
        },
      ),
      { numRuns: 25 },
    );
  });

  test.each([0, 1, 2])(
    'two who make the same machine at once make one (%i creations fail)',
    async (creationsFail) => {
      const names: string[] = [];
      const { cloud, provider } = await start({ creationsFail, onCreate: (name) => names.push(name) });
      const wanted = order();
      const both: Provider[] = [provider(), provider()];
      const first = await Promise.allSettled(both.map((each) => each.create(wanted)));
      // both had looked before either made it
      expect(names.slice(0, 2)).toEqual(['fra-7', 'fra-7']);
      for (const result of first)
        if (result.status === 'rejected')
          expect(result.reason).toMatchObject({ code: 'provider_unavailable' });
      const refs = await Promise.all(both.map((each) => again(async () => (await each.create(wanted)).ref)));
      expect(refs[0]).toBe(refs[1]);
      expectExactlyOne(cloud, wanted);
    },
  );

  test('of two that carry the label, the older stays', async () => {
    const { cloud, hetzner } = await start();
    const [wanted, other] = [order('fra-7'), order('fra-8')];
    const { ref } = await hetzner.create(wanted);
    await hetzner.create(other);
    for (const server of cloud.servers.values()) server.labels['katafract-machine'] = wanted.machine;
    expect((await hetzner.create(wanted)).ref).toBe(ref);
    expect([...cloud.servers.keys()]).toEqual([Number(ref)]);
    expect(cloud.addresses.size).toBe(2);
  });

  test('one that is still being deleted is not taken for a machine', async () => {
    const { cloud, faults, hetzner } = await start();
    const wanted = order();
    const { ref } = await hetzner.create(wanted);
    cloud.set.actionLasts = 8;
    faults((number) => (number === 3 ? 'cut' : null));
    expect((await failure(hetzner.remove(wanted.machine))).code).toBe('provider_unavailable');
    expect(cloud.servers.get(Number(ref))?.deleting).toBe(true);
    expect((await failure(hetzner.create(wanted))).retryAfter).toBe(5);
    await again(() => hetzner.create(wanted), 9);
    expectExactlyOne(cloud, wanted);
  });

  test('a server that vanishes while it is made is an error, and made anew', async () => {
    const { cloud, hetzner } = await start({ vanish: true });
    const wanted = order();
    expect((await failure(hetzner.create(wanted))).code).toBe('provider_unavailable');
    cloud.set.vanish = false;
    await again(() => hetzner.create(wanted));
    expectExactlyOne(cloud, wanted);
  });

  test('what a person does to a server later is no reason to delete it', async () => {
    const { cloud, hetzner } = await start();
    const wanted = order();
    const { ref } = await hetzner.create(wanted);
    const actions = cloud.servers.get(Number(ref))?.actions;
    actions?.push({
      id: 9999,
      command: 'rebuild_server',
      status: 'error',
      left: 0,
      fails: true,
      done: () => undefined,
    });
    expect((await hetzner.create(wanted)).ref).toBe(ref);
  });

  test('only its own machines: neither those of another fleet nor those of people', async () => {
    const { cloud, hetzner, provider } = await start({ pageSize: 2 });
    const theirs = order('fra-1');
    await provider({ fleet: 'staging' }).create(theirs);
    const mine = ['fra-2', 'fra-3', 'fra-4', 'fra-5', 'fra-6'].map((node) => order(node));
    for (const each of mine) await hetzner.create(each);
    expect((await hetzner.list()).map(({ machine }) => machine)).toEqual(mine.map(({ machine }) => machine));
    await hetzner.remove(theirs.machine);
    expect(cloud.servers.size).toBe(6);
    const error = await failure(hetzner.create(order('fra-1')));
    expect(error).toMatchObject({
      code: 'provider_refused',
      message: 'hetzner refuses: another server is named fra-1',
    });
    expect(cloud.servers.size).toBe(6);
  });

  test('an address that outlived its server is listed, and taken away', async () => {
    const { cloud, hetzner } = await start();
    const wanted = order();
    await hetzner.create(wanted);
    cloud.servers.clear();
    for (const address of cloud.addresses.values()) address.assignee_id = null;
    expect(await hetzner.list()).toMatchObject([{ machine: wanted.machine, address: null }]);
    await hetzner.remove(wanted.machine);
    expectNothing(cloud);
  });

  test('says whether trying again helps, and when', async () => {
    const { cloud, hetzner, provider, faults } = await start({ serverLimit: 1 });
    const refusal = async (change: Partial<MachineOrder>) => {
      const { code, message, retryAfter } = await failure(hetzner.create({ ...order('fra-9'), ...change }));
      return [code, message, retryAfter];
    };
    cloud.set.soldOut.add('cpx21@hel1');
    expect(await refusal({ location: 'hel1' })).toEqual([
      'provider_unavailable',
      'hetzner: resource_unavailable',
      300,
    ]);
    expect(await refusal({ location: 'mars' })).toEqual([
      'provider_refused',
      'hetzner refuses: invalid_input location',
      undefined,
    ]);
    expect(await refusal({ size: 'huge' })).toEqual([
      'provider_refused',
      'hetzner refuses: invalid_input server_type',
      undefined,
    ]);
    await hetzner.create(order('fra-1'));
    expect(await refusal({})).toEqual([
      'provider_refused',
      'hetzner refuses: resource_limit_exceeded',
      undefined,
    ]);
    faults(() => '429');
    expect(await refusal({})).toEqual(['provider_unavailable', 'hetzner: 429', 60]);
    faults(() => null);
    const wrong = await failure(provider({ token: 'wrong' }).list());
    expect(wrong).toMatchObject({ code: 'provider_unauthorized' });
    expect(cloud.servers.size).toBe(1);
  });

  test('nothing of an answer or a request is in an error', async () => {
    const { cloud, faults, hetzner } = await start({ creationsFail: 1 });
    const seen: unknown[] = [];
    for (const fault of FAULTS) {
      for (let call = 1; call <= 6; call++) {
        faults((number) => (number === call ? fault : null));
        seen.push(await hetzner.create(order()).catch((error: unknown) => error));
      }
    }
    seen.push(await failure(hetzner.create({ ...order('fra-8'), location: 'mars' })));
    const text = seen.map((value) =>
      value instanceof Error
        ? `${value.stack} ${JSON.stringify(value)} ${value.cause}`
        : JSON.stringify(value),
    );
    for (const secret of [ROOT_PASSWORD, 'secret-of-a-machine', cloud.token])
      expect(text.join()).not.toContain(secret);
    expect(text.length).toBe(31);
  });
});
