/**
 * (h) Requests a second with a Sigil and the proof of its device, against the same route without a look at either: the
 * same process, database and callers, in turn. Proofs are made before the clock runs, since devices make their own.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type DeviceKey, generateDeviceKey, makeProof } from '@katafract/shared/dpop';
import { Program } from '../lab/process.ts';
import type { TestPostgres } from '../postgres.ts';
import { NODE_TYPESCRIPT } from './place.ts';
import type { Report } from './report.ts';
import { median } from './stats.ts';
import { Connection } from './work/http.ts';

const SERVER = fileURLToPath(new URL('open-door.ts', import.meta.url));
const ROUTE = '/v1/peers';
const PUBLIC_URL = 'http://api.bench';
const CALLERS = 32;

export interface VerifiedOptions {
  readonly rounds: number;
  /** In a round, on each side. */
  readonly requests: number;
}

interface Doors {
  readonly verified: string;
  readonly open: string;
  readonly sigil: string;
}

/** Requests a second until all of `headers` were sent, each once. */
async function perSecond(url: string, headers: readonly Readonly<Record<string, string>>[]): Promise<number> {
  const connections = await Promise.all(Array.from({ length: CALLERS }, () => Connection.open(url)));
  let next = 0;
  const started = performance.now();
  await Promise.all(
    connections.map(async (connection) => {
      for (let at = next++; at < headers.length; at = next++) {
        const { status, body } = await connection.send('GET', ROUTE, headers[at] ?? {});
        if (status !== 200) throw new Error(`${status} ${body}`);
      }
    }),
  );
  const took = (performance.now() - started) / 1000;
  for (const connection of connections) connection.close();
  return headers.length / took;
}

function proofs(key: DeviceKey, sigil: string, count: number) {
  const one = async () => ({
    authorization: `DPoP ${sigil}`,
    dpop: await makeProof(key, {
      method: 'GET',
      url: `${PUBLIC_URL}${ROUTE}`,
      now: Date.now(),
      token: sigil,
    }),
  });
  return Promise.all(Array.from({ length: count }, one));
}

export async function measureVerified(
  postgres: TestPostgres,
  report: Report,
  { rounds, requests }: VerifiedOptions,
): Promise<void> {
  const database = await postgres.createDatabase();
  const folder = mkdtempSync(join(tmpdir(), 'katafract-bench-'));
  const key = await generateDeviceKey();
  const [command = '', ...args] = [...NODE_TYPESCRIPT, SERVER];
  const server = new Program(command, args, join(folder, 'server.log'), {
    env: {
      DATABASE_URL: database.url,
      KATAFRACT_DATA_DIR: folder,
      KATAFRACT_API_LISTEN: '127.0.0.1:0',
      KATAFRACT_MQTT_LISTEN: '127.0.0.1:0',
      KATAFRACT_PUBLIC_URL: PUBLIC_URL,
      KATAFRACT_RATE_LIMIT_PER_MINUTE: '0',
      KATAFRACT_ANONYMOUS_LIMIT_PER_MINUTE: '0',
      DEVICE: key.jkt,
    },
  });
  try {
    const [, json = ''] = await server.waitFor(/^listening (.*)$/m);
    const doors = JSON.parse(json) as Doors;
    const open: number[] = [];
    const verified: number[] = [];
    const token = { authorization: `DPoP ${doors.sigil}` };
    for (let round = -1; round < rounds; round++) {
      const shown = await proofs(key, doors.sigil, requests);
      const without = await perSecond(doors.open, Array(requests).fill(token));
      const withProof = await perSecond(doors.verified, shown);
      if (round < 0) continue; // to warm up
      open.push(without);
      verified.push(withProof);
    }
    const share = median(verified.map((value, round) => value / (open[round] ?? Number.NaN)));
    report.table(
      `(h) GET ${ROUTE} a second, ${CALLERS} callers`,
      ['without verification', 'with Sigil and proof', 'share of it'],
      [[median(open), median(verified), share]],
    );
    report.record('h', { open, verified });
    report.judge('h', 'verified requests, of the same route unverified', share, 'more', 0.5);
  } finally {
    await server.stop();
    await database.drop();
    rmSync(folder, { recursive: true });
  }
}
