import { expect, test } from 'vitest';
import { IdleLook, type IdleMemory, NOTHING_SEEN, RECENT_SECONDS } from './idle.ts';

const START = 1_800_000_000_000;

/** Looks at peers, `[handshake's age in seconds or null, endpoint]` by key, at a moment by either clock. */
function look(
  before: IdleMemory,
  elapsed: number,
  peers: Readonly<Record<string, readonly [number | null, boolean]>>,
  step = 0,
) {
  const now = START + elapsed + step;
  const at = new IdleLook(before, { now, elapsed });
  for (const [key, [age, known]] of Object.entries(peers)) {
    at.see(key, age === null ? 0 : Math.floor((now - step) / 1000) - age, known);
  }
  return { idle: at.idle, recent: at.recent, memory: at.memory() };
}

test('a peer is forgotten once its session is dead, and not before; one that never came is left alone', () => {
  const seen = look(NOTHING_SEEN, 0, {
    live: [0, true],
    ageing: [RECENT_SECONDS - 1, true],
    dead: [RECENT_SECONDS + 1, true],
    never: [null, false],
  });
  expect(seen.idle).toEqual(['dead']);
  expect(seen.recent).toBe(2);
});

test('a handshake under way is left alone, and one that never ended is forgotten', () => {
  const first = look(NOTHING_SEEN, 0, { begun: [null, true] });
  expect(first.idle).toEqual([]);
  const second = look(first.memory, 5000, { begun: [null, true] });
  expect(second.idle).toEqual([]);
  expect(look(second.memory, 10_000, { begun: [null, true] }).idle).toEqual(['begun']);
  // it was done in between: another one begins anew
  const done = look(second.memory, 10_000, { begun: [1, true] });
  expect(look(done.memory, 20_000, { begun: [null, true] }).idle).toEqual([]);
});

test.each([3600_000, -3600_000])('a clock that steps by %i ms ends no session', (step) => {
  const peers = { live: [10, true], dead: [400, true] } as const;
  let { memory } = look(NOTHING_SEEN, 0, peers);
  for (let elapsed = 10_000; elapsed < 190_000; elapsed += 10_000) {
    const seen = look(memory, elapsed, peers, step);
    expect(seen.idle).toEqual([]);
    memory = seen.memory;
  }
  // by now who lives has shaken hands by the new time
  const stamp = Math.floor((START + 200_000 + step) / 1000);
  const later = new IdleLook(memory, { now: START + 200_000 + step, elapsed: 200_000 });
  later.see('live', stamp - 60, true);
  later.see('dead', stamp - step / 1000 - 400, true);
  expect(later.idle).toEqual(['dead']);
});
