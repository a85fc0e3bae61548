/** The helper over real files: what it takes up, what it refuses, and that nothing is done twice. */

import { spawnSync } from 'node:child_process';
import { linkSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Upkeep } from '@katafract/shared/upkeep';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { upkeepFiles } from '../host/upkeep.ts';
import { HelperBed } from '../testing/helper-bed.ts';
import { type MachineWish, planUpkeep, RETRY_MS, reportUpkeep, type UpkeepFacts } from '../upkeep/plan.ts';

let bed: HelperBed;
beforeEach(() => {
  bed = new HelperBed();
});
afterEach(() => bed.close());

describe('an update', () => {
  it('is installed, and done when the new version speaks', async () => {
    bed.leave('update', { version: '2.0.0' });
    bed.meanwhile = () => bed.leave('alive', { version: bed.installed });
    expect(await bed.help()).toBe(1);
    expect(bed.resultOf('update')).toMatchObject({ request: { version: '2.0.0' }, outcome: 'done' });
    expect(bed.commands.at(-1)).toMatch(
      /^apt-get install -y .*--allow-downgrades .*katafract-agent=2\.0\.0$/,
    );
    expect(await bed.help()).toBe(0);
  });

  it('that does not speak is taken back, also where the helper was killed while it waited', async () => {
    bed.leave('update', { version: '2.0.0' });
    bed.meanwhile = () => {
      throw new Error('killed');
    };
    await bed.help();
    // as a kill would leave it: the request is there, the new version is installed
    bed.leave('update', { version: '2.0.0' });
    await bed.memory.write('update', { version: '2.0.0', before: '1.0.0' });
    bed.meanwhile = () => bed.leave('alive', { version: '1.0.0' });
    await bed.help();
    expect(bed.resultOf('update')).toMatchObject({ outcome: 'failed', code: 'not_alive' });
    expect(bed.installed).toBe('1.0.0');
  });

  it('that cannot be installed leaves what was there', async () => {
    bed.leave('update', { version: '2.0.0' });
    bed.fails = (command) => command.endsWith('=2.0.0');
    await bed.help();
    expect(bed.resultOf('update')).toMatchObject({ outcome: 'failed', code: 'install_failed' });
    expect(bed.commands.some((command) => command.startsWith('apt-get update'))).toBe(true);
    expect(bed.installed).toBe('1.0.0');
  });
});

describe('a reboot', () => {
  const lease = 'c0ffee00-0000-4000-8000-000000000001';
  const reboots = () => bed.commands.filter((command) => command === 'systemctl reboot').length;

  it('is done once by a lease, whoever asks again', async () => {
    for (let asked = 0; asked < 3; asked++) {
      bed.leave('reboot', { lease, until: bed.now + 60_000 });
      await bed.help();
    }
    expect(reboots()).toBe(1);
    expect(bed.resultOf('reboot')).toMatchObject({ outcome: 'failed', code: 'lease_used' });
    bed.leave('reboot', { lease: 'c0ffee00-0000-4000-8000-000000000002', until: bed.now + 59_000 });
    await bed.help();
    expect(reboots()).toBe(1);
  });

  it('is not done when its time is over, or lies too far away', async () => {
    for (const until of [bed.now, bed.now + 10 * 3_600_000]) {
      bed.leave('reboot', { lease, until });
      await bed.help();
      expect(bed.resultOf('reboot')).toMatchObject({ outcome: 'failed', code: 'lease_over' });
    }
    expect(reboots()).toBe(0);
  });
});

describe('whatever else lies there', () => {
  it.each([
    ['a version that is an option', 'update', { version: '-o=x' }],
    ['one with a shell in it', 'update', { version: '1.0.0;reboot' }],
    ['one field too many', 'update', { version: '2.0.0', source: 'http://x' }],
    ['no JSON', 'reboot', 'now!'],
    ['a long text', 'reboot', `{"lease":"${'x'.repeat(5000)}"}`],
    ['a window that is none', 'updates', { fromMinute: -1, minutes: 60 }],
  ])('%s is refused', async (_, name, content) => {
    bed.leave(name, content);
    await bed.help();
    expect(bed.commands).toEqual([]);
    expect(bed.resultOf(name)).toMatchObject({ outcome: 'failed', code: 'request_refused' });
  });

  it.each([
    ['a link', (to: string, at: string) => symlinkSync(to, at)],
    ['a second name', (to: string, at: string) => linkSync(to, at)],
    ['a pipe', (_: string, at: string) => void spawnSync('mkfifo', [at])],
  ])('%s is not read', async (_, make) => {
    const real = join(bed.folder, 'real');
    writeFileSync(real, JSON.stringify({ version: '2.0.0' }));
    make(real, join(bed.state, 'requests', 'update'));
    await bed.help();
    expect(bed.commands).toEqual([]);
    expect(bed.resultOf('update')).toMatchObject({ outcome: 'failed', code: 'request_refused' });
    expect(readFileSync(real, 'utf8')).toContain('2.0.0');
  });

  it('a folder of requests that is a link is none', async () => {
    rmSync(join(bed.state, 'requests'), { recursive: true });
    symlinkSync(bed.folder, join(bed.state, 'requests'));
    await expect(bed.help()).rejects.toMatchObject({ code: 'request_refused' });
  });
});

