import { generateKeyPair } from 'jose';
import { expect, test } from 'vitest';
import { createAgent } from './agent.ts';
import type { HostPort, LedgerDisk, SteadyClock } from './ports.ts';
import { CONFIG, NODE } from './testing/messages.ts';

const nothing = () => undefined;
const quiet = { info: nothing, warn: nothing, error: nothing };

/** A clock that a test turns. */
class Turned implements SteadyClock {
  #elapsed = 0;
  readonly #timers = new Set<{ at: number; task: () => void }>();
  now = () => 1_800_000_000_000 + this.#elapsed;
  elapsed = () => this.#elapsed;
  after(ms: number, task: () => void) {
    const timer = { at: this.#elapsed + ms, task };
    this.#timers.add(timer);
    return () => void this.#timers.delete(timer);
  }
  turn(ms: number) {
    this.#elapsed += ms;
    for (const timer of [...this.#timers]) {
      if (timer.at > this.#elapsed || !this.#timers.delete(timer)) continue;
      timer.task();
    }
  }
}

async function agent() {
  const clock = new Turned();
  const looks: (() => void)[] = [];
  let settled = 0;
  let held = false;
  const host: HostPort = {
    async inspect() {
      if (held) await new Promise<void>((resolve) => looks.push(resolve));
      return {
        settle: async () => {
          settled++;
          return { ready: true, rules: 'ok', repairs: 0, failures: 0 };
        },
      };
    },
  };
  const disk: LedgerDisk = {
    load: async () => ({ snapshot: null, journal: '' }),
    append: async () => undefined,
    writeSnapshot: async () => undefined,
    replaceJournal: async () => undefined,
  };
  const { publicKey } = await generateKeyPair('EdDSA', { crv: 'Ed25519' });
  const telemetry = {
    cpu: 0,
    memoryUsed: 0,
    memoryTotal: 0,
    load: 0,
    uptimeSeconds: 0,
    rxBytes: 0,
    txBytes: 0,
  };
  const made = createAgent(
    {
      clock,
      random: () => 0.5,
      log: quiet,
      peers: { dump: async () => [{ publicKey: '', listenPort: 0 }], set: async () => undefined },
      host,
      disk,
      uplink: { send: nothing },
      telemetry: { read: async () => telemetry },
    },
    {
      node: NODE,
      stateKey: publicKey,
      boot: 'abcdefgh',
      version: '1.0.0',
      enrolledLineage: 1 as never,
      enrolledConfig: CONFIG,
    },
  );
  await made.start();
  return {
    made,
    clock,
    settled: () => settled,
    hold(is: boolean) {
      held = is;
    },
    release: () => looks.splice(0).forEach((go) => void go()),
  };
}

test('a change of the host is looked at when it is heard of, and not more than once a second', async () => {
  const { made, clock, settled } = await agent();
  expect(settled()).toBe(1);
  made.onHostChanged();
  await made.idle();
  expect(settled()).toBe(2);
  for (let at = 0; at < 100; at++) made.onHostChanged();
  await made.idle();
  expect(settled()).toBe(2);
  clock.turn(1000);
  await made.idle();
  expect(settled()).toBe(3);
  clock.turn(1000);
  await made.idle();
  expect(settled()).toBe(3);
  await made.stop();
});

test('a change during a look is looked at again', async () => {
  const { made, clock, settled, hold, release } = await agent();
  hold(true);
  made.onHostChanged();
  clock.turn(1000);
  made.onHostChanged();
  hold(false);
  release();
  await made.idle();
  expect(settled()).toBe(3);
  await made.stop();
});
