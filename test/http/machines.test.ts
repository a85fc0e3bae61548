/**
 * Regions grow by machines and give them back: the whole controller, a provider that is slow, forgets, doubles and
 * fails half-way, and exits that enroll with the token that their machine was told.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { useDatabase } from '../database.ts';
import { waitFor } from '../lab/wait.ts';
import { startController, type TestController } from './controller.ts';
import { FakeExit, newKey, startExit } from './fake-exit.ts';
import { FakeCloud, type Fault, tokenOf } from './machines.ts';

interface Machine {
  id: string;
  node: string;
  region: string;
  state: string;
  reason: string;
  replaces: string | null;
  problem: string | null;
  tries: number;
}
interface Capacity {
  region: string;
  explained: string;
  peers: number;
  room: number;
  coming: number;
  used: number;
  decision: { do: string; reason: string; code: string | null };
}

const database = useDatabase();
let cloud: FakeCloud;
let controller: TestController;
let exits: FakeExit[] = [];
let round = 0;
let region = '';

/** Time leaps when a test says so; whoever enrolls then is refused, since its own does not. */
const time = { leapt: 0 };
const clock = {
  now: () => Date.now() + time.leapt,
  after(ms: number, task: () => void) {
    const timer = setTimeout(task, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};

beforeAll(async () => {
  cloud = await FakeCloud.open();
  controller = await startController(database.url, {
    clock,
    env: {
      KATAFRACT_LAB_URL: cloud.url,
      KATAFRACT_AGENT_DEB_URL: 'https://packages.test/agent.deb',
      KATAFRACT_AGENT_DEB_SHA256: '0'.repeat(64),
      KATAFRACT_MOVE_GRACE_SECONDS: '0',
      KATAFRACT_MACHINES_PER_DAY: '1000',
    },
  });
});
afterAll(async () => {
  await controller.close();
  await cloud.close();
});

beforeEach(async () => {
  region = `r${++round}`;
  exits = [];
  cloud.faults(() => undefined);
  time.leapt = 0;
  await controller.addRegion(region, 0, (round * 40) % 180);
  return async () => {
    await grow({ growth: null });
    for (const exit of exits) await exit.leave();
    // gone for good, so that nothing of it stands in the next test's way
    await controller.ctx.db.sql`update nodes set state = 'retired' where region_id = ${region}`;
    await controller.ctx.db.sql`
      update machines set state = 'gone', ended_at = now() where region_id = ${region} and ended_at is null`;
    await controller.ctx.fleet.changed();
  };
});

const growth = (more: object = {}) => ({
  growth: {
    provider: 'lab',
    location: 'here',
    size: 'small',
    capacity: 10,
    bandwidthMbit: 500,
    maxExits: 3,
    ...more,
  },
});
const grow = (body: object) => controller.operate('PATCH', `/v1/admin/regions/${region}`, body);
const machines = async (state = '') => {
  const { items } = await controller.operate<{ items: Machine[] }>('GET', '/v1/admin/machines?limit=100');
  return items.filter((one) => one.region === region && (state === '' || one.state === state)).reverse();
};
const reaches = (state: string, count = 1) =>
  waitFor(`${count} machines ${state}`, async () => {
    controller.ctx.jobs.wake('peers.release_left');
    const found = await machines(state);
    return found.length >= count && (found as [Machine, ...Machine[]]);
  });
const capacity = async () => {
  const { items } = await controller.operate<{ items: Capacity[] }>('GET', '/v1/admin/capacity');
  const found = items.find((one) => one.region === region);
  if (!found) throw new Error('no forecast');
  return found;
};
const audit = async (subject: string) => {
  const { items } = await controller.operate<{ items: { action: string; detail: object }[] }>(
    'GET',
    `/v1/admin/audit?subject=${subject}`,
  );
  return items.map(({ action }) => action).reverse();
};

async function join(name: string, more: object = {}): Promise<FakeExit> {
  const exit = await startExit(controller, { node: `${region}-${name}`, region, capacity: 10, ...more });
  exits.push(exit);
  await waitFor('the exit', () => controller.ctx.fleet.roster.node(exit.node).state === 'active');
  return exit;
}
async function boot({ id }: { id: string }): Promise<FakeExit> {
  const exit = await cloud.boot(controller, controller.brokerUrl, id);
  exits.push(exit);
  return exit;
}
async function provision(count: number): Promise<void> {
  const each = Array.from({ length: count }, async () => controller.mint('free'));
  for (const one of await Promise.all(each)) {
    const { status } = await controller.provision(one.sigil, newKey(), region);
    expect(status).toBe(201);
  }
}
const stateOf = (node: string) =>
  controller.ctx.fleet.roster.has(node as never) && controller.ctx.fleet.roster.node(node as never).state;

const decide = () => controller.ctx.machines.decide();
/** All that is known of the region's machines and nodes happened so much earlier. */
async function age(minutes: number): Promise<void> {
  const { sql } = controller.ctx.db;
  const by = `${minutes} minutes`;
  await sql`
    update machines set since = since - ${by}::interval, wanted_at = wanted_at - ${by}::interval,
      ended_at = ended_at - ${by}::interval where region_id = ${region}`;
  await sql`
    update node_health set since = since - ${by}::interval
    where node_id in (select id from nodes where region_id = ${region})`;
}
/** Something that failed is tried again at once. */
const hurry = () =>
  controller.ctx.db
    .sql`update machines set next_try_at = now() where region_id = ${region} and ended_at is null and next_try_at < '9999-01-01'`;
const step = async () => {
  await hurry();
  await controller.ctx.machines.step();
};

describe('a region that fills up', () => {
  it('grows by itself, once, and no further than it may', async () => {
    await join('a');
    await provision(8);
    await grow(growth({ maxExits: 2, tunnels: 2 }));
    expect((await capacity()).decision.do).toBe('none');
    await provision(1);
    expect((await capacity()).explained).toContain('9 peers on 1 exit with room for 10 (90 % used)');
    await decide();
    const [machine] = await reaches('booting');
    expect(machine.reason).toContain('capacity: ');
    expect(machine.node).toBe(`${region}-m1`);
    const exit = await boot(machine);
    await reaches('serving');
    for (let turn = 0; turn < 3; turn++) await decide();
    expect(await machines()).toHaveLength(1);
    await provision(8);
    expect(exit.table.size).toBe(8);
    expect((await capacity()).decision).toMatchObject({ do: 'alert', code: 'at_maximum' });
    await decide();
    expect(await audit(`region:${region}`)).toContain('region.needs_capacity');
    expect(await controller.metric('katafract_region_needs_capacity', `region="${region}"`)).toBe(1);
    expect(await audit(`machine:${machine.id}`)).toEqual([
      'machine.wanted',
      'machine.created',
      'machine.serving',
    ]);
    const { items } = await controller.operate<{ items: object[] }>('GET', '/v1/admin/nodes');
    expect(items).toContainEqual(
      expect.objectContaining({
        id: machine.node,
        provider: 'lab',
        capacity: 10,
        bandwidthMbit: 500,
        tunnels: 2,
      }),
    );
    // its place is where the provider said, not where the machine thinks
    expect(items).toContainEqual(
      expect.objectContaining({ endpoint: `${cloud.there.get(machine.id)?.address}:51820` }),
    );
  });

  it('has its minimum, and not one exit more, however the wishes are repeated', async () => {
    await grow({ ...growth(), minExits: 2 });
    await Promise.all([decide(), decide(), decide()]);
    const two = await reaches('booting', 2);
    expect(two.map(({ node }) => node).sort()).toEqual([`${region}-m1`, `${region}-m2`]);
    for (const one of two) await boot(one);
    await reaches('serving', 2);
    await decide();
    expect(await machines()).toHaveLength(2);
  });

  it('gives back a machine that never becomes an exit, and waits before it tries again', async () => {
    await grow({ ...growth(), minExits: 1 });
    const [machine] = await reaches('booting');
    const token = tokenOf(cloud.there.get(machine.id)?.userData ?? '');
    await age(16);
    await step();
    const [failed] = await reaches('failed');
    expect(failed.problem).toBe('machine_never_joined');
    expect(cloud.there.has(machine.id)).toBe(false);
    await expect(FakeExit.join(controller, token)).rejects.toThrow('join_token_invalid');
    await decide();
    expect((await capacity()).decision).toMatchObject({ do: 'alert', code: 'machines_fail' });
    expect(await machines()).toHaveLength(1);
    await age(11);
    await decide();
    expect((await reaches('booting'))[0].node).toBe(`${region}-m2`);
  });

  it('gives up what the provider refuses, and leaves nothing of it', async () => {
    cloud.faults((call) => (call.startsWith('PUT') ? { refuse: 422 } : undefined));
    await grow({ ...growth(), minExits: 1 });
    const [failed] = await reaches('failed');
    expect(failed.problem).toBe('machine_refused');
    expect(cloud.calls.at(-1)).toBe(`DELETE ${failed.id}`);
    expect(
      await controller.metric('katafract_machine_failures_total', 'code="machine_refused"'),
    ).toBeGreaterThan(0);
  });

  it('makes one machine of one wish with a provider that is slow, down, and fails half-way', async () => {
    const made = cloud.made.length;
    const faults: Fault[] = ['half', { refuse: 503 }, { refuse: 429 }, 'half'];
    cloud.faults((call) => (call.startsWith('PUT') ? faults.shift() : undefined));
    await grow({ ...growth(), minExits: 1 });
    await waitFor('it to be made', async () => {
      await step();
      return faults.length === 0 && (await machines('booting')).length > 0;
    });
    const [machine] = await reaches('booting');
    expect(cloud.made.length - made).toBe(1);
    expect(cloud.told(machine.id)).toHaveLength(1);
    await boot(machine);
    await reaches('serving');
  });
});

describe('a provider', () => {
  it('is looked through for machines that nobody knows: they go when they were seen twice', async () => {
    await grow({ ...growth(), minExits: 1 });
    const [machine] = await reaches('booting');
    // what tests before this one left there
    for (const id of cloud.there.keys()) if (id !== machine.id) cloud.there.delete(id);
    const stray = crypto.randomUUID();
    cloud.double(machine.id, stray);
    const { machines: own } = controller.ctx;
    await own.sweep();
    time.leapt += 9 * 60_000;
    await own.sweep();
    expect(cloud.there.has(stray)).toBe(true);
    time.leapt += 60_000;
    await own.sweep();
    expect([cloud.there.has(stray), cloud.there.has(machine.id)]).toEqual([false, true]);
    expect(await audit(`machine:${stray}`)).toEqual(['machine.orphan_removed']);
  });

  it('loses none of many machines that nobody knows: rather the database has forgotten them', async () => {
    await grow({ ...growth(), minExits: 1 });
    const [machine] = await reaches('booting');
    const strays = Array.from({ length: 3 }, () => crypto.randomUUID());
    for (const stray of strays) cloud.double(machine.id, stray);
    const { machines: own } = controller.ctx;
    for (let look = 0; look < 3; look++) {
      await own.sweep();
      time.leapt += 11 * 60_000;
    }
    expect(strays.filter((stray) => cloud.there.has(stray))).toEqual(strays);
    for (const stray of strays) cloud.there.delete(stray);
  });

  it('may forget a machine: one that was to come is given up, one that serves is reported', async () => {
    await grow({ ...growth(), minExits: 2 });
    const [first, second] = await reaches('booting', 2);
    await boot(first);
    await reaches('serving');
    cloud.there.clear();
    const { machines: own } = controller.ctx;
    await own.sweep();
    time.leapt += 10 * 60_000;
    await own.sweep();
    await own.sweep();
    expect(await audit(`machine:${first.id}`)).toContain('machine.vanished');
    await step();
    const over = (await machines()).find(({ id }) => id === second?.id);
    expect(over).toMatchObject({ state: 'failed', problem: 'machine_vanished' });
    const serves = (await machines()).find(({ id }) => id === first.id);
    expect(serves).toMatchObject({ state: 'serving', problem: 'machine_vanished' });
  });
});

describe('a node', () => {
  const replace = (node: string, key: string) =>
    controller.call<Machine>('POST', `/v1/admin/nodes/${node}/replace`, {
      token: controller.operatorToken,
      headers: { 'idempotency-key': key },
    });

  it('is replaced: its peers are on the new one before it goes, and so does the machine behind it', async () => {
    await grow({ ...growth(), minExits: 1 });
    const [old] = await reaches('booting');
    const before = await boot(old);
    const held: number[][] = [];
    await reaches('serving');
    await provision(5);
    const key = crypto.randomUUID();
    const [asked, again] = await Promise.all([replace(old.node, key), replace(old.node, key)]);
    expect([asked.status, again.body.id]).toEqual([201, asked.body.id]);
    expect((await replace(old.node, crypto.randomUUID())).code).toBe('node_replaced');
    await reaches('booting');
    const after = await boot(asked.body);
    cloud.faults((call) => {
      if (call === `DELETE ${old.id}`) held.push([before.table.size, after.table.size]);
      return undefined;
    });
    await reaches('gone');
    expect(held).toEqual([[0, 5]]);
    await waitFor('the old node to be retired', () => stateOf(old.node) === 'retired');
    expect(await audit(`node:${old.node}`)).toEqual([
      'join_token.created',
      'node.enrolled',
      'drain.started',
      'drain.finished',
      'node.retired',
    ]);
    for (const { faults } of [before, after]) expect(faults).toEqual([]);
  });

  it('that a person sets up is replaced by one with as many tunnels', async () => {
    await join('b', { tunnels: 3 });
    const asked = await replace(`${region}-b`, crypto.randomUUID());
    expect(asked.status).toBe(201);
    await reaches('booting');
    const { text } = await controller.call('GET', `/v1/admin/machines/${asked.body.id}/cloud-init`, {
      token: controller.operatorToken,
    });
    const exit = await FakeExit.join(controller, tokenOf(text), '192.0.2.78:51820');
    exits.push(exit);
    const { items } = await controller.operate<{ items: object[] }>('GET', '/v1/admin/nodes');
    expect(items).toContainEqual(expect.objectContaining({ id: exit.node, capacity: 10, tunnels: 3 }));
  });

  it('that is down for good is replaced with nobody asked', async () => {
    const dead = await join('a');
    // with most of the fleet down nothing would be believed
    for (const name of ['b', 'c']) await join(name);
    await grow({ ...growth(), minExits: 1 });
    await dead.leave();
    await controller.ctx.db.sql`
      insert into node_health (node_id, state, reason, since, flaps)
      values (${dead.node}, 'down', 'silent', ${new Date()}, 1)
      on conflict (node_id) do update set state = 'down', reason = 'silent', since = excluded.since`;
    await decide();
    expect(await machines()).toEqual([]);
    await age(10);
    await decide();
    const [machine] = await reaches('booting');
    expect(machine).toMatchObject({ replaces: dead.node });
    expect(machine.reason).toContain(`replace: ${dead.node} has been down for 10 min`);
    await decide();
    expect(await machines()).toHaveLength(1);
    await boot(machine);
    await waitFor('the dead one to be retired', () => stateOf(dead.node) === 'retired');
  });
});

describe('a machine', () => {
  /** Two machines, and a day in which one would have done. */
  async function idle(): Promise<[Machine, Machine]> {
    await grow({ ...growth(), minExits: 2 });
    const [first, second] = await reaches('booting', 2);
    for (const one of [first, second]) if (one) await boot(one);
    await reaches('serving', 2);
    return [first, second as Machine];
  }

  it('that is no longer needed is given back, drained first', async () => {
    const [first, second] = await idle();
    await provision(3);
    await controller.ctx.db.sql`
      insert into demand_samples (region_id, at, peers, capacity)
      select ${region}, ${new Date()}::timestamptz - n * interval '5 minutes', 3, 20 from generate_series(0, 300) n
      on conflict do nothing`;
    await age(7 * 60);
    await controller.ctx.machines.sample();
    await decide();
    expect(await machines('leaving')).toEqual([]);
    await grow({ minExits: 1 });
    const [gone] = await reaches('gone');
    const kept = gone.id === first.id ? second : first;
    const left = exits.find(({ node }) => node === gone.node);
    expect([left?.table.size, cloud.there.has(gone.id), cloud.there.has(kept.id)]).toEqual([0, false, true]);
    expect(exits.find(({ node }) => node === kept.node)?.table.size).toBe(3);
    expect(await audit(`machine:${gone.id}`)).toEqual([
      'machine.wanted',
      'machine.created',
      'machine.serving',
      'machine.leaving',
      'machine.gone',
    ]);
    await decide();
    expect(await machines('serving')).toHaveLength(1);
  });

  it('is kept where an operator calls its drain off, and goes when one says so', async () => {
    const [first] = await idle();
    await provision(4);
    const elsewhere = exits.find(({ node }) => node !== first.node);
    elsewhere?.pause();
    await grow({ growth: null });
    const giveBack = () => controller.operate<Machine>('DELETE', `/v1/admin/machines/${first.id}`);
    expect((await giveBack()).state).toBe('leaving');
    await waitFor('the drain', () => stateOf(first.node) === 'draining');
    await controller.operate('POST', `/v1/admin/nodes/${first.node}/drain/cancel`);
    await waitFor('it to be kept', async () => (await machines('serving')).length === 2);
    expect(await audit(`machine:${first.id}`)).toContain('machine.kept');
    elsewhere?.resume();
    await giveBack();
    await giveBack();
    expect((await reaches('gone'))[0].id).toBe(first.id);
    expect((await giveBack()).state).toBe('gone');
  });

  it('that a person sets up waits for one, who is given a fresh token each time', async () => {
    const wish = (key: string) =>
      controller.call<Machine>('POST', '/v1/admin/machines', {
        token: controller.operatorToken,
        body: { region },
        headers: { 'idempotency-key': key },
      });
    const key = crypto.randomUUID();
    const { id } = (await wish(key)).body;
    expect((await wish(key)).body.id).toBe(id);
    await reaches('booting');
    await age(600);
    await step();
    await decide();
    expect((await capacity()).decision).toMatchObject({ do: 'alert', code: 'waiting_for_person' });
    const tell = () =>
      controller.call('GET', `/v1/admin/machines/${id}/cloud-init`, { token: controller.operatorToken });
    const first = await tell();
    expect([first.status, first.headers.get('content-type'), first.headers.get('cache-control')]).toEqual([
      200,
      'text/cloud-config',
      'no-store',
    ]);
    expect(first.text.startsWith('#cloud-config\n')).toBe(true);
    const second = await tell();
    expect(tokenOf(second.text)).not.toBe(tokenOf(first.text));
    await expect(FakeExit.join(controller, tokenOf(first.text))).rejects.toThrow('join_token_invalid');
    const exit = await FakeExit.join(controller, tokenOf(second.text), '192.0.2.77:51820');
    await exit.connect(controller.brokerUrl);
    exits.push(exit);
    const [machine] = await reaches('serving');
    expect(machine.node).toBe(exit.node);
    expect((await tell()).code).toBe('machine_over');
    expect(controller.logs.join()).not.toMatch(/kfj1_/);
    expect(JSON.stringify(await controller.ctx.db.sql`select detail from audit_log`)).not.toMatch(/kfj1_/);
  });
});

it("a region's settings stay where a later call does not mention them", async () => {
  await grow({ ...growth(), minExits: 1, timeZone: 'Europe/Berlin' });
  await controller.addRegion(region, 1, 2);
  const { items } = await controller.operate<{ items: { id: string }[] }>('GET', '/v1/admin/regions');
  expect(items.find(({ id }) => id === region)).toMatchObject({
    latitude: 1,
    minExits: 1,
    timeZone: 'Europe/Berlin',
    growth: { provider: 'lab', maxExits: 3 },
  });
  const refused = async (body: object) =>
    (await controller.call('PATCH', `/v1/admin/regions/${region}`, { token: controller.operatorToken, body }))
      .code;
  expect(await refused(growth({ provider: 'hetzner' }))).toBe('provider_off');
  expect(await refused({ timeZone: 'Middle/Earth' })).toBe('bad_request');
});
