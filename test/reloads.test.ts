/**
 * While rules change there is no moment without them: a thousand reloads, the way the agent makes them, under a device
 * that pings without a pause and one that scans without a pause. What is forbidden never arrives, what is allowed never
 * gets lost.
 */
import { planFirewall } from '@katafract/agent/plan/firewall';
import { TABLE } from '@katafract/agent/plan/table';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Bed, FAMILIES, type Family, tool, WEB } from './isolation/bed.ts';
import { Scan, type ScanTarget } from './isolation/scan.ts';

/** In each family: a thousand in all. */
const RELOADS = 500;

let bed: Bed;
beforeAll(async () => {
  bed = await Bed.make();
});
afterAll(() => bed.close());

/** The text that the agent would restore on a host whose chains have all lost their rules: everything is written anew. */
async function reload(family: Family): Promise<string> {
  const saved = await bed.exit.exec(`${tool(family)}-save`);
  const emptied = saved.replaceAll(/^-A KATAFRACT-.*\n/gm, '');
  const text = planFirewall(emptied, Bed.context(family), TABLE);
  if (text === null) throw new Error('nothing to reload');
  return text;
}

test(`${RELOADS} reloads in each family at once: no forbidden packet, no lost ping`, async () => {
  await bed.enforce(TABLE);
  const files = FAMILIES.map((family) => `${bed.exit.stateDir}/reload-${family}`);
  for (const [at, family] of FAMILIES.entries()) {
    await bed.exit.exec('sh', ['-c', `cat >${files[at]}`], { input: await reload(family) });
  }
  const before = await bed.exit.firewall();
  const pings = await Promise.all(FAMILIES.map((family) => bed.bob.device.startPing(WEB[family], 10)));
  const { inet: at, exit, artemis } = bed;
  const scan = await Scan.start(bed.alice.device, [
    ...FAMILIES.flatMap((family): ScanTarget[] => [
      { address: bed.carol.address[family], at: bed.carol.device },
      { address: bed.meshHost[family], at: artemis },
      { address: bed.public[family], at: exit, socket: true },
      { address: bed.mesh[family], at: exit, socket: true },
    ]),
    ...['10.66.0.1', '192.168.7.7', 'fd77::1'].map((address) => ({ address, at })),
  ]);
  const loop = `for round in $(seq ${RELOADS}); do "$1" --noflush <"$2" || exit 1; done`;
  await Promise.all(
    FAMILIES.map((family, index) =>
      exit.exec('sh', ['-c', loop, 'reloads', `${tool(family)}-restore`, files[index] ?? ''], {
        timeoutMs: 300_000,
      }),
    ),
  );
  const { sent, arrived } = await scan.stop();
  const reports = await Promise.all(pings.map((ping) => ping.stop()));
  expect(arrived).toEqual({});
  expect(sent).toBeGreaterThan(RELOADS);
  for (const report of reports) {
    expect(report.lost).toEqual([]);
    expect(report.sent).toBeGreaterThan(RELOADS);
  }
  expect(await bed.exit.firewall()).toBe(before);
});
