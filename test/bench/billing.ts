/**
 * (g) From a payment to the Sigil, and from a lapse to the peer gone from the kernel of its exit: each from the moment
 * that a store's message is sent to the controller, which reads the store again before it believes anything. The
 * worker runs at its default settings.
 */
import { makeKeys } from '../lab/device.ts';
import { waitFor } from '../lab/wait.ts';
import type { Payment, Shop } from '../stores/shop.ts';
import type { Fleet } from './bed.ts';
import type { Report } from './report.ts';
import { summarize } from './stats.ts';

/** Until a lapsed peer must be gone, in ms. */
const LAPSE_MS = 2000;

/** ms from the message to the Sigil; the app asks again as soon as it is told to wait. */
async function paymentToSigil(shop: Shop, { client, secret, paid }: Payment): Promise<number> {
  const started = performance.now();
  const told = shop.deliver(paid);
  const claim = () =>
    client.claim({ secret, waitMs: 0 }).catch((error: { code?: string }) => {
      if (error.code !== 'claim_pending') throw error;
      return null;
    });
  await waitFor('the Sigil', claim, { deadlineMs: 30_000, everyMs: 1 });
  const took = performance.now() - started;
  await told;
  return took;
}

/** ms from the message to the kernels of all exits of the peer without it. */
async function lapseToKernel(fleet: Fleet, shop: Shop, { client, paid }: Payment): Promise<number> {
  const keys = makeKeys();
  const peer = await client.provision({ publicKey: keys.publicKey, region: 'r0' });
  const exits = peer.exits.map(({ node }) => fleet.exit(node));
  const gone = async () => {
    const looks = exits.map(async (exit) =>
      (await fleet.place(exit)).do('kernelTable', { name: exit.tunnel }),
    );
    return (await Promise.all(looks)).every((table) => !(peer.publicKey in table));
  };
  await waitFor('the peer to be there', async () => !(await gone()));
  await shop.happens(paid.reference, 'failPayment');
  const started = performance.now();
  await shop.happens(paid.reference, 'hold');
  await waitFor('the peer to be gone', gone, { deadlineMs: 30_000, everyMs: 1 });
  return performance.now() - started;
}

export async function measureBilling(
  fleet: Fleet,
  shop: Shop,
  report: Report,
  rounds: number,
): Promise<void> {
  const toSigil: number[] = [];
  const toKernel: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const payment = await shop.pay();
    toSigil.push(await paymentToSigil(shop, payment));
    toKernel.push(await lapseToKernel(fleet, shop, payment));
  }
  const rows = [
    ['payment to Sigil', summarize(toSigil)],
    ['lapse to peer gone from the kernels of its exits', summarize(toKernel)],
  ] as const;
  report.table(
    '(g) from a message of the store',
    ['ms', 'count', 'median', 'p99', 'min', 'max'],
    rows.map(([name, at]) => [name, String(rounds), at.median, at.p99, at.min, at.max]),
  );
  report.record('g', { toSigil, toKernel });
  report.judge(
    'g',
    'lapse to peer gone from the kernel, at most',
    Math.max(...toKernel),
    'less',
    LAPSE_MS,
    'ms',
  );
}
