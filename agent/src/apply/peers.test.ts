import { KatafractError } from '@katafract/shared/errors';
import { expect, test } from 'vitest';
import type { PeerBatch, PeerTablePort } from '../ports.ts';
import { key, peers } from '../testing/messages.ts';
import { applyPeers } from './peers.ts';

/** A kernel that refuses batches with any of these keys in them, having taken the rows before. */
function kernel(bad: readonly number[], code = 'command_failed') {
  const refused = new Set<string>(bad.map(key));
  const taken: string[] = [];
  const batches: PeerBatch[] = [];
  const port: PeerTablePort = {
    dump: () => Promise.resolve([]),
    set(batch) {
      batches.push(batch);
      for (const name of [...batch.remove, ...batch.set.map((row) => row.publicKey)]) {
        if (refused.has(name)) return Promise.reject(new KatafractError(code, 'no'));
        taken.push(name);
      }
      return Promise.resolve();
    },
  };
  return { port, taken, batches };
}

test('a batch is one command', async () => {
  const { port, batches } = kernel([]);
  const batch = { remove: [key(1)], set: peers(2, 900) };
  expect((await applyPeers(port, batch)).failed.size).toBe(0);
  expect(batches).toEqual([batch]);
});

test('nothing to do is no command', async () => {
  const { port, batches } = kernel([]);
  await applyPeers(port, { remove: [], set: [] });
  expect(batches).toEqual([]);
});

test('rows at fault are found, and all others get in, removals first', async () => {
  const { port, taken } = kernel([17, 600, 1003]);
  const { failed } = await applyPeers(port, {
    remove: [key(1001), key(1002), key(1003)],
    set: peers(1, 1000),
  });
  expect(failed).toEqual(new Set([key(17), key(600), key(1003)]));
  expect(new Set(taken).size).toBe(1000);
  expect(taken.lastIndexOf(key(1002))).toBeLessThan(taken.indexOf(key(1)));
});

test('a kernel that refuses everything costs a bounded number of commands', async () => {
  const all = Array.from({ length: 5000 }, (_, index) => index + 1);
  const { port, batches } = kernel(all);
  const { failed } = await applyPeers(port, { remove: [], set: peers(1, 5000) });
  expect(failed.size).toBe(5000);
  expect(batches.length).toBeLessThanOrEqual(64);
});

test('a missing interface is not tried again', async () => {
  const { port, batches } = kernel([1], 'tunnel_missing');
  const applied = await applyPeers(port, { remove: [], set: peers(1, 100) });
  expect(applied).toMatchObject({ tunnelMissing: true });
  expect(applied.failed.size).toBe(100);
  expect(batches).toHaveLength(1);
});
