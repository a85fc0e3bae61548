import { KatafractError } from '@katafract/shared/errors';
import { afterEach, describe, expect, it } from 'vitest';
import { type Reply, type Served, serve } from '../../../test/stores/stand-in.ts';
import { type CallSettings, type Outcome, type OutgoingDeps, outgoing, retryAfterMs } from './outgoing.ts';

const TIMEOUT_MS = 3_600_000;
const SETTINGS: CallSettings = {
  timeoutMs: TIMEOUT_MS,
  tries: 4,
  backoffMs: 100,
  patienceMs: 10_000,
  circuit: { threshold: 100, openMs: 5000, maxOpenMs: 60_000 },
};
const WORDING = {
  failing: (status: number): Reply => ({ status, json: { error: 'for Ada Lovelace <ada@example.com>' } }),
  rateLimited: (retryAfter: number): Reply => ({
    status: 429,
    json: { error: 'for Ada Lovelace <ada@example.com>' },
    headers: { 'retry-after': String(retryAfter) },
  }),
};

/** The way out to a service of that name. */
const wayTo = (name: string, deps: Omit<OutgoingDeps, 'unavailable'>) =>
  outgoing({
    ...deps,
    unavailable: (why, retryAfter) =>
      new KatafractError('service_unavailable', `${name} does not serve: ${why}`, {
        status: 503,
        retryAfter,
      }),
  });

/** Virtual time in which every wait is over at once; only the time limits of tries never pass. */
function waitless() {
  let now = Date.now();
  const waits: number[] = [];
  return {
    waits,
    pass: (ms: number) => {
      now += ms;
    },
    clock: {
      now: () => now,
      after(ms: number, task: () => void) {
        if (ms === TIMEOUT_MS) return () => undefined;
        waits.push(ms);
        now += ms;
        setImmediate(task);
        return () => undefined;
      },
    },
  };
}

const opened: Served[] = [];
async function service(answer: () => Reply = () => ({ status: 200, json: { fine: true } })) {
  const served = await serve(WORDING, answer);
  opened.push(served);
  return served;
}
afterEach(async () => {
  for (const served of opened.splice(0)) await served.close();
});

async function failure(promise: Promise<unknown>): Promise<KatafractError> {
  const error = await promise.then(
    () => null,
    (reason: unknown) => reason,
  );
  if (!(error instanceof KatafractError)) throw new Error(`not a KatafractError: ${String(error)}`);
  return error;
}

