// @ts-nocheck
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { Network } from './lab/lab.ts';
import { waitFor } from './lab/wait.ts';
import { Container } from './machine/container.ts';
import { ServiceController } from './machine/service-controller.ts';
import { system } from './machine/systems.ts';
const BARE = '/var/cache/katafract-test/bare-trial';
const sh = (c, ...a) => execFileSync(c, a, { stdio: 'inherit' });
if (!existsSync(BARE)) sh('debootstrap', '--variant=minbase', '--include=systemd,systemd-sysv,ca-certificates', 'bookworm', BARE);
const network = await Network.start({ exits: [{ name: 'fra-1', region: 'fra' }], devices: 1 });
let machine, controller;
try {
  const exit = network.exit('fra-1');
  const root = join(network.folder, 'exit.root');
  sh('cp', '-a', '--reflink=auto', BARE, root);
  copyFileSync('/tmp/debs/katafract-agent_0.1.0_amd64.deb', join(root, 'root/katafract-agent_0.1.0_amd64.deb'));
  console.log('## before:', execFileSync('chroot', [root, 'dpkg-query', '-W', '-f', '${Package} '], { encoding: 'utf8' }).split(' ').length, 'packages; node?', existsSync(join(root, 'usr/bin/node')));
  sh('chroot', root, 'apt-get', 'update', '-q');
  console.log('$ apt-get install -y ./katafract-agent_0.1.0_amd64.deb wireguard-go');
  sh('chroot', root, 'sh', '-c', 'cd /root && DEBIAN_FRONTEND=noninteractive apt-get install -q -y ./katafract-agent_0.1.0_amd64.deb wireguard-go | tail -5');
  machine = new Container({ name: exit.namespace, root, namespace: exit.namespace, console: join(network.folder, 'c1') });
  controller = new ServiceController(network.artemis, await system(network.artemis, network.folder));
  await Promise.all([machine.boot(), controller.machine.boot()]);
  mkdirSync(join(controller.machine.root, 'root/debs'), { recursive: true });
  copyFileSync('/tmp/debs/katafract-controller_0.1.0_amd64.deb', join(controller.machine.root, 'root/debs/c.deb'));
  await controller.machine.exec('dpkg', ['--install', '/root/debs/c.deb']);
  await controller.configure();
  await controller.ready();
  await controller.operate('POST', '/v1/admin/regions', { id: 'fra', name: 'Frankfurt', country: 'DE', latitude: 50.1, longitude: 8.7 });
  const token = await controller.joinToken('fra-1', exit.endpoint);
  const script = `echo "$TOKEN" | (read -rs KATAFRACT_JOIN_TOKEN && export KATAFRACT_JOIN_TOKEN; katafract-agent enroll --controller ${controller.meshUrl}); systemctl start katafract-agent; katafract-agent verify | tail -4; echo verify=$?; katafract-agent status`;
  console.log(await machine.exec('bash', ['-c', script], { env: { TOKEN: token } }));
  await waitFor('the node', async () => (await controller.node('fra-1'))?.connected === true);
  console.log('connected', JSON.stringify(await controller.node('fra-1')).slice(0, 300));
} finally {
  await machine?.cut(); await controller?.machine.cut(); await network.close();
}