describe('the window for updates', () => {
  it('is configured so that apt and systemd understand it', async () => {
    bed.leave('updates', { fromMinute: 1425, minutes: 60 });
    await bed.help();
    const root = bed.root;
    const file = (path: string) => readFileSync(join(root, path), 'utf8');
    expect(bed.commands).toEqual([
      'systemctl daemon-reload',
      'systemctl restart apt-daily.timer apt-daily-upgrade.timer',
    ]);
    const timer = (name: string) => file(`etc/systemd/system/${name}.timer.d/katafract.conf`);
    expect(timer('apt-daily')).toContain('OnCalendar=*-*-* 23:45:00 UTC\nRandomizedDelaySec=15min');
    expect(timer('apt-daily-upgrade')).toContain('OnCalendar=*-*-* 00:00:00 UTC\nRandomizedDelaySec=30min');
    const apt = spawnSync('apt-config', ['dump'], {
      encoding: 'utf8',
      env: { ...process.env, APT_CONFIG: join(root, 'etc/apt/apt.conf.d/52katafract') },
    });
    if (!apt.error) {
      expect(apt.stdout).toContain('Unattended-Upgrade::Automatic-Reboot "false";');
      expect(apt.stdout).toMatch(
        /Unattended-Upgrade::Origins-Pattern:: "origin=Debian,codename=\$\{distro_codename\}-security/,
      );
    }
    const calendar = spawnSync('systemd-analyze', ['calendar', '*-*-* 23:45:00 UTC'], { encoding: 'utf8' });
    if (!calendar.error) expect(calendar.status).toBe(0);
  });
});

describe("the agent's plan", () => {
  const none = { pending: null, result: null };
  const facts: UpkeepFacts = {
    requests: { update: none, reboot: none, updates: none, haven: none, ssh: none },
    lease: null,
    boot: 'a',
    rebootNeeded: false,
    alive: '1.0.0',
  };
  const seen = (change: Partial<UpkeepFacts> = {}, at = 0) => ({
    ...facts,
    ...change,
    version: '1.0.0',
    connected: true,
    now: at,
  });
  const wish = (upkeep: Upkeep, more: Partial<MachineWish> = {}): MachineWish => ({
    upkeep,
    haven: null,
    sshFromMesh: false,
    ...more,
  });
  const lease = 'c0ffee00-0000-4000-8000-000000000001';
  const reboot = { lease, until: 1000 };
  const update = (request: object, outcome: 'done' | 'failed') => ({
    ...facts.requests,
    update: { pending: null, result: { request, outcome, at: 0 } },
  });

  it('asks once, again after a failure that is long ago, and for a failed version that is wanted anew', () => {
    const wanted = { agentVersion: '2.0.0' };
    const ask = { do: 'request', name: 'update', request: { version: '2.0.0' } };
    expect(planUpkeep(wish(wanted), seen())).toEqual([ask]);
    const failed = { requests: update({ version: '2.0.0' }, 'failed') };
    expect(planUpkeep(wish(wanted), seen(failed))).toEqual([]);
    expect(reportUpkeep(wish(wanted), seen(failed)).agentUpdate).toBe('failed');
    expect(planUpkeep(wish(wanted), seen(failed, RETRY_MS.update))).toEqual([ask]);
    expect(planUpkeep(wish({ agentVersion: '1.0.0' }), seen(failed))).toEqual([
      { do: 'forget', name: 'update' },
    ]);
    expect(reportUpkeep(wish({ agentVersion: '1.0.0' }), seen()).agentUpdate).toBeUndefined();
  });

  it('remembers a lease before it asks, says that it was used after the boot, and never asks again', () => {
    expect(planUpkeep(wish({ reboot }), seen())).toEqual([
      { do: 'remember', lease, boot: 'a' },
      { do: 'request', name: 'reboot', request: reboot },
    ]);
    const asked = { lease: { lease, boot: 'a' } };
    expect(reportUpkeep(wish({ reboot }), seen(asked)).lease).toBeUndefined();
    const back = { ...asked, boot: 'b' };
    expect(planUpkeep(wish({ reboot }), seen(back))).toEqual([]);
    expect(reportUpkeep(wish({ reboot }), seen(back)).lease).toBe(lease);
    expect(planUpkeep(wish({ reboot }), seen({}, 1000))).toEqual([]);
  });

  it('over real files comes to rest', async () => {
    const machine = { boot: join(bed.folder, 'boot'), rebootRequired: join(bed.folder, 'required') };
    writeFileSync(machine.boot, 'boot-1\n');
    const port = upkeepFiles(bed.state, machine);
    const wanted = { agentVersion: '2.0.0', reboot, updates: { fromMinute: 60, minutes: 60 } };
    const plan = async () =>
      planUpkeep(wish(wanted), { ...(await port.look()), version: '1.0.0', connected: true, now: 0 });
    const actions = await plan();
    expect(actions.map((action) => action.do)).toEqual([
      'alive',
      'request',
      'request',
      'remember',
      'request',
    ]);
    for (const action of actions) await port.act(action);
    expect(await plan()).toEqual([]);
    bed.leave('update', 'rotten');
    expect(await plan()).toHaveLength(1);
  });
});
