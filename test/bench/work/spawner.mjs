/**
 * Whatever the bench measures that is a program started from Node: `wg` on an exit, `ssh` on the controller's host.
 * Plain JavaScript without packages, because a start costs what the starting process weighs (fork copies its page
 * tables): from a bare Node it is the cheapest that it can be. Requests come over Node's IPC channel; see place.ts.
 *
 * SSH pushes the same `wg set` in three ways: a cold session each time; a command over a connection that is kept open
 * (ControlPersist), which still starts a session and a shell each time; and lines to one shell that is kept open.
 */
import { execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { watch } from 'node:fs';

/** An interface beside the agent's, of the same kind: what is done to it disturbs no table that the agent keeps. */
const BARE = 'kfbench0';
/** Outside of the pool, so that no peer of the fleet has it. */
const ALLOWED = '10.255.255.1/32,fd00:bead::1/128';

let target;
let shell;

function run(program, args, env = process.env) {
  return new Promise((resolve, reject) => {
    execFile(program, args, { env }, (error) => (error ? reject(error) : resolve()));
  });
}

/** ms of each of `count` pushes of one peer into an empty table. */
async function times(count, push, takeBack) {
  const taken = [];
  for (let done = 0; done < count; done++) {
    const key = randomBytes(32).toString('base64');
    const started = performance.now();
    await push(['set', BARE, 'peer', key, 'allowed-ips', ALLOWED]);
    taken.push(performance.now() - started);
    await takeBack(['set', BARE, 'peer', key, 'remove']);
  }
  return taken;
}

async function makeBare() {
  await run('ip', ['link', 'add', BARE, 'type', 'wireguard']).catch(startDaemon);
  await run('ip', ['link', 'set', BARE, 'up']);
}

/** wireguard-go where the kernel has no WireGuard: as a child, which ends with its interface or with this process. */
function startDaemon() {
  return new Promise((resolve, reject) => {
    const sockets = '/run/wireguard';
    const watcher = watch(sockets, (_, name) => name === `${BARE}.sock` && settle(() => resolve()));
    const daemon = spawn('wireguard-go', ['-f', BARE], { env: { ...process.env, LOG_LEVEL: 'error' } });
    let complaint = '';
    daemon.stderr.on('data', (text) => {
      complaint += text;
    });
    daemon.stdout.resume();
    function settle(how) {
      watcher.close();
      how(new Error(`wireguard-go ended: ${complaint}`));
    }
    daemon.once('error', reject);
    daemon.once('exit', () => settle(reject));
  });
}

const removeBare = () => run('ip', ['link', 'del', BARE]);
const wg = (args) => run('wg', args);

/** ms of one `wg setconf` of a whole file on an interface made for it. */
async function wgSetconf({ file }) {
  await makeBare();
  const started = performance.now();
  await wg(['setconf', BARE, file]);
  const ms = performance.now() - started;
  await removeBare();
  return ms;
}

function sshOptions() {
  const settings = {
    BatchMode: 'yes',
    IdentitiesOnly: 'yes',
    IdentityFile: target.key,
    UserKnownHostsFile: target.knownHosts,
    StrictHostKeyChecking: 'yes',
    GSSAPIAuthentication: 'no',
    LogLevel: 'ERROR',
    ControlPersist: '600',
  };
  const set = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  return ['-q', '-F', 'none', '-p', String(target.port), ...set, '-l', 'root'];
}

function ssh(args) {
  return new Promise((resolve, reject) => {
    const child = spawn('ssh', [...sshOptions(), ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    let complaint = '';
    child.stderr.on('data', (text) => {
      complaint += text;
    });
    child.on('error', reject);
    child.on('exit', (code) => {
      child.stderr.destroy(); // a connection that stays open in the background would keep it
      if (code === 0) resolve();
      else reject(new Error(`ssh ${args.at(-1)} ended with ${code}: ${complaint}`));
    });
  });
}

const cold = (args) => ssh(['-o', 'ControlPath=none', target.host, 'wg', ...args]);
const kept = (args) => ssh(['-o', 'ControlMaster=no', '-S', target.control, target.host, 'wg', ...args]);

/** Sends one line to the open shell and waits for what it prints after it. */
function tell(args) {
  return new Promise((resolve, reject) => {
    shell.stdout.once('data', (text) =>
      String(text).trim() === '0' ? resolve() : reject(new Error(`the shell said ${text}`)),
    );
    shell.stdin.write(`wg ${args.join(' ')}; echo $?\n`);
  });
}

/** Opens what is kept open, and proves that it works. */
async function openSsh(to) {
  target = to;
  await ssh(['-M', '-S', to.control, '-fN', to.host]);
  shell = spawn('ssh', [...sshOptions(), '-o', 'ControlPath=none', '-T', to.host, 'exec /bin/sh'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  await tell(['--version', '>/dev/null']);
}

async function closeSsh() {
  shell.stdin.end();
  await ssh(['-S', target.control, '-O', 'exit', target.host]);
}

const operations = {
  makeBare,
  removeBare,
  wgSet: ({ count }) => times(count, wg, wg),
  wgSetconf,
  openSsh,
  sshCold: ({ count }) => times(count, cold, tell),
  sshKept: ({ count }) => times(count, kept, tell),
  sshShell: ({ count }) => times(count, tell, tell),
  closeSsh,
};

process.on('message', async ({ id, operation, argument }) => {
  try {
    process.send({ id, result: await operations[operation](argument) });
  } catch (error) {
    process.send({ id, error: error.stack ?? String(error) });
  }
});
process.on('disconnect', () => process.exit(0));
process.send('ready');