describe('the way out to a service', () => {
  it('tries again when the service fails, waiting longer each time with jitter', async () => {
    const { url, faults, requests } = await service();
    const { clock, waits } = waitless();
    const call = wayTo('stripe', { clock, call: SETTINGS, random: () => 0.5 });
    faults.failing = 3;
    const response = await call.fetch(`${url}/thing`);
    expect(await response.json()).toEqual({ fine: true });
    expect(requests.map(({ status }) => status)).toEqual([500, 500, 500, 200]);
    expect(waits).toEqual([75, 150, 300]);
  });

  it('gives up after its tries, with nothing of what the service wrote', async () => {
    const { url, faults, requests } = await service();
    const { clock } = waitless();
    faults.outage = true;
    const error = await failure(wayTo('google', { clock, call: SETTINGS }).fetch(url));
    expect(error).toMatchObject({
      code: 'service_unavailable',
      status: 503,
      message: 'google does not serve: 503',
    });
    expect(error.cause).toBeUndefined();
    expect(requests).toHaveLength(4);
  });

  it('waits as long as Retry-After says, and no shorter', async () => {
    const { url, faults } = await service();
    const { clock, waits } = waitless();
    faults.rateLimited = 2;
    faults.retryAfter = 7;
    const response = await wayTo('stripe', { clock, call: SETTINGS, random: () => 0 }).fetch(url);
    expect(response.status).toBe(200);
    expect(waits).toEqual([7000, 7000]);
  });

  it('passes a Retry-After on that is longer than its patience', async () => {
    const { url, faults, requests } = await service();
    const { clock, waits } = waitless();
    faults.rateLimited = 1;
    faults.retryAfter = 120;
    const error = await failure(wayTo('apple', { clock, call: SETTINGS }).fetch(url));
    expect(error).toMatchObject({ code: 'service_unavailable', retryAfter: 120 });
    expect([requests.length, waits]).toEqual([1, []]);
  });

  it('takes any other answer as it is, the first time', async () => {
    const { url, requests } = await service(() => ({ status: 404, json: { code: 1 } }));
    const { clock } = waitless();
    const response = await wayTo('stripe', { clock, call: SETTINGS }).fetch(url);
    expect([response.status, await response.json(), requests.length]).toEqual([404, { code: 1 }, 1]);
  });

  it('ends a try at its time limit', async () => {
    const { url, faults, requests } = await service();
    faults.delayMs = 400;
    const outcomes: Outcome[] = [];
    const call = wayTo('stripe', {
      clock: { now: Date.now, after: (ms, task) => timer(ms, task) },
      call: { ...SETTINGS, timeoutMs: 30, tries: 2, backoffMs: 1 },
      observe: (outcome) => outcomes.push(outcome),
    });
    const error = await failure(call.fetch(url));
    expect(error.message).toBe('stripe does not serve: timed out');
    expect(outcomes).toEqual(['timed_out', 'timed_out']);
    expect(requests).toEqual([]);
  });

  it('tries again where nobody answers, and names the fault by its code', async () => {
    const served = await service();
    await served.close();
    opened.pop();
    const { clock, waits } = waitless();
    const error = await failure(wayTo('stripe', { clock, call: SETTINGS }).fetch(served.url));
    expect(error.message).toBe('stripe does not serve: ECONNREFUSED');
    expect(waits).toHaveLength(3);
  });

  it('follows no redirect: it would take the credentials along', async () => {
    const other = await service();
    const { url } = await service(() => ({ status: 302, headers: { location: other.url } }));
    const { clock } = waitless();
    const error = await failure(wayTo('stripe', { clock, call: SETTINGS }).fetch(url));
    expect(error.code).toBe('service_unavailable');
    expect(other.requests).toEqual([]);
  });

  it('asks a broken service no more until the circuit lets a probe through', async () => {
    const { url, faults, requests } = await service();
    const { clock, pass } = waitless();
    const outcomes: Outcome[] = [];
    const call = wayTo('stripe', {
      clock,
      call: { ...SETTINGS, tries: 1, circuit: { threshold: 3, openMs: 60_000, maxOpenMs: 60_000 } },
      observe: (outcome) => outcomes.push(outcome),
    });
    faults.outage = true;
    for (let asked = 0; asked < 5; asked++) await failure(call.fetch(url));
    expect(requests).toHaveLength(3);
    expect(outcomes).toEqual(['failed', 'failed', 'failed', 'circuit_open', 'circuit_open']);
    expect((await failure(call.fetch(url))).retryAfter).toBe(60);
    faults.outage = false;
    pass(60_000);
    expect((await call.fetch(url)).status).toBe(200);
    expect((await call.fetch(url)).status).toBe(200);
  });

  it('has one circuit for each service: one that is down costs the others nothing', async () => {
    const [down, up] = [await service(), await service()];
    const { clock } = waitless();
    const deps = { clock, call: { ...SETTINGS, circuit: { ...SETTINGS.circuit, threshold: 1 } } };
    const [first, second] = [wayTo('stripe', deps), wayTo('google', deps)];
    down.faults.outage = true;
    await failure(first.fetch(down.url));
    expect((await second.fetch(up.url)).status).toBe(200);
    expect(down.requests).toHaveLength(1);
  });
});

describe('Retry-After', () => {
  const now = Date.UTC(2026, 10, 22, 8, 0, 0);
  it.each([
    ['7', 7000],
    ['0', 0],
    ['Sun, 22 Nov 2026 08:00:09 GMT', 9000],
    ['Sun, 22 Nov 2026 07:00:00 GMT', 0],
    // as the App Store Server API writes it
    [String(now + 4000), 4000],
    ['soon', null],
    [null, null],
  ])('%s is %s ms', (header, expected) => {
    expect(retryAfterMs(header, now)).toBe(expected);
  });
});

function timer(ms: number, task: () => void): () => void {
  const handle = setTimeout(task, ms);
  return () => clearTimeout(handle);
}
