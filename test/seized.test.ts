/**
 * Who seizes an exit, or dumps it, learns nothing of clients that have gone quiet: their endpoints and the times of their
 * handshakes have left the kernel (EXITS). A real tunnel, and the agent's own look, three minutes later by its clock.
 */

import { type Held, PeerTable } from '@katafract/agent/desired/table';
import { peerTable, wireguard } from '@katafract/agent/host/wireguard';
import { RECENT_SECONDS } from '@katafract/agent/plan/idle';
import { tunnelOfAddress } from '@katafract/agent/plan/tunnels';
import { Reconciler } from '@katafract/agent/reconcile';
import { systemClock } from '@katafract/shared/clock';
import { setDigest } from '@katafract/shared/digest';
import type { Generation, Ipv4, Ipv6, Lineage } from '@katafract/shared/units';
import { PublicKey } from '@katafract/shared/units';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Bed, type Client, CONFIG, GATEWAY } from './isolation/bed.ts';
import { waitFor } from './lab/wait.ts';

let bed: Bed;
beforeAll(async () => {
  bed = await Bed.make();
});
afterAll(() => bed.close());

const nothing = () => undefined;
const quiet = { info: nothing, warn: nothing, error: nothing };

/** The agent's reconciling on the exit of the bed, by a clock that is ahead. */
function reconciler(clients: readonly Client[], aheadSeconds: number): Reconciler {
  const exec = {
    run: async (
      program: string,
      args: readonly string[],
      options: { onOutput?: (text: string) => void } = {},
    ) => {
      const output = await bed.exit.exec(program, args);
      options.onOutput?.(output);
      return output;
    },
  };
  const rows = clients.map(({ keys, address }) => ({
    publicKey: PublicKey.parse(keys.publicKey),
    ipv4: address[4] as Ipv4,
    ipv6: address[6] as Ipv6,
  }));
  const held: Held = {
    lineage: 1 as Lineage,
    generation: 1 as Generation,
    digest: setDigest(rows),
    config: null,
    peers: new PeerTable(rows),
  };
  const ready = { ready: true, rules: 'ok', repairs: 0, failures: 0 } as const;
  const host = { inspect: async () => ({ settle: async () => ready }) };
  const clock = { ...systemClock, now: () => Date.now() + aheadSeconds * 1000 };
  const ports = {
    clock,
    peers: peerTable([wireguard(exec, 'wg0', '')], tunnelOfAddress(CONFIG)),
    host,
    log: quiet,
  };
  return new Reconciler(
    ports,
    () => held,
    () => CONFIG,
  );
}

/** The kernel's peers by their keys: wireguard-go tells them in any order. */
const dump = async () =>
  (await bed.exit.peers())
    .map(({ publicKey, endpoint, latestHandshake, allowedIps }) => ({
      publicKey,
      endpoint,
      latestHandshake,
      allowedIps,
    }))
    .sort((one, other) => (one.publicKey < other.publicKey ? -1 : 1));

test('a dump shows where nobody is; the peers are the same, and the tunnel comes back by itself', async () => {
  const clients = [bed.alice, bed.bob];
  const before = await dump();
  expect(before.every(({ endpoint, latestHandshake }) => endpoint !== '(none)' && latestHandshake > 0)).toBe(
    true,
  );

  // sessions that live are left alone
  const soon = reconciler(clients, RECENT_SECONDS - 60);
  expect(await soon.applyView(await soon.look())).toMatchObject({ recent: 2, forgotten: 0, failures: 0 });
  expect(await dump()).toEqual(before);

  const later = reconciler(clients, RECENT_SECONDS + 60);
  const pass = await later.applyView(await later.look());
  expect(pass).toMatchObject({ recent: 0, forgotten: 2, repairs: 0, failures: 0, kernel: { peers: 2 } });
  const after = await dump();
  expect(after).toEqual(before.map((row) => ({ ...row, endpoint: '(none)', latestHandshake: 0 })));
  for (const { outside } of clients)
    expect(await bed.exit.exec('wg', ['show', 'wg0'])).not.toContain(outside[4]);
  // and once is enough
  expect(await later.applyView(await later.look())).toMatchObject({ forgotten: 0 });

  // its session would be dead by now; this one is given up after 15 s without an answer
  await waitFor('the tunnel', () => bed.alice.device.ping(GATEWAY[4]));
  expect(
    (await dump()).filter(({ endpoint }) => endpoint !== '(none)').map(({ publicKey }) => publicKey),
  ).toEqual([bed.alice.keys.publicKey]);
});
