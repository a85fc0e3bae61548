/** The embedded database through the accidents it must survive: real processes, real SIGKILL. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { chmod, cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { waitFor } from '../../../test/lab/wait.ts';
import { connect } from './db.ts';
import { startEmbeddedPostgres } from './embedded-postgres.ts';
import { createLogger } from './log.ts';
import { findBinaries, packagedNative } from './postgres-binaries.ts';

const log = createLogger('silent');
/** A process that has ended but was not reaped yet has no command line. */
const alive = (pid: number) => existsSync(`/proc/${pid}`) && readFileSync(`/proc/${pid}/cmdline`).length > 0;
/** Who is not root runs Postgres as himself, and can reach what he can reach. */
const root = process.getuid?.() === 0;
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp('/tmp/kf-pg-');
  await chmod(folder, 0o711);
});
afterAll(() => rm(folder, { recursive: true }));

/** A controller in a process of its own, as far as the database is concerned. */
async function owner(dataDir: string): Promise<{ kill: () => Promise<void>; pid: number; url: string }> {
  const script = join(folder, 'owner.mts');
  await writeFile(
    script,
    `import { startEmbeddedPostgres } from ${JSON.stringify(new URL('./embedded-postgres.ts', import.meta.url).href)};
     import { createLogger } from ${JSON.stringify(new URL('./log.ts', import.meta.url).href)};
     const server = await startEmbeddedPostgres({ dataDir: ${JSON.stringify(dataDir)}, log: createLogger('silent') });
     console.log(JSON.stringify({ pid: server.pid(), url: server.url }));`,
  );
  const child = spawn(process.execPath, ['--import', 'tsx', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
    cwd: new URL('../../..', import.meta.url).pathname,
  });
  const { value } = await createInterface({ input: child.stdout })[Symbol.asyncIterator]().next();
  const kill = async () => {
    child.kill('SIGKILL');
    await once(child, 'exit');
  };
  return { kill, ...JSON.parse(value) };
}

describe('the embedded Postgres', () => {
  it('keeps what was committed through a killed controller and a killed postmaster', async () => {
    const dataDir = join(folder, 'a');
    const first = await owner(dataDir);
    const sql = connect(first.url, { max: 1 });
    await sql`create table kept (at text)`;
    await sql`insert into kept values ('before')`;
    await sql.end();

    await expect(startEmbeddedPostgres({ dataDir, log })).rejects.toMatchObject({ code: 'embedded_in_use' });
    expect(alive(first.pid), 'the refused one leaves the owner alone').toBe(true);
    await first.kill();
    expect(alive(first.pid), 'a killed controller leaves its Postgres behind').toBe(true);

    const server = await startEmbeddedPostgres({ dataDir, log });
    expect(alive(first.pid)).toBe(false);
    const again = connect(server.url, { max: 1 });
    expect(await again`select at from kept`).toEqual([{ at: 'before' }]);
    expect(await again`show fsync`).toEqual([{ fsync: 'on' }]);

    const killed = server.pid();
    process.kill(killed, 'SIGKILL');
    await waitFor('another postmaster', () => server.pid() !== killed && alive(server.pid()));
    await waitFor('the data', async () => (await again`select at from kept`).length === 1);
    await again.end();
    const last = server.pid();
    await server.stop();
    expect(alive(last)).toBe(false);
  });

  it.skipIf(!root)('says which directory its user cannot reach', async () => {
    const closed = join(folder, 'closed');
    await mkdir(closed, { mode: 0o700 });
    const start = startEmbeddedPostgres({ dataDir: join(closed, 'data'), log });
    await expect(start).rejects.toMatchObject({ code: 'embedded_unreachable' });
  });

  it.skipIf(!root)('runs from a copy where its user cannot reach the packaged programs', async () => {
    const checkout = join(folder, 'checkout');
    await mkdir(checkout, { mode: 0o700 });
    const packaged = join(checkout, 'native');
    await cp(packagedNative(), packaged, { recursive: true, verbatimSymlinks: true });
    await cp(join(packagedNative(), '../package.json'), join(checkout, 'package.json'));
    const binaries = await findBinaries(join(folder, 'copies'), log, packaged);
    expect(await binaries.run('pg_ctl', ['--version'])).toMatch(/PostgreSQL\) 17/);
  });
});
